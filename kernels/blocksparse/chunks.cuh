// What the kernels of tensorcore.cuh are compiled for, and how the other side of their slots comes to shared memory, in
// chunks.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_CHUNKS_CUH_
#define TFGEN_KERNELS_BLOCKSPARSE_CHUNKS_CUH_

#include "kernels/blocksparse/matrices.cuh"

namespace tfgen {
namespace blocksparse {
namespace tensorcore {

constexpr int kRows = 16;  // slots of a tile, and of a strip
constexpr int kWarps = 2;  // of a thread block; independent of each other
constexpr int kThreads = kWarps * kWarpSize;

__device__ inline int lane() { return static_cast<int>(threadIdx.x % kWarpSize); }

// The warp's number in its thread block; by way of a shuffle, so that the compiler knows it for the same in all lanes.
__device__ inline int warp() { return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / kWarpSize), 0); }

// What a kernel is compiled for.
template <int kKeyWidth_, int kValueWidth_, int kTiles_, int kStrips_, bool kRegular_>
struct Sizes {
  static constexpr int kKeyWidth = kKeyWidth_, kValueWidth = kValueWidth_;  // of the widest heads
  static constexpr int kTiles = kTiles_, kStrips = kStrips_;
  // Heads are as wide as that, blocks are chunks, and the slots of a block are a run of tokens at equal distances.
  static constexpr bool kRegular = kRegular_;
  static constexpr int kOwnWarp = kTiles * kRows;       // slots of a warp
  static constexpr int kOwn = kWarps * kOwnWarp;        // of a thread block
  static constexpr int kChunk = kStrips * kRows;        // of the other side
  // Thread blocks that must fit a multiprocessor together, by its 64 Ki registers. More of them spill, fewer hide less.
  static constexpr int kForwardBlocks = kRegular ? 8 : 1, kBackwardBlocks = kRegular ? 6 : 1;

  static constexpr int kBackwardStrips = kRegular ? 2 : 1;  // of a chunk at a time
  // Where things are in a chunk: rows of keys (or queries), of values (or output gradients), lse of queries where those
  // are the other side, and their delta, of two and once more: the four sums of a thread start so.
  static constexpr int kValued = 2 * kChunk * kKeyWidth;
  static constexpr int kLse = kValued + 2 * kChunk * kValueWidth;
  static constexpr int kDelta = kLse + 4 * kChunk;
  static constexpr int kChunkBytes = kDelta + 8 * kChunk;
  static constexpr int kOwnBytes = 2 * kOwnWarp * (kKeyWidth + kValueWidth);  // of a warp's own rows, or its results
  static_assert(!kRegular || (kChunk == 32 && kOwnWarp == 32), "");

  __device__ static int key_size(const TfgenBlocksparseShape& shape) {
    return kRegular ? kKeyWidth : static_cast<int>(shape.key_size);
  }
  __device__ static int value_size(const TfgenBlocksparseShape& shape) {
    return kRegular ? kValueWidth : static_cast<int>(shape.value_size);
  }
  // The warp's first slot.
  __device__ static int own_slot(const Work& work) { return (work.tile * kWarps + warp()) * kOwnWarp; }
  // One pitch, where both are the same, is one offset.
  __device__ static uint32_t value_pitch(const Grid& grid) {
    return kRegular && kKeyWidth == kValueWidth ? grid.key_pitch : grid.value_pitch;
  }
};

// Tokens of every eighth slot.
template <typename S>
struct Tokens {
  const Order& order;
  int slot, token;  // of the first

  __device__ Tokens(const Order& order, int slot) : order(order), slot(slot), token(order.token(slot)) {}
  __device__ int at(int j) const { return S::kRegular ? token + 8 * j * order.stride : order.token(slot + 8 * j); }
};

// Where a lane is in a copy of rows of kWidth elements: group `group`, in rows `row`, `row` + kAtOnce and so on.
template <int kWidth>
struct CopyPlace {
  static constexpr int kGroups = Matrix<kWidth>::kGroups, kAtOnce = kWarpSize / kGroups;
  static __device__ int group() { return lane() % kGroups; }
  static __device__ int row() { return lane() / kGroups; }
};

__host__ __device__ constexpr int aligned(int bytes) {
  return (bytes + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
}

// Starts the copies of lse and delta of the query in row `row` of a chunk.
template <typename S>
__device__ inline void copy_statistics(uint32_t chunk, const float* lse, const float* delta, int token, int row) {
  copy4(chunk + S::kLse + row * 4, lse + token, true);
  const uint32_t target = chunk + S::kDelta + row / 2 * 16 + row % 2 * 4;
  copy4(target, delta + token, true);
  copy4(target + 8, delta + token, true);
}

// The other side of a warp's slots on its way through shared memory, chunk by chunk: while the warp multiplies one, the
// next is copied. Warps share nothing and never wait for each other. To copy once what several warps of a thread block
// need was no faster (docs/performance.md).
template <typename T, typename S, bool kStatistics>
class Pipeline {
  static constexpr int kStages = 2;
  static constexpr int kMask = S::kChunkBytes;  // of the chunk, 32 columns of each of the warp's rows
  static constexpr int kStage = aligned(kMask + 4 * S::kOwnWarp);
  // Own rows have memory of their own where they are in shared memory; results leave through it, or through the stages.
  static constexpr int kOwnMemory = S::kRegular ? kStages * kStage : 0;
  static constexpr int kWarpBytes = S::kRegular ? kOwnMemory + S::kOwnBytes : kStages * kStage;
  static_assert(S::kOwnBytes <= kWarpBytes, "");

 public:
  static constexpr int kBytes = kWarps * kWarpBytes;  // of shared memory

  __device__ Pipeline(const TfgenBlocksparseShape& shape, const TfgenBlocksparseLists& lists, const Grid& grid,
                      const Work& work, const Order& order, const void* keyed_tensor, const void* valued_tensor,
                      const float* lse, const float* delta)
      : order_(order),
        lists_(lists),
        keyed_(keyed_tensor, grid, work, S::key_size(shape), grid.key_pitch),
        valued_(valued_tensor, grid, work, S::value_size(shape), S::value_pitch(grid)),
        key_size_(S::key_size(shape)),
        value_size_(S::value_size(shape)),
        lse_(lse),
        delta_(delta),
        block_shift_(S::kRegular ? 5 : grid.block_shift),
        part_shift_(block_shift_ - (S::kStrips == 2 ? 5 : 4)),
        row_in_block_(S::own_slot(work) & ((1 << block_shift_) - 1)),
        here_(memory() + kStage),
        there_(memory()) {
    const Entries entries(lists, grid, work.head, S::own_slot(work) >> block_shift_);
    first_ = entries.first;
    count_ = S::kRegular ? entries.count : entries.count << part_shift_;
    const int key_element = CopyPlace<S::kKeyWidth>::group() * 8;
    const int value_element = CopyPlace<S::kValueWidth>::group() * 8;
    keyed_.first += key_element < key_size_ ? key_element : 0;  // beyond, zeros come from nowhere
    valued_.first += value_element < value_size_ ? value_element : 0;
    if (count_ > 0) read(0);
    fetch(0);
  }

  // Memory for the warp's own rows, and for its results once `next` has returned false.
  static __device__ uint32_t own_memory() { return memory() + kOwnMemory; }

  // Goes to the next chunk, if there is one. Nobody looks at the one before any longer.
  __device__ bool next() {
    __syncwarp();
    const uint32_t other = here_;
    here_ = there_, there_ = other;
    mask_here_ = mask_there_;
    ++index_;
    fetch(index_ + 1);
    wait_copies<kStages - 1>();
    __syncwarp();
    return index_ < count_;
  }

  __device__ uint32_t chunk() const { return here_; }
  __device__ bool masked() const { return mask_here_ >= 0; }
  __device__ uint32_t masks() const { return here_ + kMask; }
  __device__ int mask_shift() const { return S::kStrips == 2 ? 0 : column_in_block(index_) & 31; }

 private:
  static __device__ uint32_t memory() { return shared_address() + warp() * kWarpBytes; }

  // The chunk's first column of its block.
  __device__ int column_in_block(int index) const {
    return S::kRegular ? 0 : (index & ((1 << part_shift_) - 1)) * S::kChunk;
  }

  __device__ void read(int index) {
    const int entry = first_ + (S::kRegular ? min(index, count_ - 1) : min(index, count_ - 1) >> part_shift_);
    column_ = __ldg(lists_.columns + entry), mask_ = __ldg(lists_.masks + entry);
  }

  // Starts the copies of a chunk to `there`, if there is such a chunk, and closes their group in any case, since groups
  // are what wait_copies counts.
  __device__ void fetch(int index) {
    if (index < count_) {
      const int slot = (column_ << block_shift_) + column_in_block(index);
      mask_there_ = mask_;
      if (mask_ >= 0 && lane() < S::kOwnWarp) {
        const int words = S::kRegular || block_shift_ <= 5 ? 1 : 1 << (block_shift_ - 5);  // of a row
        const int word = S::kRegular ? lane() : (row_in_block_ + lane()) * words + (column_in_block(index) >> 5);
        const uint32_t* source = offset_by(lists_.mask_bits + word, mask_, words << (block_shift_ + 2));
        copy4(there_ + kMask + lane() * 4, source, true);
      }
      read(index + 1);
      if (kStatistics && lane() < S::kChunk) {
        copy_statistics<S>(there_, lse_, delta_, order_.token(slot + lane()), lane());
      }
      if constexpr (S::kRegular) {
        copy_run(slot);
      } else {
        copy_rows<S::kKeyWidth>(there_, keyed_, key_size_, slot);
        copy_rows<S::kValueWidth>(there_ + S::kValued, valued_, value_size_, slot);
      }
    }
    commit_copies();
  }

  // Both rows of all tokens of a regular chunk, from one address each.
  __device__ void copy_run(int slot) const {
    using Place = CopyPlace<32>;
    const int token = order_.token(slot + Place::row());
    const T *const key_row = keyed_.row(token), *const value_row = valued_.row(token);
    const uint32_t target = there_ + Matrix<32>::offset(Place::row(), Place::group());
#pragma unroll
    for (int j = 0; j < S::kChunk / 8; ++j) {  // rows eight apart have the same place in their lines
      const uint32_t distance = 8 * j * order_.stride, to = target + 8 * j * Matrix<32>::kPitch;
      copy16(to, offset_by(key_row, distance, keyed_.pitch), true);
      copy16(to + S::kValued, offset_by(value_row, distance, valued_.pitch), true);
    }
  }

  template <int kWidth>
  __device__ void copy_rows(uint32_t target, const Head<const T>& head, int size, int slot) const {
    using Place = CopyPlace<kWidth>;
    const bool copied = Place::group() * 8 < size;
#pragma unroll
    for (int row = Place::row(); row < S::kChunk; row += Place::kAtOnce) {
      copy16(target + Matrix<kWidth>::offset(row, Place::group()), head.row(order_.token(slot + row)), copied);
    }
  }

  const Order& order_;
  const TfgenBlocksparseLists& lists_;
  Head<const T> keyed_, valued_;  // from this lane's group on
  const int key_size_, value_size_;
  const float *lse_, *delta_;           // of this head, by token; with kStatistics only
  const int block_shift_, part_shift_;  // log2 of the block size, and of the chunks of a block
  const int row_in_block_;              // of the warp's first slot
  int first_, count_;      // the first entry; chunks
  int index_ = -1;         // of the chunk that is multiplied
  uint32_t here_, there_;  // that chunk and the one after it, in shared memory
  int mask_here_ = -1, mask_there_ = -1;
  int column_ = 0, mask_ = -1;  // of the entry of the chunk that is fetched next
};

// What this thread's rows keep of a chunk that has a mask.
template <typename S>
struct Kept {
  uint32_t bits[2 * S::kTiles];  // of row lane / 4 + 8j; bit 8t + i: column 8t + 2 (lane % 4) + i

  // `masks`: a word for each of the warp's rows in shared memory, the chunk's columns from bit `shift` on.
  __device__ Kept(uint32_t masks, int shift) {
#pragma unroll
    for (int j = 0; j < 2 * S::kTiles; ++j) {
      bits[j] = load_shared4(masks + (lane() / 4 + 8 * j) * 4) >> (shift + lane() % 4 * 2);
    }
  }

  // Whether element `i` of this thread's four in tile `tile` of rows and tile `t` of 8 columns is kept.
  __device__ bool keeps(int tile, int t, int i) const {
    return bits[2 * tile + i / 2] & (1u << (8 * t + i % 2));
  }
};

}  // namespace tensorcore
}  // namespace blocksparse
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_CHUNKS_CUH_
