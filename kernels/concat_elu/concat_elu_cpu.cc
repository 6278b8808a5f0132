// The C interface of the CPU kernels of concatenated ELU: chooses the instruction set and forwards.
#include <string.h>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/concat_elu/cpu_dispatch.h"
#include "kernels/concat_elu/concat_elu.h"

namespace tfgen {
namespace {

ConcatEluKernels choose() {
#if TFGEN_X86_KERNELS
  const char* isa = tfgen_blocksparse_cpu_isa();
  if (strcmp(isa, "avx2") == 0) return avx2_concat_elu();
  if (strcmp(isa, "portable") != 0) return avx512_concat_elu();
#endif
  return portable_concat_elu();
}

const ConcatEluKernels& kernels() {
  static const ConcatEluKernels chosen = choose();
  return chosen;
}

}  // namespace
}  // namespace tfgen

void tfgen_concat_elu_forward_cpu(const float* x, float* y, int64_t pixels, int64_t channels) {
  tfgen::kernels().forward(x, y, pixels, channels);
}

void tfgen_concat_elu_backward_cpu(const float* x, const float* dy, float* dx, int64_t pixels, int64_t channels) {
  tfgen::kernels().backward(x, dy, dx, pixels, channels);
}
