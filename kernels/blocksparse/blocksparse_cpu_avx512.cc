// The CPU kernels compiled for AVX-512 (F, BW, DQ, VL).
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/blocksparse/cpu_dispatch.h"

#if TFGEN_X86_KERNELS
#include <immintrin.h>

// After the system headers: what they define must stay runnable everywhere, since the linker may keep this file's copy.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")

#define TFGEN_ISA avx512
#define TFGEN_LANES 16
#include "kernels/blocksparse/cpu_kernels.h"

namespace tfgen {
CpuKernels avx512_kernels() { return avx512::kernels(); }
}  // namespace tfgen
#endif  // TFGEN_X86_KERNELS
