// What one instruction set offers of GELU. Private to the CPU kernels.
#ifndef TFGEN_KERNELS_GELU_CPU_DISPATCH_H_
#define TFGEN_KERNELS_GELU_CPU_DISPATCH_H_

#include "kernels/blocksparse/cpu_dispatch.h"
#include "kernels/gelu/gelu.h"

namespace tfgen {

struct GeluKernels {
  void (*forward)(const float* x, float* y, int64_t count);
  void (*backward)(const float* x, const float* dy, float* dx, int64_t count);
};

GeluKernels portable_gelu();
#if TFGEN_X86_KERNELS
GeluKernels avx2_gelu();
GeluKernels avx512_gelu();
#endif

}  // namespace tfgen
#endif  // TFGEN_KERNELS_GELU_CPU_DISPATCH_H_
