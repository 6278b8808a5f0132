// Concatenated ELU compiled for any processor (128-bit vectors, which the compiler maps to SSE2 or NEON).
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/concat_elu/cpu_dispatch.h"

#define TFGEN_ISA portable
#define TFGEN_LANES 4
#include "kernels/concat_elu/cpu_concat_elu.h"

namespace tfgen {
ConcatEluKernels portable_concat_elu() { return portable::concat_elu_kernels(); }
}  // namespace tfgen
