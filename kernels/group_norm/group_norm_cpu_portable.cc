// Group normalisation compiled for any processor (128-bit vectors, which the compiler maps to SSE2 or NEON).
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/group_norm/cpu_dispatch.h"

#define TFGEN_ISA portable
#define TFGEN_LANES 4
#include "kernels/group_norm/cpu_group_norm.h"

namespace tfgen {
GroupNormKernels portable_group_norm() { return portable::group_norm_kernels(); }
}  // namespace tfgen
