// Random numbers of kernels/common/philox.h for the instruction set of the including file. A lane is a block.
#ifndef TFGEN_KERNELS_LANGEVIN_CPU_RANDOM_H_
#define TFGEN_KERNELS_LANGEVIN_CPU_RANDOM_H_

#include "kernels/blocksparse/cpu_vector.h"
#include "kernels/common/philox.h"
#include "kernels/langevin/cpu_dispatch.h"

#if TFGEN_LANES == 4 && defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace tfgen {
namespace TFGEN_ISA {

// In this folder 16 lanes are those of AVX-512 and 8 those of AVX2. The macros of an instruction set (__AVX2__) cannot
// tell: GCC before 13 does not define them after its pragma in C++.

typedef uint64_t Pairs __attribute__((vector_size(4 * TFGEN_LANES), may_alias));

template <int kEven, int kOdd, size_t... kLane>
TFGEN_INLINE Bits shuffle_lanes(Bits a, Bits b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, (kLane % 2 ? kLane + kOdd : kLane + kEven)...);
}
constexpr auto kAllLanes = std::make_index_sequence<kLanes>();
TFGEN_INLINE Pairs upper_halves(Pairs a) { return (Pairs)shuffle_lanes<1, 0>((Bits)a, (Bits)a, kAllLanes); }
TFGEN_INLINE Bits join_halves(Pairs even, Pairs odd) {
  const Bits moved = shuffle_lanes<0, -1>((Bits)odd, (Bits)odd, kAllLanes);
  return shuffle_lanes<0, kLanes>((Bits)even, moved, kAllLanes);
}

// For Philox alone, whose products have 64 bits: words in the lower halves of 64. The upper ones hold whatever they
// hold.
struct PairMath {
  using Word = Pairs;
  static TFGEN_INLINE Pairs word(uint32_t x) { return x + Pairs{}; }
  static TFGEN_INLINE void multiply(Pairs a, uint32_t b, Pairs* high, Pairs* low) {
#if TFGEN_LANES == 16
    *low = (Pairs)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi32(static_cast<int>(b)));
#elif TFGEN_LANES == 8
    *low = (Pairs)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi32(static_cast<int>(b)));
#elif defined(__SSE2__)
    *low = (Pairs)_mm_mul_epu32((__m128i)a, _mm_set1_epi32(static_cast<int>(b)));
#else
    *low = (a & 0xffffffffu) * b;
#endif
    *high = upper_halves(*low);
  }
};

// For what is made of the words.
struct VectorMath {
  using Word = Bits;
  using Real = Vec;
  static TFGEN_INLINE Vec constant(float x) { return broadcast(x); }
  static TFGEN_INLINE Vec to_real(Bits x) { return __builtin_convertvector((Ints)x, Vec); }
  static TFGEN_INLINE Bits bits(Vec x) { return (Bits)x; }
  static TFGEN_INLINE Vec real(Bits x) { return (Vec)x; }
  static TFGEN_INLINE Bits spread_sign(Bits x) { return (Bits)((Ints)x >> 31); }
  static TFGEN_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if TFGEN_LANES == 16
    return _mm512_fmadd_ps(a, b, c);
#elif TFGEN_LANES == 8
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
  }
  static TFGEN_INLINE Vec square_root(Vec x) {
#if TFGEN_LANES == 16
    return _mm512_maskz_sqrt_ps(0xffff, x);
#elif TFGEN_LANES == 8
    return _mm256_sqrt_ps(x);
#else
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
  }
};

// The four words of kLanes blocks stand in four vectors. Transposing each four lanes, which is cheap, brings the words
// of a block together; with the blocks in this order of lanes, all of them come out in the order of elements.
template <size_t... kLane>
TFGEN_INLINE Bits block_of_lane(std::index_sequence<kLane...>) {
  return Bits{(kLane % 4 * (kLanes / 4) + kLane / 4)...};
}

template <bool kUpper, size_t... kLane>
TFGEN_INLINE Vec interleave_words(Vec a, Vec b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, ((kLane & ~3u) + kLane % 4 / 2 + 2 * kUpper + kLane % 2 * kLanes)...);
}

template <bool kUpper, size_t... kLane>
TFGEN_INLINE Vec interleave_pairs(Vec a, Vec b, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, ((kLane & ~3u) + kLane % 2 + 2 * kUpper + kLane % 4 / 2 * kLanes)...);
}

TFGEN_INLINE void to_element_order(Vec* x) {
  const Vec a = interleave_words<false>(x[0], x[1], kAllLanes), b = interleave_words<false>(x[2], x[3], kAllLanes);
  const Vec c = interleave_words<true>(x[0], x[1], kAllLanes), d = interleave_words<true>(x[2], x[3], kAllLanes);
  x[0] = interleave_pairs<false>(a, b, kAllLanes), x[1] = interleave_pairs<true>(a, b, kAllLanes);
  x[2] = interleave_pairs<false>(c, d, kAllLanes), x[3] = interleave_pairs<true>(c, d, kAllLanes);
}

constexpr int kVectors = 2;  // of blocks that are drawn side by side
constexpr int64_t kGroup = kVectors * kPhiloxWords * kLanes;  // their elements
// Of a buffer for a unit that starts within a block, and a vector that is read at its end.
constexpr int64_t kBuffer = kLangevinUnit + 2 * kGroup;

// Draws `count` elements of a stream, from number `first` of the tensor on, at most kLangevinUnit. Returns where in the
// buffer they are; what is beyond them may be read. The result of an element does not depend on `first` and `count`.
template <int kKind>
inline const float* draw(const TfgenRandom& random, int64_t first, int64_t count, float* buffer) {
  const uint64_t element = random.first_element + static_cast<uint64_t>(first);
  const int64_t skipped = static_cast<int64_t>(element % kPhiloxWords);
  const PhiloxKeys<PairMath> keys(random.seed);
  const Bits order = block_of_lane(kAllLanes);
  uint64_t block = element / kPhiloxWords;
  for (int64_t done = 0; done < skipped + count + kLanes; done += kGroup) {
    Pairs halves[2 * kVectors][kPhiloxWords];  // of even lanes, then of odd lanes
    for (int i = 0; i < kVectors; ++i, block += kLanes) {
      const Bits low = order + static_cast<uint32_t>(block);
      const Ints carries = low < static_cast<uint32_t>(block);  // -1 or 0
      const Bits high = static_cast<uint32_t>(block >> 32) - (Bits)carries;
      for (int odd = 0; odd < 2; ++odd) {
        Pairs* words = halves[2 * i + odd];
        words[0] = odd ? upper_halves((Pairs)low) : (Pairs)low;
        words[1] = odd ? upper_halves((Pairs)high) : (Pairs)high;
        words[2] = PairMath::word(random.step), words[3] = PairMath::word(random.stream);
      }
    }
    philox<PairMath, 2 * kVectors>(halves, keys);
    Bits words[kVectors][kPhiloxWords];
    Vec numbers[kVectors][kPhiloxWords];
#pragma GCC unroll 8
    for (int i = 0; i < kVectors * kPhiloxWords; ++i) {
      const int vector = i / kPhiloxWords, word = i % kPhiloxWords;
      words[vector][word] = join_halves(halves[2 * vector][word], halves[2 * vector + 1][word]);
    }
    if constexpr (kKind == TFGEN_RANDOM_NORMAL) {
      box_muller<VectorMath, kVectors>(words, numbers);
    } else {
      for (int i = 0; i < kVectors * kPhiloxWords; ++i) {
        const Bits word = words[i / kPhiloxWords][i % kPhiloxWords];
        numbers[i / kPhiloxWords][i % kPhiloxWords] =
            kKind == TFGEN_RANDOM_UNIFORM ? uniform_of<VectorMath>(word) : (Vec)word;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      to_element_order(numbers[i]);
      float* place = buffer + done + i * kPhiloxWords * kLanes;
      for (int j = 0; j < kPhiloxWords; ++j) Float32::store(place + j * kLanes, numbers[i][j]);
    }
  }
  return buffer + skipped;
}

template <int kKind>
void draw_unit(const TfgenRandomDraw& args, int64_t unit) {
  alignas(64) float buffer[kBuffer];
  const int64_t first = unit * kLangevinUnit, count = smaller(kLangevinUnit, args.count - first);
  memcpy(static_cast<float*>(args.out) + first, draw<kKind>(args.random, first, count, buffer),
         static_cast<size_t>(count) * sizeof(float));
}

inline void draw_any(const TfgenRandomDraw& args, int64_t unit) {
  switch (args.kind) {
    case TFGEN_RANDOM_WORDS: return draw_unit<TFGEN_RANDOM_WORDS>(args, unit);
    case TFGEN_RANDOM_UNIFORM: return draw_unit<TFGEN_RANDOM_UNIFORM>(args, unit);
    default: return draw_unit<TFGEN_RANDOM_NORMAL>(args, unit);
  }
}

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_LANGEVIN_CPU_RANDOM_H_
