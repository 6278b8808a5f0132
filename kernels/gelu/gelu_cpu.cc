// The C interface of the CPU kernels of GELU: chooses the instruction set and forwards.
#include <string.h>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/gelu/cpu_dispatch.h"
#include "kernels/gelu/gelu.h"

namespace tfgen {
namespace {

GeluKernels choose() {
#if TFGEN_X86_KERNELS
  const char* isa = tfgen_blocksparse_cpu_isa();
  if (strcmp(isa, "avx2") == 0) return avx2_gelu();
  if (strcmp(isa, "portable") != 0) return avx512_gelu();
#endif
  return portable_gelu();
}

const GeluKernels& kernels() {
  static const GeluKernels chosen = choose();
  return chosen;
}

}  // namespace
}  // namespace tfgen

void tfgen_gelu_forward_cpu(const float* x, float* y, int64_t count) { tfgen::kernels().forward(x, y, count); }

void tfgen_gelu_backward_cpu(const float* x, const float* dy, float* dx, int64_t count) {
  tfgen::kernels().backward(x, dy, dx, count);
}
