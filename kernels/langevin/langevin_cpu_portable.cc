// The Langevin step compiled for any processor (128-bit vectors, which the compiler maps to SSE2 or NEON).
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/langevin/cpu_dispatch.h"

#define TFGEN_ISA portable
#define TFGEN_LANES 4
#include "kernels/langevin/cpu_langevin.h"

namespace tfgen {
LangevinKernels portable_langevin() { return portable::langevin_kernels(); }
}  // namespace tfgen
