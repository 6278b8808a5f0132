// The loops of concatenated ELU for the instruction set of the including file.
#ifndef TFGEN_KERNELS_CONCAT_ELU_CPU_CONCAT_ELU_H_
#define TFGEN_KERNELS_CONCAT_ELU_CPU_CONCAT_ELU_H_

#include "kernels/blocksparse/cpu_vector.h"
#include "kernels/concat_elu/cpu_dispatch.h"

namespace tfgen {
namespace TFGEN_ISA {

// One of x and -x is positive: a single exponential, of -|x|, serves both halves, forward and backward.

inline void concat_elu_forward(const float* x, float* y, int64_t pixels, int64_t channels) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, x += channels, y += 2 * channels) {
    for (int64_t i = 0; i < channels; i += kLanes) {
      const int64_t left = channels - i;
      const Vec value = load_some<Float32>(x + i, left);
      const Vec below = exponential_minus_one(-larger(value, -value));
      store_some<Float32>(y + i, value > 0.0f ? value : below, left);
      store_some<Float32>(y + channels + i, value < 0.0f ? -value : below, left);
    }
  }
}

inline void concat_elu_backward(const float* x, const float* dy, float* dx, int64_t pixels, int64_t channels) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, x += channels, dy += 2 * channels, dx += channels) {
    for (int64_t i = 0; i < channels; i += kLanes) {
      const int64_t left = channels - i;
      const Vec value = load_some<Float32>(x + i, left), slope = exponential(-larger(value, -value));
      const Vec first = load_some<Float32>(dy + i, left), second = load_some<Float32>(dy + channels + i, left);
      store_some<Float32>(dx + i, value > 0.0f ? first - second * slope : first * slope - second, left);
    }
  }
}

inline ConcatEluKernels concat_elu_kernels() { return {concat_elu_forward, concat_elu_backward}; }

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_CONCAT_ELU_CPU_CONCAT_ELU_H_
