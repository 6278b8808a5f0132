// The CPU kernels compiled for AVX2 with FMA.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/blocksparse/cpu_dispatch.h"

#if TFGEN_X86_KERNELS
#include <immintrin.h>

// After the system headers: what they define must stay runnable everywhere, since the linker may keep this file's copy.
#pragma GCC target("avx2,fma")

#define TFGEN_ISA avx2
#define TFGEN_LANES 8
#include "kernels/blocksparse/cpu_kernels.h"

namespace tfgen {
CpuKernels avx2_kernels() { return avx2::kernels(); }
}  // namespace tfgen
#endif  // TFGEN_X86_KERNELS
