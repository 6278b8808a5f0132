// Vectors of TFGEN_LANES floats for the instruction set of the including file, in namespace tfgen::TFGEN_ISA.
//
// Everything is defined in a namespace of its own for each instruction set and calls no inline function of the
// standard library: a function compiled for AVX-512 must never be the copy that the linker keeps for all files.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_CPU_VECTOR_H_
#define TFGEN_KERNELS_BLOCKSPARSE_CPU_VECTOR_H_

// Only one file has the instructions for bfloat16.
#ifndef TFGEN_BFLOAT16_INSTRUCTIONS
#define TFGEN_BFLOAT16_INSTRUCTIONS 0
#endif

#define TFGEN_INLINE inline __attribute__((always_inline))

namespace tfgen {
namespace TFGEN_ISA {

constexpr int kLanes = TFGEN_LANES;

typedef float Vec __attribute__((vector_size(4 * TFGEN_LANES), may_alias));
typedef float UnalignedVec __attribute__((vector_size(4 * TFGEN_LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * TFGEN_LANES), may_alias));  // of comparisons: -1 true, 0 false
typedef uint32_t Bits __attribute__((vector_size(4 * TFGEN_LANES), may_alias));
typedef uint32_t UnalignedBits __attribute__((vector_size(4 * TFGEN_LANES), aligned(4), may_alias));
typedef uint16_t Shorts __attribute__((vector_size(2 * TFGEN_LANES), may_alias));
typedef uint16_t UnalignedShorts __attribute__((vector_size(2 * TFGEN_LANES), aligned(2), may_alias));

constexpr float kInfinity = __builtin_inff();

TFGEN_INLINE Vec broadcast(float x) { return x - Vec{}; }  // 0 - Vec{} would lose the sign of -0, x - 0 does not
TFGEN_INLINE Bits broadcast_bits(uint32_t x) { return x | Bits{}; }
TFGEN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
TFGEN_INLINE int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// a * b + c
TFGEN_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if TFGEN_LANES == 16 && defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif TFGEN_LANES == 8 && defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// The larger one; `b` where either is NaN.
TFGEN_INLINE Vec larger(Vec a, Vec b) {
#if TFGEN_LANES == 16 && defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, a, b);  // not _mm512_max_ps, at which GCC 12 warns of an uninitialised variable
#elif TFGEN_LANES == 8 && defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// exp(r) - 1 where x = n log 2 + r, by argument reduction and polynomial of Cephes' expf; *power, moved to the exponent of
// a float, adds n to it.
TFGEN_INLINE Vec reduced_exponential_minus_one(Vec x, Bits* power) {
  const Vec shift = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves round(y) in the lowest bits
  const Vec shifted = multiply_add(x, broadcast(1.44269504088896341f), shift);
  const Vec n = shifted - shift;
  Vec r = multiply_add(n, broadcast(-0.693359375f), x);
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = multiply_add(p, r, broadcast(1.3981999507e-3f));
  p = multiply_add(p, r, broadcast(8.3334519073e-3f));
  p = multiply_add(p, r, broadcast(4.1665795894e-2f));
  p = multiply_add(p, r, broadcast(1.6666665459e-1f));
  p = multiply_add(p, r, broadcast(5.0000001201e-1f));
  *power = (Bits)shifted << 23;
  return multiply_add(p, r * r, r);
}

// exp(x) for x <= 88 with an error of about 1 ulp; 0 below -87 (where the result would soon be subnormal), NaN for NaN.
TFGEN_INLINE Vec exponential(Vec x) {
  Bits power;
  const Vec p = reduced_exponential_minus_one(x, &power) + 1.0f;
  return x < -87.0f ? Vec{} : (Vec)((Bits)p + power);
}

// exp(x) - 1 for x <= 88, to a few ulp near 0, too; -1 below -87, NaN for NaN.
TFGEN_INLINE Vec exponential_minus_one(Vec x) {
  Bits power;
  const Vec p = reduced_exponential_minus_one(x, &power);
  const Vec scale = (Vec)((Bits)broadcast(1.0f) + power);
  return x < -87.0f ? broadcast(-1.0f) : multiply_add(p, scale, scale - 1.0f);
}

// Element types of tensors: how kLanes of them turn into floats and back.
struct Float32 {
  using Storage = float;
  static constexpr bool kPairs = false;
  static TFGEN_INLINE Vec load(const float* x) { return *reinterpret_cast<const UnalignedVec*>(x); }
  static TFGEN_INLINE void store(float* x, Vec value) { *reinterpret_cast<UnalignedVec*>(x) = value; }
};

TFGEN_INLINE Bits load_shorts(const uint16_t* x) {
  return __builtin_convertvector((Shorts) * reinterpret_cast<const UnalignedShorts*>(x), Bits);
}

TFGEN_INLINE void store_shorts(uint16_t* x, Bits value) {
  *reinterpret_cast<UnalignedShorts*>(x) = __builtin_convertvector(value, Shorts);
}

struct BFloat16 {
  using Storage = uint16_t;
  static constexpr bool kPairs = false;
  static TFGEN_INLINE Vec load(const uint16_t* x) { return (Vec)(load_shorts(x) << 16); }
  static TFGEN_INLINE void store(uint16_t* x, Vec value) {
    const Bits bits = (Bits)value;
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    store_shorts(x, value == value ? rounded : broadcast_bits(0x7fc0u));
  }
};

// bfloat16 whose products in the forward pass, of queries and keys, are those of pairs.
struct BFloat16Pairs : BFloat16 {
  static constexpr bool kPairs = true;
};

// sums + a0 * b0 + a1 * b1 of pairs of bfloat16, a0 in the lower half. The products are exact in float32; the
// instruction takes subnormal numbers for zero.
TFGEN_INLINE Vec add_pair_products(Bits a, Bits b, Vec sums) {
#if TFGEN_BFLOAT16_INSTRUCTIONS
  return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
#else
  const Vec odd = multiply_add((Vec)(a & 0xffff0000u), (Vec)(b & 0xffff0000u), sums);
  return multiply_add((Vec)(a << 16), (Vec)(b << 16), odd);
#endif
}

// Integer arithmetic and normal floats only, so that it is right where the processor flushes subnormals to zero, as
// the threads of TensorFlow make it do.
struct Float16 {
  using Storage = uint16_t;
  static constexpr bool kPairs = false;
  static TFGEN_INLINE Vec load(const uint16_t* x) {
    const Bits half = load_shorts(x);
    const Bits magnitude = half & 0x7fffu;
    const Bits normal = (magnitude << 13) + (112u << 23);  // exponent bias 127 - 15
    const Bits infinite = normal + (112u << 23);           // exponent 31 -> 255
    const Bits subnormal = (Bits)(__builtin_convertvector((Ints)magnitude, Vec) * 0x1p-24f);
    Bits bits = magnitude < 0x0400u ? subnormal : normal;
    bits = magnitude >= 0x7c00u ? infinite : bits;
    return (Vec)(bits | ((half & 0x8000u) << 16));
  }
  static TFGEN_INLINE void store(uint16_t* x, Vec value) {
    const Bits bits = (Bits)value;
    const Bits magnitude = bits & 0x7fffffffu;
    // Adding 0.5 aligns the last bit of a subnormal half with that of the float: the addition rounds, ties to even.
    const Bits subnormal = (Bits)((Vec)magnitude + 0.5f) - 0x3f000000u;
    const Bits normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    Bits half = magnitude < 0x38800000u ? subnormal : normal;  // 2^-14
    half = magnitude >= 0x47800000u ? broadcast_bits(0x7c00u) : half;  // 2^16
    half = magnitude > 0x7f800000u ? broadcast_bits(0x7e00u) : half;
    store_shorts(x, half | ((bits >> 16) & 0x8000u));
  }
};

// The first `count` elements, then zeros; reads nothing beyond them.
template <class E>
TFGEN_INLINE Vec load_some(const typename E::Storage* x, int64_t count) {
  if (count >= kLanes) return E::load(x);
  typename E::Storage padded[kLanes] = {};
  memcpy(padded, x, static_cast<size_t>(count) * sizeof(padded[0]));
  return E::load(padded);
}

template <class E>
TFGEN_INLINE void store_some(typename E::Storage* x, Vec value, int64_t count) {
  if (count >= kLanes) return E::store(x, value);
  typename E::Storage padded[kLanes];
  E::store(padded, value);
  memcpy(x, padded, static_cast<size_t>(count) * sizeof(padded[0]));
}

template <int kDistance, size_t... kLane>
TFGEN_INLINE void exchange(Vec* x, std::index_sequence<kLane...>) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kDistance) continue;
    const Vec a = x[i], b = x[i + kDistance];
    x[i] = __builtin_shufflevector(a, b, (kLane & kDistance ? kLane + kLanes - kDistance : kLane)...);
    x[i + kDistance] = __builtin_shufflevector(a, b, (kLane & kDistance ? kLane + kLanes : kLane + kDistance)...);
  }
}

// x[i][j] <-> x[j][i]: swaps the off-diagonal quarters, then those of each quarter, and so on.
TFGEN_INLINE void transpose(Vec* x) {
  using Lanes = std::make_index_sequence<kLanes>;
  if constexpr (kLanes >= 16) exchange<8>(x, Lanes());
  if constexpr (kLanes >= 8) exchange<4>(x, Lanes());
  exchange<2>(x, Lanes());
  exchange<1>(x, Lanes());
}

// Lane i of the result is the sum of the lanes of x[i]. Overwrites x.
TFGEN_INLINE Vec sums_of_each(Vec* x) {
  transpose(x);
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  }
  return x[0];
}

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_CPU_VECTOR_H_
