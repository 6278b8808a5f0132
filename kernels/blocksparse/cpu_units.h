// Units of work: their masks, their memory, their order.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_CPU_UNITS_H_
#define TFGEN_KERNELS_BLOCKSPARSE_CPU_UNITS_H_

#include "kernels/blocksparse/cpu_matrix.h"

namespace tfgen {
namespace TFGEN_ISA {

constexpr int64_t kCacheBytes = 1 << 20;  // of copied blocks: half of the L2 cache of a current server core

// Which columns of a block the lanes keep.
template <int kGroup>
struct BlockMask {
  bool partial;         // otherwise every pair is kept and `words` is not set
  int64_t first, last;  // columns outside are kept by no lane; multiples of 8
  Bits words[kMaxBlocksize / 32][kGroup];

  // `row` is the row of the block in lane 0.
  TFGEN_INLINE void read(const TfgenBlocksparseLists& lists, int32_t entry, int64_t blocksize, int64_t row) {
    const int32_t mask = lists.masks[entry];
    partial = mask >= 0;
    first = 0;
    last = blocksize;
    if (!partial) return;
    const int64_t word_count = (blocksize + 31) / 32;
    const uint32_t* bits = lists.mask_bits + (mask * blocksize + row) * word_count;
    first = blocksize;
    last = 0;
    if (word_count == 1) {  // the words of the lanes are neighbours
      uint32_t any = 0;
      for (int j = 0; j < kGroup; ++j) {
        words[0][j] = *reinterpret_cast<const UnalignedBits*>(bits + j * kLanes);
        for (int lane = 0; lane < kLanes; ++lane) any |= words[0][j][lane];
      }
      if (blocksize < 32) any &= (1u << blocksize) - 1u;
      if (any == 0) return;
      first = __builtin_ctz(any) / 8 * 8;
      last = (31 - __builtin_clz(any)) / 8 * 8 + 8;
      return;
    }
    for (int64_t word = 0; word < word_count; ++word) {
      uint32_t any = 0;
      for (int lane = 0; lane < kGroup * kLanes; ++lane) {
        const uint32_t value = bits[lane * word_count + word];
        words[word][lane / kLanes][lane % kLanes] = value;
        any |= value;
      }
      if (any == 0) continue;
      first = smaller(first, word * 32 + __builtin_ctz(any) / 8 * 8);
      last = word * 32 + (31 - __builtin_clz(any)) / 8 * 8 + 8;
    }
  }

  // Writes -infinity over the scores, [blocksize][kGroup], that a lane does not keep. For partial blocks.
  TFGEN_INLINE void apply(Vec* scores) const {
    for (int64_t c = first; c < last; ++c) {
      const uint32_t bit = 1u << (c & 31);
#pragma GCC unroll 2
      for (int j = 0; j < kGroup; ++j) {
        Vec& score = scores[c * kGroup + j];
        score = (words[c >> 5][j] & bit) != 0 ? score : broadcast(-kInfinity);
      }
    }
  }
};

// The memory of one range of units. Arrays of vectors are [rows][kGroup].
struct Workspace {
  int64_t key_padded, value_padded;  // Dk, Dv rounded up to kPadding
  Vec *key_lanes, *value_lanes;      // the unit's own rows, [key_padded], [value_padded]
  Vec *key_sums, *value_sums;        // its results, likewise
  Vec *scores, *gradients;           // tiles, [blocksize]
  float* copies;                     // the cache of copied blocks, [copy_count][copy_floats]
  int64_t copy_count, copy_floats;
  float* more;      // what the caller asked for
  int64_t* copied;  // [copy_count], which block a copy holds; -1 for none
};

// Floats of the copy of one block: a row of keys (queries), a row of values (gradients), two statistics for each row.
// The last 16 floats keep the copies from lying at multiples of 4096 bytes, where they would compete for the same lines
// of the L1 cache.
TFGEN_INLINE int64_t floats_of_copy(const TfgenBlocksparseShape& shape) {
  const int64_t row_floats = round_up(shape.key_size, kPadding) + round_up(shape.value_size, kPadding) + 2;
  return round_up(shape.blocksize * row_floats, kPadding) + 16;
}

// How many copies to hold. Groups of blocks (`together` of them, unless 0) share none: the fewer, the more stay in the
// cache.
TFGEN_INLINE int64_t copies_to_hold(const TfgenBlocksparseShape& shape, int64_t together) {
  if (together > 0) return together;
  const int64_t all = shape.heads * (shape.length / shape.blocksize);
  const int64_t fitting = kCacheBytes / (floats_of_copy(shape) * static_cast<int64_t>(sizeof(float)));
  return fitting < 1 ? 1 : smaller(all, fitting);
}

// `group` vectors of lanes, `copy_count` copies of blocks and `more_floats` for the caller.
inline Workspace make_workspace(const TfgenBlocksparseShape& shape, int group, int64_t copy_count,
                                int64_t more_floats) {
  Workspace space;
  space.key_padded = round_up(shape.key_size, kPadding);
  space.value_padded = round_up(shape.value_size, kPadding);
  const int64_t blocksize = shape.blocksize;
  space.copy_floats = floats_of_copy(shape);
  space.copy_count = copy_count;
  const int64_t copy_bytes = space.copy_floats * static_cast<int64_t>(sizeof(float));

  const int64_t vectors = group * (2 * space.key_padded + 2 * space.value_padded + 2 * blocksize);
  const int64_t vector_bytes = vectors * static_cast<int64_t>(sizeof(Vec));
  const int64_t copied_bytes = space.copy_count * static_cast<int64_t>(sizeof(int64_t));
  const int64_t more_bytes = more_floats * static_cast<int64_t>(sizeof(float));
  char* memory = static_cast<char*>(
      thread_scratch(static_cast<size_t>(vector_bytes + space.copy_count * copy_bytes + more_bytes + copied_bytes)));

  space.key_lanes = reinterpret_cast<Vec*>(memory);
  space.value_lanes = space.key_lanes + group * space.key_padded;
  space.key_sums = space.value_lanes + group * space.value_padded;
  space.value_sums = space.key_sums + group * space.key_padded;
  space.scores = space.value_sums + group * space.value_padded;
  space.gradients = space.scores + group * blocksize;
  space.copies = reinterpret_cast<float*>(memory + vector_bytes);
  space.more = space.copies + space.copy_count * space.copy_floats;
  space.copied = reinterpret_cast<int64_t*>(space.more + more_floats);
  for (int64_t i = 0; i < space.copy_count; ++i) space.copied[i] = -1;
  return space;
}

// The memory of one range of units that are groups of blocks: a workspace without copies and arrays of rows, which are
// [rows of the group][padded]. 16 floats lie between them for the same reason as between copies.
struct GroupSpace {
  Workspace space;
  float *queries, *keys, *values, *douts, *dkeys, *dvalues;

  GroupSpace(const TfgenBlocksparseShape& shape, int group, int64_t rows) {
    const int64_t key_floats = rows * round_up(shape.key_size, kPadding) + 16;
    const int64_t value_floats = rows * round_up(shape.value_size, kPadding) + 16;
    space = make_workspace(shape, group, 0, 3 * (key_floats + value_floats));
    queries = space.more;
    keys = queries + key_floats;
    dkeys = keys + key_floats;
    values = dkeys + key_floats;
    douts = values + value_floats;
    dvalues = douts + value_floats;
  }
};

// Where a unit stands and which list entries it owns.
struct Unit {
  int64_t batch, head, block;  // block: of the unit's own rows
  int64_t head_of_batch;       // batch * H + head
  int32_t first_entry, last_entry;
};

// The order of units: batch, group of heads, group of blocks, head within its group, block within its group. The rows
// of neighbouring heads share cache lines and pages of memory, so that many heads together are best, as long as the
// copies of the blocks that one block row lists last until the next one for every head of the group. Groups of blocks
// that share nothing with others (`blocks_in_group`) need their copies no longer, and all heads go together. The order
// does not change results.
struct UnitOrder {
  int64_t heads_together, blocks_together;
  int64_t heads_copied;  // among the heads together, those whose copies are held at the same time

  UnitOrder(const Workspace& space, const TfgenBlocksparseShape& shape, const TfgenBlocksparseLists& lists,
            int64_t together) {
    if (together > 0) {
      heads_together = shape.heads;
      blocks_together = together;
      heads_copied = 1;
      return;
    }
    const int64_t blocks = shape.length / shape.blocksize;
    const int64_t entries = lists.offsets[lists.layouts * (blocks + 1) - 1] - lists.offsets[0];
    const int64_t longest = 1 + entries / (lists.layouts * blocks);  // on average; shorter rows do not matter
    heads_together = smaller(shape.heads, space.copy_count / longest);
    if (heads_together < 1) heads_together = 1;
    heads_copied = heads_together;
    blocks_together = 1;
  }

  Unit find(const TfgenBlocksparseShape& shape, const TfgenBlocksparseLists& lists, int64_t index) const {
    const int64_t blocks = shape.length / shape.blocksize;
    const int64_t in_batch = index % (shape.heads * blocks);
    const int64_t first_head = in_batch / (heads_together * blocks) * heads_together;
    const int64_t in_group = in_batch - first_head * blocks;
    const int64_t group_heads = smaller(heads_together, shape.heads - first_head);
    const int64_t in_square = in_group % (group_heads * blocks_together);
    Unit unit;
    unit.batch = index / (shape.heads * blocks);
    unit.head = first_head + in_square / blocks_together;
    unit.block = in_group / (group_heads * blocks_together) * blocks_together + in_square % blocks_together;
    unit.head_of_batch = unit.batch * shape.heads + unit.head;
    const int32_t* offsets = lists.offsets + (lists.layouts == 1 ? 0 : unit.head) * (blocks + 1) + unit.block;
    unit.first_entry = offsets[0];
    unit.last_entry = offsets[1];
    return unit;
  }
};

// The copy of block `column` of the unit's head; `fill(float*)` writes it where it is not held.
template <class Fill>
TFGEN_INLINE const float* copy_of_block(const Workspace& space, const UnitOrder& order,
                                        const TfgenBlocksparseShape& shape, const Unit& unit, int64_t column,
                                        const Fill& fill) {
  const int64_t place = (column * order.heads_copied + unit.head % order.heads_copied) % space.copy_count;
  const int64_t identity = unit.head_of_batch * (shape.length / shape.blocksize) + column;
  float* copy = space.copies + place * space.copy_floats;
  if (space.copied[place] != identity) {
    fill(copy);
    space.copied[place] = identity;
  }
  return copy;
}

}  // namespace TFGEN_ISA
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_CPU_UNITS_H_
