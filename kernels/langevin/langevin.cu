// The CUDA launchers of langevin.h and their kernels. No TensorFlow.
//
// A thread owns the elements of one block of random numbers: four neighbours, of which the first of a tensor may lie
// within a block. Where these are 16 bytes at a multiple of 16 in every tensor, it loads and stores them at once. For
// norms a thread block adds up a piece of a row, another one the pieces: in the same order every time. Most forward
// passes take the faster kernel of plain.cuh, whose results are the same bits.
#include <cuda_runtime.h>
#include <limits.h>

#include "kernels/langevin/langevin.h"
#include "kernels/langevin/plain.cuh"
#include "kernels/langevin/quads.cuh"
#include "kernels/langevin/rows.h"

namespace tfgen {
namespace langevin {

// What the elements of a thread are multiplied with, and the samples that they belong to.
struct Owners {
  int64_t samples[kOwn];  // 0 where samples need not be told apart
  bool masked;
  Four mask;

  __device__ Owners(const TfgenLangevinMask& source, int64_t all_samples, int64_t size, bool by_sample,
                    const Quad& quad)
      : masked(source.values != nullptr) {
    const bool shared = masked && source.rows == 1 && all_samples > 1;
    if (masked && !shared) mask = quad.load(source.values);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      samples[i] = 0;
      if (!(by_sample || shared) || !quad.has(i)) continue;
      const int64_t element = quad.first + i;
      // Division in 32 bits, wherever that is enough, is several times faster.
      samples[i] = element <= UINT_MAX && size <= UINT_MAX
                       ? static_cast<uint32_t>(element) / static_cast<uint32_t>(size)
                       : element / size;
      if (shared) mask.of[i] = source.values[element - samples[i] * size];
    }
  }

  __device__ float apply(float value, int i) const { return masked ? __fmul_rn(value, mask.of[i]) : value; }
};

// A step as far as t, for the elements of a thread.
struct Moved {
  const TfgenLangevinStep& step;
  const Owners& owners;
  bool by_norm;
  float bound;  // of the values of the gradient
  Four g, anchor, t;

  __device__ Moved(const TfgenLangevinStep& step, const Owners& owners, const Quad& quad, uint64_t block)
      : step(step), owners(owners), g(quad.load(step.g)), t(quad.load(step.x)) {
    by_norm = step.clip_mode == TFGEN_CLIP_TENSOR_NORM || step.clip_mode == TFGEN_CLIP_SAMPLE_NORM;
    bound = step.clip_mode == TFGEN_CLIP_VALUE ? step.clip : __int_as_float(0x7f800000);
    if (step.projection != TFGEN_PROJECT_RANGE) anchor = quad.load(step.anchor);
    Four noise = {};
    if (step.gradient_first && step.sigma != 0.0f) noise = draw_normals(step.random, block, step.random.step);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!quad.has(i)) continue;
      float clipped = g.of[i];
      if (by_norm) clipped = __fmul_rn(clipped, step.clip) / at_least(gradient_norm(i), step.clip);
      clipped = between(clipped, -bound, bound);
      // Products are rounded before they are added, as on the CPU.
      if (step.gradient_first) t.of[i] = __fadd_rn(t.of[i], owners.apply(__fmul_rn(step.sigma, noise.of[i]), i));
      t.of[i] = __fsub_rn(t.of[i], owners.apply(__fmul_rn(step.eta, clipped), i));
    }
  }

  __device__ int64_t gradient_row(int i) const {
    return step.clip_mode == TFGEN_CLIP_SAMPLE_NORM ? owners.samples[i] : 0;
  }
  __device__ float gradient_norm(int i) const { return step.gradient_norms[gradient_row(i)]; }
  __device__ float displacement(int i) const { return __fsub_rn(t.of[i], anchor.of[i]); }
  __device__ float displacement_norm(int i) const { return step.displacement_norms[owners.samples[i]]; }

  __device__ float projected(int i) const {
    if (step.projection == TFGEN_PROJECT_RANGE) return between(t.of[i], step.lower, step.upper);
    if (step.projection == TFGEN_PROJECT_BALL) {
      const float d = __fmul_rn(displacement(i), step.radius) / at_least(displacement_norm(i), step.radius);
      return __fadd_rn(anchor.of[i], d);
    }
    const float a = anchor.of[i];
    return a == a ? between(t.of[i], __fsub_rn(a, step.radius), __fadd_rn(a, step.radius)) : a;
  }

  // The gradient by t of that by x'.
  __device__ float through_projection(float upstream, int i, const double* products) const {
    float lower = step.lower, upper = step.upper;
    if (step.projection == TFGEN_PROJECT_BALL) {
      return through_norm(upstream, displacement(i), displacement_norm(i), step.radius, products[owners.samples[i]]);
    }
    if (step.projection == TFGEN_PROJECT_BOX) {
      lower = __fsub_rn(anchor.of[i], step.radius), upper = __fadd_rn(anchor.of[i], step.radius);
    }
    return t.of[i] >= lower && t.of[i] <= upper ? upstream : 0.0f;
  }

  // The gradient by the clipped gradient of that by t.
  __device__ float through_step(float dt, int i) const { return -owners.apply(__fmul_rn(step.eta, dt), i); }

  __device__ float through_clip(float upstream, int i, const double* products) const {
    if (by_norm) return through_norm(upstream, g.of[i], gradient_norm(i), step.clip, products[gradient_row(i)]);
    if (step.clip_mode == TFGEN_CLIP_NONE) return upstream;
    return g.of[i] >= -step.clip && g.of[i] <= step.clip ? upstream : 0.0f;
  }

  // The gradient by v, of that by v bound / max(|v|, bound); `product` is that of v and `upstream`, of all elements.
  static __device__ float through_norm(float upstream, float value, float norm, float bound, double product) {
    if (norm < bound) return upstream;
    const float along = static_cast<float>(product / (static_cast<double>(norm) * norm));
    return (upstream - value * along) * (bound / norm);
  }
};

__device__ inline bool tells_samples(const TfgenLangevinStep& step) {
  return step.clip_mode == TFGEN_CLIP_SAMPLE_NORM || step.projection == TFGEN_PROJECT_BALL;
}

__device__ inline Owners owners_of(const TfgenLangevinStep& step, const Quad& quad) {
  return Owners(step.mask, step.samples, step.size, tells_samples(step), quad);
}

__global__ void __launch_bounds__(kThreads) forward(const TfgenLangevinForward args, bool aligned) {
  const TfgenLangevinStep& step = args.step;
  const uint64_t block = own_block(step.random);
  const Quad quad = quad_of(step.random, block, 0, step.samples * step.size, aligned);
  if (quad.first >= quad.end) return;
  const Owners owners = owners_of(step, quad);
  const Moved moved(step, owners, quad, block);
  Four x_next = {}, y_next = {};
  if (args.y_next != nullptr && step.sigma != 0.0f) y_next = draw_normals(step.random, block, step.random.step + 1);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (!quad.has(i)) continue;
    x_next.of[i] = moved.projected(i);
    y_next.of[i] = __fadd_rn(x_next.of[i], owners.apply(__fmul_rn(step.sigma, y_next.of[i]), i));
  }
  quad.store(args.x_next, x_next);
  if (args.y_next != nullptr) quad.store(args.y_next, y_next);
}

__device__ inline Four from_above(const TfgenLangevinBackward& args, const Quad& quad) {
  Four upstream = quad.load(args.dx_next);
  if (args.dy_next == nullptr) return upstream;
  const Four other = quad.load(args.dy_next);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) upstream.of[i] = __fadd_rn(upstream.of[i], other.of[i]);
  return upstream;
}

struct Products {
  const double *displacement, *gradient;
};

__global__ void __launch_bounds__(kThreads) backward(const TfgenLangevinBackward args, Products products,
                                                     bool aligned) {
  const TfgenLangevinStep& step = args.step;
  const uint64_t block = own_block(step.random);
  const Quad quad = quad_of(step.random, block, 0, step.samples * step.size, aligned);
  if (quad.first >= quad.end) return;
  const Owners owners = owners_of(step, quad);
  const Moved moved(step, owners, quad, block);
  const Four upstream = from_above(args, quad);
  Four dx = {}, dg = {};
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (!quad.has(i)) continue;
    dx.of[i] = moved.through_projection(upstream.of[i], i, products.displacement);
    dg.of[i] = moved.through_clip(moved.through_step(dx.of[i], i), i, products.gradient);
  }
  quad.store(args.dx, dx);
  quad.store(args.dg, dg);
}

__global__ void __launch_bounds__(kThreads) noise(const TfgenLangevinNoise args, bool aligned) {
  const uint64_t block = own_block(args.random);
  const Quad quad = quad_of(args.random, block, 0, args.samples * args.size, aligned);
  if (quad.first >= quad.end) return;
  const Owners owners(args.mask, args.samples, args.size, false, quad);
  Four y = quad.load(args.x), normals = {};
  if (args.sigma != 0.0f) normals = draw_normals(args.random, block, args.random.step);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (quad.has(i)) y.of[i] = __fadd_rn(y.of[i], owners.apply(__fmul_rn(args.sigma, normals.of[i]), i));
  }
  quad.store(args.y, y);
}

__global__ void __launch_bounds__(kThreads) draw(const TfgenRandomDraw args, bool aligned) {
  const uint64_t block = own_block(args.random);
  const Quad quad = quad_of(args.random, block, 0, args.count, aligned);
  if (quad.first >= quad.end) return;
  Four values;
  if (args.kind == TFGEN_RANDOM_NORMAL) {
    values = draw_normals(args.random, block, args.random.step);
  } else {
    const Words words(args.random, block, args.random.step);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      values.of[i] =
          args.kind == TFGEN_RANDOM_UNIFORM ? uniform_of<ScalarMath>(words.of[0][i]) : __uint_as_float(words.of[0][i]);
    }
  }
  quad.store(static_cast<float*>(args.out), values);
}

// Sums ---------------------------------------------------------------------------------------------------------------

// The sum over a thread block, given to its first thread.
__device__ inline double block_sum(double value) {
  __shared__ double sums[kThreads];
  sums[threadIdx.x] = value;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  return sums[0];
}

// The elements that a thread block adds up the terms of: a piece of a row.
struct Piece {
  int64_t begin, end;
  bool whole;

  __device__ explicit Piece(const LangevinRows& rows) {
    // A division of 64 bits takes as long as all else here, and there are no more pieces than thread blocks.
    const unsigned pieces = static_cast<unsigned>(rows.pieces);
    const int64_t row = blockIdx.x / pieces, start = blockIdx.x % pieces * kLangevinPiece;
    whole = start + kLangevinPiece <= rows.size;
    begin = row * rows.size + start;
    end = whole ? begin + kLangevinPiece : (row + 1) * rows.size;
  }
};

// Of the gradient. A thread adds up the same elements in the same order, whether it loads them all at once or not.
__global__ void __launch_bounds__(kThreads) add_terms_of_squares(const float* g, TfgenRandom random, LangevinRows rows,
                                                                 bool aligned, double* pieces) {
  constexpr int kQuads = kLangevinPiece / kOwn / kThreads;
  static_assert(kQuads * kOwn * kThreads == kLangevinPiece, "threads share a piece evenly");
  const Piece piece(rows);
  double sums[kOwn] = {};
  const auto add = [&sums](const Four& values) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) sums[i] += static_cast<double>(values.of[i]) * values.of[i];
  };
  if (aligned && piece.whole && piece.begin % kOwn == 0) {
    Four values[kQuads];
#pragma unroll
    for (int j = 0; j < kQuads; ++j) values[j] = load_vector(g + piece.begin + (j * kThreads + threadIdx.x) * kOwn);
#pragma unroll
    for (int j = 0; j < kQuads; ++j) add(values[j]);
  } else {
    for (int64_t index = threadIdx.x;; index += kThreads) {
      const Quad quad = quad_of(random, block_at(random, piece.begin, index), piece.begin, piece.end, aligned);
      if (quad.first >= piece.end) break;
      add(quad.load(g));  // 0 where nothing is
    }
  }
  const double sum = block_sum(sums[0] + sums[1] + (sums[2] + sums[3]));
  if (threadIdx.x == 0) pieces[blockIdx.x] = sum;
}

enum Sum { kDisplacementSquare, kDisplacementProduct, kGradientProduct };

// Of the upstream gradients and products only the backward pass has any.
template <Sum kSum>
__global__ void __launch_bounds__(kThreads) add_terms(const TfgenLangevinBackward args, LangevinRows rows,
                                                      const double* displacement_products, double* pieces) {
  const TfgenLangevinStep& step = args.step;
  const Piece piece(rows);
  double sum = 0;
  for (int64_t index = threadIdx.x;; index += kThreads) {
    const uint64_t block = block_at(step.random, piece.begin, index);
    const Quad quad = quad_of(step.random, block, piece.begin, piece.end, false);
    if (quad.first >= piece.end) break;
    const Owners owners = owners_of(step, quad);
    const Moved moved(step, owners, quad, block);
    Four upstream = {};
    if (kSum != kDisplacementSquare) upstream = from_above(args, quad);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!quad.has(i)) continue;
      if (kSum == kGradientProduct) {
        const float dt = moved.through_projection(upstream.of[i], i, displacement_products);
        sum += static_cast<double>(moved.g.of[i]) * moved.through_step(dt, i);
      } else {
        const double d = moved.displacement(i);
        sum += d * (kSum == kDisplacementSquare ? d : static_cast<double>(upstream.of[i]));
      }
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) pieces[blockIdx.x] = sum;
}

// A thread block adds up the pieces of a row, and stores the sum or its root.
__global__ void __launch_bounds__(kThreads) add_pieces(LangevinRows rows, const double* pieces, double* sums,
                                                       float* roots) {
  double sum = 0;
  for (int64_t piece = threadIdx.x; piece < rows.pieces; piece += kThreads) {
    sum += pieces[blockIdx.x * rows.pieces + piece];
  }
  sum = block_sum(sum);
  if (threadIdx.x > 0) return;
  if (sums != nullptr) sums[blockIdx.x] = sum;
  if (roots != nullptr) roots[blockIdx.x] = static_cast<float>(sqrt(sum));
}

// Launches -----------------------------------------------------------------------------------------------------------

namespace {

template <typename... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), int64_t blocks, void* stream, Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Thread blocks for all elements of a tensor: blocks of random numbers, the first of which may be entered in its midst.
int64_t thread_blocks(const TfgenRandom& random, int64_t elements) {
  if (elements == 0) return 0;
  const int64_t blocks = (static_cast<int64_t>(random.first_element % kOwn) + elements + kOwn - 1) / kOwn;
  return (blocks + kThreads - 1) / kThreads;
}

// Whether a block of random numbers is 16 bytes at a multiple of 16 in all of these tensors; null is none.
template <int kCount>
bool is_aligned(const TfgenRandom& random, const void* const (&tensors)[kCount]) {
  for (const void* tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor) % 16) return false;
  }
  return random.first_element % kOwn == 0;
}

// A mask of one row is read element by element.
const float* whole_mask(const TfgenLangevinMask& mask, int64_t samples) {
  return mask.rows == samples ? mask.values : nullptr;
}

template <Sum kSum>
cudaError_t add(const TfgenLangevinBackward& args, double* scratch, double* sums, float* roots, void* stream) {
  const LangevinRows rows = rows_of(args.step, kSum == kGradientProduct);
  double* pieces = sums_of_pieces(args.step, scratch);
  const double* products = displacement_products(args.step, scratch);
  const cudaError_t error = launch(add_terms<kSum>, rows.count * rows.pieces, stream, args, rows, products, pieces);
  if (error != cudaSuccess) return error;
  return launch(add_pieces, rows.count, stream, rows, static_cast<const double*>(pieces), sums, roots);
}

cudaError_t add_gradient_squares(const TfgenLangevinStep& step, double* scratch, void* stream) {
  const LangevinRows rows = rows_of(step, true);
  double* pieces = sums_of_pieces(step, scratch);
  const cudaError_t error = launch(add_terms_of_squares, rows.count * rows.pieces, stream, step.g, step.random, rows,
                                   is_aligned(step.random, {step.g}), pieces);
  if (error != cudaSuccess) return error;
  double* sums = nullptr;
  return launch(add_pieces, rows.count, stream, rows, static_cast<const double*>(pieces), sums, step.gradient_norms);
}

cudaError_t add_norms(const TfgenLangevinForward& args, void* stream) {
  if (is_summed(args.step, true)) {
    const cudaError_t error = add_gradient_squares(args.step, args.scratch, stream);
    if (error != cudaSuccess) return error;
  }
  if (!is_summed(args.step, false)) return cudaSuccess;
  TfgenLangevinBackward terms = {};
  terms.step = args.step;
  return add<kDisplacementSquare>(terms, args.scratch, nullptr, args.step.displacement_norms, stream);
}

cudaError_t add_products(const TfgenLangevinBackward& args, Products* products, void* stream) {
  double* displacement = displacement_products(args.step, args.scratch);
  double* gradient = gradient_products(args.step, args.scratch);
  *products = {displacement, gradient};
  if (is_summed(args.step, false)) {
    const cudaError_t error = add<kDisplacementProduct>(args, args.scratch, displacement, nullptr, stream);
    if (error != cudaSuccess) return error;
  }
  if (!is_summed(args.step, true)) return cudaSuccess;
  return add<kGradientProduct>(args, args.scratch, gradient, nullptr, stream);
}

// Whether forward_plain does this step.
bool is_plain(const TfgenLangevinForward& args) {
  const TfgenLangevinStep& step = args.step;
  const bool draws = step.gradient_first || args.y_next != nullptr;
  return step.mask.values == nullptr && step.projection == TFGEN_PROJECT_RANGE &&
         step.clip_mode != TFGEN_CLIP_SAMPLE_NORM && (step.sigma != 0.0f || !draws) &&
         step.samples * step.size % kOwn == 0 && step.samples * step.size / kOwn <= INT_MAX;
}

cudaError_t launch_plain(const TfgenLangevinForward& args, void* stream) {
  const TfgenLangevinStep& step = args.step;
  const TfgenRandom& random = step.random;
  const bool by_norm = step.clip_mode == TFGEN_CLIP_TENSOR_NORM, before = step.gradient_first != 0;
  const bool after = args.y_next != nullptr;
  const int64_t quads = step.samples * step.size / kOwn, tile = kThreads * plain_quads(before || after);
  const PlainStep plain = {step.x, step.g, step.gradient_norms, args.x_next, args.y_next, step.eta, step.sigma,
                           step.lower, step.upper, step.clip_mode == TFGEN_CLIP_NONE ? INFINITY : step.clip,
                           static_cast<uint32_t>(quads), random.step, random.stream, random.first_element / kOwn,
                           Keys(random.seed)};
  const auto kernel = by_norm ? forward_plain_of<true>(before, after) : forward_plain_of<false>(before, after);
  return launch(kernel, (quads + tile - 1) / tile, stream, plain);
}

}  // namespace
}  // namespace langevin
}  // namespace tfgen

extern "C" int tfgen_langevin_forward_cuda(const TfgenLangevinForward* args, void* stream) {
  using namespace tfgen::langevin;
  const TfgenLangevinStep& step = args->step;
  const cudaError_t error = add_norms(*args, stream);
  if (error != cudaSuccess) return error;
  const bool aligned = is_aligned(step.random, {step.x, step.g, step.anchor, whole_mask(step.mask, step.samples),
                                                args->x_next, args->y_next});
  if (aligned && is_plain(*args)) return launch_plain(*args, stream);
  return launch(forward, thread_blocks(step.random, step.samples * step.size), stream, *args, aligned);
}

extern "C" int tfgen_langevin_backward_cuda(const TfgenLangevinBackward* args, void* stream) {
  using namespace tfgen::langevin;
  const TfgenLangevinStep& step = args->step;
  Products products;
  const cudaError_t error = add_products(*args, &products, stream);
  if (error != cudaSuccess) return error;
  const bool aligned = is_aligned(step.random, {step.x, step.g, step.anchor, whole_mask(step.mask, step.samples),
                                                args->dx_next, args->dy_next, args->dx, args->dg});
  return launch(backward, thread_blocks(step.random, step.samples * step.size), stream, *args, products, aligned);
}

extern "C" int tfgen_langevin_noise_cuda(const TfgenLangevinNoise* args, void* stream) {
  using namespace tfgen::langevin;
  const bool aligned = is_aligned(args->random, {args->x, whole_mask(args->mask, args->samples), args->y});
  return launch(noise, thread_blocks(args->random, args->samples * args->size), stream, *args, aligned);
}

extern "C" int tfgen_random_cuda(const TfgenRandomDraw* args, void* stream) {
  using namespace tfgen::langevin;
  return launch(draw, thread_blocks(args->random, args->count), stream, *args, is_aligned(args->random, {args->out}));
}
