// Convolutions of stride 1 by Winograd's minimal filtering (Lavin & Gray, "Fast Algorithms for Convolutional Neural
// Networks", CVPR 2016, arXiv:1509.09308, section 4.1): the C interface of the kernels.
//
// Tensors are float32, dense, channels-last; kernels are [rows, columns, inputs, outputs] with 3x3, 2x3 or 2x2 taps.
// Images are padded with a row of zeros above and a column of zeros left of them, and below and right of them where the
// kernel has 3 taps, so that results have their sides. A tile takes 4x4 pixels, 16 products for each pair of channels,
// and gives as many rows and columns of results as 5 is more than the kernel has taps; tiles are cut off at the lower
// and right edge of the image.
//
//   taps   results of a tile   algorithm         products for them, direct
//   3x3    2x2                 F(2x2, 3x3)       36
//   2x3    3x2                 F(3x2, 2x3)       36
//   2x2    3x3                 F(3x3, 2x2)       36
//
// Work is handed out in ranges [first, last) of units, which threads may share in any way: no result depends on where
// the ranges are cut, to the bit. Sizes are trusted. Memory is the caller's but for what a thread needs by itself.
#ifndef TFGEN_KERNELS_WINOGRAD_WINOGRAD_H_
#define TFGEN_KERNELS_WINOGRAD_WINOGRAD_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int64_t batch, height, width, inputs, outputs;
  int64_t kernel_height, kernel_width;
} TfgenWinogradShape;

// Tiles of all images together.
int64_t tfgen_winograd_tiles(const TfgenWinogradShape* shape);

// A kernel in the transformed domain, G g G^T, in the order in which `convolve` reads it. ---------------------

// Floats of it.
int64_t tfgen_winograd_kernel_size(const TfgenWinogradShape* shape);
// Units of the work of making it.
int64_t tfgen_winograd_kernel_units(const TfgenWinogradShape* shape);
// `reversed`: `kernel` is [rows, columns, outputs, inputs], and is mirrored along both sides and transposed. With the
// same in its arguments, that makes `convolve` the gradient by the images.
void tfgen_winograd_transform_kernel_cpu(const TfgenWinogradShape* shape, const float* kernel, int32_t reversed,
                                         float* transformed, int64_t first, int64_t last);

// y = x * kernel + bias. Units are tiles. ----------------------------------------------------------------------

typedef struct {
  TfgenWinogradShape shape;
  const float* x;       // [batch, height, width, inputs]
  const float* kernel;  // as transformed
  const float* bias;    // [outputs]; null for none
  float* y;             // [batch, height, width, outputs]
  int32_t reversed;     // zeros are below and right of the images where they would be above and left, and vice versa
  // For 3x3 taps: x is [batch, height / 2, width / 2, inputs], and each of its pixels stands for 2x2 equal ones. Of the
  // 16 products of a tile 7 are by zero, and are left out. Sides are even.
  int32_t enlarged;
} TfgenWinogradConvolution;

void tfgen_winograd_convolve_cpu(const TfgenWinogradConvolution* args, int64_t first, int64_t last);

// Whether that many threads had better share the work in the units of `transform_kernel`: each then needs only what it
// has transformed itself, for all tiles.
int32_t tfgen_winograd_by_kernel(const TfgenWinogradShape* shape, int64_t threads);
// The same results, to the bit.
void tfgen_winograd_convolve_by_kernel_cpu(const TfgenWinogradConvolution* args, int64_t first, int64_t last);

// The gradient by the kernel. ----------------------------------------------------------------------------------

typedef struct {
  TfgenWinogradShape shape;
  const float* x;   // [batch, height, width, inputs]
  const float* dy;  // [batch, height, width, outputs]
  int64_t chunk_tiles;
  float* scratch;  // of tfgen_winograd_scratch_size
  float* dkernel;  // [rows, columns, inputs, outputs]
} TfgenWinogradKernelGradient;

// Tiles are taken in chunks of this many, from tile 0 on, which bounds the memory. The result does not depend on it.
int64_t tfgen_winograd_chunk_tiles(const TfgenWinogradShape* shape, int64_t threads);
// Floats of scratch.
int64_t tfgen_winograd_scratch_size(const TfgenWinogradShape* shape, int64_t chunk_tiles);
// Units of `add_products`.
int64_t tfgen_winograd_product_units(const TfgenWinogradShape* shape);

// For each chunk, with its first tile and number of tiles: transform its tiles [0, tiles), then add all products.
void tfgen_winograd_transform_tiles_cpu(const TfgenWinogradKernelGradient* args, int64_t chunk, int64_t first,
                                        int64_t last);
void tfgen_winograd_add_products_cpu(const TfgenWinogradKernelGradient* args, int64_t chunk, int64_t tiles,
                                     int64_t first, int64_t last);
// After the last chunk: dkernel. Units are inputs.
void tfgen_winograd_finish_cpu(const TfgenWinogradKernelGradient* args, int64_t first, int64_t last);

#ifdef __cplusplus
}
#endif
#endif  // TFGEN_KERNELS_WINOGRAD_WINOGRAD_H_
