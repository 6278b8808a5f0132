// What both families of block-sparse kernels share: dtypes, kernel order, rows of a head, warp instructions.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_DEVICE_CUH_
#define TFGEN_KERNELS_BLOCKSPARSE_DEVICE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/blocksparse/blocksparse.h"

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

// 2^x to 2 ulp of float32, 0 at -inf. One instruction, where exp2f spends four to keep subnormal results.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
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

// c += a b with a [16, 16] by rows, b [16, 8] by columns, c [16, 8] in float32. With r = lane / 4 and i = lane % 4 a
// thread holds
//   a0: a[r][2i, 2i + 1]      a1: a[r + 8][2i, 2i + 1]      a2: a[r][2i + 8, 2i + 9]      a3: a[r + 8][2i + 8, 2i + 9]
//   b0: b[2i, 2i + 1][r]      b1: b[2i + 8, 2i + 9][r]
//   c[0], c[1]: c[r][2i, 2i + 1]                            c[2], c[3]: c[r + 8][2i, 2i + 1]
// Volatile, as is transpose8, so that the compiler moves neither to where some lanes of the warp are absent.
template <typename T>
__device__ inline void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                uint32_t b1);
template <>
__device__ inline void multiply<__half>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                        uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply<__nv_bfloat16>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                               uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Transposes an [8, 8] matrix of 16-bit numbers across a warp: a thread holds [lane / 4][2 (lane % 4), + 1], before and
// after.
__device__ inline uint32_t transpose8(uint32_t bits) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(bits));
  return transposed;
}

}  // namespace blocksparse
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_DEVICE_CUH_
