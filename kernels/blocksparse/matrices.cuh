// Matrices of 16-bit numbers for tensor cores: where their rows lie in shared memory, and rows from device memory.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_MATRICES_CUH_
#define TFGEN_KERNELS_BLOCKSPARSE_MATRICES_CUH_

#include "kernels/blocksparse/device.cuh"

namespace tfgen {
namespace blocksparse {

constexpr uint32_t kAllLanes = 0xffffffffu;

// A matrix of kWidth 16-bit columns in shared memory, whose rows are groups of 16 bytes. Row r holds group g at place
// g ^ key(r), which makes the same group of 8 consecutive rows lie in 8 different sets of banks.
template <int kWidth>
struct Matrix {
  static constexpr int kPitch = 2 * kWidth;  // bytes
  static constexpr int kGroups = kWidth / 8;

  __device__ static int key(int row) { return kGroups == 4 ? row / 2 % 4 : row % 8; }  // 64-byte rows: two a line
  __device__ static uint32_t offset(int row, int group) { return row * kPitch + (group ^ key(row)) * 16; }

  // The address that this lane passes to load_matrices for the two by two [8, 8] matrices of 16 rows and 32 bytes,
  // those of the first 16 rows and bytes; see at(). By columns: both of the upper 8 rows come first, as in two factors
  // b of a product over the width. By rows: those of the first 16 bytes come first, as in a factor a, and, transposed,
  // in two factors b of a product over slots.
  __device__ static uint32_t by_columns(uint32_t matrix) {
    const int lane = threadIdx.x % kWarpSize;
    return matrix + offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  }
  __device__ static uint32_t by_rows(uint32_t matrix) {
    const int lane = threadIdx.x % kWarpSize;
    return matrix + offset(lane % 16, lane / 16);
  }
  // The same, `rows` further down and `pairs` times 32 bytes to the right. Rows come in sixteens, which all have the
  // same keys, and a row is aligned to its size, so that the pair of groups is a matter of one xor.
  __device__ static uint32_t at(uint32_t first, int rows, int pairs) { return (first ^ (pairs * 32)) + rows * kPitch; }
};

// This warp's 16 rows as factors a of products over the width, from device memory; zeros from `size` on.
template <typename T, int kWidth>
__device__ inline void load_own(uint4 (&own)[kWidth / 16], const Head<const T>& head, const int (&tokens)[2],
                                int size) {
  const T *upper = head.row(tokens[0]), *lower = head.row(tokens[1]);
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    const int left = k * 16 + threadIdx.x % 4 * 2, right = left + 8;
    own[k] = make_uint4(0, 0, 0, 0);
    if (k * 16 < size) {
      own[k].x = __ldg(reinterpret_cast<const unsigned*>(upper + left));
      own[k].y = __ldg(reinterpret_cast<const unsigned*>(lower + left));
    }
    if (k * 16 + 8 < size) {
      own[k].z = __ldg(reinterpret_cast<const unsigned*>(upper + right));
      own[k].w = __ldg(reinterpret_cast<const unsigned*>(lower + right));
    }
  }
}

}  // namespace blocksparse
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_MATRICES_CUH_
