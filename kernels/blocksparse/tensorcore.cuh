// Block-sparse attention for 16-bit types on tensor cores (mma.sync, sm_80 and later), float32 sums: short rows, and
// rows of any length where heads are narrow.
//
// A warp owns 32 or 16 consecutive slots of one head (`kTiles` tiles of 16) and walks the blocks of their row in chunks
// of 32 or 16 slots of the other side (`kStrips` strips of 16), which come to it through shared memory (chunks.cuh).
// From there operands come by ldmatrix. Scores and weights stay in registers.
//
// Bound: memory bandwidth at 1 to 5 blocks of 32 a row, if instructions are few, enough warps are there to hide
// latencies, and the L2 cache is not asked for the same rows too often. 32 slots a warp halve loads of matrices for
// each product. What the published layers have in common is known to their kernel when it is compiled (`kRegular`).
// Other widths are multiples of 8, padded with zeros.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_TENSORCORE_CUH_
#define TFGEN_KERNELS_BLOCKSPARSE_TENSORCORE_CUH_

#include <float.h>

#include "kernels/blocksparse/chunks.cuh"

namespace tfgen {
namespace blocksparse {
namespace tensorcore {

constexpr float kHeadroom = 8.0f;  // weights are at most 2^8, far from the largest float16

using Four = float[4];

struct Zeros {
  Four zeros = {};
  __device__ const Four& operator()(int, int) const { return zeros; }
};

// The warp's own rows as factors a of products over the width: in registers, or in shared memory from `memory` on,
// where they are after the first wait for copies. Registers are better used for more products at a time, where there is
// room.
template <typename T, typename S, int kWidth, bool kShared = S::kRegular>
struct OwnRows {
  uint4 rows[S::kTiles][kWidth / 16];

  __device__ OwnRows(const Head<const T>& head, const Tokens<S>& tokens, int size, uint32_t) {
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      const int pair[2] = {tokens.at(2 * tile), tokens.at(2 * tile + 1)};
      load_own<T, kWidth>(rows[tile], head, pair, size);
    }
  }
  __device__ uint4 at(int tile, int k) const { return rows[tile][k]; }
};
template <typename T, typename S, int kWidth>
struct OwnRows<T, S, kWidth, true> {
  uint32_t first;

  __device__ OwnRows(const Head<const T>& head, const Tokens<S>& tokens, int, uint32_t memory)
      : first(Matrix<kWidth>::by_rows(memory)) {
    static_assert(S::kRegular && kWidth == 32, "");
    const uint32_t target = memory + Matrix<32>::offset(CopyPlace<32>::row(), CopyPlace<32>::group());
#pragma unroll
    for (int j = 0; j < S::kOwnWarp / 8; ++j) {
      copy16(target + 8 * j * Matrix<32>::kPitch, head.row(tokens.at(j)) + CopyPlace<32>::group() * 8, true);
    }
  }
  __device__ uint4 at(int tile, int k) const { return load_matrices(Matrix<kWidth>::at(first, tile * kRows, k)); }
};

// c[tile] = start + own rows times kStrips times 16 rows of the other side, over the width. `other` is from by_columns.
// `start(tile, t)` are the four numbers of tile t of 8 columns.
template <typename T, int kWidth, int kStrips, typename Rows, int kTiles, typename Start>
__device__ inline void multiply_rows(float (&c)[kTiles][2 * kStrips][4], const Rows& own, uint32_t other, int row,
                                     const Start& start) {
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    uint4 a[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) a[tile] = own.at(tile, k);
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      const uint4 b = load_matrices(Matrix<kWidth>::at(other, row + s * kRows, k));
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        Four &left = c[tile][2 * s], &right = c[tile][2 * s + 1];
        const Four& left_start = k == 0 ? start(tile, 2 * s) : static_cast<const Four&>(left);
        const Four& right_start = k == 0 ? start(tile, 2 * s + 1) : static_cast<const Four&>(right);
        multiply<T>(left, left_start, a[tile].x, a[tile].y, a[tile].z, a[tile].w, b.x, b.y);
        multiply<T>(right, right_start, a[tile].x, a[tile].y, a[tile].z, a[tile].w, b.z, b.w);
      }
    }
  }
}

// sums[tile] += weights[tile][16, 16] rows[16, width], the weights in tiles t and t + 1 of 8 columns. `other` is from
// by_rows.
template <typename T, int kWidth, int kTiles, int kColumns>
__device__ inline void accumulate(float (&sums)[kTiles][kWidth / 8][4], const float (&weights)[kTiles][kColumns][4],
                                  int t, uint32_t other, int row) {
  uint4 a[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const float(&left)[4] = weights[tile][t], (&right)[4] = weights[tile][t + 1];
    a[tile] = make_uint4(pack<T>(left[0], left[1]), pack<T>(left[2], left[3]), pack<T>(right[0], right[1]),
                         pack<T>(right[2], right[3]));
  }
#pragma unroll
  for (int pair = 0; pair < kWidth / 16; ++pair) {
    const uint4 b = load_matrices_transposed(Matrix<kWidth>::at(other, row, pair));
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      multiply<T>(sums[tile][2 * pair], a[tile].x, a[tile].y, a[tile].z, a[tile].w, b.x, b.y);
      multiply<T>(sums[tile][2 * pair + 1], a[tile].x, a[tile].y, a[tile].z, a[tile].w, b.z, b.w);
    }
  }
}

// Puts the warp's sums, times a factor a row, into shared memory as rows of 16-bit numbers.
template <typename T, int kWidth, int kTiles>
__device__ inline void put_rows(uint32_t target, const float (&sums)[kTiles][kWidth / 8][4],
                                const float (&factors)[kTiles][2]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile * kRows + half * 8 + lane() / 4;
#pragma unroll
      for (int group = 0; group < kWidth / 8; ++group) {
        const float(&c)[4] = sums[tile][group];
        const float factor = factors[tile][half];
        store_shared4(target + Matrix<kWidth>::offset(row, group) + lane() % 4 * 4,
                      pack<T>(c[2 * half] * factor, c[2 * half + 1] * factor));
      }
    }
  }
}

// Stores the rows that put_rows has put, after a barrier, 16 bytes a thread.
template <int kWidth, typename T, typename S>
__device__ inline void store_rows(const Head<T>& head, const Order& order, int own_slot, uint32_t source, int size) {
  using Place = CopyPlace<kWidth>;
  if (!S::kRegular && Place::group() * 8 >= size) return;
  const Tokens<S> tokens(order, own_slot + Place::row());
#pragma unroll
  for (int j = 0; j < S::kOwnWarp / Place::kAtOnce; ++j) {
    const int row = Place::row() + j * Place::kAtOnce;
    const int token = S::kRegular && kWidth == 32 ? tokens.at(j) : order.token(own_slot + row);
    const uint4 bits = load_shared16(source + Matrix<kWidth>::offset(row, Place::group()));
    store16(head.row(token) + Place::group() * 8, bits);
  }
}

template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, S::kForwardBlocks)
    forward(const Grid grid, const TfgenBlocksparseForward args) {
  constexpr int kKeyWidth = S::kKeyWidth, kValueWidth = S::kValueWidth, kTiles = S::kTiles;
  constexpr int kColumns = 2 * S::kStrips;  // tiles of 8 keys
  const TfgenBlocksparseShape& shape = args.shape;
  const Work work(grid);
  using Source = Pipeline<T, S, false>;
  const int own_slot = S::own_slot(work);
  if (own_slot >= grid.length) return;  // a whole warp, and no other waits for it
  const Order order(shape, grid);
  const uint32_t memory = Source::own_memory();
  const Head<const T> queries(args.q, grid, work, S::key_size(shape), grid.key_pitch);
  const Tokens<S> tokens(order, own_slot + lane() / 4);
  const OwnRows<T, S, kKeyWidth> q(queries, tokens, S::key_size(shape), memory);
  Source source(shape, args.rows, grid, work, order, args.k, args.v, nullptr, nullptr);

  // The maximum of the scores is that of their scaled values only if the scale is positive. 0 becomes the least number,
  // for which -inf times the scale is -inf.
  const float scale = fmaxf(fabsf(shape.scale) * kLog2E, FLT_MIN);  // the softmax works on powers of two
  float out[kTiles][kValueWidth / 8][4] = {};
  // Weights are 2^(scaled score - reference). The reference is a maximum of the scores so far, not necessarily the
  // latest: as long as no score is more than kHeadroom above it, sums need not be scaled again. -FLT_MAX: no key yet.
  float reference[kTiles][2], sum[kTiles][2] = {};  // the sum of this thread's columns
#pragma unroll
  for (int j = 0; j < 2 * kTiles; ++j) reference[j / 2][j % 2] = -FLT_MAX;

  while (source.next()) {
    const uint32_t keys = Matrix<kKeyWidth>::by_columns(source.chunk());
    const uint32_t values = Matrix<kValueWidth>::by_rows(source.chunk() + S::kValued);
    float weights[kTiles][kColumns][4];  // first the scores
    multiply_rows<T, kKeyWidth, S::kStrips>(weights, q, keys, 0, Zeros());
    if (shape.scale < 0.0f) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int t = 0; t < kColumns; ++t) {
#pragma unroll
          for (float& score : weights[tile][t]) score = -score;
        }
      }
    }
    if (source.masked()) {
      const Kept<S> kept(source.masks(), source.mask_shift());
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int t = 0; t < kColumns; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (!kept.keeps(tile, t, i)) weights[tile][t][i] = minus_infinity();
          }
        }
      }
    }

    float largest[kTiles][2];
    bool higher = false;
#pragma unroll
    for (int j = 0; j < 2 * kTiles; ++j) {
      const int tile = j / 2, half = j % 2;
      largest[tile][half] = fmaxf(weights[tile][0][2 * half], weights[tile][0][2 * half + 1]);
#pragma unroll
      for (int t = 1; t < kColumns; ++t) {
        largest[tile][half] =
            fmaxf(largest[tile][half], fmaxf(weights[tile][t][2 * half], weights[tile][t][2 * half + 1]));
      }
      higher = higher || fmaf(largest[tile][half], scale, -reference[tile][half]) > kHeadroom;
    }
    if (__any_sync(kAllLanes, higher)) {
#pragma unroll
      for (int j = 0; j < 2 * kTiles; ++j) {
        const int tile = j / 2, half = j % 2;
        const float latest = fmaxf(reference[tile][half], quad_max(largest[tile][half]) * scale);
        const float rescale = exp2_approx(reference[tile][half] - latest);
        reference[tile][half] = latest;
        sum[tile][half] *= rescale;
#pragma unroll
        for (int group = 0; group < kValueWidth / 8; ++group) {
          out[tile][group][2 * half] *= rescale;
          out[tile][group][2 * half + 1] *= rescale;
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int t = 0; t < kColumns; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          weights[tile][t][i] = exp2_approx(fmaf(weights[tile][t][i], scale, -reference[tile][i / 2]));
          sum[tile][i / 2] += weights[tile][t][i];
        }
      }
    }

#pragma unroll
    for (int s = 0; s < S::kStrips; ++s) accumulate<T, kValueWidth>(out, weights, 2 * s, values, s * kRows);
  }

  float* const lse = args.lse + work.statistics(grid);
  float factors[kTiles][2];
#pragma unroll
  for (int j = 0; j < 2 * kTiles; ++j) {
    const int tile = j / 2, half = j % 2, token = tokens.at(j);
    const float total = quad_sum(sum[tile][half]);
    const bool empty = reference[tile][half] == -FLT_MAX && total == 0.0f;
    factors[tile][half] = empty ? 0.0f : reciprocal_approx(total);
    if (lane() % 4 == 0) {
      lse[token] = empty ? minus_infinity() : (reference[tile][half] + log2_approx(total)) * kLn2;
    }
  }
  const Head<T> outs(args.out, grid, work, S::value_size(shape), S::value_pitch(grid));
  put_rows<T, kValueWidth>(memory, out, factors);
  __syncwarp();
  store_rows<kValueWidth, T, S>(outs, order, own_slot, memory, S::value_size(shape));
}

template <typename T>
__device__ inline float dot(const uint4& a, const uint4& b) {
  const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack<T>(left[i]), y = unpack<T>(right[i]);
    sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
  }
  return sum;
}

constexpr int kDeltaRows = 32;  // tokens of a warp of `row_products`

// delta = -rowsum(dout * out), which both passes of the gradient need. kPieces: 32 elements of the width.
template <typename T, int kPieces>
__global__ void __launch_bounds__(kThreads) row_products(const Grid grid, const TfgenBlocksparseBackward args) {
  constexpr int kPerThread = kDeltaRows / 8;
  const int size = static_cast<int>(args.shape.value_size);
  const Work work(grid);
  const int first = (work.tile * kWarps + warp()) * kDeltaRows + lane() / 4;
  const Head<const T> outs(args.out, grid, work, size, grid.value_pitch);
  const Head<const T> douts(args.dout, grid, work, size, grid.value_pitch);
  float* const delta = args.delta + work.statistics(grid);
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int token = first + 8 * j;
    uint4 out[kPieces], dout[kPieces];
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int element = piece * 32 + lane() % 4 * 8;
      const bool exists = element < size && token < grid.length;
      out[piece] = dout[piece] = make_uint4(0, 0, 0, 0);
      if (exists) out[piece] = __ldg(reinterpret_cast<const uint4*>(outs.row(token) + element));
      if (exists) dout[piece] = __ldg(reinterpret_cast<const uint4*>(douts.row(token) + element));
    }
    float sum = 0.0f;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) sum += dot<T>(dout[piece], out[piece]);
    sum = quad_sum(sum);
    if (lane() % 4 == 0 && token < grid.length) delta[token] = -sum;
  }
}

// One pass of the gradient. The warp owns queries and walks keys (dq), or owns keys and walks queries (dk, dv), with
// everything transposed; so "own" is (q, dout) or (k, v) and "other" the reverse. Each pass sums in the order of its
// lists and writes its own rows: no atomics, the same bits every run.
template <typename T, typename S, bool kOwnsKeys>
__device__ inline void backward_pass(const Grid& grid, const TfgenBlocksparseBackward& args, const Work& work) {
  constexpr int kKeyWidth = S::kKeyWidth, kValueWidth = S::kValueWidth, kTiles = S::kTiles;
  constexpr int kStrips = S::kBackwardStrips;
  const TfgenBlocksparseShape& shape = args.shape;
  const TfgenBlocksparseLists& lists = kOwnsKeys ? args.columns : args.rows;
  const int key_size = S::key_size(shape), value_size = S::value_size(shape);
  using Source = Pipeline<T, S, kOwnsKeys>;
  const int own_slot = S::own_slot(work);
  if (own_slot >= grid.length) return;  // a whole warp, and no other waits for it
  const Order order(shape, grid);
  const uint32_t memory = Source::own_memory(), valued_memory = memory + 2 * S::kOwnWarp * kKeyWidth;
  const int64_t statistics = work.statistics(grid);
  const float *const lse = args.lse + statistics, *const delta = args.delta + statistics;  // by token
  const Head<const T> own_keyed(kOwnsKeys ? args.k : args.q, grid, work, key_size, grid.key_pitch);
  const Head<const T> own_valued(kOwnsKeys ? args.v : args.dout, grid, work, value_size, S::value_pitch(grid));
  const Tokens<S> tokens(order, own_slot + lane() / 4);
  const OwnRows<T, S, kKeyWidth> keyed(own_keyed, tokens, key_size, memory);
  const OwnRows<T, S, kValueWidth> valued(own_valued, tokens, value_size, valued_memory);
  Source source(shape, lists, grid, work, order, kOwnsKeys ? args.q : args.k, kOwnsKeys ? args.dout : args.v, lse,
                delta);
  float row_lse[kTiles][2] = {};  // of this thread's queries, where it owns some
  Four row_delta[kTiles] = {};
  if (!kOwnsKeys) {
#pragma unroll
    for (int j = 0; j < 2 * kTiles; ++j) {
      const int token = tokens.at(j);
      row_lse[j / 2][j % 2] = __ldg(lse + token) * kLog2E;
      row_delta[j / 2][j % 2 * 2] = row_delta[j / 2][j % 2 * 2 + 1] = __ldg(delta + token);
    }
  }

  const float scale = shape.scale * kLog2E;
  float keyed_sums[kTiles][kKeyWidth / 8][4] = {};                         // dq or dk, before the scale
  float valued_sums[kTiles][kOwnsKeys ? kValueWidth / 8 : 1][4] = {};  // dv, for owners of keys

  while (source.next()) {
    const uint32_t chunk = source.chunk();
#pragma unroll
    for (int first = 0; first < S::kStrips; first += kStrips) {
      float weights[kTiles][2 * kStrips][4], gradients[kTiles][2 * kStrips][4];  // p and d(scores)
      const uint32_t keyed_columns = Matrix<kKeyWidth>::by_columns(chunk);
      multiply_rows<T, kKeyWidth, kStrips>(weights, keyed, keyed_columns, first * kRows, Zeros());
      const uint32_t valued_columns = Matrix<kValueWidth>::by_columns(chunk + S::kValued);
      if constexpr (kOwnsKeys) {
        Four deltas[2 * kStrips];
#pragma unroll
        for (int t = 0; t < 2 * kStrips; ++t) {
          const uint4 d = load_shared16(chunk + S::kDelta + ((2 * first + t) * 4 + lane() % 4) * 16);
          deltas[t][0] = __uint_as_float(d.x), deltas[t][1] = __uint_as_float(d.y);
          deltas[t][2] = __uint_as_float(d.z), deltas[t][3] = __uint_as_float(d.w);
        }
        multiply_rows<T, kValueWidth, kStrips>(gradients, valued, valued_columns, first * kRows,
                                               [&deltas](int, int t) -> const Four& { return deltas[t]; });
      } else {
        multiply_rows<T, kValueWidth, kStrips>(gradients, valued, valued_columns, first * kRows,
                                               [&row_delta](int tile, int) -> const Four& { return row_delta[tile]; });
      }
#pragma unroll
      for (int t = 0; t < 2 * kStrips; ++t) {
        float column_lse[2] = {};
        if (kOwnsKeys) {
          const int2 l = load_shared(chunk + S::kLse + ((first * 2 + t) * 8 + lane() % 4 * 2) * 4);
          column_lse[0] = __int_as_float(l.x) * kLog2E, column_lse[1] = __int_as_float(l.y) * kLog2E;
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& p = weights[tile][t][i];
            p = exp2_approx(fmaf(p, scale, -(kOwnsKeys ? column_lse[i % 2] : row_lse[tile][i / 2])));
          }
        }
      }
      if (source.masked()) {
        const Kept<S> kept(source.masks(), source.mask_shift());
        // A query that keeps no key has lse -inf and p = +inf so far; all its bits are 0.
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int t = 0; t < 2 * kStrips; ++t) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              if (!kept.keeps(tile, 2 * first + t, i)) weights[tile][t][i] = 0.0f;
            }
          }
        }
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int t = 0; t < 2 * kStrips; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) gradients[tile][t][i] *= weights[tile][t][i];
        }
      }
      const uint32_t keyed_rows = Matrix<kKeyWidth>::by_rows(chunk);
      const uint32_t valued_rows = Matrix<kValueWidth>::by_rows(chunk + S::kValued);
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
        if constexpr (kOwnsKeys) {
          accumulate<T, kValueWidth>(valued_sums, weights, 2 * s, valued_rows, (first + s) * kRows);
        }
        accumulate<T, kKeyWidth>(keyed_sums, gradients, 2 * s, keyed_rows, (first + s) * kRows);
      }
    }
  }

  float factors[kTiles][2], ones[kTiles][2];
#pragma unroll
  for (int j = 0; j < 2 * kTiles; ++j) factors[j / 2][j % 2] = shape.scale, ones[j / 2][j % 2] = 1.0f;
  put_rows<T, kKeyWidth>(memory, keyed_sums, factors);
  if constexpr (kOwnsKeys) put_rows<T, kValueWidth>(valued_memory, valued_sums, ones);
  __syncwarp();
  const Head<T> keyed_gradients(kOwnsKeys ? args.dk : args.dq, grid, work, key_size, grid.key_pitch);
  store_rows<kKeyWidth, T, S>(keyed_gradients, order, own_slot, memory, key_size);
  if constexpr (kOwnsKeys) {
    const Head<T> valued_gradients(args.dv, grid, work, value_size, S::value_pitch(grid));
    store_rows<kValueWidth, T, S>(valued_gradients, order, own_slot, valued_memory, value_size);
  }
}

// Both passes in one launch, tile by tile, so that the second finds in the L2 cache what the first has read.
template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, S::kBackwardBlocks)
    backward(const Grid grid, const TfgenBlocksparseBackward args) {
  Work work(grid);  // two for each tile
  const bool owns_keys = work.tile % 2;
  work.tile /= 2;
  if (owns_keys) {
    backward_pass<T, S, true>(grid, args, work);
  } else {
    backward_pass<T, S, false>(grid, args, work);
  }
}

// The pass of the queries alone.
template <typename T, typename S>
__global__ void __launch_bounds__(kThreads, S::kBackwardBlocks)
    query_backward(const Grid grid, const TfgenBlocksparseBackward args) {
  backward_pass<T, S, false>(grid, args, Work(grid));
}

}  // namespace tensorcore
}  // namespace blocksparse
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_TENSORCORE_CUH_
