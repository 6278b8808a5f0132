// What one instruction set offers of concatenated ELU. Private to the CPU kernels.
#ifndef TFGEN_KERNELS_CONCAT_ELU_CPU_DISPATCH_H_
#define TFGEN_KERNELS_CONCAT_ELU_CPU_DISPATCH_H_

#include "kernels/blocksparse/cpu_dispatch.h"
#include "kernels/concat_elu/concat_elu.h"

namespace tfgen {

struct ConcatEluKernels {
  void (*forward)(const float* x, float* y, int64_t pixels, int64_t channels);
  void (*backward)(const float* x, const float* dy, float* dx, int64_t pixels, int64_t channels);
};

ConcatEluKernels portable_concat_elu();
#if TFGEN_X86_KERNELS
ConcatEluKernels avx2_concat_elu();
ConcatEluKernels avx512_concat_elu();
#endif

}  // namespace tfgen
#endif  // TFGEN_KERNELS_CONCAT_ELU_CPU_DISPATCH_H_
