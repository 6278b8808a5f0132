// GELU and its gradient, elementwise over float32 arrays: the C interface of the kernels.
#ifndef TFGEN_KERNELS_GELU_GELU_H_
#define TFGEN_KERNELS_GELU_GELU_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// y[i] = x[i] Phi(x[i]), with Phi the standard normal distribution function. Arrays may be the same.
void tfgen_gelu_forward_cpu(const float* x, float* y, int64_t count);

// dx[i] = dy[i] (Phi(x[i]) + x[i] phi(x[i])), with phi the standard normal density. dx may be x or dy.
void tfgen_gelu_backward_cpu(const float* x, const float* dy, float* dx, int64_t count);

#ifdef __cplusplus
}
#endif
#endif  // TFGEN_KERNELS_GELU_GELU_H_
