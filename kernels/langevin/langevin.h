// One Langevin step in one pass over memory, its gradient, and draws of its random numbers: the C interface of the
// kernels. Plain structs, no TensorFlow.
//
// A tensor has N samples of `size` elements. With n_k the normal number of an element at step k (kernels/common/
// philox.h), m its mask and, for the gradient g of the energy,
//
//     g^ = g                                           no clip
//        = max(min(g, clip), -clip)                    value
//        = g clip / max(|g|, clip)                     the norm of the whole tensor, or of each sample
//     t  = x - (eta g^) m                              noise first: x has the noise of this step already
//        = x + (sigma n_step) m - (eta g^) m           gradient first
//     x' = max(min(t, upper), lower)                   range
//        = max(min(t, r + radius), r - radius)         box around an anchor r
//        = r + d radius / max(|d|, radius), d = t - r  ball around it, by the norm of each sample
//     y' = x' + (sigma n_step+1) m                     where it is asked for
//
// all in float32, every product rounded before it is added; norms are summed in float64. A NaN in x, g or r gives NaN.
#ifndef TFGEN_KERNELS_LANGEVIN_LANGEVIN_H_
#define TFGEN_KERNELS_LANGEVIN_LANGEVIN_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum TfgenLangevinClip {
  TFGEN_CLIP_NONE = 0,
  TFGEN_CLIP_VALUE = 1,
  TFGEN_CLIP_TENSOR_NORM = 2,
  TFGEN_CLIP_SAMPLE_NORM = 3,
};
enum TfgenLangevinProjection { TFGEN_PROJECT_RANGE = 0, TFGEN_PROJECT_BOX = 1, TFGEN_PROJECT_BALL = 2 };
enum TfgenRandomKind { TFGEN_RANDOM_WORDS = 0, TFGEN_RANDOM_UNIFORM = 1, TFGEN_RANDOM_NORMAL = 2 };

// Which random numbers: those of elements first_element, first_element + 1, ... of a stream.
struct TfgenRandom {
  uint64_t seed, first_element;
  uint32_t step, stream;
};

// `mask` is null, [1, size] for all samples, or [N, size].
struct TfgenLangevinMask {
  const float* values;
  int64_t rows;  // 1 or N
};

struct TfgenLangevinStep {
  int64_t samples, size;          // N, and elements of each
  int32_t clip_mode, projection;  // TfgenLangevinClip, TfgenLangevinProjection
  int32_t gradient_first;         // 0 or 1
  float eta, sigma, lower, upper, clip, radius;
  struct TfgenRandom random;
  const float *x, *g;             // [N, size]
  const float* anchor;            // [N, size], of a box or ball
  struct TfgenLangevinMask mask;
  float* gradient_norms;          // [1] or [N] with a clip by norm: |g|, written by the forward pass
  float* displacement_norms;      // [N] with a ball: |d|, likewise
};

struct TfgenLangevinForward {
  struct TfgenLangevinStep step;
  float* x_next;    // may be x
  float* y_next;    // null where it is not asked for; may be x, but not x_next
  double* scratch;  // tfgen_langevin_scratch(step) numbers
};

// The gradient of a loss L by x and g, from those by x' and y' and from the norms of the forward pass. Noise, mask and
// anchor are constants. Where t lies on a bound, it passes.
struct TfgenLangevinBackward {
  struct TfgenLangevinStep step;
  const float *dx_next, *dy_next;  // dy_next is null where there was no y'
  float *dx, *dg;                  // may be dx_next and dy_next
  double* scratch;
};

// y = x + (sigma n_step) m: the first point of a chain, and the whole of what is done to one without a gradient.
struct TfgenLangevinNoise {
  int64_t samples, size;
  float sigma;
  struct TfgenRandom random;
  const float* x;
  struct TfgenLangevinMask mask;
  float* y;  // may be x
};

// Elements of a stream: words (uint32_t), uniform numbers in [0, 1) or standard normal numbers (float).
struct TfgenRandomDraw {
  struct TfgenRandom random;
  int64_t count;
  int32_t kind;  // TfgenRandomKind
  void* out;
};

// CPU. Work is done in phases, one after the other: sums for norms in pieces, the pieces added up, then the elements.
// The units of a phase write disjoint memory, and what a piece is depends on shapes only, so that results do not depend
// on threads. A caller runs ranges of units on its own threads; a phase without units has nothing to do.
enum { TFGEN_LANGEVIN_PHASES = 5 };
int64_t tfgen_langevin_units(const struct TfgenLangevinStep* step, int32_t phase, int32_t backward);
int64_t tfgen_langevin_scratch(const struct TfgenLangevinStep* step);  // numbers of scratch memory of either pass
void tfgen_langevin_forward_cpu(const struct TfgenLangevinForward* args, int32_t phase, int64_t first, int64_t last);
void tfgen_langevin_backward_cpu(const struct TfgenLangevinBackward* args, int32_t phase, int64_t first, int64_t last);

int64_t tfgen_langevin_element_units(int64_t elements);  // of the two functions below
void tfgen_langevin_noise_cpu(const struct TfgenLangevinNoise* args, int64_t first, int64_t last);
void tfgen_random_cpu(const struct TfgenRandomDraw* args, int64_t first, int64_t last);

// CUDA (compiled from langevin.cu). All pointers are device memory; `stream` is a cudaStream_t. Returns a cudaError_t,
// 0 for success. Scratch is that of the CPU.
int tfgen_langevin_forward_cuda(const struct TfgenLangevinForward* args, void* stream);
int tfgen_langevin_backward_cuda(const struct TfgenLangevinBackward* args, void* stream);
int tfgen_langevin_noise_cuda(const struct TfgenLangevinNoise* args, void* stream);
int tfgen_random_cuda(const struct TfgenRandomDraw* args, void* stream);

#ifdef __cplusplus
}
#endif
#endif  // TFGEN_KERNELS_LANGEVIN_LANGEVIN_H_
