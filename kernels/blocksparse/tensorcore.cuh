// Block-sparse attention for 16-bit types on tensor cores (mma.sync, sm_80 and later), float32 sums.
//
// A warp owns 16 consecutive slots of one head and walks the blocks of their row in *strips* of 16 slots, so that all
// block sizes from 16 on are one kernel. Warps share nothing and never wait for each other; those of a thread block own
// neighbouring slots, so that keys and values that several of them read come from the L1 cache.
//
// Operands go from device memory straight to registers, in 16-byte loads. The thread of row r = lane / 4 and i = lane
// % 4 loads elements 8i .. 8i + 7 of every 32 of a row. A product over the width (q k^T) may sum in any order, as long
// as both sides agree, so that those 8 elements are its operands of two multiplications. In a product over slots (p v)
// the same registers become operands by an 8 x 8 transposition each, which permutes the columns of the result such
// that a thread ends with elements 8i .. 8i + 7 again and stores 16 bytes.
//
// Bound: memory bandwidth at 1 to 5 blocks of 32 a row. Long rows would be bound by the L1 cache (K and V once for each
// 16 queries) and go to pipelined.cuh. Widths are multiples of 8, padded to 32 with zeros in registers.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_TENSORCORE_CUH_
#define TFGEN_KERNELS_BLOCKSPARSE_TENSORCORE_CUH_

#include "kernels/blocksparse/device.cuh"

namespace tfgen {
namespace blocksparse {
namespace tensorcore {

constexpr int kRows = 16;  // slots of a warp, and of a strip
constexpr int kWarps = 4;  // of a thread block; independent of each other
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kOwn = kWarps * kRows;  // slots of a thread block

// This thread's 16 bytes of each of the `kPieces` pieces of 32 elements of a row; zeros from `size` on.
template <typename T, int kPieces>
__device__ inline void load_row(uint4 (&row)[kPieces], const T* source, int size) {
  const int first = threadIdx.x % 4 * 8;
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    const int element = piece * 32 + first;
    row[piece] = element < size ? __ldg(reinterpret_cast<const uint4*>(source + element)) : make_uint4(0, 0, 0, 0);
  }
}

// c += rows own^T of 16 against 8, over the width.
template <typename T, int kPieces>
__device__ inline void multiply_rows(float (&c)[4], const uint4 (&own)[2][kPieces], const uint4 (&other)[kPieces]) {
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    const uint4 &upper = own[0][piece], &lower = own[1][piece], &b = other[piece];
    multiply<T>(c, upper.x, lower.x, upper.y, lower.y, b.x, b.y);
    multiply<T>(c, upper.z, lower.z, upper.w, lower.w, b.z, b.w);
  }
}

// sums[16, width] += weights[16, 16] rows[16, width], the weights from two tiles of 8 columns. sums[piece][j] are
// elements 8i + 2j, 8i + 2j + 1 of the piece.
template <typename T, int kPieces>
__device__ inline void accumulate(float (&sums)[kPieces][4][4], const float (&left)[4], const float (&right)[4],
                                  const uint4 (&upper)[kPieces], const uint4 (&lower)[kPieces]) {
  const uint32_t a0 = pack<T>(left[0], left[1]), a1 = pack<T>(left[2], left[3]);
  const uint32_t a2 = pack<T>(right[0], right[1]), a3 = pack<T>(right[2], right[3]);
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    const uint4 &u = upper[piece], &l = lower[piece];
    multiply<T>(sums[piece][0], a0, a1, a2, a3, transpose8(u.x), transpose8(l.x));
    multiply<T>(sums[piece][1], a0, a1, a2, a3, transpose8(u.y), transpose8(l.y));
    multiply<T>(sums[piece][2], a0, a1, a2, a3, transpose8(u.z), transpose8(l.z));
    multiply<T>(sums[piece][3], a0, a1, a2, a3, transpose8(u.w), transpose8(l.w));
  }
}

// Stores the sums, times a factor, of row lane / 4 (half 0) or lane / 4 + 8 (half 1).
template <typename T, int kPieces>
__device__ inline void store_row(T* target, int size, const float (&sums)[kPieces][4][4], int half, float factor) {
  const int first = threadIdx.x % 4 * 8;
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    const int element = piece * 32 + first;
    if (element >= size) continue;
    uint4 bits;
    bits.x = pack<T>(sums[piece][0][2 * half] * factor, sums[piece][0][2 * half + 1] * factor);
    bits.y = pack<T>(sums[piece][1][2 * half] * factor, sums[piece][1][2 * half + 1] * factor);
    bits.z = pack<T>(sums[piece][2][2 * half] * factor, sums[piece][2][2 * half + 1] * factor);
    bits.w = pack<T>(sums[piece][3][2 * half] * factor, sums[piece][3][2 * half + 1] * factor);
    *reinterpret_cast<uint4*>(target + element) = bits;
  }
}

// Sixteen slots of the other side, and the entry's mask for this thread's rows lane / 4 and lane / 4 + 8.
struct Strip {
  int slot;
  bool masked;
  uint32_t kept[2];  // bit c: column c of the strip; meaningful only if masked

  __device__ Strip(const TfgenBlocksparseLists& lists, int blocksize, const Entries& entries, int index,
                   int row_in_block) {
    const int entry = entries.first + index * kRows / blocksize;
    const int column = index * kRows % blocksize;
    const int mask = lists.masks[entry];
    slot = lists.columns[entry] * blocksize + column;
    masked = mask >= 0;
    if (masked) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        kept[half] = kept_bits(lists, blocksize, mask, row_in_block + 8 * half, column);
      }
    }
  }

  // Whether element `i` of this thread's four of tile 0 or 1 (columns 0 - 7 or 8 - 15) is kept.
  __device__ bool keeps(int tile, int i) const {
    return kept[i / 2] >> (tile * 8 + threadIdx.x % 4 * 2 + i % 2) & 1;
  }
};

template <typename T, int kKeyPieces, int kValuePieces>
__global__ void __launch_bounds__(kThreads) forward(const TfgenBlocksparseForward args) {
  const TfgenBlocksparseShape& shape = args.shape;
  const int length = static_cast<int>(shape.length), blocksize = shape.blocksize;
  const Work work(shape, (length + kOwn - 1) / kOwn);
  const int own_slot = (work.tile * kWarps + static_cast<int>(threadIdx.x) / kWarpSize) * kRows;
  if (own_slot >= length) return;  // a whole warp, and no other waits for it

  const int key_size = static_cast<int>(shape.key_size), value_size = static_cast<int>(shape.value_size);
  const Order order(shape);
  const Head<const T> queries(args.q, shape, key_size, work.batch, work.head);
  const Head<const T> keys(args.k, shape, key_size, work.batch, work.head);
  const Head<const T> values(args.v, shape, value_size, work.batch, work.head);
  const int row = threadIdx.x % kWarpSize / 4;
  const int tokens[2] = {order.token(own_slot + row), order.token(own_slot + row + 8)};

  uint4 q[2][kKeyPieces];
  load_row(q[0], queries.row(tokens[0]), key_size);
  load_row(q[1], queries.row(tokens[1]), key_size);

  const float scale = shape.scale * kLog2E;  // the softmax works on powers of two
  float out[kValuePieces][4][4] = {};
  float maximum[2] = {minus_infinity(), minus_infinity()};
  float sum[2] = {0.0f, 0.0f};  // of this thread's columns

  const Entries entries(args.rows, shape, work.head, own_slot / blocksize);
  const int strips = entries.count * (blocksize / kRows);
  // Two strips a step: the maxima and the rescaling, which cost as much as the products, are shared by 32 keys.
  for (int index = 0; index < strips; index += 2) {
    float weights[2][2][4] = {};  // [strip][tile][i]
    int slots[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (index + s < strips) {
        const Strip strip(args.rows, blocksize, entries, index + s, own_slot % blocksize + row);
        slots[s] = strip.slot;
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          uint4 k[kKeyPieces];
          load_row(k, keys.row(order.token(strip.slot + tile * 8 + row)), key_size);
          multiply_rows<T>(weights[s][tile], q, k);
#pragma unroll
          for (int i = 0; i < 4; ++i) weights[s][tile][i] *= scale;
          if (strip.masked) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              if (!strip.keeps(tile, i)) weights[s][tile][i] = minus_infinity();
            }
          }
        }
      } else {
        slots[s] = -1;
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[s][0][i] = weights[s][1][i] = minus_infinity();
      }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = maximum[half];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          largest = fmaxf(largest, fmaxf(weights[s][tile][2 * half], weights[s][tile][2 * half + 1]));
        }
      }
      largest = quad_max(largest);
      // A row that has kept no key yet: -inf - -inf would be NaN; exp2(-inf - 0) is the 0 that it should be.
      const float reference = largest == minus_infinity() ? 0.0f : largest;
      const float rescale = exp2_approx(maximum[half] - reference);
      maximum[half] = largest;
      sum[half] *= rescale;
#pragma unroll
      for (int piece = 0; piece < kValuePieces; ++piece) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          out[piece][j][2 * half] *= rescale;
          out[piece][j][2 * half + 1] *= rescale;
        }
      }
#pragma unroll
      for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            weights[s][tile][i] = exp2_approx(weights[s][tile][i] - reference);
            sum[half] += weights[s][tile][i];
          }
        }
      }
    }

#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (slots[s] < 0) continue;
      uint4 v[2][kValuePieces];
      load_row(v[0], values.row(order.token(slots[s] + row)), value_size);
      load_row(v[1], values.row(order.token(slots[s] + row + 8)), value_size);
      accumulate<T>(out, weights[s][0], weights[s][1], v[0], v[1]);
    }
  }

  const Head<T> outs(args.out, shape, value_size, work.batch, work.head);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = quad_sum(sum[half]);
    const bool empty = maximum[half] == minus_infinity() && total == 0.0f;
    store_row(outs.row(tokens[half]), value_size, out, half, empty ? 0.0f : 1.0f / total);
    if (threadIdx.x % 4 == 0) {
      args.lse[(work.batch * shape.heads + work.head) * shape.length + tokens[half]] =
          empty ? minus_infinity() : (maximum[half] + log2f(total)) * kLn2;
    }
  }
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

// One pass of the gradient. The tile owns 16 queries and walks keys (pass 1: delta, dq), or owns 16 keys and walks
// queries (pass 2: dk, dv), with everything transposed; so "own" is (q, dout) or (k, v) and "other" the reverse.
// Each pass sums in the order of its lists and writes its own rows: no atomics, the same bits every run.
template <typename T, int kKeyPieces, int kValuePieces, bool kOwnsKeys>
__global__ void __launch_bounds__(kThreads) backward(const TfgenBlocksparseBackward args) {
  const TfgenBlocksparseShape& shape = args.shape;
  const TfgenBlocksparseLists& lists = kOwnsKeys ? args.columns : args.rows;
  const int length = static_cast<int>(shape.length), blocksize = shape.blocksize;
  const Work work(shape, (length + kOwn - 1) / kOwn);
  const int own_slot = (work.tile * kWarps + static_cast<int>(threadIdx.x) / kWarpSize) * kRows;
  if (own_slot >= length) return;  // a whole warp, and no other waits for it

  const int key_size = static_cast<int>(shape.key_size), value_size = static_cast<int>(shape.value_size);
  const Order order(shape);
  const Head<const T> own_keyed(kOwnsKeys ? args.k : args.q, shape, key_size, work.batch, work.head);
  const Head<const T> own_valued(kOwnsKeys ? args.v : args.dout, shape, value_size, work.batch, work.head);
  const Head<const T> other_keyed(kOwnsKeys ? args.q : args.k, shape, key_size, work.batch, work.head);
  const Head<const T> other_valued(kOwnsKeys ? args.dout : args.v, shape, value_size, work.batch, work.head);
  const int64_t statistics = (work.batch * shape.heads + work.head) * shape.length;  // row of lse and delta
  const int row = threadIdx.x % kWarpSize / 4;
  const int tokens[2] = {order.token(own_slot + row), order.token(own_slot + row + 8)};

  uint4 keyed[2][kKeyPieces], valued[2][kValuePieces];
  float lse[2], delta[2];  // of this thread's two query rows; pass 1 only
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    load_row(keyed[half], own_keyed.row(tokens[half]), key_size);
    load_row(valued[half], own_valued.row(tokens[half]), value_size);
    if (!kOwnsKeys) {
      const Head<const T> outs(args.out, shape, value_size, work.batch, work.head);
      uint4 out[kValuePieces];
      load_row(out, outs.row(tokens[half]), value_size);
      float partial = 0.0f;
#pragma unroll
      for (int piece = 0; piece < kValuePieces; ++piece) partial += dot<T>(valued[half][piece], out[piece]);
      delta[half] = quad_sum(partial);
      lse[half] = args.lse[statistics + tokens[half]] * kLog2E;
      if (threadIdx.x % 4 == 0) args.delta[statistics + tokens[half]] = delta[half];
    }
  }

  const float scale = shape.scale * kLog2E;
  float keyed_sums[kKeyPieces][4][4] = {};      // dq or dk, before the scale
  float valued_sums[kValuePieces][4][4] = {};   // dv; pass 2 only

  const Entries entries(lists, shape, work.head, own_slot / blocksize);
  const int strips = entries.count * (blocksize / kRows);
  for (int index = 0; index < strips; ++index) {
    const Strip strip(lists, blocksize, entries, index, own_slot % blocksize + row);
    uint4 x[2][kKeyPieces], y[2][kValuePieces];
    float weights[2][4], gradients[2][4];  // p and d(scores), [tile][i]
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int token = order.token(strip.slot + tile * 8 + row);
      load_row(x[tile], other_keyed.row(token), key_size);
      load_row(y[tile], other_valued.row(token), value_size);
      float scores[4] = {}, products[4] = {};
      multiply_rows<T>(scores, keyed, x[tile]);
      multiply_rows<T>(products, valued, y[tile]);
      float column_lse[2], column_delta[2];
      if (kOwnsKeys) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int query = order.token(strip.slot + tile * 8 + threadIdx.x % 4 * 2 + i);
          column_lse[i] = args.lse[statistics + query] * kLog2E;
          column_delta[i] = args.delta[statistics + query];
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float p = exp2_approx(scores[i] * scale - (kOwnsKeys ? column_lse[i % 2] : lse[i / 2]));
        // A query that keeps no key has lse -inf and p = +inf here; all its bits are 0.
        weights[tile][i] = !strip.masked || strip.keeps(tile, i) ? p : 0.0f;
        gradients[tile][i] = weights[tile][i] * (products[i] - (kOwnsKeys ? column_delta[i % 2] : delta[i / 2]));
      }
    }
    accumulate<T>(keyed_sums, gradients[0], gradients[1], x[0], x[1]);
    if (kOwnsKeys) accumulate<T>(valued_sums, weights[0], weights[1], y[0], y[1]);
  }

  const Head<T> keyed_gradients(kOwnsKeys ? args.dk : args.dq, shape, key_size, work.batch, work.head);
  const Head<T> valued_gradients(args.dv, shape, value_size, work.batch, work.head);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    store_row(keyed_gradients.row(tokens[half]), key_size, keyed_sums, half, shape.scale);
    if (kOwnsKeys) store_row(valued_gradients.row(tokens[half]), value_size, valued_sums, half, 1.0f);
  }
}

}  // namespace tensorcore
}  // namespace blocksparse
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_TENSORCORE_CUH_
