// Winograd convolutions compiled for AVX-512 (F, BW, DQ, VL).
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/winograd/cpu_dispatch.h"

#if TFGEN_X86_KERNELS
#include <immintrin.h>

// After the system headers: what they define must stay runnable everywhere, since the linker may keep this file's copy.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")

#define TFGEN_ISA avx512
#define TFGEN_LANES 16
#include "kernels/winograd/cpu_winograd.h"

namespace tfgen {
WinogradKernels avx512_winograd(int64_t kernel_height, int64_t kernel_width) {
  return avx512::winograd_kernels(kernel_height, kernel_width);
}
}  // namespace tfgen
#endif  // TFGEN_X86_KERNELS
