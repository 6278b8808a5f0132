// The Langevin step and its gradient for the instruction set of the including file. See langevin.h for the letters.
#ifndef TFGEN_KERNELS_LANGEVIN_CPU_LANGEVIN_H_
#define TFGEN_KERNELS_LANGEVIN_CPU_LANGEVIN_H_

#include "kernels/blocksparse/cpu_vector.h"
#include "kernels/langevin/cpu_dispatch.h"
#include "kernels/langevin/cpu_random.h"

namespace tfgen {
namespace TFGEN_ISA {

typedef double Doubles __attribute__((vector_size(8 * TFGEN_LANES), aligned(8), may_alias));

TFGEN_INLINE Vec between(Vec x, Vec lower, Vec upper) {  // NaN stays NaN: the second argument where one is NaN
#if TFGEN_LANES == 16
  return _mm512_maskz_max_ps(0xffff, lower, _mm512_maskz_min_ps(0xffff, upper, x));
#elif TFGEN_LANES == 8
  return _mm256_max_ps(lower, _mm256_min_ps(upper, x));
#else
  const Vec below = x > upper ? upper : x;
  return below < lower ? lower : below;
#endif
}

// A product before it is added to something: without this the compiler would make one operation of both, which rounds
// once.
TFGEN_INLINE Vec rounded(Vec product) {
#if TFGEN_LANES >= 8
  asm("" : "+v"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#endif
  return product;
}

TFGEN_INLINE float at_least(float norm, float bound) { return norm < bound ? bound : norm; }  // NaN stays NaN

// Elements that lie together and have everything but themselves in common: of one sample, where samples differ.
struct Run {
  const TfgenLangevinStep* step;
  int64_t first, count;  // in the tensor
  const float* mask;     // of the first element; null: 1
  const float* noise;    // of this step and the first element; null where x has it
  bool by_norm;
  float gradient_norm;       // |g|, with a clip by norm
  float displacement_norm;   // |d|, with a ball; not used before it is known

  TFGEN_INLINE Vec load(const float* tensor, int64_t i) const {
    return load_some<Float32>(tensor + first + i, count - i);
  }
  TFGEN_INLINE Vec masked(Vec value, int64_t i) const {
    return mask == nullptr ? value : value * load_some<Float32>(mask + i, count - i);
  }
};

// Calls `work` for the runs of elements first .. last - 1.
template <class Work>
TFGEN_INLINE void for_runs(const TfgenLangevinStep& step, int64_t first, int64_t last, const float* noise, Work work) {
  const bool shared_mask = step.mask.values != nullptr && step.mask.rows == 1 && step.samples > 1;
  const bool by_sample =
      step.clip_mode == TFGEN_CLIP_SAMPLE_NORM || step.projection == TFGEN_PROJECT_BALL || shared_mask;
  for (int64_t begin = first; begin < last;) {
    const int64_t sample = by_sample ? begin / step.size : 0;
    const int64_t end = by_sample ? smaller(last, (sample + 1) * step.size) : last;
    Run run;
    run.step = &step, run.first = begin, run.count = end - begin;
    run.mask = step.mask.values;
    if (run.mask != nullptr) run.mask += shared_mask ? begin - sample * step.size : begin;
    run.noise = noise == nullptr ? nullptr : noise + (begin - first);
    run.by_norm = step.clip_mode == TFGEN_CLIP_TENSOR_NORM || step.clip_mode == TFGEN_CLIP_SAMPLE_NORM;
    run.gradient_norm = run.by_norm ? step.gradient_norms[step.clip_mode == TFGEN_CLIP_SAMPLE_NORM ? sample : 0] : 0.0f;
    run.displacement_norm = step.projection == TFGEN_PROJECT_BALL ? step.displacement_norms[sample] : 0.0f;
    work(run);
    begin = end;
  }
}

// sigma n of elements that start at `first`; without drawing them where sigma is 0.
inline const float* draw_noise(TfgenRandom random, bool next, float sigma, int64_t first, int64_t count,
                               float* buffer) {
  if (next) ++random.step;
  if (sigma == 0.0f) {
    memset(buffer, 0, sizeof(float) * kBuffer);
    return buffer;
  }
  return draw<TFGEN_RANDOM_NORMAL>(random, first, count, buffer);
}

TFGEN_INLINE Vec noise_term(const Run& run, const float* noise, float sigma, int64_t i) {
  return rounded(run.masked(sigma * Float32::load(noise + i), i));
}

// t, from element i of a run on.
TFGEN_INLINE Vec moved(const Run& run, int64_t i) {
  const TfgenLangevinStep& step = *run.step;
  Vec g = run.load(step.g, i), t = run.load(step.x, i);
  if (run.by_norm) g = g * step.clip / at_least(run.gradient_norm, step.clip);
  if (step.clip_mode == TFGEN_CLIP_VALUE) g = between(g, broadcast(-step.clip), broadcast(step.clip));
  if (run.noise != nullptr) t = t + noise_term(run, run.noise, step.sigma, i);
  return t - rounded(run.masked(step.eta * g, i));
}

TFGEN_INLINE Vec projected(const Run& run, Vec t, int64_t i) {
  const TfgenLangevinStep& step = *run.step;
  if (step.projection == TFGEN_PROJECT_RANGE) return between(t, broadcast(step.lower), broadcast(step.upper));
  const Vec anchor = run.load(step.anchor, i);
  if (step.projection == TFGEN_PROJECT_BALL) {
    return anchor + (t - anchor) * step.radius / at_least(run.displacement_norm, step.radius);
  }
  return anchor == anchor ? between(t, anchor - step.radius, anchor + step.radius) : anchor;
}

inline void forward_unit(const TfgenLangevinForward& args, int64_t unit) {
  const TfgenLangevinStep& step = args.step;
  const int64_t first = unit * kLangevinUnit, count = smaller(kLangevinUnit, step.samples * step.size - first);
  alignas(64) float buffer[kBuffer], next_buffer[kBuffer];
  const float *noise = nullptr, *next = nullptr;
  if (step.gradient_first) noise = draw_noise(step.random, false, step.sigma, first, count, buffer);
  if (args.y_next != nullptr) next = draw_noise(step.random, true, step.sigma, first, count, next_buffer);
  for_runs(step, first, first + count, noise, [&](const Run& run) {
    for (int64_t i = 0; i < run.count; i += kLanes) {
      const Vec x = projected(run, moved(run, i), i);
      if (next != nullptr) {
        const Vec y = x + noise_term(run, next + (run.first - first), step.sigma, i);
        store_some<Float32>(args.y_next + run.first + i, y, run.count - i);
      }
      store_some<Float32>(args.x_next + run.first + i, x, run.count - i);
    }
  });
}

inline void noise_unit(const TfgenLangevinNoise& args, int64_t unit) {
  const int64_t first = unit * kLangevinUnit, count = smaller(kLangevinUnit, args.samples * args.size - first);
  alignas(64) float buffer[kBuffer];
  const float* noise = draw_noise(args.random, false, args.sigma, first, count, buffer);
  TfgenLangevinStep step = {};
  step.samples = args.samples, step.size = args.size, step.mask = args.mask;
  for_runs(step, first, first + count, noise, [&](const Run& run) {
    for (int64_t i = 0; i < run.count; i += kLanes) {
      const Vec y = run.load(args.x, i) + noise_term(run, run.noise, args.sigma, i);
      store_some<Float32>(args.y + run.first + i, y, run.count - i);
    }
  });
}

// The gradient by x', in which y' is x' and noise.
TFGEN_INLINE Vec from_above(const TfgenLangevinBackward& args, const Run& run, int64_t i) {
  const Vec upstream = run.load(args.dx_next, i);
  return args.dy_next == nullptr ? upstream : upstream + run.load(args.dy_next, i);
}

// The gradient by v, of that by v bound / max(|v|, bound); `product` is that of v and `upstream`, of all elements.
TFGEN_INLINE Vec through_norm(Vec upstream, Vec value, float norm, float bound, double product) {
  if (norm < bound) return upstream;
  const float along = static_cast<float>(product / (static_cast<double>(norm) * norm));
  return (upstream - value * along) * (bound / norm);
}

// The gradient by t, which is that by x.
TFGEN_INLINE Vec through_projection(const TfgenLangevinBackward& args, const Run& run, int64_t i) {
  const TfgenLangevinStep& step = *run.step;
  const Vec upstream = from_above(args, run, i), t = moved(run, i);
  Vec lower = broadcast(step.lower), upper = broadcast(step.upper);
  if (step.projection != TFGEN_PROJECT_RANGE) {
    const Vec anchor = run.load(step.anchor, i);
    if (step.projection == TFGEN_PROJECT_BALL) {
      const double product = displacement_products(step, args.scratch)[run.first / step.size];
      return through_norm(upstream, t - anchor, run.displacement_norm, step.radius, product);
    }
    lower = anchor - step.radius, upper = anchor + step.radius;
  }
  return (t >= lower) & (t <= upper) ? upstream : Vec{};
}

// The gradient by g^.
TFGEN_INLINE Vec through_step(const Run& run, Vec dt, int64_t i) { return -(run.masked(run.step->eta * dt, i)); }

// Of the noise that t holds.
inline const float* earlier_noise(const TfgenLangevinStep& step, int64_t first, int64_t count, float* buffer) {
  return step.gradient_first ? draw_noise(step.random, false, step.sigma, first, count, buffer) : nullptr;
}

inline void backward_unit(const TfgenLangevinBackward& args, int64_t unit) {
  const TfgenLangevinStep& step = args.step;
  const int64_t first = unit * kLangevinUnit, count = smaller(kLangevinUnit, step.samples * step.size - first);
  alignas(64) float buffer[kBuffer];
  for_runs(step, first, first + count, earlier_noise(step, first, count, buffer), [&](const Run& run) {
    for (int64_t i = 0; i < run.count; i += kLanes) {
      const Vec dt = through_projection(args, run, i), g = run.load(step.g, i);
      Vec dg = through_step(run, dt, i);
      if (run.by_norm) {
        const int64_t sample = step.clip_mode == TFGEN_CLIP_SAMPLE_NORM ? run.first / step.size : 0;
        dg = through_norm(dg, g, run.gradient_norm, step.clip, gradient_products(step, args.scratch)[sample]);
      }
      if (step.clip_mode == TFGEN_CLIP_VALUE) dg = (g >= -step.clip) & (g <= step.clip) ? dg : Vec{};
      store_some<Float32>(args.dx + run.first + i, dt, run.count - i);
      store_some<Float32>(args.dg + run.first + i, dg, run.count - i);
    }
  });
}

TFGEN_INLINE Vec first_lanes(Vec value, int64_t count) {
  if (count >= kLanes) return value;
  float kept[kLanes] = {};
  store_some<Float32>(kept, value, count);
  return Float32::load(kept);
}

// The sum of a * b, which factors(run, i, &a, &b) gives for a vector of elements, over elements first .. last - 1.
template <class Factors>
TFGEN_INLINE double sum_of_products(const TfgenLangevinStep& step, int64_t first, int64_t last, Factors factors) {
  Doubles sums = {};
  alignas(64) float buffer[kBuffer];
  for (int64_t begin = first; begin < last; begin += kLangevinUnit) {
    const int64_t count = smaller(kLangevinUnit, last - begin);
    for_runs(step, begin, begin + count, earlier_noise(step, begin, count, buffer), [&](const Run& run) {
      for (int64_t i = 0; i < run.count; i += kLanes) {
        Vec a, b;
        factors(run, i, &a, &b);
        sums += __builtin_convertvector(first_lanes(a, run.count - i), Doubles) *
                __builtin_convertvector(first_lanes(b, run.count - i), Doubles);
      }
    });
  }
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += sums[i];
  return total;
}

inline double gradient_square(const TfgenLangevinStep& step, int64_t first, int64_t last) {
  double total = 0;
  Doubles sums = {};
  for (int64_t i = first; i < last; i += kLanes) {
    const Doubles g = __builtin_convertvector(load_some<Float32>(step.g + i, last - i), Doubles);
    sums += g * g;
  }
  for (int i = 0; i < kLanes; ++i) total += sums[i];
  return total;
}

inline double displacement_square(const TfgenLangevinStep& step, int64_t first, int64_t last) {
  return sum_of_products(step, first, last, [](const Run& run, int64_t i, Vec* a, Vec* b) {
    *a = *b = moved(run, i) - run.load(run.step->anchor, i);
  });
}

inline double displacement_product(const TfgenLangevinBackward& args, int64_t first, int64_t last) {
  return sum_of_products(args.step, first, last, [&args](const Run& run, int64_t i, Vec* a, Vec* b) {
    *a = moved(run, i) - run.load(run.step->anchor, i);
    *b = from_above(args, run, i);
  });
}

inline double gradient_product(const TfgenLangevinBackward& args, int64_t first, int64_t last) {
  return sum_of_products(args.step, first, last, [&args](const Run& run, int64_t i, Vec* a, Vec* b) {
    *a = run.load(run.step->g, i);
    *b = through_step(run, through_projection(args, run, i), i);
  });
}

inline LangevinKernels langevin_kernels() {
  return {forward_unit,    backward_unit,       noise_unit,           draw_any,
          gradient_square, displacement_square, displacement_product, gradient_product};
}

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_LANGEVIN_CPU_LANGEVIN_H_
