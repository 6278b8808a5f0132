// Block-sparse attention for 16-bit types on tensor cores with a pipeline of asynchronous copies, for long rows and for
// gradients of wide heads; float32 sums.
//
// A thread block owns 64 consecutive slots of one head, 16 to a warp, and walks the other side (keys, or queries for
// the gradients of keys) in *steps* of kTile slots, which its warps share in shared memory. While they multiply one
// step, the next one or two are on their way (cp.async). From there operands come by ldmatrix; rows are permuted in
// groups of 16 bytes such that neither ldmatrix nor a copy meets a bank twice. Scores and weights stay in registers.
//
// Block rows. The 64 slots are one block row, or part of one, where the block size is 64 or 128. Smaller blocks give 2
// or 4 block rows with a list each, and the steps are the *union* of those lists: every block that one of the rows
// keeps is copied once, and a warp whose own row lacks it does not multiply. No copy is in vain where neighbouring rows
// keep the same blocks, as they do in all published patterns but for the ends of a band.
//
// Bound: at long rows tensor cores, and shared memory, from which each warp reads all of the other side for its 16
// slots. The L2 cache delivers the other side once for each 64 slots.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_PIPELINED_CUH_
#define TFGEN_KERNELS_BLOCKSPARSE_PIPELINED_CUH_

#include <limits.h>

#include "kernels/blocksparse/matrices.cuh"

namespace tfgen {
namespace blocksparse {
namespace pipelined {

constexpr int kRows = 16;             // slots of a warp
constexpr int kWarps = 4;             // of a thread block
constexpr int kOwn = kRows * kWarps;  // slots of a thread block
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kStrip = 16;            // slots of the other side that have a mask of their own
constexpr int kPair = 2 * kStrip;     // slots of the other side that a warp multiplies at a time
constexpr int kAbsent = -2;           // a "mask": this warp's row lacks the block

// What is where in shared memory. A stage holds one step: keys and values (or queries and output gradients), the masks
// of the strips for each warp, and lse and delta of queries where those are the other side. kOwnShared: the 64 rows of
// the thread block itself are there, too.
template <int kKeyWidth, int kValueWidth, int kTileSlots, int kStageCount, bool kWithStatistics, bool kWithOwn>
struct Layout {
  static constexpr int kTile = kTileSlots, kStages = kStageCount;
  static constexpr bool kStatistics = kWithStatistics, kOwnShared = kWithOwn;
  static constexpr int kStrips = kTile / kStrip;
  static constexpr int kValued = 2 * kTile * kKeyWidth;  // bytes from the start of a stage
  static constexpr int kStage = kValued + 2 * kTile * kValueWidth;
  static constexpr int kOwnKeyed = kStages * kStage;  // from the start of shared memory
  static constexpr int kOwnValued = kOwnKeyed + (kOwnShared ? 2 * kOwn * kKeyWidth : 0);
  static constexpr int kSmall = kOwnValued + (kOwnShared ? 2 * kOwn * kValueWidth : 0);
  static constexpr int kStates = 8 * kWarps * kStrips;  // bytes of the strips' masks of a stage
  static constexpr int kSmallStage = kStates + (kStatistics ? 8 * kTile : 0);
  static constexpr int kBytes = kSmall + kStages * kSmallStage;

  static_assert(kTile % kPair == 0 && kOwn % kPair == 0 && kThreads % kTile == 0, "");
  static_assert(kStage % kSharedAlignment == 0 && kOwnKeyed % kSharedAlignment == 0, "");
};

// Wide heads get fewer stages, and as little of the other side as leaves two thread blocks an A100's multiprocessor.
template <int kKeyWidth, int kValueWidth>
using ForwardLayout =
    Layout<kKeyWidth, kValueWidth, 64, kKeyWidth + kValueWidth <= 128 ? 3 : 2, false, false>;
template <int kKeyWidth, int kValueWidth>
using QueryLayout = ForwardLayout<kKeyWidth, kValueWidth>;
// dk and dv of 128-wide heads are 128 registers a thread: too many beside k and v, which then stay in shared memory.
template <int kKeyWidth, int kValueWidth>
using KeyLayout = Layout<kKeyWidth, kValueWidth, kKeyWidth + kValueWidth <= 192 ? 64 : 32, 2, true,
                         (kKeyWidth + kValueWidth > 128)>;

// The steps of a thread block. Lane r of each warp holds the place in the list of block row r of the tile, so that all
// warps find the same union of the lists.
struct Walk {
  const TfgenBlocksparseLists& lists;
  const int blocksize;
  const int own;     // the lane that holds the list of this warp's slots
  int entry, end;    // of this lane's list
  int column, mask;  // of that entry; INT_MAX at the end
  int part = 0;      // slots of the block that steps have covered, where it is more than one step

  __device__ Walk(const TfgenBlocksparseLists& block_lists, const Grid& grid, const Work& work)
      : lists(block_lists),
        blocksize(1 << grid.block_shift),
        own(static_cast<int>(threadIdx.x) / kWarpSize * kRows >> grid.block_shift),
        entry(0),
        end(0) {
    const int lane = threadIdx.x % kWarpSize, row = (work.tile * kOwn >> grid.block_shift) + lane;
    // The last tile may reach beyond the sequence: lists without entries.
    if (lane * blocksize < kOwn && row < grid.length >> grid.block_shift) {
      const Entries entries(lists, grid, work.head, row);
      entry = entries.first;
      end = entries.first + entries.count;
    }
    read();
  }

  __device__ void read() {
    column = entry < end ? lists.columns[entry] : INT_MAX;
    mask = entry < end ? lists.masks[entry] : kAbsent;
  }

  // The next step: slots[j] becomes the slot of row 32j + lane of the tile, -1 beyond the end; `states` is where this
  // warp keeps (mask, first column) of each strip. Returns whether there is a step: the same in all threads.
  template <int kTile>
  __device__ bool next(int (&slots)[kTile / kWarpSize], uint32_t states) {
    const int lane = threadIdx.x % kWarpSize;
    const int piece = min(blocksize, kTile);  // slots of one block in a step
#pragma unroll
    for (int j = 0; j < kTile / kWarpSize; ++j) slots[j] = -1;
    bool some = false;
    for (int first = 0; first < kTile; first += piece) {
      const int least = __reduce_min_sync(kAllLanes, column);
      const int own_column = __shfl_sync(kAllLanes, column, own), own_mask = __shfl_sync(kAllLanes, mask, own);
      const bool found = least != INT_MAX;
      if (lane * kStrip < piece) {
        store_shared(states + (first / kStrip + lane) * 8,
                     make_int2(found && own_column == least ? own_mask : kAbsent, part + lane * kStrip));
      }
      if (!found) continue;
      some = true;
#pragma unroll
      for (int j = 0; j < kTile / kWarpSize; ++j) {
        const int row = j * kWarpSize + lane - first;
        if (row >= 0 && row < piece) slots[j] = least * blocksize + part + row;
      }
      part += piece;
      if (part == blocksize) {
        part = 0;
        if (column == least) {
          ++entry;
          read();
        }
      }
    }
    return some;
  }
};

// Starts the copies of kTile rows, of tokens[j] in row 32j + lane; zeros where the token is -1 and from `size` on.
template <typename T, int kWidth, int kTile>
__device__ inline void copy_rows(uint32_t matrix, const Head<const T>& head, const int (&tokens)[kTile / kWarpSize],
                                 int size) {
  constexpr int kGroups = Matrix<kWidth>::kGroups, kAtOnce = kThreads / kGroups;
  static_assert(kWarpSize % kAtOnce == 0, "the rows that the threads copy at once share a tokens[j]");
  const int group = threadIdx.x % kGroups, first = static_cast<int>(threadIdx.x) / kGroups;
#pragma unroll
  for (int row = 0; row < kTile; row += kAtOnce) {
    const int token = __shfl_sync(kAllLanes, tokens[row / kWarpSize], row % kWarpSize + first);
    const bool copied = token >= 0 && group * 8 < size;
    const T* source = copied ? head.row(token) + group * 8 : head.first;
    copy16(matrix + Matrix<kWidth>::offset(row + first, group), source, copied);
  }
}

// The steps of a thread block on their way through shared memory.
template <typename T, int kKeyWidth, int kValueWidth, typename Shared>
struct Pipeline {
  const Head<const T> keyed, valued;  // of the other side
  const int key_size, value_size;
  const Order order;
  const float *lse, *delta;  // of this head, by token; with Shared::kStatistics only
  const uint32_t memory;
  Walk walk;
  int fetched = 0;  // steps

  __device__ Pipeline(const TfgenBlocksparseShape& shape, const TfgenBlocksparseLists& lists, const Grid& grid,
                      const Work& work, const void* keyed_tensor, const void* valued_tensor, const float* lse_row,
                      const float* delta_row)
      : keyed(keyed_tensor, grid, work, static_cast<int>(shape.key_size), grid.key_pitch),
        valued(valued_tensor, grid, work, static_cast<int>(shape.value_size), grid.value_pitch),
        key_size(static_cast<int>(shape.key_size)),
        value_size(static_cast<int>(shape.value_size)),
        order(shape, grid),
        lse(lse_row),
        delta(delta_row),
        memory(shared_address()),
        walk(lists, grid, work) {}

  __device__ uint32_t stage(int step) const { return memory + step % Shared::kStages * Shared::kStage; }
  __device__ uint32_t small_stage(int step) const {
    return memory + Shared::kSmall + step % Shared::kStages * Shared::kSmallStage;
  }
  // (mask, first column) of the strips of a step for this warp.
  __device__ uint32_t states(int step) const {
    return small_stage(step) + static_cast<int>(threadIdx.x) / kWarpSize * Shared::kStrips * 8;
  }
  __device__ uint32_t statistics(int step) const { return small_stage(step) + Shared::kStates; }  // lse, then delta

  // Starts the copies of the next step, and closes their group in any case: groups are what wait_copies counts.
  __device__ void fetch() {
    constexpr int kTile = Shared::kTile;
    int tokens[kTile / kWarpSize];  // first the slots
    if (walk.template next<kTile>(tokens, states(fetched))) {
#pragma unroll
      for (int& token : tokens) {
        if (token >= 0) token = order.token(token);
      }
      copy_rows<T, kKeyWidth, kTile>(stage(fetched), keyed, tokens, key_size);
      copy_rows<T, kValueWidth, kTile>(stage(fetched) + Shared::kValued, valued, tokens, value_size);
      if (Shared::kStatistics) {
        // A warp holds 32 of the rows, one a lane; the first kTile threads copy lse, the next delta.
        const int index = threadIdx.x, j = index % kTile / kWarpSize;
        int token = tokens[0];
#pragma unroll
        for (int i = 1; i < kTile / kWarpSize; ++i) token = j == i ? tokens[i] : token;
        if (index < 2 * kTile) {
          const float* source = index < kTile ? lse : delta;
          copy4(statistics(fetched) + index * 4, token >= 0 ? source + token : source, token >= 0);
        }
      }
      ++fetched;
    }
    commit_copies();
  }

  // Before the first step.
  __device__ void start() {
#pragma unroll
    for (int i = 0; i < Shared::kStages - 1; ++i) fetch();
  }

  // Whether there is a step number `step`. Then it has arrived, and a later one is on its way to the stage of the step
  // before, which all warps have left.
  __device__ bool arrive(int step) {
    if (step == fetched) return false;  // the same in all threads
    wait_copies<Shared::kStages - 2>();
    __syncthreads();
    fetch();
    return true;
  }
};

// What this warp's rows keep of two strips; a thread's rows are lane / 4 and lane / 4 + 8.
struct Kept {
  bool some, all;     // of the whole warp: the row has one of the blocks; keeps all of both
  uint32_t bits[2][2];  // [strip][half]: bit c is column c of the strip

  __device__ Kept(const TfgenBlocksparseLists& lists, int blocksize, int row_in_block, uint32_t states) {
    some = false, all = true;
#pragma unroll
    for (int strip = 0; strip < 2; ++strip) {
      const int2 state = load_shared(states + strip * 8);  // (mask, first column)
      some = some || state.x != kAbsent;
      all = all && state.x == -1;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bits[strip][half] = state.x == kAbsent
                                ? 0
                                : kept_bits(lists, blocksize, state.x, row_in_block + 8 * half, state.y);
      }
    }
  }

  // Whether element `i` of this thread's four of tile 0 .. 3 (columns 8 * tile .. 8 * tile + 7 of the pair) is kept.
  __device__ bool keeps(int tile, int i) const {
    return bits[tile / 2][i / 2] >> (tile % 2 * 8 + threadIdx.x % 4 * 2 + i % 2) & 1;
  }
};

// c[tile] += own rows times 16 + 16 rows of the other side, over 16 elements of the width.
template <typename T, int kWidth>
__device__ inline void multiply_rows(float (&c)[4][4], const uint4& own, uint32_t other, int row, int k) {
#pragma unroll
  for (int strip = 0; strip < 2; ++strip) {
    const uint4 b = load_matrices(Matrix<kWidth>::at(other, row + strip * kStrip, k));
    multiply<T>(c[2 * strip], own.x, own.y, own.z, own.w, b.x, b.y);
    multiply<T>(c[2 * strip + 1], own.x, own.y, own.z, own.w, b.z, b.w);
  }
}

// sums[16, width] += weights[16, 32] rows[32, width], the weights in four tiles of 8 columns.
template <typename T, int kWidth>
__device__ inline void accumulate(float (&sums)[kWidth / 8][4], const float (&weights)[4][4], uint32_t other, int row) {
#pragma unroll
  for (int strip = 0; strip < 2; ++strip) {
    const float(&left)[4] = weights[2 * strip], (&right)[4] = weights[2 * strip + 1];
    const uint32_t a0 = pack<T>(left[0], left[1]), a1 = pack<T>(left[2], left[3]);
    const uint32_t a2 = pack<T>(right[0], right[1]), a3 = pack<T>(right[2], right[3]);
#pragma unroll
    for (int pair = 0; pair < kWidth / 16; ++pair) {
      const uint4 b = load_matrices_transposed(Matrix<kWidth>::at(other, row + strip * kStrip, pair));
      multiply<T>(sums[2 * pair], a0, a1, a2, a3, b.x, b.y);
      multiply<T>(sums[2 * pair + 1], a0, a1, a2, a3, b.z, b.w);
    }
  }
}

// Stores the sums, times a factor, of row lane / 4 (half 0) or lane / 4 + 8 (half 1). Four bytes a thread: two
// instructions fill a sector of the L2 cache, and there are few of them beside a long row.
template <typename T, int kWidth>
__device__ inline void store_row(T* target, int size, const float (&sums)[kWidth / 8][4], int half, float factor) {
#pragma unroll
  for (int group = 0; group < kWidth / 8; ++group) {
    if (group * 8 >= size) continue;
    *reinterpret_cast<uint32_t*>(target + group * 8 + threadIdx.x % 4 * 2) =
        pack<T>(sums[group][2 * half] * factor, sums[group][2 * half + 1] * factor);
  }
}

// Where this warp is: its slots, which may lie beyond the sequence as a whole.
struct Own {
  int slot, row_in_block;  // of this thread's first row
  bool exists;
  int tokens[2];  // of this thread's rows

  __device__ Own(const TfgenBlocksparseShape& shape, const Order& order, int tile) {
    const int first = tile * kOwn + static_cast<int>(threadIdx.x) / kWarpSize * kRows;
    exists = first < static_cast<int>(shape.length);
    slot = first + threadIdx.x % kWarpSize / 4;
    row_in_block = slot % shape.blocksize;
    tokens[0] = exists ? order.token(slot) : 0;
    tokens[1] = exists ? order.token(slot + 8) : 0;
  }
};

template <typename T, int kKeyWidth, int kValueWidth>
__global__ void __launch_bounds__(kThreads) forward(const Grid grid, const TfgenBlocksparseForward args) {
  using Shared = ForwardLayout<kKeyWidth, kValueWidth>;
  constexpr int kPairs = Shared::kTile / kPair;
  const TfgenBlocksparseShape& shape = args.shape;
  const Work work(grid);
  Pipeline<T, kKeyWidth, kValueWidth, Shared> pipeline(shape, args.rows, grid, work, args.k, args.v, nullptr, nullptr);
  pipeline.start();

  const Own own(shape, pipeline.order, work.tile);
  const Head<const T> queries(args.q, grid, work, static_cast<int>(shape.key_size), grid.key_pitch);
  uint4 q[kKeyWidth / 16];
  load_own<T, kKeyWidth>(q, queries, own.tokens, pipeline.key_size);  // of token 0, never used, where there are none

  const float scale = shape.scale * kLog2E;  // the softmax works on powers of two
  float out[kValueWidth / 8][4] = {};
  float maximum[2] = {minus_infinity(), minus_infinity()};
  float sum[2] = {0.0f, 0.0f};  // of this thread's columns

  for (int step = 0; pipeline.arrive(step); ++step) {
    const uint32_t keys = Matrix<kKeyWidth>::by_columns(pipeline.stage(step));
    const uint32_t values = Matrix<kValueWidth>::by_rows(pipeline.stage(step) + Shared::kValued);
    float weights[kPairs][4][4];
    bool present[kPairs], some = false;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const Kept kept(args.rows, shape.blocksize, own.row_in_block, pipeline.states(step) + pair * 16);
      present[pair] = kept.some;
      some = some || kept.some;
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[pair][tile][i] = kept.some ? 0.0f : minus_infinity();
      }
      if (!kept.some) continue;
#pragma unroll
      for (int k = 0; k < kKeyWidth / 16; ++k) {
        multiply_rows<T, kKeyWidth>(weights[pair], q[k], keys, pair * kPair, k);
      }
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[pair][tile][i] *= scale;
      }
      if (kept.all) continue;
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (!kept.keeps(tile, i)) weights[pair][tile][i] = minus_infinity();
        }
      }
    }
    if (!some) continue;  // a whole warp; the next barrier is the next step's

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = maximum[half];
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
          largest = fmaxf(largest, fmaxf(weights[pair][tile][2 * half], weights[pair][tile][2 * half + 1]));
        }
      }
      largest = quad_max(largest);
      // A row that has kept no key yet: -inf - -inf would be NaN; exp2(-inf - 0) is the 0 that it should be.
      const float reference = largest == minus_infinity() ? 0.0f : largest;
      const float rescale = exp2_approx(maximum[half] - reference);
      maximum[half] = largest;
      sum[half] *= rescale;
#pragma unroll
      for (int group = 0; group < kValueWidth / 8; ++group) {
        out[group][2 * half] *= rescale;
        out[group][2 * half + 1] *= rescale;
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            weights[pair][tile][i] = exp2_approx(weights[pair][tile][i] - reference);
            sum[half] += weights[pair][tile][i];
          }
        }
      }
    }

#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (present[pair]) accumulate<T, kValueWidth>(out, weights[pair], values, pair * kPair);
    }
  }

  if (!own.exists) return;
  const Head<T> outs(args.out, grid, work, static_cast<int>(shape.value_size), grid.value_pitch);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = quad_sum(sum[half]);
    const bool empty = maximum[half] == minus_infinity() && total == 0.0f;
    store_row<T, kValueWidth>(outs.row(own.tokens[half]), pipeline.value_size, out, half, empty ? 0.0f : 1.0f / total);
    if (threadIdx.x % 4 == 0) {
      args.lse[work.statistics(grid) + own.tokens[half]] =
          empty ? minus_infinity() : (maximum[half] + log2f(total)) * kLn2;
    }
  }
}

template <int kKeyWidth, int kValueWidth, bool kOwnsKeys>
struct BackwardLayout {
  using Type = QueryLayout<kKeyWidth, kValueWidth>;
};
template <int kKeyWidth, int kValueWidth>
struct BackwardLayout<kKeyWidth, kValueWidth, true> {
  using Type = KeyLayout<kKeyWidth, kValueWidth>;
};

// This warp's rows as factors a of products over the width: in registers, or in shared memory.
template <typename T, int kWidth, bool kInShared>
struct OwnRows {
  uint4 rows[kWidth / 16];

  __device__ OwnRows(const Head<const T>& head, const Own& own, int size, uint32_t) {
    load_own<T, kWidth>(rows, head, own.tokens, size);
  }
  __device__ uint4 at(int k) const { return rows[k]; }
};
template <typename T, int kWidth>
struct OwnRows<T, kWidth, true> {
  uint32_t first;

  __device__ OwnRows(const Head<const T>&, const Own&, int, uint32_t matrix)
      : first(Matrix<kWidth>::by_rows(matrix) +
              static_cast<int>(threadIdx.x) / kWarpSize * kRows * Matrix<kWidth>::kPitch) {}
  __device__ uint4 at(int k) const { return load_matrices(Matrix<kWidth>::at(first, 0, k)); }
};

template <typename T>
__device__ inline float dot(uint32_t a, uint32_t b) {
  const float2 x = unpack<T>(a), y = unpack<T>(b);
  return fmaf(x.x, y.x, x.y * y.y);
}

// One pass of the gradient. The tile owns queries and walks keys (pass 1: delta, dq), or owns keys and walks queries
// (pass 2: dk, dv), with everything transposed; so "own" is (q, dout) or (k, v) and "other" the reverse. Each pass sums
// in the order of its lists and writes its own rows: no atomics, the same bits every run.
template <typename T, int kKeyWidth, int kValueWidth, bool kOwnsKeys>
__global__ void __launch_bounds__(kThreads) backward(const Grid grid, const TfgenBlocksparseBackward args) {
  using Shared = typename BackwardLayout<kKeyWidth, kValueWidth, kOwnsKeys>::Type;
  const TfgenBlocksparseShape& shape = args.shape;
  const TfgenBlocksparseLists& lists = kOwnsKeys ? args.columns : args.rows;
  const Work work(grid);
  const int64_t statistics = work.statistics(grid);  // row of lse and delta
  const float* const lse_row = args.lse + statistics;
  float* const delta_row = args.delta + statistics;
  Pipeline<T, kKeyWidth, kValueWidth, Shared> pipeline(shape, lists, grid, work, kOwnsKeys ? args.q : args.k,
                                                       kOwnsKeys ? args.dout : args.v, lse_row, delta_row);
  const int key_size = pipeline.key_size, value_size = pipeline.value_size;
  const Head<const T> own_keyed(kOwnsKeys ? args.k : args.q, grid, work, key_size, grid.key_pitch);
  const Head<const T> own_valued(kOwnsKeys ? args.v : args.dout, grid, work, value_size, grid.value_pitch);
  if (Shared::kOwnShared) {  // in the group of the first step
    int tokens[kOwn / kWarpSize];
#pragma unroll
    for (int j = 0; j < kOwn / kWarpSize; ++j) {
      const int slot = work.tile * kOwn + j * kWarpSize + static_cast<int>(threadIdx.x) % kWarpSize;
      tokens[j] = slot < static_cast<int>(shape.length) ? pipeline.order.token(slot) : -1;
    }
    copy_rows<T, kKeyWidth, kOwn>(pipeline.memory + Shared::kOwnKeyed, own_keyed, tokens, key_size);
    copy_rows<T, kValueWidth, kOwn>(pipeline.memory + Shared::kOwnValued, own_valued, tokens, value_size);
  }
  pipeline.start();

  const Own own(shape, pipeline.order, work.tile);
  const OwnRows<T, kKeyWidth, Shared::kOwnShared> keyed(own_keyed, own, key_size, pipeline.memory + Shared::kOwnKeyed);
  const OwnRows<T, kValueWidth, Shared::kOwnShared> valued(own_valued, own, value_size,
                                                           pipeline.memory + Shared::kOwnValued);
  float lse[2] = {}, delta[2] = {};  // of this thread's two query rows; pass 1 only
  if constexpr (!kOwnsKeys) {
    const Head<const T> outs(args.out, grid, work, value_size, grid.value_pitch);
    uint4 out[kValueWidth / 16];
    load_own<T, kValueWidth>(out, outs, own.tokens, value_size);
#pragma unroll
    for (int k = 0; k < kValueWidth / 16; ++k) {
      const uint4 dout = valued.at(k);
      delta[0] += dot<T>(dout.x, out[k].x) + dot<T>(dout.z, out[k].z);
      delta[1] += dot<T>(dout.y, out[k].y) + dot<T>(dout.w, out[k].w);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      delta[half] = -quad_sum(delta[half]);
      lse[half] = lse_row[own.tokens[half]] * kLog2E;
      if (own.exists && threadIdx.x % 4 == 0) delta_row[own.tokens[half]] = delta[half];
    }
  }

  const float scale = shape.scale * kLog2E;
  float keyed_sums[kKeyWidth / 8][4] = {};                         // dq or dk, before the scale
  float valued_sums[kOwnsKeys ? kValueWidth / 8 : 1][4] = {};  // dv; pass 2 only

  for (int step = 0; pipeline.arrive(step); ++step) {
    const uint32_t keyed_matrix = pipeline.stage(step), valued_matrix = keyed_matrix + Shared::kValued;
#pragma unroll (kOwnsKeys || kKeyWidth + kValueWidth > 128 ? 1 : 2)  // where registers are left
    for (int row = 0; row < Shared::kTile; row += kPair) {
      const Kept kept(lists, shape.blocksize, own.row_in_block, pipeline.states(step) + row / kStrip * 8);
      if (!kept.some) continue;  // a whole warp
      float gradients[4][4] = {}, weights[4][4] = {};  // first the scores and the products of dout and v
      const uint32_t keyed_columns = Matrix<kKeyWidth>::by_columns(keyed_matrix);
      const uint32_t valued_columns = Matrix<kValueWidth>::by_columns(valued_matrix);
#pragma unroll
      for (int k = 0; k < kKeyWidth / 16; ++k) {
        multiply_rows<T, kKeyWidth>(weights, keyed.at(k), keyed_columns, row, k);
      }
#pragma unroll
      for (int k = 0; k < kValueWidth / 16; ++k) {
        multiply_rows<T, kValueWidth>(gradients, valued.at(k), valued_columns, row, k);
      }
#pragma unroll
      for (int tile = 0; tile < 4; ++tile) {
        float column_lse[2] = {}, column_delta[2] = {};
        if (kOwnsKeys) {
          const uint32_t first = pipeline.statistics(step) + (row + tile * 8 + threadIdx.x % 4 * 2) * 4;
          const int2 l = load_shared(first), d = load_shared(first + Shared::kTile * 4);
          column_lse[0] = __int_as_float(l.x) * kLog2E, column_lse[1] = __int_as_float(l.y) * kLog2E;
          column_delta[0] = __int_as_float(d.x), column_delta[1] = __int_as_float(d.y);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float p = exp2_approx(weights[tile][i] * scale - (kOwnsKeys ? column_lse[i % 2] : lse[i / 2]));
          // A query that keeps no key has lse -inf and p = +inf here; all its bits are 0.
          weights[tile][i] = kept.all || kept.keeps(tile, i) ? p : 0.0f;
          gradients[tile][i] =
              weights[tile][i] * (gradients[tile][i] + (kOwnsKeys ? column_delta[i % 2] : delta[i / 2]));
        }
      }
      accumulate<T, kKeyWidth>(keyed_sums, gradients, Matrix<kKeyWidth>::by_rows(keyed_matrix), row);
      if constexpr (kOwnsKeys) {
        accumulate<T, kValueWidth>(valued_sums, weights, Matrix<kValueWidth>::by_rows(valued_matrix), row);
      }
    }
  }
  wait_copies<0>();  // of own rows that no step has waited for, when there is none

  if (!own.exists) return;
  const Head<T> keyed_gradients(kOwnsKeys ? args.dk : args.dq, grid, work, key_size, grid.key_pitch);
  const Head<T> valued_gradients(args.dv, grid, work, value_size, grid.value_pitch);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    store_row<T, kKeyWidth>(keyed_gradients.row(own.tokens[half]), key_size, keyed_sums, half, shape.scale);
    if constexpr (kOwnsKeys) {
      store_row<T, kValueWidth>(valued_gradients.row(own.tokens[half]), value_size, valued_sums, half, 1.0f);
    }
  }
}

}  // namespace pipelined
}  // namespace blocksparse
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_PIPELINED_CUH_
