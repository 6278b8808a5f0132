// The Langevin step compiled for AVX-512 (F, BW, DQ, VL).
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/langevin/cpu_dispatch.h"

#if TFGEN_X86_KERNELS
#include <immintrin.h>

// After the system headers: what they define must stay runnable everywhere, since the linker may keep this file's copy.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")

#define TFGEN_ISA avx512
#define TFGEN_LANES 16
#include "kernels/langevin/cpu_langevin.h"

namespace tfgen {
LangevinKernels avx512_langevin() { return avx512::langevin_kernels(); }
}  // namespace tfgen
#endif  // TFGEN_X86_KERNELS
