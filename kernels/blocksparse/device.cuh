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

// Kernel order: slot i holds token (i % m) * stride + i / m, m = T / stride. Tokens and slots fit 32 bits (a tensor has
// at most 2^31 elements); what they are multiplied with is 64 bits wide.
struct Order {
  int stride, per_class;

  __device__ explicit Order(const TfgenBlocksparseShape& shape)
      : stride(shape.stride), per_class(static_cast<int>(shape.length) / shape.stride) {}

  __device__ int token(int slot) const {
    return stride == 1 ? slot : slot % per_class * stride + slot / per_class;
  }
};

// The rows, one a token, of one head of one sequence in a [B, T, H * size] tensor.
template <typename T>
struct Head {
  T* first;
  int64_t pitch;

  template <typename Pointer>
  __device__ Head(Pointer* tensor, const TfgenBlocksparseShape& shape, int64_t size, int64_t batch, int64_t head)
      : first(static_cast<T*>(tensor) + batch * shape.length * shape.heads * size + head * size),
        pitch(shape.heads * size) {}

  __device__ T* row(int token) const { return first + token * pitch; }
};

// The piece of work of a thread block. Heads vary fastest, since the same rows of all heads are one stretch of memory:
// thread blocks that run together then share DRAM pages, and the keys and values of a band stay in the L2 cache.
struct Work {
  int64_t batch, head;
  int tile;

  __device__ Work(const TfgenBlocksparseShape& shape, int tiles) {
    const int64_t rest = blockIdx.x / shape.heads;
    head = blockIdx.x % shape.heads;
    tile = static_cast<int>(rest % tiles);
    batch = rest / tiles;
  }
};

// The entries of one block row.
struct Entries {
  int first, count;

  __device__ Entries(const TfgenBlocksparseLists& lists, const TfgenBlocksparseShape& shape, int64_t head, int row) {
    const int64_t blocks = shape.length / shape.blocksize;
    const int32_t* offsets = lists.offsets + (lists.layouts == 1 ? 0 : head) * (blocks + 1) + row;
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
