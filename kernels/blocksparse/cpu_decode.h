// Attention of one query over a table of keys, for sampling.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_CPU_DECODE_H_
#define TFGEN_KERNELS_BLOCKSPARSE_CPU_DECODE_H_

#include "kernels/blocksparse/cpu_matrix.h"

namespace tfgen {
namespace TFGEN_ISA {

// One query against the table, online over chunks of kLanes slots: the scores of a chunk are the lanes of one vector.
template <class E>
void decode_range(const TfgenBlocksparseDecode& args, int64_t first, int64_t last) {
  const int64_t key_padded = round_up(args.key_size, kPadding), value_padded = round_up(args.value_size, kPadding);
  const int64_t key_step = args.batch * args.heads * args.key_size;  // elements from slot to slot
  const int64_t value_step = args.batch * args.heads * args.value_size;
  float* query = static_cast<float*>(thread_scratch(static_cast<size_t>(key_padded + value_padded) * sizeof(float)));
  float* sums = query + key_padded;
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t token = 0;
    const auto* q = static_cast<const typename E::Storage*>(args.q) + unit * args.key_size;
    const auto* keys = static_cast<const typename E::Storage*>(args.keys) + unit * args.key_size;
    const auto* values = static_cast<const typename E::Storage*>(args.values) + unit * args.value_size;
    auto* out = static_cast<typename E::Storage*>(args.out) + unit * args.value_size;
    const HeadView<E> view = {const_cast<typename E::Storage*>(q), args.key_size, args.key_size};
    copy_rows(view, &token, 1, key_padded, args.scale, query);
    for (int64_t d = 0; d < value_padded; d += kLanes) *reinterpret_cast<Vec*>(sums + d) = Vec{};
    float maximum = -kInfinity, total = 0.0f;
    for (int64_t slot = 0; slot < args.visible; slot += kLanes) {
      const int64_t count = smaller(kLanes, args.visible - slot);
      Vec partial[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        partial[i] = Vec{};
        if (i >= count) continue;
        const auto* key = keys + (slot + i) * key_step;
        for (int64_t d = 0; d < args.key_size; d += kLanes) {
          const Vec factor = *reinterpret_cast<const Vec*>(query + d);
          partial[i] = multiply_add(load_some<E>(key + d, args.key_size - d), factor, partial[i]);
        }
      }
      Vec scores = sums_of_each(partial);
      const float previous = maximum;
      for (int64_t i = 0; i < kLanes; ++i) {
        if (i >= count) scores[i] = -kInfinity;
        if (scores[i] > maximum) maximum = scores[i];
      }
      const float shift = maximum == -kInfinity ? 0.0f : maximum;
      const Vec weights = exponential(scores - shift);
      const float rescale = exponential(broadcast(previous - shift))[0];
      total *= rescale;
      for (int64_t i = 0; i < count; ++i) total += weights[i];
      for (int64_t d = 0; d < args.value_size; d += kLanes) {
        Vec sum = *reinterpret_cast<Vec*>(sums + d) * rescale;
        for (int64_t i = 0; i < count; ++i) {
          const Vec value = load_some<E>(values + (slot + i) * value_step + d, args.value_size - d);
          sum = multiply_add(value, broadcast(weights[i]), sum);
        }
        *reinterpret_cast<Vec*>(sums + d) = sum;
      }
    }
    const float reciprocal = total == 0.0f ? 0.0f : 1.0f / total;
    for (int64_t d = 0; d < args.value_size; d += kLanes) {
      store_some<E>(out + d, *reinterpret_cast<Vec*>(sums + d) * reciprocal, args.value_size - d);
    }
  }
}

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_CPU_DECODE_H_
