// The loops of Winograd convolutions for the instruction set of the including file.
//
// Matrices of the transformed domain are [16 points, rows, padded channels]. Products over them hold kRows x kColumns
// sums in registers.
#ifndef TFGEN_KERNELS_WINOGRAD_CPU_WINOGRAD_H_
#define TFGEN_KERNELS_WINOGRAD_CPU_WINOGRAD_H_

#include "kernels/winograd/cpu_tiles.h"

namespace tfgen {
namespace TFGEN_ISA {

constexpr int kRows = kLanes == 16 ? 12 : 6;  // with kColumns: the sums and what is multiplied fit the registers
constexpr int64_t kColumns = 2 * kLanes;      // of a panel
constexpr int64_t kDepth = 256;               // of products at a time: a panel of a kernel stays in the L1 cache
constexpr int64_t kTileDepth = 64;            // the same for panels of slopes, whose depth are tiles
constexpr int64_t kBlockFloats = 1 << 17;     // of a block of tiles of a convolution, in both domains: the L2 cache
constexpr int64_t kLeastBlock = 96;           // tiles at least: every block reads all of the transformed kernel
constexpr int64_t kChunkFloats = 1 << 18;     // of a chunk of tiles of the gradient by the kernel, for each thread

// At least n floats in an odd number of cache lines: rows this far apart do not compete for the same place of a cache.
TFGEN_INLINE int64_t odd_lines(int64_t n) { return (round_up(n, 16) / 16 | 1) * 16; }

// Products ------------------------------------------------------------------------------------------------------

// c[i][j] (+)= sum_k a(i, k) b[k][j] for kRows rows and kVectors vectors of columns; k rises for each sum, whatever the
// shape of the matrices. a(i, k) is a[i * step + k] or, if `kAcross`, a[k * step + i].
template <bool kAcross, int kVectors>
void multiply_tile(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t depth, bool add, float* c,
                   int64_t c_step) {
  Vec sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec x[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) x[j] = at(b + k * b_step + j * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const Vec factor = broadcast(kAcross ? a[k * a_step + i] : a[i * a_step + k]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sums[i][j] = multiply_add(factor, x[j], sums[i][j]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      float* target = c + i * c_step + j * kLanes;
      put(target, add ? at(target) + sums[i][j] : sums[i][j]);
    }
  }
}

// The same for `rows` rows, a multiple of kRows, and a panel of which `columns` are wanted.
template <bool kAcross>
TFGEN_INLINE void multiply_panel(int64_t rows, int64_t columns, const float* a, int64_t a_step, const float* b,
                                 int64_t b_step, int64_t depth, bool add, float* c, int64_t c_step) {
  for (int64_t i = 0; i < rows; i += kRows) {
    const float* x = kAcross ? a + i : a + i * a_step;
    if (columns > kLanes) {
      multiply_tile<kAcross, 2>(x, a_step, b, b_step, depth, add, c + i * c_step, c_step);
    } else {
      multiply_tile<kAcross, 1>(x, a_step, b, b_step, depth, add, c + i * c_step, c_step);
    }
  }
}

// The convolution -----------------------------------------------------------------------------------------------

// A transformed kernel: for each panel of outputs and point, [inputs, kColumns].
TFGEN_INLINE int64_t kernel_point_step(const TfgenWinogradShape& shape) { return odd_lines(shape.inputs * kColumns); }

inline int64_t kernel_units(const TfgenWinogradShape& shape) { return (shape.outputs + kColumns - 1) / kColumns; }

inline int64_t kernel_size(const TfgenWinogradShape& shape) {
  return kernel_units(shape) * kPoints * kernel_point_step(shape);
}

// Threads share the tiles, and then each reads all of the transformed kernel, most of it from the cache of another core;
// or the panels of the kernel, and then each transforms all pixels. The latter is less where images are small and
// channels many, if the panels can be shared evenly.
template <class Tile>
bool by_panels(const TfgenWinogradShape& shape, int64_t threads) {
  const int64_t panels = kernel_units(shape);
  const bool even = panels % threads == 0 || panels >= 4 * threads;
  return threads > 1 && even && Tile::count(shape) <= 4 * shape.outputs;
}

// G g for kTaps taps, 2 or 3
template <int kTaps>
TFGEN_INLINE void transform_taps(const Vec* g, int tap_step, Vec* out, int step) {
  const Vec last = g[(kTaps - 1) * tap_step];
  const Vec outer = kTaps == 3 ? 0.5f * (g[0] + last) : 0.5f * g[0], inner = 0.5f * g[tap_step];
  out[0] = g[0];
  out[step] = outer + inner;
  out[2 * step] = outer - inner;
  out[3 * step] = last;
}

// G^T m for kTaps taps, 2 or 3
template <int kTaps>
TFGEN_INLINE void points_to_taps(Vec m0, Vec m1, Vec m2, Vec m3, Vec* out, int step) {
  const Vec sum = 0.5f * (m1 + m2), difference = 0.5f * (m1 - m2);
  out[0] = m0 + sum;
  out[step] = kTaps == 3 ? difference : difference + m3;
  if (kTaps == 3) out[2 * step] = sum + m3;
}

// taps[p][i] = kernel[p][input + i][output ...], zeros beyond either.
template <int kTaps>
void load_taps(const TfgenWinogradShape& shape, const float* kernel, bool reversed, int64_t input, int64_t output,
               Vec (*taps)[kLanes]) {
  const int64_t inputs = shape.inputs, outputs = shape.outputs;
  for (int p = 0; p < kTaps; ++p) {
    for (int64_t i = 0; i < kLanes; ++i) {
      Vec& target = taps[reversed ? kTaps - 1 - p : p][i];
      target = Vec{};
      if (!reversed && input + i < inputs && output < outputs) {
        target = load_some<Float32>(kernel + (p * inputs + input + i) * outputs + output, outputs - output);
      } else if (reversed && output + i < outputs) {
        target = load_some<Float32>(kernel + (p * outputs + output + i) * inputs + input, inputs - input);
      }
    }
    if (reversed) transpose(taps[kTaps - 1 - p]);
  }
}

template <class Tile>
void transform_kernel(const TfgenWinogradShape& shape, const float* kernel, bool reversed, float* transformed,
                      int64_t first, int64_t last) {
  const int64_t step = kernel_point_step(shape), used = shape.inputs * kColumns;
  for (int64_t i = first * kPoints; i < last * kPoints; ++i) {  // no number of a tensor is left unwritten
    memset(transformed + i * step + used, 0, static_cast<size_t>(step - used) * sizeof(float));
  }
  for (int64_t input = 0; input < shape.inputs; input += kLanes) {
    for (int64_t panel = first; panel < last; ++panel) {
      for (int64_t d = 0; d < kColumns; d += kLanes) {
        Vec taps[Tile::kTaps][kLanes];
        load_taps<Tile::kTaps>(shape, kernel, reversed, input, panel * kColumns + d, taps);
        for (int64_t i = 0; i < smaller(kLanes, shape.inputs - input); ++i) {
          constexpr int kStep = Tile::kTapColumns;
          Vec half[4 * kStep], points[16];
#pragma GCC unroll 3
          for (int j = 0; j < kStep; ++j) transform_taps<Tile::kTapRows>(taps[j] + i, kStep * kLanes, half + j, kStep);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) transform_taps<kStep>(half + kStep * j, 1, points + 4 * j, 1);
          float* target = transformed + panel * kPoints * step + (input + i) * kColumns + d;
#pragma GCC unroll 16
          for (int j = 0; j < 16; ++j) put(target + j * step, points[j]);
        }
      }
    }
  }
}

// Tiles [first, last), and of their results those in panels [first_panel, last_panel) of the kernel.
template <class Tile>
void convolve(const TfgenWinogradConvolution& args, int64_t first, int64_t last, int64_t first_panel,
              int64_t last_panel) {
  const TfgenWinogradShape& shape = args.shape;
  const int64_t first_output = first_panel * kColumns, last_output = smaller(shape.outputs, last_panel * kColumns);
  const int64_t in_step = odd_lines(shape.inputs), out_step = odd_lines(round_up(last_output - first_output, kColumns));
  const int64_t fitting = kBlockFloats / (kPoints * (in_step + out_step)) / kRows * kRows;
  const int64_t block = smaller(fitting < kLeastBlock ? kLeastBlock : fitting, round_up(last - first, kRows));
  const int64_t in_point = odd_lines(block * in_step), out_point = odd_lines(block * out_step);
  const int64_t size = kPoints * (in_point + out_point) + shape.inputs;
  float* pixels = static_cast<float*>(thread_scratch(static_cast<size_t>(size) * sizeof(float)));
  float* results = pixels + kPoints * in_point;
  float* zeros = results + kPoints * out_point;
  for (int64_t i = 0; i < shape.inputs; ++i) zeros[i] = 0.0f;
  for (int point = 0; args.enlarged && point < kPoints; ++point) {
    if (vanishes(point)) memset(results + point * out_point, 0, static_cast<size_t>(out_point) * sizeof(float));
  }
  const int64_t kernel_step = kernel_point_step(shape);
  for (int64_t begin = first; begin < last; begin += block) {
    const int64_t count = smaller(block, last - begin), rows = round_up(count, kRows);
    Tile tile = Tile::of(shape, begin);
    for (int64_t i = 0; i < count; ++i, tile.next(shape)) {
      const float* found[16];
      if (args.enlarged) {
        find_enlarged_pixels(shape, tile, args.x, shape.inputs, zeros, found);
        pixels_to_points<true>(found, shape.inputs, round_up(shape.inputs, kLanes), pixels + i * in_step, in_point);
      } else {
        find_read_pixels(shape, tile, args.reversed, args.x, shape.inputs, zeros, found);
        pixels_to_points<false>(found, shape.inputs, round_up(shape.inputs, kLanes), pixels + i * in_step, in_point);
      }
    }
    for (int point = 0; point < kPoints; ++point) {
      if (args.enlarged && vanishes(point)) continue;
      float* a = pixels + point * in_point;
      for (int64_t i = count * in_step; i < rows * in_step; ++i) a[i] = 0.0f;
      for (int64_t k = 0; k < shape.inputs; k += kDepth) {
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
          const float* b = args.kernel + (panel * kPoints + point) * kernel_step + k * kColumns;
          multiply_panel<false>(rows, shape.outputs - panel * kColumns, a + k, in_step, b, kColumns,
                                smaller(kDepth, shape.inputs - k), k > 0,
                                results + point * out_point + (panel - first_panel) * kColumns, out_step);
        }
      }
    }
    tile = Tile::of(shape, begin);
    for (int64_t i = 0; i < count; ++i, tile.next(shape)) {
      points_to_results(args, tile, first_output, last_output, results + i * out_step, out_point);
    }
  }
}

// The gradient by the kernel ------------------------------------------------------------------------------------

// Pixels and slopes of a chunk of tiles, and the sums of their products over all chunks, in the transformed domain. The
// sums of a point are [panel of outputs, inputs, kColumns].
struct Scratch {
  int64_t in_step, out_step, in_point, out_point, panel_step, sum_point;

  static TFGEN_INLINE Scratch of(const TfgenWinogradShape& shape, int64_t tiles) {
    Scratch s;
    s.in_step = odd_lines(round_up(shape.inputs, kRows));
    s.out_step = odd_lines(shape.outputs);
    s.in_point = odd_lines(tiles * s.in_step);
    s.out_point = odd_lines(tiles * s.out_step);
    s.panel_step = round_up(shape.inputs, kRows) * kColumns;
    s.sum_point = odd_lines(kernel_units(shape) * s.panel_step);
    return s;
  }
  TFGEN_INLINE int64_t slopes() const { return kPoints * in_point; }
  TFGEN_INLINE int64_t sums() const { return slopes() + kPoints * out_point; }
  TFGEN_INLINE int64_t size() const { return sums() + kPoints * sum_point; }
};

// Whole kTileDepth, so that sums do not depend on the size of chunks.
template <class Tile>
int64_t chunk_tiles(const TfgenWinogradShape& shape, int64_t threads) {
  const Scratch s = Scratch::of(shape, 1);
  const int64_t fitting = threads * kChunkFloats / (kPoints * (s.in_step + s.out_step)) / kTileDepth * kTileDepth;
  return smaller(fitting < kTileDepth ? kTileDepth : fitting, Tile::count(shape));
}

inline int64_t scratch_size(const TfgenWinogradShape& shape, int64_t chunk_tiles) {
  return Scratch::of(shape, chunk_tiles).size();
}

inline int64_t product_units(const TfgenWinogradShape& shape) { return kPoints * kernel_units(shape); }

template <class Tile>
void transform_tiles(const TfgenWinogradKernelGradient& args, int64_t chunk, int64_t first, int64_t last) {
  const TfgenWinogradShape& shape = args.shape;
  const Scratch s = Scratch::of(shape, args.chunk_tiles);
  const float* zeros = zero_row(shape.inputs > shape.outputs ? shape.inputs : shape.outputs);
  Tile tile = Tile::of(shape, chunk + first);
  for (int64_t i = first; i < last; ++i, tile.next(shape)) {
    const float *pixels[16], *slopes[Tile::kHeight * Tile::kWidth];
    find_read_pixels(shape, tile, false, args.x, shape.inputs, zeros, pixels);
    pixels_to_points<false>(pixels, shape.inputs, round_up(round_up(shape.inputs, kRows), kLanes),
                     args.scratch + i * s.in_step, s.in_point);
    find_pixels<Tile::kHeight, Tile::kWidth>(shape, tile.image, tile.row, tile.column, args.dy, shape.outputs, zeros,
                                             slopes);
    slopes_to_points<Tile>(slopes, shape.outputs, args.scratch + s.slopes() + i * s.out_step, s.out_point);
  }
}

inline void add_products(const TfgenWinogradKernelGradient& args, int64_t chunk, int64_t tiles, int64_t first,
                         int64_t last) {
  const TfgenWinogradShape& shape = args.shape;
  const Scratch s = Scratch::of(shape, args.chunk_tiles);
  const int64_t panels = kernel_units(shape);
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t point = unit / panels, panel = unit % panels;
    const float* a = args.scratch + point * s.in_point;
    const float* b = args.scratch + s.slopes() + point * s.out_point + panel * kColumns;
    float* sums = args.scratch + s.sums() + point * s.sum_point + panel * s.panel_step;
    for (int64_t tile = 0; tile < tiles; tile += kTileDepth) {
      multiply_panel<true>(round_up(shape.inputs, kRows), shape.outputs - panel * kColumns, a + tile * s.in_step,
                           s.in_step, b + tile * s.out_step, s.out_step, smaller(kTileDepth, tiles - tile),
                           chunk + tile > 0, sums, kColumns);
    }
  }
}

// dkernel = G^T sums G
template <class Tile>
void finish(const TfgenWinogradKernelGradient& args, int64_t first, int64_t last) {
  const TfgenWinogradShape& shape = args.shape;
  const Scratch s = Scratch::of(shape, args.chunk_tiles);
  for (int64_t output = 0; output < shape.outputs; output += kLanes) {
    for (int64_t input = first; input < last; ++input) {
      const float* sums = args.scratch + s.sums() + output / kColumns * s.panel_step + input * kColumns;
      Vec points[16], half[4 * Tile::kTapRows], taps[Tile::kTaps];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) points[i] = at(sums + i * s.sum_point + output % kColumns);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        points_to_taps<Tile::kTapRows>(points[j], points[4 + j], points[8 + j], points[12 + j], half + j, 4);
      }
#pragma GCC unroll 3
      for (int j = 0; j < Tile::kTapRows; ++j) {
        points_to_taps<Tile::kTapColumns>(half[4 * j], half[4 * j + 1], half[4 * j + 2], half[4 * j + 3],
                                          taps + Tile::kTapColumns * j, 1);
      }
      for (int i = 0; i < Tile::kTaps; ++i) {
        store_some<Float32>(args.dkernel + (i * shape.inputs + input) * shape.outputs + output, taps[i],
                            shape.outputs - output);
      }
    }
  }
}

template <class Tile>
WinogradKernels winograd_kernels_of() {
  return {Tile::count,     kernel_size,       kernel_units, by_panels<Tile>, transform_kernel<Tile>,
          convolve<Tile>,  chunk_tiles<Tile>, scratch_size, product_units,   transform_tiles<Tile>,
          add_products,    finish<Tile>};
}

inline WinogradKernels winograd_kernels(int64_t kernel_height, int64_t kernel_width) {
  if (kernel_width == 2) return winograd_kernels_of<Tile<2, 2>>();
  return kernel_height == 2 ? winograd_kernels_of<Tile<2, 3>>() : winograd_kernels_of<Tile<3, 3>>();
}

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_WINOGRAD_CPU_WINOGRAD_H_
