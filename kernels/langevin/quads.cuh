// What the CUDA kernels of langevin.h share: a thread's elements, their random numbers, bounds.
#ifndef TFGEN_KERNELS_LANGEVIN_QUADS_CUH_
#define TFGEN_KERNELS_LANGEVIN_QUADS_CUH_

#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/common/philox.h"
#include "kernels/langevin/langevin.h"

namespace tfgen {
namespace langevin {

constexpr int kThreads = 256;
constexpr int kOwn = kPhiloxWords;  // elements of a thread

struct Four {
  float of[kOwn];
};

__device__ inline Four load_vector(const float* from) {
  const float4 loaded = *reinterpret_cast<const float4*>(from);
  return {{loaded.x, loaded.y, loaded.z, loaded.w}};
}

__device__ inline void store_vector(float* to, const Four& values) {
#if defined(__CUDA_ARCH__)
  // By name: where there are elements to store one by one as well, the compiler makes four stores of an assignment.
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(values.of[0]),
               "f"(values.of[1]), "f"(values.of[2]), "f"(values.of[3])
               : "memory");
#else
  *reinterpret_cast<float4*>(to) = make_float4(values.of[0], values.of[1], values.of[2], values.of[3]);
#endif
}

// Elements first .. first + 3 of a tensor, of which those from `begin` to `end` exist.
struct Quad {
  int64_t first, begin, end;
  bool vectors;  // all exist, and lie at a multiple of 16 bytes

  __device__ bool has(int i) const { return first + i >= begin && first + i < end; }

  __device__ Four load(const float* tensor) const {
    if (vectors) return load_vector(tensor + first);
    Four values = {};
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (has(i)) values.of[i] = tensor[first + i];
    }
    return values;
  }

  __device__ void store(float* tensor, const Four& values) const {
    if (vectors) {
      store_vector(tensor + first, values);
      return;
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (has(i)) tensor[first + i] = values.of[i];
    }
  }
};

// Block number `index` of random numbers among those that elements begin .. end - 1 touch, and its elements.
__device__ inline uint64_t block_at(const TfgenRandom& random, int64_t begin, int64_t index) {
  return (random.first_element + static_cast<uint64_t>(begin)) / kOwn + static_cast<uint64_t>(index);
}

__device__ inline Quad quad_of(const TfgenRandom& random, uint64_t block, int64_t begin, int64_t end, bool aligned) {
  const int64_t first = static_cast<int64_t>(block * kOwn - random.first_element);
  return {first, begin, end, aligned && first >= begin && first + kOwn <= end};
}

using Keys = PhiloxKeys<ScalarMath>;

struct Words {
  uint32_t of[1][kOwn];

  __device__ Words(const Keys& keys, uint64_t block, uint32_t step, uint32_t stream)
      : of{{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), step, stream}} {
    philox<ScalarMath, 1>(of, keys);
  }
  __device__ Words(const TfgenRandom& random, uint64_t block, uint32_t step)
      : Words(Keys(random.seed), block, step, random.stream) {}
};

struct NormalMath : ScalarMath {
#if defined(__CUDA_ARCH__)
  // The correctly rounded root of 0 or of what is far from both ends of the range of floats, as a radius is: what
  // sqrtf does there, without its branch to all other numbers.
  static __device__ float square_root(float x) {
    float inverse;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fmaxf(x, 1e-30f)));
    const float root = x * inverse;
    return fmaf(fmaf(-root, root, x), 0.5f * inverse, root);
  }
#endif
};

__device__ inline Four normals_of(const Words& words) {
  float normals[1][kOwn];
  box_muller<NormalMath, 1>(words.of, normals);
  return {{normals[0][0], normals[0][1], normals[0][2], normals[0][3]}};
}

__device__ inline Four draw_normals(const TfgenRandom& random, uint64_t block, uint32_t step) {
  return normals_of(Words(random, block, step));
}

__device__ inline float between(float x, float lower, float upper) {  // NaN stays NaN
  const float below = x > upper ? upper : x;
  return below < lower ? lower : below;
}

__device__ inline float at_least(float norm, float bound) { return norm < bound ? bound : norm; }  // NaN stays NaN

// The block of a thread of a kernel that runs over all of `elements`.
__device__ inline uint64_t own_block(const TfgenRandom& random) {
  return block_at(random, 0, static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
}

}  // namespace langevin
}  // namespace tfgen
#endif  // TFGEN_KERNELS_LANGEVIN_QUADS_CUH_
