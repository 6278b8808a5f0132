// bfloat16 in software, rounded to nearest even.
#ifndef TFGEN_TESTS_CUDA_EMULATION_CUDA_BF16_H_
#define TFGEN_TESTS_CUDA_EMULATION_CUDA_BF16_H_

#include "cuda_runtime.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  if (isnan(value)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {__bfloat162float(pair.x), __bfloat162float(pair.y)}; }

#endif  // TFGEN_TESTS_CUDA_EMULATION_CUDA_BF16_H_
