// The C interface of the CPU kernels of Winograd convolutions: chooses the instruction set and forwards.
#include <string.h>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/winograd/cpu_dispatch.h"
#include "kernels/winograd/winograd.h"

namespace tfgen {
namespace {

WinogradKernels choose() {
#if TFGEN_X86_KERNELS
  const char* isa = tfgen_blocksparse_cpu_isa();
  if (strcmp(isa, "avx2") == 0) return avx2_winograd();
  if (strcmp(isa, "portable") != 0) return avx512_winograd();
#endif
  return portable_winograd();
}

const WinogradKernels& kernels() {
  static const WinogradKernels chosen = choose();
  return chosen;
}

}  // namespace
}  // namespace tfgen

int64_t tfgen_winograd_tiles(const TfgenWinogradShape* shape) {
  return shape->batch * ((shape->height + 1) / 2) * ((shape->width + 1) / 2);
}

int64_t tfgen_winograd_kernel_size(const TfgenWinogradShape* shape) { return tfgen::kernels().kernel_size(*shape); }

int64_t tfgen_winograd_kernel_units(const TfgenWinogradShape* shape) { return tfgen::kernels().kernel_units(*shape); }

void tfgen_winograd_transform_kernel_cpu(const TfgenWinogradShape* shape, const float* kernel, int32_t reversed,
                                         float* transformed, int64_t first, int64_t last) {
  tfgen::kernels().transform_kernel(*shape, kernel, reversed != 0, transformed, first, last);
}

void tfgen_winograd_convolve_cpu(const TfgenWinogradConvolution* args, int64_t first, int64_t last) {
  tfgen::kernels().convolve(*args, first, last);
}

int64_t tfgen_winograd_chunk_tiles(const TfgenWinogradShape* shape, int64_t threads) {
  return tfgen::kernels().chunk_tiles(*shape, threads);
}

int64_t tfgen_winograd_scratch_size(const TfgenWinogradShape* shape, int64_t chunk_tiles) {
  return tfgen::kernels().scratch_size(*shape, chunk_tiles);
}

int64_t tfgen_winograd_product_units(const TfgenWinogradShape* shape) { return tfgen::kernels().product_units(*shape); }

void tfgen_winograd_transform_tiles_cpu(const TfgenWinogradKernelGradient* args, int64_t chunk, int64_t first,
                                        int64_t last) {
  tfgen::kernels().transform_tiles(*args, chunk, first, last);
}

void tfgen_winograd_add_products_cpu(const TfgenWinogradKernelGradient* args, int64_t chunk, int64_t tiles,
                                     int64_t first, int64_t last) {
  tfgen::kernels().add_products(*args, chunk, tiles, first, last);
}

void tfgen_winograd_finish_cpu(const TfgenWinogradKernelGradient* args, int64_t first, int64_t last) {
  tfgen::kernels().finish(*args, first, last);
}
