// The C interface of the CPU kernels of Winograd convolutions: chooses the instruction set and forwards.
#include <string.h>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/winograd/cpu_dispatch.h"
#include "kernels/winograd/winograd.h"

namespace tfgen {
namespace {

WinogradKernels choose(int64_t kernel_height, int64_t kernel_width) {
#if TFGEN_X86_KERNELS
  const char* isa = tfgen_blocksparse_cpu_isa();
  if (strcmp(isa, "avx2") == 0) return avx2_winograd(kernel_height, kernel_width);
  if (strcmp(isa, "portable") != 0) return avx512_winograd(kernel_height, kernel_width);
#endif
  return portable_winograd(kernel_height, kernel_width);
}

const WinogradKernels& kernels_of(const TfgenWinogradShape& shape) {
  static const WinogradKernels of_3x3 = choose(3, 3), of_2x3 = choose(2, 3), of_2x2 = choose(2, 2);
  if (shape.kernel_width == 2) return of_2x2;
  return shape.kernel_height == 2 ? of_2x3 : of_3x3;
}

}  // namespace
}  // namespace tfgen

int64_t tfgen_winograd_tiles(const TfgenWinogradShape* shape) { return tfgen::kernels_of(*shape).tiles(*shape); }

int64_t tfgen_winograd_kernel_size(const TfgenWinogradShape* shape) {
  return tfgen::kernels_of(*shape).kernel_size(*shape);
}

int64_t tfgen_winograd_kernel_units(const TfgenWinogradShape* shape) {
  return tfgen::kernels_of(*shape).kernel_units(*shape);
}

void tfgen_winograd_transform_kernel_cpu(const TfgenWinogradShape* shape, const float* kernel, int32_t reversed,
                                         float* transformed, int64_t first, int64_t last) {
  tfgen::kernels_of(*shape).transform_kernel(*shape, kernel, reversed != 0, transformed, first, last);
}

void tfgen_winograd_convolve_cpu(const TfgenWinogradConvolution* args, int64_t first, int64_t last) {
  const tfgen::WinogradKernels& kernels = tfgen::kernels_of(args->shape);
  kernels.convolve(*args, first, last, 0, kernels.kernel_units(args->shape));
}

int32_t tfgen_winograd_by_kernel(const TfgenWinogradShape* shape, int64_t threads) {
  return tfgen::kernels_of(*shape).by_panels(*shape, threads);
}

void tfgen_winograd_convolve_by_kernel_cpu(const TfgenWinogradConvolution* args, int64_t first, int64_t last) {
  const tfgen::WinogradKernels& kernels = tfgen::kernels_of(args->shape);
  kernels.convolve(*args, 0, kernels.tiles(args->shape), first, last);
}

int64_t tfgen_winograd_chunk_tiles(const TfgenWinogradShape* shape, int64_t threads) {
  return tfgen::kernels_of(*shape).chunk_tiles(*shape, threads);
}

int64_t tfgen_winograd_scratch_size(const TfgenWinogradShape* shape, int64_t chunk_tiles) {
  return tfgen::kernels_of(*shape).scratch_size(*shape, chunk_tiles);
}

int64_t tfgen_winograd_product_units(const TfgenWinogradShape* shape) {
  return tfgen::kernels_of(*shape).product_units(*shape);
}

void tfgen_winograd_transform_tiles_cpu(const TfgenWinogradKernelGradient* args, int64_t chunk, int64_t first,
                                        int64_t last) {
  tfgen::kernels_of(args->shape).transform_tiles(*args, chunk, first, last);
}

void tfgen_winograd_add_products_cpu(const TfgenWinogradKernelGradient* args, int64_t chunk, int64_t tiles,
                                     int64_t first, int64_t last) {
  tfgen::kernels_of(args->shape).add_products(*args, chunk, tiles, first, last);
}

void tfgen_winograd_finish_cpu(const TfgenWinogradKernelGradient* args, int64_t first, int64_t last) {
  tfgen::kernels_of(args->shape).finish(*args, first, last);
}
