// Concatenated ELU and its gradient over float32 arrays of pixels: the C interface of the kernels.
#ifndef TFGEN_KERNELS_CONCAT_ELU_CONCAT_ELU_H_
#define TFGEN_KERNELS_CONCAT_ELU_CONCAT_ELU_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// y [pixels, 2 channels]: ELU(x), then ELU(-x), of x [pixels, channels]. ELU(x) is x above 0 and exp(x) - 1 below.
void tfgen_concat_elu_forward_cpu(const float* x, float* y, int64_t pixels, int64_t channels);

// dx [pixels, channels] of dy [pixels, 2 channels]. dx may be x.
void tfgen_concat_elu_backward_cpu(const float* x, const float* dy, float* dx, int64_t pixels, int64_t channels);

#ifdef __cplusplus
}
#endif
#endif  // TFGEN_KERNELS_CONCAT_ELU_CONCAT_ELU_H_
