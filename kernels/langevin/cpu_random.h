// Random numbers of kernels/common/philox.h for the instruction set of the including file. A lane is a block.
#ifndef TFGEN_KERNELS_LANGEVIN_CPU_RANDOM_H_
#define TFGEN_KERNELS_LANGEVIN_CPU_RANDOM_H_

#include "kernels/blocksparse/cpu_vector.h"
#include "kernels/common/philox.h"
#include "kernels/langevin/cpu_dispatch.h"

namespace tfgen {
namespace TFGEN_ISA {

struct VectorMath {
  using Word = Bits;
  using Real = Vec;

  static TFGEN_INLINE void multiply(Bits a, uint32_t b, Bits* high, Bits* low) {
    typedef uint64_t Pairs __attribute__((vector_size(4 * TFGEN_LANES), may_alias));
    constexpr uint64_t kUpper = 0xffffffff00000000u;
#if TFGEN_LANES == 16 && defined(__AVX512F__)
    const __m512i factor = _mm512_set1_epi32(static_cast<int>(b));
    const Pairs even = (Pairs)_mm512_maskz_mul_epu32(0xff, (__m512i)a, factor);
    const Pairs odd = (Pairs)_mm512_maskz_mul_epu32(0xff, (__m512i)((Pairs)a >> 32), factor);
#elif TFGEN_LANES == 8 && defined(__AVX2__)
    const __m256i factor = _mm256_set1_epi32(static_cast<int>(b));
    const Pairs even = (Pairs)_mm256_mul_epu32((__m256i)a, factor);
    const Pairs odd = (Pairs)_mm256_mul_epu32((__m256i)((Pairs)a >> 32), factor);
#else
    const Pairs even = ((Pairs)a & ~kUpper) * b, odd = ((Pairs)a >> 32) * b;
#endif
    *low = (Bits)((even & ~kUpper) | (odd << 32));
    *high = (Bits)((even >> 32) | (odd & kUpper));
  }
  static TFGEN_INLINE Vec constant(float x) { return broadcast(x); }
  static TFGEN_INLINE Vec to_real(Bits x) { return __builtin_convertvector((Ints)x, Vec); }
  static TFGEN_INLINE Bits bits(Vec x) { return (Bits)x; }
  static TFGEN_INLINE Vec real(Bits x) { return (Vec)x; }
  static TFGEN_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return TFGEN_ISA::multiply_add(a, b, c); }
  static TFGEN_INLINE Vec square_root(Vec x) {
#if TFGEN_LANES == 16 && defined(__AVX512F__)
    return _mm512_maskz_sqrt_ps(0xffff, x);
#elif TFGEN_LANES == 8 && defined(__AVX2__)
    return _mm256_sqrt_ps(x);
#else
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
  }
};

// The four words of kLanes blocks stand in four vectors. Transposing each four lanes, which is cheap, brings the words of
// a block together; with the blocks in this order of lanes, all of them come out in the order of elements.
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
  constexpr auto kAll = std::make_index_sequence<kLanes>();
  const Vec a = interleave_words<false>(x[0], x[1], kAll), b = interleave_words<false>(x[2], x[3], kAll);
  const Vec c = interleave_words<true>(x[0], x[1], kAll), d = interleave_words<true>(x[2], x[3], kAll);
  x[0] = interleave_pairs<false>(a, b, kAll), x[1] = interleave_pairs<true>(a, b, kAll);
  x[2] = interleave_pairs<false>(c, d, kAll), x[3] = interleave_pairs<true>(c, d, kAll);
}

constexpr int64_t kGroup = kPhiloxWords * kLanes;  // elements that are drawn together
// Of a buffer for a unit that starts within a block, and a vector that is read at its end.
constexpr int64_t kBuffer = kLangevinUnit + 2 * kGroup;

// Draws `count` elements of a stream, from number `first` of the tensor on, at most kLangevinUnit. Returns where in the
// buffer they are; what is beyond them may be read. The result of an element does not depend on `first` and `count`.
template <int kKind>
inline const float* draw(const TfgenRandom& random, int64_t first, int64_t count, float* buffer) {
  const uint64_t element = random.first_element + static_cast<uint64_t>(first);
  const int64_t skipped = static_cast<int64_t>(element % kPhiloxWords);
  for (int64_t done = 0; done < skipped + count + kLanes; done += kGroup) {
    const uint64_t block = element / kPhiloxWords + static_cast<uint64_t>(done / kPhiloxWords);
    const Bits low = block_of_lane(std::make_index_sequence<kLanes>()) + static_cast<uint32_t>(block);
    const Bits carried = low < static_cast<uint32_t>(block) ? broadcast_bits(1) : Bits{};
    Bits words[] = {low, carried + static_cast<uint32_t>(block >> 32), broadcast_bits(random.step),
                    broadcast_bits(random.stream)};
    philox<VectorMath>(words, random.seed);
    Vec numbers[kPhiloxWords];
    if constexpr (kKind == TFGEN_RANDOM_NORMAL) {
      box_muller<VectorMath>(words[0], words[1], &numbers[0], &numbers[1]);
      box_muller<VectorMath>(words[2], words[3], &numbers[2], &numbers[3]);
    } else {
      for (int i = 0; i < kPhiloxWords; ++i) {
        numbers[i] = kKind == TFGEN_RANDOM_UNIFORM ? uniform_of<VectorMath>(words[i]) : (Vec)words[i];
      }
    }
    to_element_order(numbers);
    for (int i = 0; i < kPhiloxWords; ++i) Float32::store(buffer + done + i * kLanes, numbers[i]);
  }
  return buffer + skipped;
}

template <int kKind>
void draw_unit(const TfgenRandomDraw& args, int64_t unit) {
  float buffer[kBuffer];
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
