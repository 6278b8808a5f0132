// Tiles of images in and out of the transformed domain (Lavin & Gray, section 4.1), for the instruction set of the
// including file. Point p of a tile's channel d is at p * point_step + d.
//
// Along each side, y = A^T [(G g) . (B^T d)] of four pixels d and taps g of the kernel, from polynomials at the points
// 0, 1, -1 and infinity. B^T is the same whether there are 3 taps and 2 results y or 2 taps and 3 results:
//
//                           3 taps                                  2 taps
//
//         1  0 -1  0         1    0    0         1 1  1  0           1    0          1 1  1  0
//   B^T = 0  1  1  0   G =  1/2  1/2  1/2  A^T = 0 1 -1 -1     G =  1/2  1/2   A^T = 0 1 -1  0
//         0 -1  1  0        1/2 -1/2  1/2                           1/2 -1/2         0 1  1 -1
//         0  1  0 -1         0    0    1                             0    1
#ifndef TFGEN_KERNELS_WINOGRAD_CPU_TILES_H_
#define TFGEN_KERNELS_WINOGRAD_CPU_TILES_H_

#include "kernels/blocksparse/cpu_vector.h"
#include "kernels/winograd/cpu_dispatch.h"

namespace tfgen {
namespace TFGEN_ISA {

constexpr int kPoints = 16;  // of a transformed tile

TFGEN_INLINE Vec at(const float* x) { return *reinterpret_cast<const UnalignedVec*>(x); }
TFGEN_INLINE void put(float* x, Vec value) { *reinterpret_cast<UnalignedVec*>(x) = value; }

// A tile for kernels of kTapRows x kTapColumns: the place of its first result.
template <int kTapRowsOfKernel, int kTapColumnsOfKernel>
struct Tile {
  static constexpr int kTapRows = kTapRowsOfKernel, kTapColumns = kTapColumnsOfKernel, kTaps = kTapRows * kTapColumns;
  static constexpr int kHeight = 5 - kTapRows, kWidth = 5 - kTapColumns;  // of its results

  int64_t image, row, column;

  static TFGEN_INLINE int64_t count(const TfgenWinogradShape& shape) {
    return shape.batch * ((shape.height + kHeight - 1) / kHeight) * ((shape.width + kWidth - 1) / kWidth);
  }
  static TFGEN_INLINE Tile of(const TfgenWinogradShape& shape, int64_t index) {
    const int64_t rows = (shape.height + kHeight - 1) / kHeight, columns = (shape.width + kWidth - 1) / kWidth;
    return {index / (rows * columns), index / columns % rows * kHeight, index % columns * kWidth};
  }
  TFGEN_INLINE void next(const TfgenWinogradShape& shape) {
    column += kWidth;
    if (column < shape.width) return;
    column = 0;
    row += kHeight;
    if (row < shape.height) return;
    row = 0;
    ++image;
  }
};

// Zeros, the calling thread's until it asks for other scratch.
inline const float* zero_row(int64_t channels) {
  const size_t bytes = static_cast<size_t>(channels) * sizeof(float);
  return static_cast<const float*>(memset(thread_scratch(bytes), 0, bytes));
}

// The kHeight x kWidth pixels whose first is at `row` and `column`; those outside of the image are `zeros`.
template <int kHeight, int kWidth>
TFGEN_INLINE void find_pixels(const TfgenWinogradShape& shape, int64_t image, int64_t first_row, int64_t first_column,
                              const float* x, int64_t channels, const float* zeros, const float** pixels) {
  for (int i = 0; i < kHeight; ++i) {
    const int64_t row = first_row + i;
    for (int j = 0; j < kWidth; ++j) {
      const int64_t column = first_column + j;
      const bool inside = row >= 0 && row < shape.height && column >= 0 && column < shape.width;
      const int64_t pixel = (image * shape.height + row) * shape.width + column;
      pixels[i * kWidth + j] = inside ? x + pixel * channels : zeros;
    }
  }
}

// The 16 pixels that the results of a tile read. `reversed`: what was before the images is behind them.
template <class Tile>
TFGEN_INLINE void find_read_pixels(const TfgenWinogradShape& shape, const Tile& tile, bool reversed, const float* x,
                                   int64_t channels, const float* zeros, const float** pixels) {
  const int64_t above = reversed ? Tile::kTapRows - 2 : 1, before = reversed ? Tile::kTapColumns - 2 : 1;
  find_pixels<4, 4>(shape, tile.image, tile.row - above, tile.column - before, x, channels, zeros, pixels);
}

// Where images are enlarged, every pixel twice along both sides: the 3x3 pixels before that which the 16 come from.
template <class Tile>
TFGEN_INLINE void find_enlarged_pixels(const TfgenWinogradShape& shape, const Tile& tile, const float* x,
                                       int64_t channels, const float* zeros, const float** pixels) {
  TfgenWinogradShape small = shape;
  small.height /= 2;
  small.width /= 2;
  find_pixels<3, 3>(small, tile.image, tile.row / 2 - 1, tile.column / 2 - 1, x, channels, zeros, pixels);
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

// B^T d of an enlarged tile, whose two pixels in the middle are the same, is 0 at point 2 along each side.
constexpr bool vanishes(int point) { return point / 4 == 2 || point % 4 == 2; }

// The same for an enlarged tile, from its 3x3 pixels: points that vanish are left out.
template <bool kWhole>
TFGEN_INLINE void transform_enlarged_pixels(const float* const* pixels, int64_t d, int64_t left, float* out,
                                            int64_t point_step) {
  constexpr int kPlaces[3] = {0, 1, 3};
  Vec half[3][3];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
    const Vec x1 = channels_at<kWhole>(pixels[3 + j], d, left);
    half[0][j] = channels_at<kWhole>(pixels[j], d, left) - x1;
    half[1][j] = x1 + x1;
    half[2][j] = x1 - channels_at<kWhole>(pixels[6 + j], d, left);
  }
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    float* row = out + 4 * kPlaces[i] * point_step;
    put(row, half[i][0] - half[i][1]);
    put(row + point_step, half[i][1] + half[i][1]);
    put(row + 3 * point_step, half[i][1] - half[i][2]);
  }
}

// All channels of a tile, then zeros up to `padded`.
template <bool kEnlarged>
__attribute__((noinline)) void pixels_to_points(const float* const* pixels, int64_t channels, int64_t padded, float* out,
                                                int64_t point_step) {
  constexpr auto whole = kEnlarged ? transform_enlarged_pixels<true> : transform_pixels<true>;
  constexpr auto some = kEnlarged ? transform_enlarged_pixels<false> : transform_pixels<false>;
  int64_t d = 0;
  for (; d + kLanes <= channels; d += kLanes) whole(pixels, d, kLanes, out + d, point_step);
  if (d < channels) some(pixels, d, channels - d, out + d, point_step);
  for (d = round_up(channels, kLanes); d < padded; d += kLanes) {
    for (int i = 0; i < kPoints; ++i) put(out + i * point_step + d, Vec{});
  }
}

// A s for kSlopes slopes, 2 or 3
template <int kSlopes>
TFGEN_INLINE void spread_slopes(const Vec* s, int step, Vec* out) {
  const Vec even = kSlopes == 3 ? s[0] + s[2 * step] : s[0];
  out[0] = s[0];
  out[1] = even + s[step];
  out[2] = even - s[step];
  out[3] = -s[(kSlopes - 1) * step];
}

// (A s A^T)[point] of kLanes channels of the slopes of a tile's results.
template <class Tile, bool kWhole>
TFGEN_INLINE void transform_slopes(const float* const* slopes, int64_t d, int64_t left, float* out,
                                   int64_t point_step) {
  Vec x[Tile::kHeight * Tile::kWidth], half[Tile::kWidth][4];
#pragma GCC unroll 9
  for (int i = 0; i < Tile::kHeight * Tile::kWidth; ++i) x[i] = channels_at<kWhole>(slopes[i], d, left);
#pragma GCC unroll 3
  for (int j = 0; j < Tile::kWidth; ++j) spread_slopes<Tile::kHeight>(x + j, Tile::kWidth, half[j]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    Vec row[4];
    spread_slopes<Tile::kWidth>(half[0] + i, 4, row);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) put(out + (4 * i + j) * point_step, row[j]);
  }
}

// All channels of a tile, then zeros up to a whole vector.
template <class Tile>
__attribute__((noinline)) void slopes_to_points(const float* const* slopes, int64_t channels, float* out,
                                                int64_t point_step) {
  int64_t d = 0;
  for (; d + kLanes <= channels; d += kLanes) transform_slopes<Tile, true>(slopes, d, kLanes, out + d, point_step);
  if (d < channels) transform_slopes<Tile, false>(slopes, d, channels - d, out + d, point_step);
}

// A^T m for kResults results, 2 or 3
template <int kResults>
TFGEN_INLINE void gather_results(Vec m0, Vec m1, Vec m2, Vec m3, Vec* out, int step) {
  const Vec sum = m1 + m2, difference = m1 - m2;
  out[0] = m0 + sum;
  out[step] = kResults == 3 ? difference : difference - m3;
  if (kResults == 3) out[2 * step] = sum - m3;
}

// y = A^T m A + bias of kLanes channels of a tile, of `left` if not `kWhole`; `rows` and `columns` of the results are
// inside of the image.
template <class Tile, bool kWhole>
TFGEN_INLINE void transform_results(const float* points, int64_t point_step, Vec bias, int64_t rows, int64_t columns,
                                    int64_t left, int64_t outputs, int64_t row_step, float* y) {
  const auto store = [=](float* target, Vec value) {
    if (kWhole) {
      put(target, value);
    } else {
      store_some<Float32>(target, value, left);
    }
  };
  Vec half[Tile::kHeight][4], row[Tile::kWidth];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const float* m = points + j * point_step;
    gather_results<Tile::kHeight>(at(m), at(m + 4 * point_step), at(m + 8 * point_step), at(m + 12 * point_step),
                                  half[0] + j, 4);
  }
#pragma GCC unroll 3
  for (int i = 0; i < Tile::kHeight; ++i) {
    if (i == rows) return;
    gather_results<Tile::kWidth>(half[i][0], half[i][1], half[i][2], half[i][3], row, 1);
#pragma GCC unroll 3
    for (int j = 0; j < Tile::kWidth; ++j) {
      if (j < columns) store(y + i * row_step + j * outputs, row[j] + bias);
    }
  }
}

// Channels [first, last) of a tile, where it lies inside of the image. `points` begins with the first of them.
template <class Tile>
__attribute__((noinline)) void points_to_results(const TfgenWinogradConvolution& args, const Tile& tile, int64_t first,
                                                 int64_t last, const float* points, int64_t point_step) {
  const TfgenWinogradShape& shape = args.shape;
  const int64_t outputs = shape.outputs, row_step = shape.width * outputs;
  const int64_t rows = smaller(Tile::kHeight, shape.height - tile.row);
  const int64_t columns = smaller(Tile::kWidth, shape.width - tile.column);
  float* y = args.y + (tile.image * shape.height + tile.row) * row_step + tile.column * outputs;
  const bool biased = args.bias != nullptr;
  int64_t d = first;
  points -= first;
  for (; d + kLanes <= last; d += kLanes) {
    const Vec bias = biased ? at(args.bias + d) : Vec{};
    transform_results<Tile, true>(points + d, point_step, bias, rows, columns, kLanes, outputs, row_step, y + d);
  }
  if (d == last) return;
  const Vec bias = biased ? load_some<Float32>(args.bias + d, last - d) : Vec{};
  transform_results<Tile, false>(points + d, point_step, bias, rows, columns, last - d, outputs, row_step, y + d);
}

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_WINOGRAD_CPU_TILES_H_
