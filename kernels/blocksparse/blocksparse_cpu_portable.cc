// The CPU kernels compiled for any processor (128-bit vectors, which the compiler maps to SSE2 or NEON).
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/blocksparse/cpu_dispatch.h"

#define TFGEN_ISA portable
#define TFGEN_LANES 4
#include "kernels/blocksparse/cpu_kernels.h"

namespace tfgen {
CpuKernels portable_kernels() { return portable::kernels(); }
}  // namespace tfgen
