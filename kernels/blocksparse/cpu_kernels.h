// Block-sparse attention on the CPU, for the instruction set of the including file.
//
// Lanes are rows. A unit computes one block row; its rows (queries in the forward pass and in the backward pass over
// queries, keys in the backward pass over keys) lie across the lanes of kGroup = 1 or 2 vectors, so that the maximum,
// the sum and the rescaling of the online softmax are plain vector arithmetic without reductions. The blocks of the
// row are read element by element and broadcast ("columns" below). With both operands of every product in one of these
// two forms, two small matrix kernels suffice:
//
//   products     tile[c][lane] = sum_d columns[c][d] * lanes[d][lane]         (q k^T, dout v^T)
//   accumulate   sums[d][lane] += sum_c columns[c][d] * tile[c][lane]         (p v, ds k, p^T dout, ds^T q)
//
// The unit's own rows are transposed once on loading and its results once on storing. Blocks are copied into
// contiguous float32 memory first and kept there for the following units, since neighbouring block rows share most of
// their blocks: strides, 16-bit types and the cache misses of distant rows are paid once.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_CPU_KERNELS_H_
#define TFGEN_KERNELS_BLOCKSPARSE_CPU_KERNELS_H_

#include "kernels/blocksparse/cpu_decode.h"
#include "kernels/blocksparse/cpu_matrix.h"
#include "kernels/blocksparse/cpu_units.h"
#include "kernels/blocksparse/cpu_vector.h"

namespace tfgen {
namespace TFGEN_ISA {

// Forward: one block added to the online softmax of kGroup vectors of queries.
template <class E, int kGroup>
void forward_block(const Workspace& space, const TfgenBlocksparseShape& shape, const float* keys, const float* values,
                   const BlockMask<kGroup>& mask, Vec* maximum, Vec* total) {
  Vec* tile = space.scores;
  if constexpr (E::kPairs) {
    pair_products<kGroup>(keys, space.key_padded, shape.key_size, mask.first, mask.last, shape.scale, space.key_lanes,
                          tile);
  } else {
    products<kGroup>(keys, space.key_padded, shape.key_size, mask.first, mask.last, space.key_lanes, tile);
  }
  Vec largest[kGroup], shift[kGroup], rescale[kGroup], sum[kGroup];
  for (int j = 0; j < kGroup; ++j) largest[j] = maximum[j];
  if (mask.partial) mask.apply(tile);
  for (int64_t c = mask.first; c < mask.last; ++c) {
#pragma GCC unroll 2
    for (int j = 0; j < kGroup; ++j) largest[j] = larger(tile[c * kGroup + j], largest[j]);
  }
  for (int j = 0; j < kGroup; ++j) {
    // A lane that has seen no key yet has maximum -infinity, and -infinity - -infinity would be NaN.
    shift[j] = largest[j] == -kInfinity ? Vec{} : largest[j];
    rescale[j] = exponential(maximum[j] - shift[j]);
    sum[j] = Vec{};
    maximum[j] = largest[j];
  }
  for (int64_t c = mask.first; c < mask.last; ++c) {
#pragma GCC unroll 2
    for (int j = 0; j < kGroup; ++j) {
      const Vec weight = exponential(tile[c * kGroup + j] - shift[j]);
      tile[c * kGroup + j] = weight;
      sum[j] += weight;
    }
  }
  for (int j = 0; j < kGroup; ++j) total[j] = multiply_add(total[j], rescale[j], sum[j]);
  accumulate<kGroup>(values, space.value_padded, shape.value_size, mask.first, mask.last, tile, rescale,
                     space.value_sums);
}

template <class E, int kGroup>
void forward_range(const TfgenBlocksparseForward& args, int64_t first, int64_t last) {
  const TfgenBlocksparseShape& shape = args.shape;
  const int64_t blocksize = shape.blocksize;
  const int64_t together = blocks_in_group(shape, args.rows);
  const Workspace space = make_workspace(shape, kGroup, copies_to_hold(shape, together), 0);
  const UnitOrder order(space, shape, args.rows, together);
  for (int64_t index = first; index < last; ++index) {
    const Unit unit = order.find(shape, args.rows, index);
    const auto q = head_view<E>(args.q, shape, shape.key_size, unit.batch, unit.head);
    const auto k = head_view<E>(args.k, shape, shape.key_size, unit.batch, unit.head);
    const auto v = head_view<E>(args.v, shape, shape.value_size, unit.batch, unit.head);
    const auto out = head_view<E>(args.out, shape, shape.value_size, unit.batch, unit.head);
    float* lse = args.lse + unit.head_of_batch * shape.length;
    int64_t tokens[kMaxBlocksize];
    find_tokens(shape, unit.block * blocksize, blocksize, tokens);

    for (int64_t row = 0; row < blocksize; row += kGroup * kLanes) {
      if constexpr (E::kPairs) {
        load_pair_lanes<E, kGroup>(q, tokens + row, space.key_lanes);
      } else {
        load_lanes<E, kGroup>(q, tokens + row, shape.scale, space.key_lanes);
      }
      clear<kGroup>(space.value_sums, space.value_padded);
      Vec maximum[kGroup], total[kGroup], reciprocal[kGroup];
      for (int j = 0; j < kGroup; ++j) {
        maximum[j] = broadcast(-kInfinity);
        total[j] = Vec{};
      }
      for (int32_t entry = unit.first_entry; entry < unit.last_entry; ++entry) {
        const int64_t column = args.rows.columns[entry];
        BlockMask<kGroup> mask;
        mask.read(args.rows, entry, blocksize, row);
        if (mask.first >= mask.last) continue;
        const float* keys = copy_of_block(space, order, shape, unit, column, [&](float* copy) {
          int64_t columns[kMaxBlocksize];
          find_tokens(shape, column * blocksize, blocksize, columns);
          if constexpr (E::kPairs) {
            copy_pair_rows(k, columns, blocksize, space.key_padded, copy);
          } else {
            copy_rows(k, columns, blocksize, space.key_padded, 1.0f, copy);
          }
          copy_rows(v, columns, blocksize, space.value_padded, 1.0f, copy + blocksize * space.key_padded);
        });
        forward_block<E, kGroup>(space, shape, keys, keys + blocksize * space.key_padded, mask, maximum, total);
      }
      for (int j = 0; j < kGroup; ++j) reciprocal[j] = total[j] == 0.0f ? Vec{} : 1.0f / total[j];
      store_lanes<E, kGroup>(out, tokens + row, reciprocal, space.value_sums);
      for (int lane = 0; lane < kGroup * kLanes; ++lane) {
        const float sum = total[lane / kLanes][lane % kLanes];
        // The log of 0 is -infinity, the value for a query that keeps no key.
        lse[tokens[row + lane]] = sum == 0.0f ? -kInfinity : maximum[lane / kLanes][lane % kLanes] + logf(sum);
      }
    }
  }
}

// What the log-sum-exp of a row without keys is replaced by, so that its weights exp(score - lse) are 0 and not NaN.
TFGEN_INLINE float usable(float lse) { return lse == -kInfinity ? kInfinity : lse; }

// delta[lane] = sum_d dout[d] * out[d]
template <class E>
TFGEN_INLINE Vec row_products(const HeadView<E>& dout, const HeadView<E>& out, const int64_t* tokens) {
  Vec partial[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const typename E::Storage *a = dout.row(tokens[i]), *b = out.row(tokens[i]);
    Vec sum = {};
    for (int64_t d = 0; d < out.size; d += kLanes) {
      sum = multiply_add(load_some<E>(a + d, out.size - d), load_some<E>(b + d, out.size - d), sum);
    }
    partial[i] = sum;
  }
  return sums_of_each(partial);
}

// The same of rows of dout that `copy_rows` made.
template <class E>
TFGEN_INLINE Vec row_products(const HeadView<E>& out, const int64_t* tokens, const float* douts, int64_t padded) {
  Vec partial[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const typename E::Storage* row = out.row(tokens[i]);
    Vec sum = {};
    for (int64_t d = 0; d < out.size; d += kLanes) {
      sum = multiply_add(load_some<E>(row + d, out.size - d), *reinterpret_cast<const Vec*>(douts + i * padded + d),
                         sum);
      prefetch_next_head(out, row, d);
    }
    partial[i] = sum;
  }
  return sums_of_each(partial);
}

// Recomputes the scores of a block as weights p = exp(score - lse) and their gradients ds = p (dp - delta).
// lse and delta belong to the lanes (kByLane) or to the columns of the block.
template <int kGroup, bool kByLane>
void weights_and_gradients(const Workspace& space, const TfgenBlocksparseShape& shape, const float* key_columns,
                           const float* value_columns, const BlockMask<kGroup>& mask, const Vec* lane_lse,
                           const Vec* lane_delta, const float* column_lse, const float* column_delta) {
  products<kGroup>(key_columns, space.key_padded, shape.key_size, mask.first, mask.last, space.key_lanes, space.scores);
  products<kGroup>(value_columns, space.value_padded, shape.value_size, mask.first, mask.last, space.value_lanes,
                   space.gradients);
  if (mask.partial) mask.apply(space.scores);
  for (int64_t c = mask.first; c < mask.last; ++c) {
#pragma GCC unroll 2
    for (int j = 0; j < kGroup; ++j) {
      const Vec lse = kByLane ? lane_lse[j] : broadcast(column_lse[c]);
      const Vec delta = kByLane ? lane_delta[j] : broadcast(column_delta[c]);
      const Vec weight = exponential(space.scores[c * kGroup + j] - lse);
      space.scores[c * kGroup + j] = weight;
      space.gradients[c * kGroup + j] = weight * (space.gradients[c * kGroup + j] - delta);
    }
  }
}

template <class E, int kGroup>
void backward_query_range(const TfgenBlocksparseBackward& args, int64_t first, int64_t last) {
  const TfgenBlocksparseShape& shape = args.shape;
  const int64_t blocksize = shape.blocksize;
  const int64_t together = blocks_in_group(shape, args.rows);
  const Workspace space = make_workspace(shape, kGroup, copies_to_hold(shape, together), 0);
  const UnitOrder order(space, shape, args.rows, together);
  Vec ones[kGroup], scale[kGroup];
  for (int j = 0; j < kGroup; ++j) {
    ones[j] = broadcast(1.0f);
    scale[j] = broadcast(shape.scale);
  }
  for (int64_t index = first; index < last; ++index) {
    const Unit unit = order.find(shape, args.rows, index);
    const auto q = head_view<E>(args.q, shape, shape.key_size, unit.batch, unit.head);
    const auto k = head_view<E>(args.k, shape, shape.key_size, unit.batch, unit.head);
    const auto v = head_view<E>(args.v, shape, shape.value_size, unit.batch, unit.head);
    const auto out = head_view<E>(args.out, shape, shape.value_size, unit.batch, unit.head);
    const auto dout = head_view<E>(args.dout, shape, shape.value_size, unit.batch, unit.head);
    const auto dq = head_view<E>(args.dq, shape, shape.key_size, unit.batch, unit.head);
    const float* all_lse = args.lse + unit.head_of_batch * shape.length;
    float* all_delta = args.delta + unit.head_of_batch * shape.length;
    int64_t tokens[kMaxBlocksize];
    find_tokens(shape, unit.block * blocksize, blocksize, tokens);

    for (int64_t row = 0; row < blocksize; row += kGroup * kLanes) {
      load_lanes<E, kGroup>(q, tokens + row, shape.scale, space.key_lanes);
      load_lanes<E, kGroup>(dout, tokens + row, 1.0f, space.value_lanes);
      clear<kGroup>(space.key_sums, space.key_padded);
      Vec lse[kGroup], delta[kGroup];
      for (int j = 0; j < kGroup; ++j) delta[j] = row_products<E>(dout, out, tokens + row + j * kLanes);
      for (int lane = 0; lane < kGroup * kLanes; ++lane) {
        lse[lane / kLanes][lane % kLanes] = usable(all_lse[tokens[row + lane]]);
        all_delta[tokens[row + lane]] = delta[lane / kLanes][lane % kLanes];
      }
      for (int32_t entry = unit.first_entry; entry < unit.last_entry; ++entry) {
        const int64_t column = args.rows.columns[entry];
        BlockMask<kGroup> mask;
        mask.read(args.rows, entry, blocksize, row);
        if (mask.first >= mask.last) continue;
        const float* keys = copy_of_block(space, order, shape, unit, column, [&](float* copy) {
          int64_t columns[kMaxBlocksize];
          find_tokens(shape, column * blocksize, blocksize, columns);
          copy_rows(k, columns, blocksize, space.key_padded, 1.0f, copy);
          copy_rows(v, columns, blocksize, space.value_padded, 1.0f, copy + blocksize * space.key_padded);
        });
        const float* values = keys + blocksize * space.key_padded;
        weights_and_gradients<kGroup, true>(space, shape, keys, values, mask, lse, delta, nullptr, nullptr);
        accumulate<kGroup>(keys, space.key_padded, shape.key_size, mask.first, mask.last, space.gradients, ones,
                           space.key_sums);
      }
      store_lanes<E, kGroup>(dq, tokens + row, scale, space.key_sums);
    }
  }
}

template <class E, int kGroup>
void backward_key_range(const TfgenBlocksparseBackward& args, int64_t first, int64_t last) {
  const TfgenBlocksparseShape& shape = args.shape;
  const int64_t blocksize = shape.blocksize;
  const int64_t together = blocks_in_group(shape, args.columns);
  const Workspace space = make_workspace(shape, kGroup, copies_to_hold(shape, together), 0);
  const UnitOrder order(space, shape, args.columns, together);
  Vec ones[kGroup];
  for (int j = 0; j < kGroup; ++j) ones[j] = broadcast(1.0f);
  for (int64_t index = first; index < last; ++index) {
    const Unit unit = order.find(shape, args.columns, index);
    const auto q = head_view<E>(args.q, shape, shape.key_size, unit.batch, unit.head);
    const auto k = head_view<E>(args.k, shape, shape.key_size, unit.batch, unit.head);
    const auto v = head_view<E>(args.v, shape, shape.value_size, unit.batch, unit.head);
    const auto dout = head_view<E>(args.dout, shape, shape.value_size, unit.batch, unit.head);
    const auto dk = head_view<E>(args.dk, shape, shape.key_size, unit.batch, unit.head);
    const auto dv = head_view<E>(args.dv, shape, shape.value_size, unit.batch, unit.head);
    const float* all_lse = args.lse + unit.head_of_batch * shape.length;
    const float* all_delta = args.delta + unit.head_of_batch * shape.length;
    int64_t tokens[kMaxBlocksize];
    find_tokens(shape, unit.block * blocksize, blocksize, tokens);

    for (int64_t row = 0; row < blocksize; row += kGroup * kLanes) {
      load_lanes<E, kGroup>(k, tokens + row, 1.0f, space.key_lanes);
      load_lanes<E, kGroup>(v, tokens + row, 1.0f, space.value_lanes);
      clear<kGroup>(space.key_sums, space.key_padded);
      clear<kGroup>(space.value_sums, space.value_padded);
      for (int32_t entry = unit.first_entry; entry < unit.last_entry; ++entry) {
        const int64_t column = args.columns.columns[entry];
        BlockMask<kGroup> mask;
        mask.read(args.columns, entry, blocksize, row);
        if (mask.first >= mask.last) continue;
        // The queries are copied with the scale, as `backward_query_range` loads them: scores agree to the bit, and
        // the scale of dk is in them.
        const int64_t dout_at = blocksize * space.key_padded;
        const int64_t lse_at = dout_at + blocksize * space.value_padded;
        const float* queries = copy_of_block(space, order, shape, unit, column, [&](float* copy) {
          int64_t columns[kMaxBlocksize];
          find_tokens(shape, column * blocksize, blocksize, columns);
          copy_rows(q, columns, blocksize, space.key_padded, shape.scale, copy);
          copy_rows(dout, columns, blocksize, space.value_padded, 1.0f, copy + dout_at);
          for (int64_t i = 0; i < blocksize; ++i) {
            copy[lse_at + i] = usable(all_lse[columns[i]]);
            copy[lse_at + blocksize + i] = all_delta[columns[i]];
          }
        });
        const float* douts = queries + dout_at;
        weights_and_gradients<kGroup, false>(space, shape, queries, douts, mask, nullptr, nullptr, queries + lse_at,
                                             queries + lse_at + blocksize);
        accumulate<kGroup>(douts, space.value_padded, shape.value_size, mask.first, mask.last, space.scores, ones,
                           space.value_sums);
        accumulate<kGroup>(queries, space.key_padded, shape.key_size, mask.first, mask.last, space.gradients, ones,
                           space.key_sums);
      }
      store_lanes<E, kGroup>(dk, tokens + row, ones, space.key_sums);
      store_lanes<E, kGroup>(dv, tokens + row, ones, space.value_sums);
    }
  }
}

// Both passes at once, for a group of block rows that shares no block with others. Lanes are queries; the sums that
// belong to keys gather as rows in memory, which holds them for a whole group.
template <class E, int kGroup>
void backward_group_range(const TfgenBlocksparseBackward& args, int64_t first, int64_t last) {
  const TfgenBlocksparseShape& shape = args.shape;
  const int64_t blocksize = shape.blocksize;
  const int64_t together = blocks_in_group(shape, args.rows);
  const int64_t groups = shape.length / (together * blocksize), rows = together * blocksize;
  const GroupSpace group(shape, kGroup, rows);
  const Workspace& space = group.space;
  const int64_t key_padded = space.key_padded, value_padded = space.value_padded;
  Vec ones[kGroup], scale[kGroup];
  for (int j = 0; j < kGroup; ++j) {
    ones[j] = broadcast(1.0f);
    scale[j] = broadcast(shape.scale);
  }
  for (int64_t index = first; index < last; ++index) {
    const int64_t head = index % shape.heads, first_block = index / shape.heads % groups * together;
    const int64_t batch = index / (shape.heads * groups), head_of_batch = batch * shape.heads + head;
    const auto out = head_view<E>(args.out, shape, shape.value_size, batch, head);
    const auto dout = head_view<E>(args.dout, shape, shape.value_size, batch, head);
    const auto dq = head_view<E>(args.dq, shape, shape.key_size, batch, head);
    const float* all_lse = args.lse + head_of_batch * shape.length;
    const int32_t* offsets = args.rows.offsets;
    if (args.rows.layouts > 1) offsets += head * (shape.length / blocksize + 1);
    int64_t tokens[kMaxGroupRows];
    find_tokens(shape, first_block * blocksize, rows, tokens);
    // With the scale, which is then in dk.
    copy_rows(head_view<E>(args.q, shape, shape.key_size, batch, head), tokens, rows, key_padded, shape.scale,
              group.queries);
    copy_rows(head_view<E>(args.k, shape, shape.key_size, batch, head), tokens, rows, key_padded, 1.0f, group.keys);
    copy_rows(head_view<E>(args.v, shape, shape.value_size, batch, head), tokens, rows, value_padded, 1.0f,
              group.values);
    copy_rows(dout, tokens, rows, value_padded, 1.0f, group.douts);
    memset(group.dkeys, 0, static_cast<size_t>(rows * key_padded) * sizeof(float));
    memset(group.dvalues, 0, static_cast<size_t>(rows * value_padded) * sizeof(float));

    for (int64_t row = 0; row < rows; row += kGroup * kLanes) {
      const float* queries = group.queries + row * key_padded;
      const float* douts = group.douts + row * value_padded;
      load_copied_lanes<kGroup>(queries, key_padded, shape.key_size, space.key_lanes);
      load_copied_lanes<kGroup>(douts, value_padded, shape.value_size, space.value_lanes);
      clear<kGroup>(space.key_sums, key_padded);
      Vec lse[kGroup], delta[kGroup];
      for (int j = 0; j < kGroup; ++j) {
        const int64_t lane = row + j * kLanes;
        delta[j] = row_products(out, tokens + lane, douts + j * kLanes * value_padded, value_padded);
        for (int i = 0; i < kLanes; ++i) lse[j][i] = usable(all_lse[tokens[lane + i]]);
      }
      const int64_t block = first_block + row / blocksize;
      for (int32_t entry = offsets[block]; entry < offsets[block + 1]; ++entry) {
        BlockMask<kGroup> mask;
        mask.read(args.rows, entry, blocksize, row % blocksize);
        if (mask.first >= mask.last) continue;
        const int64_t column = (args.rows.columns[entry] - first_block) * blocksize;
        const float* keys = group.keys + column * key_padded;
        weights_and_gradients<kGroup, true>(space, shape, keys, group.values + column * value_padded, mask, lse, delta,
                                            nullptr, nullptr);
        accumulate<kGroup>(keys, key_padded, shape.key_size, mask.first, mask.last, space.gradients, ones,
                           space.key_sums);
        add_products<kGroup>(space.scores, douts, value_padded, shape.value_size, mask.first, mask.last,
                             group.dvalues + column * value_padded);
        add_products<kGroup>(space.gradients, queries, key_padded, shape.key_size, mask.first, mask.last,
                             group.dkeys + column * key_padded);
      }
      store_lanes<E, kGroup>(dq, tokens + row, scale, space.key_sums);
    }
    store_rows(head_view<E>(args.dk, shape, shape.key_size, batch, head), tokens, rows, key_padded, group.dkeys);
    store_rows(head_view<E>(args.dv, shape, shape.value_size, batch, head), tokens, rows, value_padded, group.dvalues);
  }
}

// Calls `f<E, kGroup>` for the element type and the block size. A block narrower than two vectors takes one.
#define TFGEN_BY_TYPE(f, args, blocksize, first, last)                     \
  switch ((args).shape.dtype) {                                            \
    case TFGEN_BFLOAT16:                                                   \
      return (blocksize) >= 2 * kLanes ? f<BFloat16, 2>(args, first, last) \
                                       : f<BFloat16, 1>(args, first, last); \
    case TFGEN_FLOAT16:                                                    \
      return (blocksize) >= 2 * kLanes ? f<Float16, 2>(args, first, last)  \
                                       : f<Float16, 1>(args, first, last);  \
    default:                                                               \
      return (blocksize) >= 2 * kLanes ? f<Float32, 2>(args, first, last)  \
                                       : f<Float32, 1>(args, first, last);  \
  }

inline void forward(const TfgenBlocksparseForward& args, int64_t first, int64_t last) {
  TFGEN_BY_TYPE(forward_range, args, args.shape.blocksize, first, last)
}

// For bfloat16.
inline void forward_pairs(const TfgenBlocksparseForward& args, int64_t first, int64_t last) {
  if (args.shape.blocksize >= 2 * kLanes) return forward_range<BFloat16Pairs, 2>(args, first, last);
  forward_range<BFloat16Pairs, 1>(args, first, last);
}

inline void backward_query(const TfgenBlocksparseBackward& args, int64_t first, int64_t last) {
  TFGEN_BY_TYPE(backward_query_range, args, args.shape.blocksize, first, last)
}

inline void backward_key(const TfgenBlocksparseBackward& args, int64_t first, int64_t last) {
  TFGEN_BY_TYPE(backward_key_range, args, args.shape.blocksize, first, last)
}

inline void backward_group(const TfgenBlocksparseBackward& args, int64_t first, int64_t last) {
  TFGEN_BY_TYPE(backward_group_range, args, args.shape.blocksize, first, last)
}

#undef TFGEN_BY_TYPE

inline void decode(const TfgenBlocksparseDecode& args, int64_t first, int64_t last) {
  switch (args.dtype) {
    case TFGEN_BFLOAT16:
      return decode_range<BFloat16>(args, first, last);
    case TFGEN_FLOAT16:
      return decode_range<Float16>(args, first, last);
    default:
      return decode_range<Float32>(args, first, last);
  }
}

inline CpuKernels kernels() { return {forward, backward_query, backward_key, backward_group, decode}; }

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_CPU_KERNELS_H_
