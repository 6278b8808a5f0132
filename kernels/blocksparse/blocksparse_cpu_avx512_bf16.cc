// The forward pass of bfloat16 compiled for AVX-512 with its instructions for bfloat16; the rest is AVX-512's.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/blocksparse/cpu_dispatch.h"

#if TFGEN_BFLOAT16_KERNELS
#include <immintrin.h>

// After the system headers: what they define must stay runnable everywhere, since the linker may keep this file's copy.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")

#define TFGEN_ISA avx512_bf16
#define TFGEN_LANES 16
#define TFGEN_BFLOAT16_INSTRUCTIONS 1
#include "kernels/blocksparse/cpu_kernels.h"

namespace tfgen {
namespace avx512_bf16 {

void forward_or_avx512(const TfgenBlocksparseForward& args, int64_t first, int64_t last) {
  if (args.shape.dtype == TFGEN_BFLOAT16) return forward_pairs(args, first, last);
  avx512_kernels().forward(args, first, last);
}

}  // namespace avx512_bf16

CpuKernels avx512_bf16_kernels() {
  CpuKernels kernels = avx512_kernels();
  kernels.forward = avx512_bf16::forward_or_avx512;
  return kernels;
}

}  // namespace tfgen
#endif  // TFGEN_BFLOAT16_KERNELS
