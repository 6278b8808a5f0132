// Rows of tensors in and out of the two forms that cpu_kernels.h speaks of, and the two products of these forms.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_CPU_MATRIX_H_
#define TFGEN_KERNELS_BLOCKSPARSE_CPU_MATRIX_H_

#include "kernels/blocksparse/cpu_vector.h"

namespace tfgen {
namespace TFGEN_ISA {

constexpr int kMaxBlocksize = 128;
constexpr int64_t kPadding = 16;  // copied rows are padded with zeros to a multiple: enough for every width of vector
constexpr int kColumnsAtOnce = 4;  // of `accumulate`, and rows of `products`: accumulators fit the registers

// One head of a [B, T, H * D] tensor.
template <class E>
struct HeadView {
  typename E::Storage* origin;  // first element of token 0
  int64_t step;                 // elements from token to token
  int64_t size;                 // D

  TFGEN_INLINE typename E::Storage* row(int64_t token) const { return origin + token * step; }
};

template <class E>
TFGEN_INLINE HeadView<E> head_view(const void* tensor, const TfgenBlocksparseShape& shape, int64_t size, int64_t batch,
                                   int64_t head) {
  const int64_t step = shape.heads * size;
  // Views of inputs are only read.
  auto* data = static_cast<typename E::Storage*>(const_cast<void*>(tensor));
  return {data + batch * shape.length * step + head * size, step, size};
}

// The tokens of `count` slots of the kernel order, from `slot` on.
inline void find_tokens(const TfgenBlocksparseShape& shape, int64_t slot, int64_t count, int64_t* tokens) {
  const int64_t per_class = shape.length / shape.stride;
  int64_t step = slot % per_class, residue = slot / per_class;
  for (int64_t i = 0; i < count; ++i) {
    tokens[i] = step * shape.stride + residue;
    if (++step == per_class) {
      step = 0;
      ++residue;
    }
  }
}

// Asks for the cache line that begins at element `d` of a row's next head (of the next token, after the last head).
// Units go from head to head, through rows that may lie pages apart and of which each head owns a line or two, too few
// for the processor to see where it goes.
template <class E, bool kWrite = false>
TFGEN_INLINE void prefetch_next_head(const HeadView<E>& view, const typename E::Storage* row, int64_t d) {
  constexpr int64_t kPerLine = 64 / static_cast<int64_t>(sizeof(*row));
  if (d % kPerLine == 0) __builtin_prefetch(reinterpret_cast<const void*>(row + view.size + d), kWrite);
}

// rows[i][d] = factor * tensor[tokens[i]][d], zero for d = D .. padded - 1.
template <class E>
void copy_rows(const HeadView<E>& view, const int64_t* tokens, int64_t count, int64_t padded, float factor,
               float* rows) {
  for (int64_t i = 0; i < count; ++i) {
    const typename E::Storage* source = view.row(tokens[i]);
    float* target = rows + i * padded;
    for (int64_t d = 0; d < padded; d += kLanes) {
      const Vec loaded = d < view.size ? load_some<E>(source + d, view.size - d) : Vec{};
      prefetch_next_head(view, source, d);
      *reinterpret_cast<Vec*>(target + d) = loaded * factor;
    }
  }
}

// lanes[d][lane] = factor * tensor[tokens[lane]][d], for d up to D rounded up to whole vectors (zeros beyond D).
template <class E, int kGroup>
void load_lanes(const HeadView<E>& view, const int64_t* tokens, float factor, Vec* lanes) {
  for (int64_t d = 0; d < view.size; d += kLanes) {
    for (int group = 0; group < kGroup; ++group) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const typename E::Storage* source = view.row(tokens[group * kLanes + i]);
        square[i] = load_some<E>(source + d, view.size - d) * factor;
        prefetch_next_head(view, source, d);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) lanes[(d + i) * kGroup + group] = square[i];
    }
  }
}

// tensor[tokens[lane]][d] = factor[lane] * lanes[d][lane]
template <class E, int kGroup>
void store_lanes(const HeadView<E>& view, const int64_t* tokens, const Vec* factor, const Vec* lanes) {
  for (int64_t d = 0; d < view.size; d += kLanes) {
    for (int group = 0; group < kGroup; ++group) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = lanes[(d + i) * kGroup + group] * factor[group];
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        typename E::Storage* target = view.row(tokens[group * kLanes + i]);
        store_some<E>(target + d, square[i], view.size - d);
        prefetch_next_head<E, true>(view, target, d);
      }
    }
  }
}

// lanes[d][lane] = rows[lane][d], of rows that `copy_rows` made.
template <int kGroup>
void load_copied_lanes(const float* rows, int64_t padded, int64_t size, Vec* lanes) {
  for (int64_t d = 0; d < size; d += kLanes) {
    for (int group = 0; group < kGroup; ++group) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        square[i] = *reinterpret_cast<const Vec*>(rows + (group * kLanes + i) * padded + d);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) lanes[(d + i) * kGroup + group] = square[i];
    }
  }
}

// tensor[tokens[i]][d] = rows[i][d]
template <class E>
void store_rows(const HeadView<E>& view, const int64_t* tokens, int64_t count, int64_t padded, const float* rows) {
  for (int64_t i = 0; i < count; ++i) {
    typename E::Storage* target = view.row(tokens[i]);
    for (int64_t d = 0; d < view.size; d += kLanes) {
      store_some<E>(target + d, *reinterpret_cast<const Vec*>(rows + i * padded + d), view.size - d);
      prefetch_next_head<E, true>(view, target, d);
    }
  }
}

// The first kLanes pairs of the `count` numbers of a row of bfloat16, then zeros; reads nothing beyond them.
TFGEN_INLINE Bits load_pairs(const uint16_t* x, int64_t count) {
  Bits pairs = {};
  // By memcpy: a row after one of odd width begins at any multiple of 2 bytes.
  if (count >= 2 * kLanes) {
    memcpy(&pairs, x, sizeof(pairs));
  } else {
    memcpy(&pairs, x, static_cast<size_t>(count) * sizeof(*x));
  }
  return pairs;
}

// rows[i][d] = numbers 2 d and 2 d + 1 of tensor[tokens[i]], zeros beyond D; a pair in the place of a float.
template <class E>
void copy_pair_rows(const HeadView<E>& view, const int64_t* tokens, int64_t count, int64_t padded, float* rows) {
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t* source = view.row(tokens[i]);
    for (int64_t d = 0; 2 * d < view.size; d += kLanes) {
      *reinterpret_cast<Bits*>(rows + i * padded + d) = load_pairs(source + 2 * d, view.size - 2 * d);
      prefetch_next_head(view, source, 2 * d);
    }
  }
}

// lanes[d][lane] = numbers 2 d and 2 d + 1 of tensor[tokens[lane]]
template <class E, int kGroup>
void load_pair_lanes(const HeadView<E>& view, const int64_t* tokens, Vec* lanes) {
  for (int64_t d = 0; 2 * d < view.size; d += kLanes) {
    for (int group = 0; group < kGroup; ++group) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const uint16_t* source = view.row(tokens[group * kLanes + i]);
        square[i] = (Vec)load_pairs(source + 2 * d, view.size - 2 * d);
        prefetch_next_head(view, source, 2 * d);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) lanes[(d + i) * kGroup + group] = square[i];
    }
  }
}

// tile[c][lane] = scale * sum_d (columns[c][d] * lanes[d][lane] of both numbers of the pairs), as `products` below. A
// scaled query would have to be rounded to bfloat16, so that the scale waits for the sum.
template <int kGroup>
void pair_products(const float* columns, int64_t padded, int64_t depth, int64_t first, int64_t last, float scale,
                   const Vec* lanes, Vec* tile) {
  constexpr int kColumns = kLanes == 16 || kGroup == 1 ? 2 * kColumnsAtOnce : kColumnsAtOnce;
  for (int64_t c = first; c < last; c += kColumns) {
    const float* x = columns + c * padded;
    Vec sums[kColumns][kGroup] = {};
    for (int64_t d = 0; 2 * d < depth; ++d) {
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) {
        uint32_t pair;
        memcpy(&pair, x + i * padded + d, sizeof(pair));
#pragma GCC unroll 2
        for (int j = 0; j < kGroup; ++j) {
          sums[i][j] = add_pair_products(broadcast_bits(pair), (Bits)lanes[d * kGroup + j], sums[i][j]);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kColumns; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kGroup; ++j) tile[(c + i) * kGroup + j] = sums[i][j] * scale;
    }
  }
}

// tile[c][lane] = sum_d columns[c][d] * lanes[d][lane] for c = first .. last - 1, multiples of kColumns. One
// accumulator for each result, in rising order of d: both backward passes find the same scores, to the bit.
template <int kGroup>
void products(const float* columns, int64_t padded, int64_t depth, int64_t first, int64_t last, const Vec* lanes,
              Vec* tile) {
  constexpr int kColumns = kLanes == 16 || kGroup == 1 ? 2 * kColumnsAtOnce : kColumnsAtOnce;
  for (int64_t c = first; c < last; c += kColumns) {
    const float* x = columns + c * padded;
    Vec sums[kColumns][kGroup] = {};
    for (int64_t d = 0; d < depth; ++d) {
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) {
        const Vec factor = broadcast(x[i * padded + d]);
#pragma GCC unroll 2
        for (int j = 0; j < kGroup; ++j) sums[i][j] = multiply_add(factor, lanes[d * kGroup + j], sums[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kColumns; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kGroup; ++j) tile[(c + i) * kGroup + j] = sums[i][j];
    }
  }
}

// sums[d][lane] = factor[lane] * sums[d][lane] + sum_c columns[c][d] * tile[c][lane] for c = first .. last - 1. The
// block is summed by itself first: over long rows that rounds less than one long chain of additions.
// Computes up to 7 rows beyond D, from the zeros that pad the columns.
template <int kGroup>
void accumulate(const float* columns, int64_t padded, int64_t size, int64_t first, int64_t last, const Vec* tile,
                const Vec* factor, Vec* sums) {
  constexpr int kDepth = kLanes == 16 || kGroup == 1 ? 2 * kColumnsAtOnce : kColumnsAtOnce;
  for (int64_t d = 0; d < size; d += kDepth) {
    Vec local[kDepth][kGroup] = {};
    const float* x = columns + d;
    for (int64_t c = first; c < last; ++c) {
#pragma GCC unroll 8
      for (int i = 0; i < kDepth; ++i) {
        const Vec column = broadcast(x[c * padded + i]);
#pragma GCC unroll 2
        for (int j = 0; j < kGroup; ++j) local[i][j] = multiply_add(column, tile[c * kGroup + j], local[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kDepth; ++i) {
#pragma GCC unroll 2
      for (int j = 0; j < kGroup; ++j) {
        Vec& sum = sums[(d + i) * kGroup + j];
        sum = multiply_add(factor[j], sum, local[i][j]);
      }
    }
  }
}

// kVectors of each of kRows rows of `add_products`, which the registers hold.
template <int kGroup, int kRows, int kVectors>
TFGEN_INLINE void add_products_part(const float* tile, const float* lane_rows, int64_t padded, float* rows) {
  Vec sums[kRows][kVectors] = {};
  for (int lane = 0; lane < kGroup * kLanes; ++lane) {
    Vec x[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) x[j] = *reinterpret_cast<const Vec*>(lane_rows + lane * padded + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec factor = broadcast(tile[i * kGroup * kLanes + lane]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sums[i][j] = multiply_add(factor, x[j], sums[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) *reinterpret_cast<Vec*>(rows + i * padded + j * kLanes) += sums[i][j];
  }
}

// rows[c][d] += sum_lane tile[c][lane] * lane_rows[lane][d] for c = first .. last - 1 and d up to D rounded up to whole
// vectors: the lanes' contribution to results that belong to the columns.
template <int kGroup>
void add_products(const Vec* tile, const float* lane_rows, int64_t padded, int64_t size, int64_t first, int64_t last,
                  float* rows) {
  constexpr int kRows = kLanes == 16 ? 2 * kColumnsAtOnce : kColumnsAtOnce;
  for (int64_t c = first; c < last; c += kRows) {
    const float* factors = reinterpret_cast<const float*>(tile + c * kGroup);
    int64_t d = 0;
    for (; d + kLanes < size; d += 2 * kLanes) {
      add_products_part<kGroup, kRows, 2>(factors, lane_rows + d, padded, rows + c * padded + d);
    }
    if (d < size) add_products_part<kGroup, kRows, 1>(factors, lane_rows + d, padded, rows + c * padded + d);
  }
}

template <int kGroup>
TFGEN_INLINE void clear(Vec* sums, int64_t rows) {
  for (int64_t i = 0; i < rows * kGroup; ++i) sums[i] = Vec{};
}

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_CPU_MATRIX_H_
