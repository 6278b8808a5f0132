// What one instruction set offers of Winograd convolutions with kernels of one size. Private to the CPU kernels.
#ifndef TFGEN_KERNELS_WINOGRAD_CPU_DISPATCH_H_
#define TFGEN_KERNELS_WINOGRAD_CPU_DISPATCH_H_

#include "kernels/blocksparse/cpu_dispatch.h"
#include "kernels/winograd/winograd.h"

namespace tfgen {

struct WinogradKernels {
  int64_t (*tiles)(const TfgenWinogradShape&);
  int64_t (*kernel_size)(const TfgenWinogradShape&);
  int64_t (*kernel_units)(const TfgenWinogradShape&);
  bool (*by_panels)(const TfgenWinogradShape&, int64_t threads);
  void (*transform_kernel)(const TfgenWinogradShape&, const float* kernel, bool reversed, float* transformed,
                           int64_t first, int64_t last);
  void (*convolve)(const TfgenWinogradConvolution&, int64_t first, int64_t last, int64_t first_panel,
                   int64_t last_panel);
  int64_t (*chunk_tiles)(const TfgenWinogradShape&, int64_t threads);
  int64_t (*scratch_size)(const TfgenWinogradShape&, int64_t chunk_tiles);
  int64_t (*product_units)(const TfgenWinogradShape&);
  void (*transform_tiles)(const TfgenWinogradKernelGradient&, int64_t chunk, int64_t first, int64_t last);
  void (*add_products)(const TfgenWinogradKernelGradient&, int64_t chunk, int64_t tiles, int64_t first, int64_t last);
  void (*finish)(const TfgenWinogradKernelGradient&, int64_t first, int64_t last);
};

// For kernels of 3x3, 2x3 or 2x2 taps.
WinogradKernels portable_winograd(int64_t kernel_height, int64_t kernel_width);
#if TFGEN_X86_KERNELS
WinogradKernels avx2_winograd(int64_t kernel_height, int64_t kernel_width);
WinogradKernels avx512_winograd(int64_t kernel_height, int64_t kernel_width);
#endif

}  // namespace tfgen
#endif  // TFGEN_KERNELS_WINOGRAD_CPU_DISPATCH_H_
