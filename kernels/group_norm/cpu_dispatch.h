// What one instruction set offers of group normalisation. Private to the CPU kernels.
#ifndef TFGEN_KERNELS_GROUP_NORM_CPU_DISPATCH_H_
#define TFGEN_KERNELS_GROUP_NORM_CPU_DISPATCH_H_

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/blocksparse/cpu_dispatch.h"
#include "kernels/group_norm/group_norm.h"

namespace tfgen {

constexpr int64_t kGroupNormAlign = 16;  // channels: the widest vector. Rows of scratch are multiples of it
// Doubles of scratch for each sample and channel: two sums in float64, then five coefficients in float32.
constexpr int64_t kGroupNormScratch = 5;

// Channels first .. last - 1 of a sample; whole groups.
struct GroupNormUnit {
  int64_t sample, first, last;
};

struct GroupNormKernels {
  void (*forward)(const TfgenGroupNormForward& args, const GroupNormUnit& unit);
  void (*backward)(const TfgenGroupNormBackward& args, const GroupNormUnit& unit);
};

GroupNormKernels portable_group_norm();
#if TFGEN_X86_KERNELS
GroupNormKernels avx2_group_norm();
GroupNormKernels avx512_group_norm();
#endif

}  // namespace tfgen
#endif  // TFGEN_KERNELS_GROUP_NORM_CPU_DISPATCH_H_
