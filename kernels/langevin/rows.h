// Which sums a Langevin step needs, how they are cut, and where scratch memory holds them. Shared by CPU and CUDA.
#ifndef TFGEN_KERNELS_LANGEVIN_ROWS_H_
#define TFGEN_KERNELS_LANGEVIN_ROWS_H_

#include "kernels/langevin/langevin.h"

namespace tfgen {

constexpr int64_t kLangevinPiece = 4096;  // elements whose terms are added up together

// What is summed by itself: the samples, or the whole tensor.
struct LangevinRows {
  int64_t count, size, pieces;  // of each: elements, and pieces of them
};

inline bool is_summed(const TfgenLangevinStep& step, bool gradient) {
  if (!gradient) return step.projection == TFGEN_PROJECT_BALL;
  return step.clip_mode == TFGEN_CLIP_TENSOR_NORM || step.clip_mode == TFGEN_CLIP_SAMPLE_NORM;
}

// For sums about the gradient, or about the displacement.
inline LangevinRows rows_of(const TfgenLangevinStep& step, bool gradient) {
  const bool whole = gradient && step.clip_mode == TFGEN_CLIP_TENSOR_NORM;
  const int64_t size = whole ? step.samples * step.size : step.size;
  return {whole ? 1 : step.samples, size, (size + kLangevinPiece - 1) / kLangevinPiece};
}

// Scratch memory: of the backward pass, two products for each sample (or one for the tensor); then the pieces of the
// sum at hand.
inline double* displacement_products(const TfgenLangevinStep&, double* scratch) { return scratch; }
inline double* gradient_products(const TfgenLangevinStep& step, double* scratch) { return scratch + step.samples; }
inline double* sums_of_pieces(const TfgenLangevinStep& step, double* scratch) { return scratch + 2 * step.samples + 1; }

}  // namespace tfgen
#endif  // TFGEN_KERNELS_LANGEVIN_ROWS_H_
