// The Langevin step compiled for AVX2 and FMA.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/langevin/cpu_dispatch.h"

#if TFGEN_X86_KERNELS
#include <immintrin.h>

// After the system headers: what they define must stay runnable everywhere, since the linker may keep this file's copy.
#pragma GCC target("avx2,fma")

#define TFGEN_ISA avx2
#define TFGEN_LANES 8
#include "kernels/langevin/cpu_langevin.h"

namespace tfgen {
LangevinKernels avx2_langevin() { return avx2::langevin_kernels(); }
}  // namespace tfgen
#endif  // TFGEN_X86_KERNELS
