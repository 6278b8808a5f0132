// What the families of block-sparse kernels share: dtypes, kernel order, rows of a head, block lists.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_DEVICE_CUH_
#define TFGEN_KERNELS_BLOCKSPARSE_DEVICE_CUH_

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/blocksparse/instructions.cuh"

namespace tfgen {
namespace blocksparse {

constexpr int kWarpSize = 32;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Division of numbers below 2^31 by a number that is the same in all threads, prepared on the host: a multiplication,
// a sum and a shift, where the machine has no instruction for it (Granlund and Montgomery, "Division by Invariant
// Integers using Multiplication", PLDI 1994, figure 4.1).
struct Divisor {
  uint32_t value, multiplier, shift;

  __host__ __device__ explicit Divisor(int64_t divisor) : value(static_cast<uint32_t>(divisor)), shift(0) {
    while ((uint64_t{1} << shift) < value) ++shift;
    multiplier = static_cast<uint32_t>((((uint64_t{1} << shift) - value) << 32) / value + 1);
  }
  __device__ int quotient(int number) const {
    const uint32_t n = static_cast<uint32_t>(number);
    return static_cast<int>((static_cast<uint32_t>(static_cast<uint64_t>(n) * multiplier >> 32) + n) >> shift);
  }
};

// The thread blocks of a launch: `tiles` for each head of each sequence.
struct Grid {
  Divisor heads, tiles, per_class;
  int length, block_shift;            // T; log2 of the block size
  uint32_t key_pitch, value_pitch;  // bytes from a token's row to the next

  __host__ Grid(const TfgenBlocksparseShape& shape, int64_t tiles_of_head)
      : heads(shape.heads),
        tiles(tiles_of_head),
        per_class(shape.length / shape.stride),
        length(static_cast<int>(shape.length)),
        block_shift(0),
        key_pitch(static_cast<uint32_t>(shape.heads * shape.key_size * element_size(shape.dtype))),
        value_pitch(static_cast<uint32_t>(shape.heads * shape.value_size * element_size(shape.dtype))) {
    while (1 << block_shift < shape.blocksize) ++block_shift;
  }

  static int element_size(int dtype) { return dtype == TFGEN_FLOAT32 ? 4 : 2; }
};

// Kernel order: slot i holds token (i % m) * stride + i / m, m = T / stride. Tokens and slots fit 32 bits (a tensor has
// at most 2^31 elements); what they are multiplied with is 64 bits wide.
struct Order {
  int stride;
  Divisor per_class;

  __device__ Order(const TfgenBlocksparseShape& shape, const Grid& grid)
      : stride(shape.stride), per_class(grid.per_class) {}

  __device__ int token(int slot) const {
    if (stride == 1) return slot;
    const int in_class = per_class.quotient(slot);
    return (slot - in_class * static_cast<int>(per_class.value)) * stride + in_class;
  }
};

// The piece of work of a thread block. Heads vary fastest, since the same rows of all heads are one stretch of memory:
// thread blocks that run together then share DRAM pages, and the keys and values of a band stay in the L2 cache.
struct Work {
  int batch, head, tile;

  __device__ explicit Work(const Grid& grid) {
    const int index = static_cast<int>(blockIdx.x), rest = grid.heads.quotient(index);
    batch = grid.tiles.quotient(rest);
    head = index - rest * static_cast<int>(grid.heads.value);
    tile = rest - batch * static_cast<int>(grid.tiles.value);
  }

  // Of this head in a [B, H, T] tensor.
  __device__ int64_t statistics(const Grid& grid) const {
    return (static_cast<int64_t>(batch) * static_cast<int>(grid.heads.value) + head) * grid.length;
  }
};

// The rows, one a token, of one head of one sequence in a [B, T, H * size] tensor. Made by keys_of and values_of.
template <typename T>
struct Head {
  T* first;
  uint32_t pitch;  // bytes

  template <typename Pointer>
  __device__ Head(Pointer* tensor, const Grid& grid, const Work& work, int size, uint32_t pitch)
      : first(static_cast<T*>(tensor) + work.head * size), pitch(pitch) {
    first = offset_by(first, work.batch * grid.length, pitch);
  }

  __device__ T* row(int token) const { return offset_by(first, token, pitch); }
};

// The entries of one block row.
struct Entries {
  int first, count;

  __device__ Entries(const TfgenBlocksparseLists& lists, const Grid& grid, int head, int row) {
    const int blocks = grid.length >> grid.block_shift;
    const int32_t* offsets = lists.offsets + static_cast<int64_t>(lists.layouts == 1 ? 0 : head) * (blocks + 1) + row;
    first = offsets[0];
    count = offsets[1] - first;
  }
};

// Bits of the mask of one row of a block, from `column` on (at most 32 - column % 32 of them count). Mask -1: all set.
__device__ inline uint32_t kept_bits(const TfgenBlocksparseLists& lists, int blocksize, int mask, int row, int column) {
  if (mask < 0) return 0xffffffffu;
  const int words = (blocksize + 31) / 32;
  return lists.mask_bits[(static_cast<int64_t>(mask) * blocksize + row) * words + column / 32] >> (column % 32);
}

// Two neighbours of a 16-bit vector, the first in the low half.
template <typename T>
__device__ inline uint32_t pack(float low, float high);
template <>
__device__ inline uint32_t pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ inline uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <typename T>
__device__ inline float2 unpack(uint32_t bits);
template <>
__device__ inline float2 unpack<__half>(uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
template <>
__device__ inline float2 unpack<__nv_bfloat16>(uint32_t bits) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
}

// Over the four threads that hold a row of a product on tensor cores.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace blocksparse
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_DEVICE_CUH_
