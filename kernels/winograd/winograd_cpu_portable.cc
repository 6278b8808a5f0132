// Winograd convolutions compiled for any processor (128-bit vectors, which the compiler maps to SSE2 or NEON).
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/winograd/cpu_dispatch.h"

#define TFGEN_ISA portable
#define TFGEN_LANES 4
#include "kernels/winograd/cpu_winograd.h"

namespace tfgen {
WinogradKernels portable_winograd(int64_t kernel_height, int64_t kernel_width) {
  return portable::winograd_kernels(kernel_height, kernel_width);
}
}  // namespace tfgen
