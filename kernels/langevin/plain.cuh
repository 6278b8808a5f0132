// The forward pass of most steps: the tensor is whole blocks of random numbers, each 16 bytes at a multiple of 16;
// there is no mask, the projection is to a range, and a norm is that of the whole tensor.
//
// To tell all cases apart takes the general kernel longer than memory takes to move the elements. Here they are known
// when the kernel is compiled, and a thread needs few enough registers that all threads an SM can hold are there. It
// loads all of its elements before it does anything else.
#ifndef TFGEN_KERNELS_LANGEVIN_PLAIN_CUH_
#define TFGEN_KERNELS_LANGEVIN_PLAIN_CUH_

#include "kernels/langevin/quads.cuh"

namespace tfgen {
namespace langevin {

// Blocks of random numbers of a thread. Where none are drawn, loads of one would not keep memory busy.
__host__ __device__ constexpr int plain_quads(bool noisy) { return noisy ? 1 : 2; }

struct PlainStep {
  const float *x, *g;
  const float* norm;  // of g
  float *x_next, *y_next;
  float eta, sigma, lower, upper;
  float clip;  // of the values or of the norm; infinite for none
  uint32_t quads, step, stream;
  uint64_t first_block;  // of random numbers
  Keys keys;             // made on the host: each would cost every thread an addition
};

__device__ inline Four load_plain(const float* tensor, uint32_t quad) {
  return load_vector(tensor + static_cast<uint64_t>(quad) * kOwn);
}

__device__ inline void store_plain(float* tensor, uint32_t quad, const Four& values) {
  store_vector(tensor + static_cast<uint64_t>(quad) * kOwn, values);
}

// `kBefore`: t has noise of this step. `kAfter`: y' is asked for, which has that of the next one.
template <bool kByNorm, bool kBefore, bool kAfter>
__global__ void __launch_bounds__(kThreads) forward_plain(const PlainStep args) {
  constexpr int kQuads = plain_quads(kBefore || kAfter);
  // From the end, whose gradients the norm has left in the L2 cache.
  const uint32_t tile = kByNorm ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const uint32_t first = tile * (kThreads * kQuads) + threadIdx.x;
  Four t[kQuads] = {}, g[kQuads] = {};
#pragma unroll
  for (int j = 0; j < kQuads; ++j) {
    const uint32_t quad = first + j * kThreads;
    if (quad >= args.quads) continue;
    t[j] = load_plain(args.x, quad), g[j] = load_plain(args.g, quad);
  }
  const float norm = kByNorm ? at_least(*args.norm, args.clip) : 0.0f;
#pragma unroll
  for (int j = 0; j < kQuads; ++j) {
    const uint32_t quad = first + j * kThreads;
    if (quad >= args.quads) continue;
    Four before, after, x_next, y_next;
    if (kBefore) before = normals_of(Words(args.keys, args.first_block + quad, args.step, args.stream));
    if (kAfter) after = normals_of(Words(args.keys, args.first_block + quad, args.step + 1, args.stream));
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float clipped =
          kByNorm ? __fmul_rn(g[j].of[i], args.clip) / norm : between(g[j].of[i], -args.clip, args.clip);
      // Rounded as in the general kernel.
      if (kBefore) t[j].of[i] = __fadd_rn(t[j].of[i], __fmul_rn(args.sigma, before.of[i]));
      x_next.of[i] = between(__fsub_rn(t[j].of[i], __fmul_rn(args.eta, clipped)), args.lower, args.upper);
      if (kAfter) y_next.of[i] = __fadd_rn(x_next.of[i], __fmul_rn(args.sigma, after.of[i]));
    }
    store_plain(args.x_next, quad, x_next);
    if (kAfter) store_plain(args.y_next, quad, y_next);
  }
}

template <bool kByNorm>
auto forward_plain_of(bool before, bool after) -> void (*)(PlainStep) {
  if (before) return after ? forward_plain<kByNorm, true, true> : forward_plain<kByNorm, true, false>;
  return after ? forward_plain<kByNorm, false, true> : forward_plain<kByNorm, false, false>;
}

}  // namespace langevin
}  // namespace tfgen
#endif  // TFGEN_KERNELS_LANGEVIN_PLAIN_CUH_
