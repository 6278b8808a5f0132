// The loops of GELU for the instruction set of the including file.
#ifndef TFGEN_KERNELS_GELU_CPU_GELU_H_
#define TFGEN_KERNELS_GELU_CPU_GELU_H_

#include "kernels/blocksparse/cpu_vector.h"
#include "kernels/gelu/cpu_dispatch.h"

namespace tfgen {
namespace TFGEN_ISA {

constexpr float kErfcx[9] = {1.691880077e-01f, 1.707152873e-01f,  1.483386010e-01f, 2.149287313e-01f, -9.465794265e-02f,
                             5.477316976e-01f, -5.122892261e-01f, 4.855690002e-01f, -1.295241714e-01f};

// Phi(x) and exp(-x^2 / 2), which the density shares with it.
//
// Phi(-|x|) = exp(-x^2 / 2) erfcx(|x| / sqrt(2)) / 2 with erfcx(z) = exp(z^2) erfc(z), which falls smoothly from 1 to
// 0.
// In t = 1 / (1 + 0.3 z) it is a polynomial of degree 9 without constant term to 2e-8 of itself for z in [0, 10]
// (least squares reweighted towards the smallest largest error); beyond, the factor before it is zero.
TFGEN_INLINE Vec distribution(Vec x, Vec* exponent) {
  const Vec magnitude = larger(x, -x);
  const Vec t = 1.0f / multiply_add(magnitude, broadcast(0.3f * 0.707106781f), broadcast(1.0f));
  Vec p = broadcast(kErfcx[8]);
#pragma GCC unroll 8
  for (int k = 7; k >= 0; --k) p = multiply_add(p, t, broadcast(kErfcx[k]));
  *exponent = exponential(-0.5f * x * x);
  const Vec tail = 0.5f * *exponent * p * t;
  return x > 0.0f ? 1.0f - tail : tail;
}

inline void gelu_forward(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec value = load_some<Float32>(x + i, count - i);
    Vec exponent;
    store_some<Float32>(y + i, value * distribution(value, &exponent), count - i);
  }
}

inline void gelu_backward(const float* x, const float* dy, float* dx, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vec value = load_some<Float32>(x + i, count - i);
    Vec exponent;
    const Vec phi = distribution(value, &exponent);
    const Vec slope = multiply_add(value * exponent, broadcast(0.398942280f), phi);  // 1 / sqrt(2 pi)
    store_some<Float32>(dx + i, load_some<Float32>(dy + i, count - i) * slope, count - i);
  }
}

inline GeluKernels gelu_kernels() { return {gelu_forward, gelu_backward}; }

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_GELU_CPU_GELU_H_
