// Group normalisation with a gain and an offset, and SiLU after it: the C interface of the kernels.
//
// Letters: B batch, P pixels, C channels, G groups of C / G neighbouring channels.
//
//     n = (x - mean) / sqrt(variance + epsilon)     over the P C / G values of a sample's group
//     y = n gain + offset;  y sigmoid(y) with SiLU
#ifndef TFGEN_KERNELS_GROUP_NORM_GROUP_NORM_H_
#define TFGEN_KERNELS_GROUP_NORM_GROUP_NORM_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct TfgenGroupNormShape {
  int64_t batch, pixels, channels, groups;  // B, P, C, G; G divides C
  int64_t gain_rows, offset_rows;           // 1: one row serves all samples; or B
  int32_t dtype;                            // TfgenDtype of x, y and their gradients; all else is float32
  int32_t silu;                             // 0 or 1
  int32_t threads;                          // that share the work: decides how it is cut, which changes no bit
  float epsilon;                            // positive
};

struct TfgenGroupNormForward {
  struct TfgenGroupNormShape shape;
  const void* x;              // [B, P, C]
  const float *gain, *offset;  // [1 or B, C]
  void* y;                    // [B, P, C]; may be x
  float *mean, *inverse;      // [B, G]: mean, and 1 / sqrt(variance + epsilon)
  double* scratch;            // tfgen_group_norm_scratch(shape) numbers
};

struct TfgenGroupNormBackward {
  struct TfgenGroupNormShape shape;
  const void *x, *dy;
  const float *gain, *offset, *mean, *inverse;
  void* dx;                     // may be dy
  float *dgain, *doffset;       // [B, C], of each sample, also where one row serves all
  double* scratch;
};

// Work is cut into units, some channels of a sample each, that write disjoint memory. The sums of a channel do not
// depend on the cuts. A caller runs ranges of units on its own threads.
int64_t tfgen_group_norm_units(const struct TfgenGroupNormShape* shape);
int64_t tfgen_group_norm_scratch(const struct TfgenGroupNormShape* shape);
void tfgen_group_norm_forward_cpu(const struct TfgenGroupNormForward* args, int64_t first, int64_t last);
void tfgen_group_norm_backward_cpu(const struct TfgenGroupNormBackward* args, int64_t first, int64_t last);

#ifdef __cplusplus
}
#endif
#endif  // TFGEN_KERNELS_GROUP_NORM_GROUP_NORM_H_
