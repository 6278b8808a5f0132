// float16 in software, rounded to nearest even.
#ifndef TFGEN_TESTS_CUDA_EMULATION_CUDA_FP16_H_
#define TFGEN_TESTS_CUDA_EMULATION_CUDA_FP16_H_

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = fraction ? NAN : INFINITY;
  } else {
    magnitude = exponent ? ldexpf(1024.0f + fraction, exponent - 25) : ldexpf(fraction, -24);
  }
  return bits >> 15 ? -magnitude : magnitude;
}

inline float __half2float(__half x) {
  struct Table {
    float values[65536];
    Table() {
      for (int bits = 0; bits < 65536; ++bits) values[bits] = half_value(static_cast<uint16_t>(bits));
    }
  };
  static const Table table;
  return table.values[x.bits];
}

inline __half __float2half_rn(float value) {
  const uint16_t sign = signbit(value) ? 0x8000 : 0;
  const float magnitude = fabsf(value);
  if (isnan(value)) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to 2^16 or is more
  // The spacing of float16 numbers around `value`: nearbyintf rounds to even.
  const int exponent = magnitude < 6.103515625e-05f ? -14 : ilogbf(magnitude);
  const int units = static_cast<int>(nearbyintf(ldexpf(magnitude, 10 - exponent)));
  return {static_cast<uint16_t>(sign | (units + (exponent + 14) * 1024))};
}

inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }

#endif  // TFGEN_TESTS_CUDA_EMULATION_CUDA_FP16_H_
