// Random numbers as a function of (seed, step, stream, element): Philox4x32-10 (Salmon et al., "Parallel Random
// Numbers: As Easy as 1, 2, 3", SC 2011) and what is made of its words.
//
// Element i of a stream, i counted over all shards of a tensor in C order, takes word i % 4 of the block with
//
//     counter = (low half of i / 4, high half of i / 4, step, stream),   key = (low half of seed, high half of seed)
//
// One source serves vectors of a CPU, threads of a GPU and plain C++, by a class `Math` of the operations on its words
// and floats (`ScalarMath` below is one). Words are the same bits everywhere, uniform numbers too. Normal numbers are
// the same bits wherever `Math::multiply_add` rounds once, elsewhere within a few units in the last place.
#ifndef TFGEN_KERNELS_COMMON_PHILOX_H_
#define TFGEN_KERNELS_COMMON_PHILOX_H_

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define TFGEN_EVERYWHERE __host__ __device__ __forceinline__
#else
#define TFGEN_EVERYWHERE inline __attribute__((always_inline))
#endif

#define TFGEN_PRAGMA(words) _Pragma(#words)
#if defined(__CUDA_ARCH__)
#define TFGEN_UNROLL(count) TFGEN_PRAGMA(unroll count)
#elif defined(__GNUC__) && !defined(__clang__)
#define TFGEN_UNROLL(count) TFGEN_PRAGMA(GCC unroll count)
#else
#define TFGEN_UNROLL(count)
#endif

namespace tfgen {

constexpr int kPhiloxWords = 4;  // of a block
constexpr int kPhiloxRounds = 10;

struct ScalarMath {
  using Word = uint32_t;
  using Real = float;
  static TFGEN_EVERYWHERE void multiply(Word a, uint32_t b, Word* high, Word* low) {
    const uint64_t product = static_cast<uint64_t>(a) * b;
    *high = static_cast<Word>(product >> 32), *low = static_cast<Word>(product);
  }
  static TFGEN_EVERYWHERE Word word(uint32_t x) { return x; }
  static TFGEN_EVERYWHERE Real constant(float x) { return x; }
  // Of words that stand for signed numbers of less than 2^24 in magnitude.
  static TFGEN_EVERYWHERE Real to_real(Word x) { return static_cast<float>(static_cast<int32_t>(x)); }
  static TFGEN_EVERYWHERE Word bits(Real x) {
    Word word;
    memcpy(&word, &x, sizeof(word));
    return word;
  }
  static TFGEN_EVERYWHERE Real real(Word x) {
    Real number;
    memcpy(&number, &x, sizeof(number));
    return number;
  }
  // All bits are the sign's.
  static TFGEN_EVERYWHERE Word spread_sign(Word x) { return static_cast<Word>(static_cast<int32_t>(x) >> 31); }
  static TFGEN_EVERYWHERE Real multiply_add(Real a, Real b, Real c) { return fmaf(a, b, c); }
  static TFGEN_EVERYWHERE Real square_root(Real x) { return sqrtf(x); }
};

// The keys of the rounds, for many blocks.
template <class Math>
struct PhiloxKeys {
  typename Math::Word of[kPhiloxRounds][2];

  explicit TFGEN_EVERYWHERE PhiloxKeys(uint64_t seed) {
    uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
    for (auto& round : of) {
      round[0] = Math::word(low), round[1] = Math::word(high);
      low += 0x9E3779B9u, high += 0xBB67AE85u;
    }
  }
};

// Replaces counters by their blocks of random words. A round waits for the one before: what is independent of each
// other is done side by side.
template <class Math, int kCount>
TFGEN_EVERYWHERE void philox(typename Math::Word (&blocks)[kCount][kPhiloxWords], const PhiloxKeys<Math>& keys) {
  TFGEN_UNROLL(10)
  for (int round = 0; round < kPhiloxRounds; ++round) {
    TFGEN_UNROLL(4)
    for (int i = 0; i < kCount; ++i) {
      typename Math::Word(&words)[kPhiloxWords] = blocks[i], high[2], low[2];
      Math::multiply(words[0], 0xD2511F53u, &high[0], &low[0]);
      Math::multiply(words[2], 0xCD9E8D57u, &high[1], &low[1]);
      words[0] = high[1] ^ words[1] ^ keys.of[round][0], words[1] = low[1];
      words[2] = high[0] ^ words[3] ^ keys.of[round][1], words[3] = low[0];
    }
  }
}

// A multiple of 2^-24 in [0, 1).
template <class Math>
TFGEN_EVERYWHERE typename Math::Real uniform_of(typename Math::Word word) {
  return Math::to_real(word >> 8) * 0x1p-24f;
}

// sqrt(-2 ln u) of u = (word / 2^8 + 1) 2^-24, which is in (0, 1].
//
// u = 2^e (1 + f) with 1 + f between sqrt(1/2) and sqrt(2); ln(1 + f) = f - f^2 / 2 + f^3 p(f), where p is a minimax
// fit with a relative error of ln(1 + f) of 6e-9, and ln 2 is the sum of two floats whose first times e is exact. All
// of it is taken -2 times.
template <class Math>
TFGEN_EVERYWHERE typename Math::Real radius_of(typename Math::Word word) {
  using Word = typename Math::Word;
  using Real = typename Math::Real;
  constexpr uint32_t kRootOfHalf = 0x3f3504f3u;
  const Word scaled = Math::bits(Math::to_real((word >> 8) + 1u));  // of 2^24 u
  const Word exponent = (scaled - kRootOfHalf) >> 23;
  const Real e = Math::to_real(exponent) - 24.0f, f = Math::real(scaled - (exponent << 23)) - 1.0f;
  // Pairs of terms, then pairs of pairs: one sum after the other would wait for each product.
  const Real f2 = f * f, f4 = f2 * f2;
  const Real p0 = Math::multiply_add(f, Math::constant(0.500016391f), Math::constant(-0.666666627f));
  const Real p2 = Math::multiply_add(f, Math::constant(0.332468212f), Math::constant(-0.400024861f));
  const Real p4 = Math::multiply_add(f, Math::constant(0.263191015f), Math::constant(-0.284030795f));
  const Real p6 = Math::multiply_add(f, Math::constant(0.15273881f), Math::constant(-0.255249709f));
  Real p = Math::multiply_add(f4, Math::multiply_add(f2, p6, p4), Math::multiply_add(f2, p2, p0));
  p = Math::multiply_add(p * f, f2, e * -1.81160012e-05f);
  p = Math::multiply_add(f2, Math::constant(1.0f), p);
  p = Math::multiply_add(f, Math::constant(-2.0f), p);
  return Math::square_root(Math::multiply_add(e, Math::constant(-1.38627625f), p));
}

// Cosine and sine of 2 pi u, u = (word / 2^8) 2^-24.
//
// 4 u is the nearest integer, a number of quarters of the circle, and a rest y in [-1/2, 1/2), both exact. The
// polynomials are minimax fits of sin(pi y / 2) / y and cos(pi y / 2) in y^2 with errors below 5e-9; pi / 2 is the sum
// of two floats.
template <class Math>
TFGEN_EVERYWHERE void direction_of(typename Math::Word word, typename Math::Real* cosine, typename Math::Real* sine) {
  using Word = typename Math::Word;
  using Real = typename Math::Real;
  const Word turned = word + (1u << 29);  // by half a quarter: the upper two bits are the quarter
  const Real y = Math::to_real(((turned >> 8) & 0x3fffffu) - (1u << 21)) * 0x1p-22f, z = y * y;
  Real s = Math::constant(-4.603722598403692e-3f);
  s = Math::multiply_add(s, z, Math::constant(7.968108355998993e-2f));
  s = Math::multiply_add(s, z, Math::constant(-6.459636092185974e-1f));
  s = Math::multiply_add(s, z, Math::constant(-4.3711388e-8f));
  s = Math::multiply_add(y, Math::constant(1.5707964f), s * y);
  Real c = Math::constant(8.935071527957916e-4f);
  c = Math::multiply_add(c, z, Math::constant(-2.0855240523815155e-2f));
  c = Math::multiply_add(c, z, Math::constant(2.5366851687431335e-1f));
  c = Math::multiply_add(c, z, Math::constant(-1.2337005138397217f));
  c = Math::multiply_add(c, z, Math::constant(1.0f));
  // A quarter of the circle further, the cosine is minus the sine and the sine is the cosine.
  constexpr uint32_t kSign = 0x80000000u;
  const Word odd = turned << 1;  // its sign is the lower bit of the quarter
  const Word exchanged = (Math::bits(s) ^ Math::bits(c)) & Math::spread_sign(odd);
  *cosine = Math::real(Math::bits(c) ^ exchanged ^ ((turned ^ odd) & kSign));
  *sine = Math::real(Math::bits(s) ^ exchanged ^ (turned & kSign));
}

// Standard normal numbers of blocks, by Box and Muller (1958), with an absolute error below 1e-6. All radii come first:
// each is a long chain of operations, and a processor looks ahead only so far for others to do meanwhile.
template <class Math, int kCount>
TFGEN_EVERYWHERE void box_muller(const typename Math::Word (&words)[kCount][kPhiloxWords],
                                 typename Math::Real (&normals)[kCount][kPhiloxWords]) {
  typename Math::Real radii[kCount][2];
  TFGEN_UNROLL(4)
  for (int i = 0; i < kCount; ++i) {
    radii[i][0] = radius_of<Math>(words[i][0]), radii[i][1] = radius_of<Math>(words[i][2]);
  }
  TFGEN_UNROLL(4)
  for (int i = 0; i < kCount; ++i) {
    TFGEN_UNROLL(2)
    for (int j = 0; j < 2; ++j) {
      typename Math::Real cosine, sine;
      direction_of<Math>(words[i][2 * j + 1], &cosine, &sine);
      normals[i][2 * j] = radii[i][j] * cosine, normals[i][2 * j + 1] = radii[i][j] * sine;
    }
  }
}

}  // namespace tfgen
#endif  // TFGEN_KERNELS_COMMON_PHILOX_H_
