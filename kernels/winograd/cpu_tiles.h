// Tiles of images in and out of the transformed domain (Lavin & Gray, section 4.1), for the instruction set of the
// including file. Point p of a tile's channel d is at p * point_step + d.
#ifndef TFGEN_KERNELS_WINOGRAD_CPU_TILES_H_
#define TFGEN_KERNELS_WINOGRAD_CPU_TILES_H_

#include "kernels/blocksparse/cpu_vector.h"
#include "kernels/winograd/cpu_dispatch.h"

namespace tfgen {
namespace TFGEN_ISA {

constexpr int kPoints = 16;  // of a transformed tile

TFGEN_INLINE Vec at(const float* x) { return *reinterpret_cast<const UnalignedVec*>(x); }
TFGEN_INLINE void put(float* x, Vec value) { *reinterpret_cast<UnalignedVec*>(x) = value; }

// Where a tile is, tile after tile.
struct Position {
  int64_t image, row, column, rows, columns;

  static TFGEN_INLINE int64_t tiles(const TfgenWinogradShape& shape) {
    return shape.batch * ((shape.height + 1) / 2) * ((shape.width + 1) / 2);
  }
  static TFGEN_INLINE Position of(const TfgenWinogradShape& shape, int64_t tile) {
    const int64_t rows = (shape.height + 1) / 2, columns = (shape.width + 1) / 2;
    return {tile / (rows * columns), tile / columns % rows, tile % columns, rows, columns};
  }
  TFGEN_INLINE void next() {
    if (++column < columns) return;
    column = 0;
    if (++row < rows) return;
    row = 0;
    ++image;
  }
};

// Zeros, the calling thread's until it asks for other scratch.
inline const float* zero_row(int64_t channels) {
  const size_t bytes = static_cast<size_t>(channels) * sizeof(float);
  return static_cast<const float*>(memset(thread_scratch(bytes), 0, bytes));
}

// The kSize x kSize pixels from `before` rows and columns before a tile on; those outside of the image are `zeros`.
template <int kSize>
TFGEN_INLINE void find_pixels(const TfgenWinogradShape& shape, const Position& p, int before, const float* x,
                              int64_t channels, const float* zeros, const float** pixels) {
  for (int i = 0; i < kSize; ++i) {
    const int64_t row = 2 * p.row + i - before;
    for (int j = 0; j < kSize; ++j) {
      const int64_t column = 2 * p.column + j - before;
      const bool inside = row >= 0 && row < shape.height && column >= 0 && column < shape.width;
      const int64_t pixel = (p.image * shape.height + row) * shape.width + column;
      pixels[i * kSize + j] = inside ? x + pixel * channels : zeros;
    }
  }
}

// kLanes channels of a pixel from d on; only `left` of them, then zeros, if not `kWhole`.
template <bool kWhole>
TFGEN_INLINE Vec channels_at(const float* pixel, int64_t d, int64_t left) {
  return kWhole ? at(pixel + d) : load_some<Float32>(pixel + d, left);
}

// x B for a row of B^T d
TFGEN_INLINE void put_points(Vec x0, Vec x1, Vec x2, Vec x3, float* out, int64_t point_step) {
  put(out, x0 - x2);
  put(out + point_step, x1 + x2);
  put(out + 2 * point_step, x2 - x1);
  put(out + 3 * point_step, x1 - x3);
}

// (B^T d B)[point] of kLanes channels of the 16 pixels of a tile, to out[point * point_step]. Row by row, with pixels
// read again: all at once would not fit the registers.
template <bool kWhole>
TFGEN_INLINE void transform_pixels(const float* const* pixels, int64_t d, int64_t left, float* out,
                                   int64_t point_step) {
  const auto pixel = [=](int i) { return channels_at<kWhole>(pixels[i], d, left); };
  Vec sums[4], differences[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec x1 = pixel(4 + j), x2 = pixel(8 + j);
    sums[j] = x1 + x2;
    differences[j] = x2 - x1;
  }
  put_points(sums[0], sums[1], sums[2], sums[3], out + 4 * point_step, point_step);
  put_points(differences[0], differences[1], differences[2], differences[3], out + 8 * point_step, point_step);
#pragma GCC unroll 2
  for (int row = 0; row < 2; ++row) {  // rows 0 - 2, then 1 - 3
    Vec x[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) x[j] = pixel(4 * row + j) - pixel(4 * row + 8 + j);
    put_points(x[0], x[1], x[2], x[3], out + 12 * row * point_step, point_step);
  }
}

// All channels of a tile, then zeros up to `padded`.
__attribute__((noinline)) inline void pixels_to_points(const float* const* pixels, int64_t channels, int64_t padded,
                                                       float* out, int64_t point_step) {
  int64_t d = 0;
  for (; d + kLanes <= channels; d += kLanes) transform_pixels<true>(pixels, d, kLanes, out + d, point_step);
  if (d < channels) transform_pixels<false>(pixels, d, channels - d, out + d, point_step);
  for (d = round_up(channels, kLanes); d < padded; d += kLanes) {
    for (int i = 0; i < kPoints; ++i) put(out + i * point_step + d, Vec{});
  }
}

// (A s A^T)[point] of kLanes channels of the 2x2 slopes of a tile.
template <bool kWhole>
TFGEN_INLINE void transform_slopes(const float* const* slopes, int64_t d, int64_t left, float* out,
                                   int64_t point_step) {
  Vec x[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) x[i] = channels_at<kWhole>(slopes[i], d, left);
  const Vec half[4][2] = {{x[0], x[1]}, {x[0] + x[2], x[1] + x[3]}, {x[0] - x[2], x[1] - x[3]}, {-x[2], -x[3]}};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    float* row = out + 4 * i * point_step;
    put(row, half[i][0]);
    put(row + point_step, half[i][0] + half[i][1]);
    put(row + 2 * point_step, half[i][0] - half[i][1]);
    put(row + 3 * point_step, -half[i][1]);
  }
}

// All channels of a tile, then zeros up to a whole vector.
__attribute__((noinline)) inline void slopes_to_points(const float* const* slopes, int64_t channels, float* out,
                                                       int64_t point_step) {
  int64_t d = 0;
  for (; d + kLanes <= channels; d += kLanes) transform_slopes<true>(slopes, d, kLanes, out + d, point_step);
  if (d < channels) transform_slopes<false>(slopes, d, channels - d, out + d, point_step);
}

// y = A^T m A + bias of kLanes channels of a tile, of `left` if not `kWhole`. `below` and `right`: these of the results
// are inside of the image.
template <bool kWhole>
TFGEN_INLINE void transform_results(const float* points, int64_t point_step, Vec bias, bool below, bool right,
                                    int64_t left, int64_t outputs, int64_t row_step, float* y) {
  const auto store = [=](float* target, Vec value) {
    if (kWhole) {
      put(target, value);
    } else {
      store_some<Float32>(target, value, left);
    }
  };
  Vec upper[4], lower[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const float* x = points + j * point_step;
    const Vec x1 = at(x + 4 * point_step), x2 = at(x + 8 * point_step);
    upper[j] = at(x) + (x1 + x2);
    lower[j] = (x1 - x2) - at(x + 12 * point_step);
  }
  store(y, upper[0] + (upper[1] + upper[2]) + bias);
  if (right) store(y + outputs, (upper[1] - upper[2]) - upper[3] + bias);
  if (!below) return;
  store(y + row_step, lower[0] + (lower[1] + lower[2]) + bias);
  if (right) store(y + row_step + outputs, (lower[1] - lower[2]) - lower[3] + bias);
}

// All channels of a tile, where it lies inside of the image.
__attribute__((noinline)) inline void points_to_results(const TfgenWinogradConvolution& args, const Position& p,
                                                        const float* points, int64_t point_step) {
  const TfgenWinogradShape& shape = args.shape;
  const int64_t outputs = shape.outputs, row_step = shape.width * outputs, row = 2 * p.row, column = 2 * p.column;
  float* y = args.y + (p.image * shape.height + row) * row_step + column * outputs;
  const bool below = row + 1 < shape.height, right = column + 1 < shape.width, biased = args.bias != nullptr;
  int64_t d = 0;
  for (; d + kLanes <= outputs; d += kLanes) {
    const Vec bias = biased ? at(args.bias + d) : Vec{};
    transform_results<true>(points + d, point_step, bias, below, right, kLanes, outputs, row_step, y + d);
  }
  if (d == outputs) return;
  const Vec bias = biased ? load_some<Float32>(args.bias + d, outputs - d) : Vec{};
  transform_results<false>(points + d, point_step, bias, below, right, outputs - d, outputs, row_step, y + d);
}

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_WINOGRAD_CPU_TILES_H_
