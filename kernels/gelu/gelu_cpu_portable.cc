// GELU compiled for any processor (128-bit vectors, which the compiler maps to SSE2 or NEON).
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/gelu/cpu_dispatch.h"

#define TFGEN_ISA portable
#define TFGEN_LANES 4
#include "kernels/gelu/cpu_gelu.h"

namespace tfgen {
GeluKernels portable_gelu() { return portable::gelu_kernels(); }
}  // namespace tfgen
