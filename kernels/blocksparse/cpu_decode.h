// Attention of one query over cached keys and values, for sampling.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_CPU_DECODE_H_
#define TFGEN_KERNELS_BLOCKSPARSE_CPU_DECODE_H_

#include "kernels/blocksparse/cpu_matrix.h"

namespace tfgen {
namespace TFGEN_ISA {

// Slots of one (batch, head): where the first lies, and how many elements it is to the next.
template <class E>
struct SlotView {
  const typename E::Storage *keys, *values;
  int64_t key_step, value_step;
  int64_t count;
};

// The online softmax of one query: the largest score so far, and sums relative to it.
struct OnlineSoftmax {
  float maximum;
  Vec totals;   // of the weights: lane i sums those of slot i of every chunk
  float* sums;  // of the weighted values, [Dv] rounded up to kLanes, aligned
};

constexpr int64_t kLineBytes = 64;
constexpr int kTogether = 4;  // vectors of a row that are read one after the other: rows come from far away

// sums[d] = sums[d] * rescale + sum_i weights[i] * values[slot + i][d], for kCount vectors from d on. The chunk is
// summed by itself first: rounding errors of a long table grow with the number of chunks only.
template <class E, int kCount>
TFGEN_INLINE void add_values(const SlotView<E>& slots, int64_t slot, int64_t count, int64_t d, int64_t value_size,
                             Vec weights, float rescale, float* sums) {
  Vec sum[kCount];
  for (int j = 0; j < kCount; ++j) sum[j] = Vec{};
  for (int64_t i = 0; i < count; ++i) {
    const auto* row = slots.values + (slot + i) * slots.value_step + d;
    const Vec weight = broadcast(weights[i]);
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) {
      const Vec value = load_some<E>(row + j * kLanes, value_size - d - j * kLanes);
      sum[j] = multiply_add(value, weight, sum[j]);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kCount; ++j) {
    Vec& target = *reinterpret_cast<Vec*>(sums + d + j * kLanes);
    target = multiply_add(target, broadcast(rescale), sum[j]);
  }
}

// Adds slots to the softmax in chunks of kLanes; the scores of a chunk are the lanes of one vector. `query` is scaled.
template <class E>
void attend_slots(const SlotView<E>& slots, const float* query, int64_t key_size, int64_t value_size,
                  OnlineSoftmax* softmax) {
  for (int64_t slot = 0; slot < slots.count; slot += kLanes) {
    const int64_t count = smaller(kLanes, slots.count - slot);
    Vec partial[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      partial[i] = Vec{};
      if (i >= count) continue;
      const auto* key = slots.keys + (slot + i) * slots.key_step;
      // The value of the slot is needed as soon as the scores of the chunk are known.
      const auto* value = slots.values + (slot + i) * slots.value_step;
      for (int64_t d = 0; d < value_size; d += kLineBytes / static_cast<int64_t>(sizeof(*value))) {
        __builtin_prefetch(value + d);
      }
      for (int64_t d = 0; d < key_size; d += kLanes) {
        const Vec factor = *reinterpret_cast<const Vec*>(query + d);
        partial[i] = multiply_add(load_some<E>(key + d, key_size - d), factor, partial[i]);
      }
    }
    Vec scores = sums_of_each(partial);
    const float previous = softmax->maximum;
    for (int64_t i = 0; i < kLanes; ++i) {
      if (i >= count) scores[i] = -kInfinity;
      if (scores[i] > softmax->maximum) softmax->maximum = scores[i];
    }
    // -infinity - -infinity would be NaN.
    const float shift = softmax->maximum == -kInfinity ? 0.0f : softmax->maximum;
    const Vec weights = exponential(scores - shift);
    const float rescale = exponential(broadcast(previous - shift))[0];
    softmax->totals = multiply_add(softmax->totals, broadcast(rescale), weights);
    int64_t d = 0;
    for (; d + kTogether * kLanes <= value_size; d += kTogether * kLanes) {
      add_values<E, kTogether>(slots, slot, count, d, value_size, weights, rescale, softmax->sums);
    }
    for (; d < value_size; d += kLanes) {
      add_values<E, 1>(slots, slot, count, d, value_size, weights, rescale, softmax->sums);
    }
  }
}

template <class E>
void decode_range(const TfgenBlocksparseDecode& args, int64_t first, int64_t last) {
  using Storage = typename E::Storage;
  const int64_t key_size = args.key_size, value_size = args.value_size;
  const int64_t key_padded = round_up(key_size, kPadding), value_padded = round_up(value_size, kPadding);
  float* query = static_cast<float*>(thread_scratch(static_cast<size_t>(key_padded + value_padded) * sizeof(float)));
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t token = 0;
    const HeadView<E> q = {const_cast<Storage*>(static_cast<const Storage*>(args.q)) + unit * key_size, key_size,
                           key_size};
    copy_rows(q, &token, 1, key_padded, args.scale, query);
    OnlineSoftmax softmax = {-kInfinity, Vec{}, query + key_padded};
    for (int64_t d = 0; d < value_padded; d += kLanes) *reinterpret_cast<Vec*>(softmax.sums + d) = Vec{};
    if (args.earlier > 0) {
      const SlotView<E> earlier = {static_cast<const Storage*>(args.earlier_keys) + unit * args.earlier * key_size,
                                   static_cast<const Storage*>(args.earlier_values) + unit * args.earlier * value_size,
                                   key_size, value_size, args.earlier};
      attend_slots<E>(earlier, query, key_size, value_size, &softmax);
    }
    const int64_t units = args.batch * args.heads;
    const SlotView<E> table = {static_cast<const Storage*>(args.keys) + unit * key_size,
                               static_cast<const Storage*>(args.values) + unit * value_size, units * key_size,
                               units * value_size, args.visible};
    attend_slots<E>(table, query, key_size, value_size, &softmax);
    float total = 0.0f;
    for (int i = 0; i < kLanes; ++i) total += softmax.totals[i];
    const float reciprocal = total == 0.0f ? 0.0f : 1.0f / total;
    auto* out = static_cast<Storage*>(args.out) + unit * value_size;
    for (int64_t d = 0; d < value_size; d += kLanes) {
      store_some<E>(out + d, *reinterpret_cast<Vec*>(softmax.sums + d) * reciprocal, value_size - d);
    }
  }
}

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_CPU_DECODE_H_
