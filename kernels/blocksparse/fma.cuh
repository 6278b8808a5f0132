// Block-sparse attention in float32 arithmetic, for every dtype, every width up to 256 and every block size.
//
// A thread block owns min(blocksize, 32) slots of one head, 8 to a warp, and walks the blocks of their row in *strips*
// of as many slots, whose rows all its warps read from shared memory. In products over the width (q k^T) a lane owns a
// slot of the strip; in products over slots (p v) it owns every 32nd element of the width, so that device memory is
// stored to in whole lines.
//
// Bound: float32 at 3 to 5 blocks of 32 a row has about as many operations as an H100 does while it moves the operands;
// shared memory (9 loads of 16 bytes to 32 multiplications) then comes before either. Several thread blocks a
// multiprocessor hide the latency of loading. Blocks of 8 and 16 leave three quarters and half of the lanes idle in
// products over the width: correct, not fast.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_FMA_CUH_
#define TFGEN_KERNELS_BLOCKSPARSE_FMA_CUH_

#include "kernels/blocksparse/device.cuh"

namespace tfgen {
namespace blocksparse {
namespace fma {

constexpr int kRowsPerWarp = 8;
constexpr int kMaxRows = 32;  // of a thread block, and of a strip

// Floats between rows of a tile: a multiple of 4 for 16-byte loads, an odd one so that 8 lanes that read the same
// columns of 8 rows meet no bank twice.
__host__ __device__ inline int tile_pitch(int64_t size) { return static_cast<int>((size + 3) / 4 | 1) * 4; }

// A tile of `rows` rows in shared memory, as float32. Columns from the width up to a multiple of 4 are zero.
struct Tile {
  float* data;
  int pitch;

  __device__ const float4& four(int row, int column) const {
    return *reinterpret_cast<const float4*>(data + row * pitch + column);
  }
};

// Fills a tile with consecutive slots of a head. `vectors`: rows are made of aligned groups of 16 bytes.
template <typename T>
__device__ inline void load_tile(const Tile& tile, const Head<const T>& head, const Order& order, int slot, int rows,
                                 int size, bool vectors) {
  constexpr int kGroup = 16 / sizeof(T);
  if (vectors) {
    const int groups = size / kGroup;
    for (int i = threadIdx.x; i < rows * groups; i += blockDim.x) {
      const int row = i / groups, column = i % groups * kGroup;
      const uint4 bits = __ldg(reinterpret_cast<const uint4*>(head.row(order.token(slot + row)) + column));
      const T* elements = reinterpret_cast<const T*>(&bits);
      float* target = tile.data + row * tile.pitch + column;
#pragma unroll
      for (int j = 0; j < kGroup; j += 4) {
        *reinterpret_cast<float4*>(target + j) = make_float4(to_float(elements[j]), to_float(elements[j + 1]),
                                                             to_float(elements[j + 2]), to_float(elements[j + 3]));
      }
    }
    return;
  }
  const int padded = (size + 3) / 4 * 4;
  for (int i = threadIdx.x; i < rows * padded; i += blockDim.x) {
    const int row = i / padded, column = i % padded;
    tile.data[row * tile.pitch + column] =
        column < size ? to_float(head.row(order.token(slot + row))[column]) : 0.0f;
  }
}

// Products over the width of this warp's 8 rows with row `column` of the strip. Four sums each, as shorter sums round
// less: with large scores that is most of the error of the whole.
__device__ inline void multiply_rows(float (&products)[kRowsPerWarp], const Tile& own, int first_row,
                                     const Tile& other, int column, int size) {
  float4 sums[kRowsPerWarp];
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) sums[r] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1  // 32 independent multiplications are enough; more would cost registers, hence thread blocks
  for (int d = 0; d < size; d += 4) {
    const float4 b = other.four(column, d);
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const float4 a = own.four(first_row + r, d);  // the same for all lanes: a broadcast
      sums[r].x = fmaf(a.x, b.x, sums[r].x);
      sums[r].y = fmaf(a.y, b.y, sums[r].y);
      sums[r].z = fmaf(a.z, b.z, sums[r].z);
      sums[r].w = fmaf(a.w, b.w, sums[r].w);
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) products[r] = (sums[r].x + sums[r].y) + (sums[r].z + sums[r].w);
}

// sums[8, width] += weights[8, columns] tile[columns, width]; `weights` are this warp's 8 rows of kMaxRows. A lane sums
// elements lane, lane + 32, ...; those beyond the width repeat the last one and are never stored.
template <int kElements>
__device__ inline void accumulate(float (&sums)[kRowsPerWarp][kElements], const float* weights, const Tile& tile,
                                  int columns, int size) {
  int elements[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    elements[e] = min(static_cast<int>(threadIdx.x) % kWarpSize + e * kWarpSize, size - 1);
  }
#pragma unroll 1
  for (int column = 0; column < columns; column += 4) {
    float4 w[kRowsPerWarp];
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) w[r] = *reinterpret_cast<const float4*>(weights + r * kMaxRows + column);
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const float* source = tile.data + column * tile.pitch + elements[e];
      const float b0 = source[0], b1 = source[tile.pitch], b2 = source[2 * tile.pitch], b3 = source[3 * tile.pitch];
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        sums[r][e] = fmaf(w[r].x, b0, fmaf(w[r].y, b1, fmaf(w[r].z, b2, fmaf(w[r].w, b3, sums[r][e]))));
      }
    }
  }
}

template <typename T, int kElements>
__device__ inline void store_row(T* target, int size, const float (&sums)[kElements], float factor) {
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int element = static_cast<int>(threadIdx.x) % kWarpSize + e * kWarpSize;
    if (element < size) target[element] = from_float<T>(sums[e] * factor);
  }
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
  }
  return x;
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// Rows of a thread block, and of a strip.
__host__ __device__ inline int rows_of(int blocksize) { return blocksize < kMaxRows ? blocksize : kMaxRows; }

// Bytes of shared memory: tiles of the own and the other side, and the weights (and, backward, the score gradients).
inline size_t forward_shared(const TfgenBlocksparseShape& shape) {
  const int rows = rows_of(shape.blocksize);
  return sizeof(float) * rows * (2 * tile_pitch(shape.key_size) + tile_pitch(shape.value_size) + kMaxRows);
}
inline size_t backward_shared(const TfgenBlocksparseShape& shape) {
  const int rows = rows_of(shape.blocksize);
  return sizeof(float) * rows * (2 * tile_pitch(shape.key_size) + 2 * tile_pitch(shape.value_size) + 2 * kMaxRows);
}

// Thread blocks that must fit a multiprocessor together, by its 64 Ki registers: narrow heads need few registers and
// many loads in flight.
constexpr int min_blocks(int elements) { return elements == 1 ? 5 : elements == 4 ? 3 : 1; }

// kElements: elements of the width a lane sums, at least ceil(Dv / 32).
template <typename T, int kElements>
__global__ void __launch_bounds__(kMaxRows / kRowsPerWarp* kWarpSize, min_blocks(kElements))
    forward(const Grid grid, const TfgenBlocksparseForward args, bool vectors) {
  float4* shared = shared_memory();
  const TfgenBlocksparseShape& shape = args.shape;
  const int blocksize = shape.blocksize, rows = rows_of(blocksize);
  const int key_size = static_cast<int>(shape.key_size), value_size = static_cast<int>(shape.value_size);
  const Work work(grid);
  const int own_slot = work.tile * rows;

  const Order order(shape, grid);
  const Head<const T> queries(args.q, grid, work, key_size, grid.key_pitch);
  const Head<const T> keys(args.k, grid, work, key_size, grid.key_pitch);
  const Head<const T> values(args.v, grid, work, value_size, grid.value_pitch);

  const Tile q{reinterpret_cast<float*>(shared), tile_pitch(key_size)};
  const Tile k{q.data + rows * q.pitch, q.pitch};
  const Tile v{k.data + rows * k.pitch, tile_pitch(value_size)};
  const int lane = threadIdx.x % kWarpSize, first_row = static_cast<int>(threadIdx.x) / kWarpSize * kRowsPerWarp;
  float* weights = v.data + rows * v.pitch + first_row * kMaxRows;  // [8, kMaxRows] of this warp

  load_tile(q, queries, order, own_slot, rows, key_size, vectors);

  const int column = min(lane, rows - 1);    // lanes beyond a short strip repeat its last slot, with weight 0
  float out[kRowsPerWarp][kElements] = {};
  float maximum[kRowsPerWarp], sum[kRowsPerWarp];  // the sum of this lane's columns only
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    maximum[r] = minus_infinity();
    sum[r] = 0.0f;
  }

  const Entries entries(args.rows, grid, work.head, own_slot / blocksize);
  for (int index = 0; index < entries.count * (blocksize / rows); ++index) {
    const int entry = entries.first + index * rows / blocksize;
    const int strip_column = index * rows % blocksize;
    const int mask = args.rows.masks[entry];
    const int slot = args.rows.columns[entry] * blocksize + strip_column;
    __syncthreads();  // all warps are done with the strip before
    load_tile(k, keys, order, slot, rows, key_size, vectors);
    load_tile(v, values, order, slot, rows, value_size, vectors);
    __syncthreads();

    float scores[kRowsPerWarp];
    multiply_rows(scores, q, first_row, k, column, key_size);
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      bool kept = lane < rows;
      if (mask >= 0) {
        const int row_in_block = own_slot % blocksize + first_row + r;
        kept = kept && (kept_bits(args.rows, blocksize, mask, row_in_block, strip_column) >> lane & 1);
      }
      // Scaled by log2(e) after the subtraction: before it, large scores would round twice.
      const float score = kept ? scores[r] * shape.scale : minus_infinity();
      const float largest = fmaxf(maximum[r], warp_max(score));
      // A row that has kept no key yet: -inf - -inf would be NaN; exp2(-inf - 0) is the 0 that it should be.
      const float reference = largest == minus_infinity() ? 0.0f : largest;
      const float rescale = exp2f((maximum[r] - reference) * kLog2E);
      const float weight = exp2f((score - reference) * kLog2E);
      maximum[r] = largest;
      sum[r] = sum[r] * rescale + weight;
#pragma unroll
      for (int e = 0; e < kElements; ++e) out[r][e] *= rescale;
      weights[r * kMaxRows + lane] = weight;
    }
    __syncwarp();
    accumulate(out, weights, v, rows, value_size);
  }

  const Head<T> outs(args.out, grid, work, value_size, grid.value_pitch);
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int token = order.token(own_slot + first_row + r);
    const float total = warp_sum(sum[r]);
    const bool empty = maximum[r] == minus_infinity() && total == 0.0f;
    store_row(outs.row(token), value_size, out[r], empty ? 0.0f : 1.0f / total);
    if (lane == 0) {
      args.lse[work.statistics(grid) + token] =
          empty ? minus_infinity() : maximum[r] + logf(total);
    }
  }
}

// One pass of the gradient. The tile owns queries and walks keys (pass 1: delta, dq), or owns keys and walks queries
// (pass 2: dk, dv), with everything transposed; so "own" is (q, dout) or (k, v) and "other" the reverse. Each pass sums
// in the order of its lists and writes its own rows: no atomics, the same bits every run.
// kElements: elements of the width a lane sums, at least ceil(max(Dk, Dv) / 32).
template <typename T, int kElements, bool kOwnsKeys>
__global__ void __launch_bounds__(kMaxRows / kRowsPerWarp* kWarpSize, min_blocks(kElements))
    backward(const Grid grid, const TfgenBlocksparseBackward args, bool vectors) {
  float4* shared = shared_memory();
  const TfgenBlocksparseShape& shape = args.shape;
  const TfgenBlocksparseLists& lists = kOwnsKeys ? args.columns : args.rows;
  const int blocksize = shape.blocksize, rows = rows_of(blocksize);
  const int key_size = static_cast<int>(shape.key_size), value_size = static_cast<int>(shape.value_size);
  const Work work(grid);
  const int own_slot = work.tile * rows;

  const Order order(shape, grid);
  const Head<const T> own_keyed_rows(kOwnsKeys ? args.k : args.q, grid, work, key_size, grid.key_pitch);
  const Head<const T> own_valued_rows(kOwnsKeys ? args.v : args.dout, grid, work, value_size, grid.value_pitch);
  const Head<const T> other_keyed_rows(kOwnsKeys ? args.q : args.k, grid, work, key_size, grid.key_pitch);
  const Head<const T> other_valued_rows(kOwnsKeys ? args.dout : args.v, grid, work, value_size, grid.value_pitch);
  const int64_t statistics = work.statistics(grid);  // row of lse and delta

  const Tile own_keyed{reinterpret_cast<float*>(shared), tile_pitch(key_size)};
  const Tile own_valued{own_keyed.data + rows * own_keyed.pitch, tile_pitch(value_size)};
  const Tile keyed{own_valued.data + rows * own_valued.pitch, own_keyed.pitch};
  const Tile valued{keyed.data + rows * keyed.pitch, own_valued.pitch};
  const int lane = threadIdx.x % kWarpSize, first_row = static_cast<int>(threadIdx.x) / kWarpSize * kRowsPerWarp;
  float* gradients = valued.data + rows * valued.pitch + first_row * kMaxRows;  // [8, kMaxRows]: d(scores)
  float* weights = gradients + rows * kMaxRows;                                 // [8, kMaxRows]: p; pass 2 only

  load_tile(own_keyed, own_keyed_rows, order, own_slot, rows, key_size, vectors);
  load_tile(own_valued, own_valued_rows, order, own_slot, rows, value_size, vectors);

  float lse[kRowsPerWarp], delta[kRowsPerWarp];  // of this warp's queries; pass 1 only
  if (!kOwnsKeys) {
    __syncthreads();
    const Head<const T> outs(args.out, grid, work, value_size, grid.value_pitch);
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int token = order.token(own_slot + first_row + r);
      float partial = 0.0f;
      for (int element = lane; element < value_size; element += kWarpSize) {
        partial = fmaf(own_valued.data[(first_row + r) * own_valued.pitch + element],
                       to_float(outs.row(token)[element]), partial);
      }
      delta[r] = warp_sum(partial);
      lse[r] = args.lse[statistics + token];
      if (lane == 0) args.delta[statistics + token] = delta[r];
    }
  }

  const int column = min(lane, rows - 1);  // lanes beyond a short strip repeat its last slot, with weight 0
  float keyed_sums[kRowsPerWarp][kElements] = {};   // dq or dk, before the scale
  float valued_sums[kRowsPerWarp][kElements] = {};  // dv; pass 2 only

  const Entries entries(lists, grid, work.head, own_slot / blocksize);
  for (int index = 0; index < entries.count * (blocksize / rows); ++index) {
    const int entry = entries.first + index * rows / blocksize;
    const int strip_column = index * rows % blocksize;
    const int mask = lists.masks[entry];
    const int slot = lists.columns[entry] * blocksize + strip_column;
    __syncthreads();  // all warps are done with the strip before
    load_tile(keyed, other_keyed_rows, order, slot, rows, key_size, vectors);
    load_tile(valued, other_valued_rows, order, slot, rows, value_size, vectors);
    __syncthreads();

    float column_lse = 0.0f, column_delta = 0.0f;
    if (kOwnsKeys) {
      const int query = order.token(slot + column);
      column_lse = args.lse[statistics + query];
      column_delta = args.delta[statistics + query];
    }
    float scores[kRowsPerWarp], products[kRowsPerWarp];
    multiply_rows(scores, own_keyed, first_row, keyed, column, key_size);
    multiply_rows(products, own_valued, first_row, valued, column, value_size);
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      bool kept = lane < rows;
      if (mask >= 0) {
        const int row_in_block = own_slot % blocksize + first_row + r;
        kept = kept && (kept_bits(lists, blocksize, mask, row_in_block, strip_column) >> lane & 1);
      }
      // A query that keeps no key has lse -inf, and exp2f would be +inf; all its bits are 0.
      const float score = fmaf(scores[r], shape.scale, kOwnsKeys ? -column_lse : -lse[r]);
      const float weight = kept ? exp2f(score * kLog2E) : 0.0f;
      gradients[r * kMaxRows + lane] = weight * (products[r] - (kOwnsKeys ? column_delta : delta[r]));
      if (kOwnsKeys) weights[r * kMaxRows + lane] = weight;
    }
    __syncwarp();
    accumulate(keyed_sums, gradients, keyed, rows, key_size);
    if (kOwnsKeys) accumulate(valued_sums, weights, valued, rows, value_size);
  }

  const Head<T> keyed_gradients(kOwnsKeys ? args.dk : args.dq, grid, work, key_size, grid.key_pitch);
  const Head<T> valued_gradients(args.dv, grid, work, value_size, grid.value_pitch);
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int token = order.token(own_slot + first_row + r);
    store_row(keyed_gradients.row(token), key_size, keyed_sums[r], shape.scale);
    if (kOwnsKeys) store_row(valued_gradients.row(token), value_size, valued_sums[r], 1.0f);
  }
}

}  // namespace fma
}  // namespace blocksparse
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_FMA_CUH_
