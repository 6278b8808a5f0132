// The C interface of the CPU kernels of group normalisation: cuts the work into units and chooses the instruction set.
#include <string.h>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/group_norm/cpu_dispatch.h"
#include "kernels/group_norm/group_norm.h"

namespace tfgen {
namespace {

// Bytes of x that a unit reads: every pass after the first finds them in a second-level cache.
constexpr int64_t kUnitBytes = 256 * 1024;
// Narrower units read too few bytes of each pixel at a time. Images that are too large for the cache with these are
// read from memory by every pass, whole pixels at a time.
constexpr int64_t kUnitChannels = 64;

GroupNormKernels choose() {
#if TFGEN_X86_KERNELS
  const char* isa = tfgen_blocksparse_cpu_isa();
  if (strcmp(isa, "avx2") == 0) return avx2_group_norm();
  if (strcmp(isa, "portable") != 0) return avx512_group_norm();
#endif
  return portable_group_norm();
}

const GroupNormKernels& kernels() {
  static const GroupNormKernels chosen = choose();
  return chosen;
}

int64_t quotient_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Channels of a unit: whole groups, and whole vectors but in the last unit of a sample.
int64_t unit_channels(const TfgenGroupNormShape& shape) {
  const int64_t members = shape.channels / shape.groups;
  int64_t step = members;
  while (step % kGroupNormAlign) step += members;
  const int64_t parts = shape.batch > 0 && shape.threads > shape.batch ? quotient_up(shape.threads, shape.batch) : 1;
  int64_t width = quotient_up(quotient_up(shape.channels, parts), step) * step;
  const int64_t fit = kUnitBytes / (shape.pixels > 0 ? shape.pixels * (shape.dtype == TFGEN_FLOAT32 ? 4 : 2) : 1);
  if (fit >= kUnitChannels && fit / step > 0 && fit < width) width = fit / step * step;
  return width < shape.channels ? width : shape.channels;
}

template <class Args>
void run(const Args& args, int64_t first, int64_t last, void (*kernel)(const Args&, const GroupNormUnit&)) {
  const TfgenGroupNormShape& shape = args.shape;
  const int64_t width = unit_channels(shape), units = quotient_up(shape.channels, width);
  for (int64_t index = first; index < last; ++index) {
    const int64_t begin = index % units * width, end = begin + width;
    kernel(args, {index / units, begin, end < shape.channels ? end : shape.channels});
  }
}

}  // namespace
}  // namespace tfgen

int64_t tfgen_group_norm_units(const TfgenGroupNormShape* shape) {
  const int64_t width = tfgen::unit_channels(*shape);
  return shape->batch * tfgen::quotient_up(shape->channels, width);
}

int64_t tfgen_group_norm_scratch(const TfgenGroupNormShape* shape) {
  return shape->batch * tfgen::kGroupNormScratch * tfgen::quotient_up(shape->channels, tfgen::kGroupNormAlign) *
         tfgen::kGroupNormAlign;
}

void tfgen_group_norm_forward_cpu(const TfgenGroupNormForward* args, int64_t first, int64_t last) {
  tfgen::run(*args, first, last, tfgen::kernels().forward);
}

void tfgen_group_norm_backward_cpu(const TfgenGroupNormBackward* args, int64_t first, int64_t last) {
  tfgen::run(*args, first, last, tfgen::kernels().backward);
}
