// Group normalisation for the instruction set of the including file. Vectors run along channels.
#ifndef TFGEN_KERNELS_GROUP_NORM_CPU_GROUP_NORM_H_
#define TFGEN_KERNELS_GROUP_NORM_CPU_GROUP_NORM_H_

#include "kernels/blocksparse/cpu_vector.h"
#include "kernels/group_norm/cpu_dispatch.h"

namespace tfgen {
namespace TFGEN_ISA {

// Pixels whose sum is kept in float32. The sums of all pixels are float64, or large images would lose digits.
constexpr int64_t kChunk = 16;

typedef double Doubles __attribute__((vector_size(8 * TFGEN_LANES), aligned(8), may_alias));

#define TFGEN_INLINED __attribute__((always_inline))  // of a lambda, after its parameters

TFGEN_INLINE void add_to(double* sums, Vec values) {
  *reinterpret_cast<Doubles*>(sums) += __builtin_convertvector(values, Doubles);
}

// sigmoid(x) and 1 - sigmoid(x), both with their relative precision.
TFGEN_INLINE Vec sigmoid(Vec x, Vec* complement) {
  const Vec e = exponential(-larger(x, -x)), near_one = 1.0f / (1.0f + e), near_zero = e * near_one;
  *complement = x < 0.0f ? near_one : near_zero;
  return x < 0.0f ? near_zero : near_one;
}

TFGEN_INLINE Vec at(const float* row, int64_t channel) { return Float32::load(row + channel); }

// Scratch of a sample. Rows are as wide as the vectors that cover the channels; what lies beyond those is 0.
struct Scratch {
  double* sums[2];
  float *mean, *factor, *offset, *slope, *level;
};

inline Scratch scratch_of(const TfgenGroupNormShape& shape, double* scratch, const GroupNormUnit& unit) {
  const int64_t width = round_up(shape.channels, kGroupNormAlign);
  double* sums = scratch + unit.sample * kGroupNormScratch * width;
  float* rows = reinterpret_cast<float*>(sums + 2 * width);
  const int64_t count = round_up(unit.last - unit.first, kGroupNormAlign);
  for (int i = 0; i < 2; ++i) memset(sums + i * width + unit.first, 0, count * sizeof(double));
  for (int i = 0; i < 5; ++i) memset(rows + i * width + unit.first, 0, count * sizeof(float));
  return {{sums, sums + width}, rows, rows + width, rows + 2 * width, rows + 3 * width, rows + 4 * width};
}

// Adds the `kTerms` results of term(pixel, channel, count) over all pixels to rows of sums. `term` gets the first
// channel of a vector and how many of it there are.
template <int kTerms, int kVectors, class Term>
TFGEN_INLINE void add_columns(int64_t begin, int64_t end, int64_t channel, int64_t count, double* const* sums,
                              Term term) {
  Vec totals[kVectors][kTerms] = {};
  for (int64_t pixel = begin; pixel < end; ++pixel) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      Vec terms[kTerms];
      term(pixel, channel + v * kLanes, count - v * kLanes, terms);
#pragma GCC unroll 2
      for (int i = 0; i < kTerms; ++i) totals[v][i] += terms[i];
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 2
    for (int i = 0; i < kTerms; ++i) add_to(sums[i] + channel + v * kLanes, totals[v][i]);
  }
}

template <int kTerms, int kVectors, class Term>
TFGEN_INLINE void add_pixels(int64_t pixels, const GroupNormUnit& unit, double* const* sums, Term term) {
  for (int64_t begin = 0; begin < pixels; begin += kChunk) {
    const int64_t end = smaller(begin + kChunk, pixels);
    int64_t channel = unit.first;
    for (; channel + kVectors * kLanes <= unit.last; channel += kVectors * kLanes) {
      add_columns<kTerms, kVectors>(begin, end, channel, kVectors * kLanes, sums, term);
    }
    for (; channel < unit.last; channel += kLanes) {
      add_columns<kTerms, 1>(begin, end, channel, unit.last - channel, sums, term);
    }
  }
}

template <class E, bool kSilu>
void group_norm_forward(const TfgenGroupNormForward& args, const GroupNormUnit& unit) {
  const TfgenGroupNormShape& shape = args.shape;
  const int64_t pixels = shape.pixels, channels = shape.channels, members = channels / shape.groups;
  const Scratch scratch = scratch_of(shape, args.scratch, unit);
  float *mean = scratch.mean, *factor = scratch.factor, *offset = scratch.offset;
  const auto* x = static_cast<const typename E::Storage*>(args.x) + unit.sample * pixels * channels;
  auto* y = static_cast<typename E::Storage*>(args.y) + unit.sample * pixels * channels;
  const double size = static_cast<double>(pixels * members);

  double* sums[] = {scratch.sums[0]};
  add_pixels<1, 4>(pixels, unit, sums, [=](int64_t pixel, int64_t channel, int64_t count, Vec* terms) TFGEN_INLINED {
    terms[0] = load_some<E>(x + pixel * channels + channel, count);
  });
  for (int64_t begin = unit.first; begin < unit.last; begin += members) {
    double total = 0;
    for (int64_t c = begin; c < begin + members; ++c) total += sums[0][c];
    const float group_mean = static_cast<float>(total / size);
    args.mean[unit.sample * shape.groups + begin / members] = group_mean;
    for (int64_t c = begin; c < begin + members; ++c) mean[c] = group_mean;
  }

  // Squares of the centred values: the difference of two large means would lose the variance in rounding.
  double* squares[] = {scratch.sums[1]};
  add_pixels<1, 4>(pixels, unit, squares, [=](int64_t pixel, int64_t channel, int64_t count, Vec* terms) TFGEN_INLINED {
    const Vec centred = load_some<E>(x + pixel * channels + channel, count) - at(mean, channel);
    terms[0] = centred * centred;
  });
  const float* gain_row = args.gain + (shape.gain_rows == 1 ? 0 : unit.sample * channels);
  const float* offset_row = args.offset + (shape.offset_rows == 1 ? 0 : unit.sample * channels);
  for (int64_t begin = unit.first; begin < unit.last; begin += members) {
    double total = 0;
    for (int64_t c = begin; c < begin + members; ++c) total += squares[0][c];
    const double inverse = 1.0 / __builtin_sqrt(total / size + shape.epsilon);
    args.inverse[unit.sample * shape.groups + begin / members] = static_cast<float>(inverse);
    for (int64_t c = begin; c < begin + members; ++c) {
      factor[c] = static_cast<float>(inverse * gain_row[c]);
      offset[c] = offset_row[c];
    }
  }

  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t row = pixel * channels;
    for (int64_t channel = unit.first; channel < unit.last; channel += kLanes) {
      const int64_t count = unit.last - channel;
      const Vec centred = load_some<E>(x + row + channel, count) - at(mean, channel);
      Vec value = multiply_add(centred, at(factor, channel), at(offset, channel));
      if (kSilu) {
        Vec complement;
        value *= sigmoid(value, &complement);
      }
      store_some<E>(y + row + channel, value, count);
    }
  }
}

// With g = dy, times the derivative of SiLU where there is one, and n the normalised value:
//     doffset = sum g, dgain = sum g n                            over pixels
//     dx = (gain g - mean(gain g) - n mean(gain g n)) / deviation   with means over the group
template <class E, bool kSilu>
void group_norm_backward(const TfgenGroupNormBackward& args, const GroupNormUnit& unit) {
  // g is kept in dx between the passes where that holds float32; elsewhere it is computed again.
  constexpr bool kKeep = sizeof(typename E::Storage) == sizeof(float);
  const TfgenGroupNormShape& shape = args.shape;
  const int64_t pixels = shape.pixels, channels = shape.channels, members = channels / shape.groups;
  const Scratch scratch = scratch_of(shape, args.scratch, unit);
  float *mean = scratch.mean, *factor = scratch.factor, *offset = scratch.offset;
  const auto* x = static_cast<const typename E::Storage*>(args.x) + unit.sample * pixels * channels;
  const auto* dy = static_cast<const typename E::Storage*>(args.dy) + unit.sample * pixels * channels;
  auto* dx = static_cast<typename E::Storage*>(args.dx) + unit.sample * pixels * channels;
  const float* gain = args.gain + (shape.gain_rows == 1 ? 0 : unit.sample * channels);
  const float* offset_row = args.offset + (shape.offset_rows == 1 ? 0 : unit.sample * channels);
  const float *means = args.mean + unit.sample * shape.groups, *inverses = args.inverse + unit.sample * shape.groups;
  const double size = static_cast<double>(pixels * members);
  for (int64_t c = unit.first; c < unit.last; ++c) {
    mean[c] = means[c / members], factor[c] = inverses[c / members] * gain[c], offset[c] = offset_row[c];
  }

  const auto upstream = [=](int64_t place, int64_t channel, int64_t count, Vec centred) TFGEN_INLINED {
    Vec g = load_some<E>(dy + place, count);
    if (kSilu) {
      const Vec value = multiply_add(centred, at(factor, channel), at(offset, channel));
      Vec complement;
      const Vec gate = sigmoid(value, &complement);
      g *= gate * multiply_add(value, complement, broadcast(1.0f));
    }
    return g;
  };

  double* const* sums = scratch.sums;
  add_pixels<2, 2>(pixels, unit, sums, [=](int64_t pixel, int64_t channel, int64_t count, Vec* terms) TFGEN_INLINED {
    const int64_t place = pixel * channels + channel;
    const Vec centred = load_some<E>(x + place, count) - at(mean, channel);
    const Vec g = upstream(place, channel, count, centred);
    if (kSilu && kKeep) store_some<E>(dx + place, g, count);
    terms[0] = g;
    terms[1] = g * centred;
  });
  float *slope = scratch.slope, *level = scratch.level;
  float *dgain = args.dgain + unit.sample * channels, *doffset = args.doffset + unit.sample * channels;
  for (int64_t begin = unit.first; begin < unit.last; begin += members) {
    const double inverse = inverses[begin / members];
    double along_mean = 0, along_deviation = 0;
    for (int64_t c = begin; c < begin + members; ++c) {
      doffset[c] = static_cast<float>(sums[0][c]);
      dgain[c] = static_cast<float>(sums[1][c] * inverse);
      along_mean += gain[c] * sums[0][c];
      along_deviation += gain[c] * sums[1][c] * inverse;
    }
    for (int64_t c = begin; c < begin + members; ++c) {
      slope[c] = static_cast<float>(inverse * inverse * along_deviation / size);
      level[c] = static_cast<float>(inverse * along_mean / size);
    }
  }

  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t channel = unit.first; channel < unit.last; channel += kLanes) {
      const int64_t place = pixel * channels + channel, count = unit.last - channel;
      const Vec centred = load_some<E>(x + place, count) - at(mean, channel);
      const Vec g = kSilu && kKeep ? load_some<E>(dx + place, count) : upstream(place, channel, count, centred);
      const Vec others = multiply_add(centred, at(slope, channel), at(level, channel));
      store_some<E>(dx + place, multiply_add(g, at(factor, channel), -others), count);
    }
  }
}

template <class E>
void forward_of(const TfgenGroupNormForward& args, const GroupNormUnit& unit) {
  (args.shape.silu ? group_norm_forward<E, true> : group_norm_forward<E, false>)(args, unit);
}

template <class E>
void backward_of(const TfgenGroupNormBackward& args, const GroupNormUnit& unit) {
  (args.shape.silu ? group_norm_backward<E, true> : group_norm_backward<E, false>)(args, unit);
}

inline void forward_any(const TfgenGroupNormForward& args, const GroupNormUnit& unit) {
  switch (args.shape.dtype) {
    case TFGEN_FLOAT32: return forward_of<Float32>(args, unit);
    case TFGEN_BFLOAT16: return forward_of<BFloat16>(args, unit);
    default: return forward_of<Float16>(args, unit);
  }
}

inline void backward_any(const TfgenGroupNormBackward& args, const GroupNormUnit& unit) {
  switch (args.shape.dtype) {
    case TFGEN_FLOAT32: return backward_of<Float32>(args, unit);
    case TFGEN_BFLOAT16: return backward_of<BFloat16>(args, unit);
    default: return backward_of<Float16>(args, unit);
  }
}

inline GroupNormKernels group_norm_kernels() { return {forward_any, backward_any}; }

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_GROUP_NORM_CPU_GROUP_NORM_H_
