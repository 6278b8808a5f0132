// What one instruction set offers of the Langevin step, and how memory is cut. Private to the CPU kernels.
#ifndef TFGEN_KERNELS_LANGEVIN_CPU_DISPATCH_H_
#define TFGEN_KERNELS_LANGEVIN_CPU_DISPATCH_H_

#include "kernels/blocksparse/cpu_dispatch.h"
#include "kernels/langevin/langevin.h"
#include "kernels/langevin/rows.h"

namespace tfgen {

// Elements of a unit: with the random numbers of two steps they fit a first-level cache.
constexpr int64_t kLangevinUnit = 1024;

struct LangevinKernels {
  // One unit of the elements.
  void (*forward)(const TfgenLangevinForward& args, int64_t unit);
  void (*backward)(const TfgenLangevinBackward& args, int64_t unit);
  void (*noise)(const TfgenLangevinNoise& args, int64_t unit);
  void (*random)(const TfgenRandomDraw& args, int64_t unit);
  // Sums over elements first .. last - 1, all of one sample but for the norm of a tensor: of g^2 and d^2, and in the
  // backward pass of the products of d, and of g, with what comes from above.
  double (*gradient_square)(const TfgenLangevinStep& step, int64_t first, int64_t last);
  double (*displacement_square)(const TfgenLangevinStep& step, int64_t first, int64_t last);
  double (*displacement_product)(const TfgenLangevinBackward& args, int64_t first, int64_t last);
  double (*gradient_product)(const TfgenLangevinBackward& args, int64_t first, int64_t last);
};

LangevinKernels portable_langevin();
#if TFGEN_X86_KERNELS
LangevinKernels avx2_langevin();
LangevinKernels avx512_langevin();
#endif

}  // namespace tfgen
#endif  // TFGEN_KERNELS_LANGEVIN_CPU_DISPATCH_H_
