// Block-sparse attention: the C interface of the kernels. Plain structs, no TensorFlow.
//
// Letters: B batch, H heads, T length, Dk and Dv widths of a head, n = T / blocksize blocks a side.
//
// Tensors are [B, T, H * D], head j owning columns j * D .. (j + 1) * D - 1, in token order. A kernel works on the
// sequence in *kernel order*: slot i holds token (i % m) * stride + i / m with m = T / stride (stride 1 is token
// order), which the kernels apply as strided loads and stores. Blocks and masks are in kernel order.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_BLOCKSPARSE_H_
#define TFGEN_KERNELS_BLOCKSPARSE_BLOCKSPARSE_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum TfgenDtype { TFGEN_FLOAT32 = 0, TFGEN_BFLOAT16 = 1, TFGEN_FLOAT16 = 2 };

struct TfgenBlocksparseShape {
  int64_t batch, heads, length;  // B, H, T
  int64_t key_size, value_size;  // Dk, Dv
  int32_t blocksize;             // 8, 16, 32, 64 or 128; divides T
  int32_t stride;                // divides T
  int32_t dtype;                 // TfgenDtype of q, k, v, out and their gradients; sums are float32
  float scale;                   // multiplies q k^T, usually 1 / sqrt(Dk)
};

// The blocks kept in each block row. For the backward pass over keys the same blocks are listed by column, with
// transposed masks ("row" is then the key block and "column" the query block).
struct TfgenBlocksparseLists {
  int32_t layouts;          // 1: shared by all heads; or H
  int32_t entries;          // of all rows of all layouts; only the CUDA launchers read it, to choose a kernel
  const int32_t* offsets;   // [layouts, n + 1]; row r of layout l owns entries offsets[l][r] .. offsets[l][r + 1] - 1
  const int32_t* columns;   // [entries], strictly rising within a row
  const int32_t* masks;     // [entries], index into mask_bits, or -1 where the whole block is kept
  const uint32_t* mask_bits;  // [mask count, blocksize, words] with words = ceil(blocksize / 32); bit c % 32 of word
                              // c / 32 says whether column c of the block is kept in this row
};

struct TfgenBlocksparseForward {
  struct TfgenBlocksparseShape shape;
  struct TfgenBlocksparseLists rows;
  const void *q, *k, *v;
  void* out;   // [B, T, H * Dv]; zero where a query keeps no key
  float* lse;  // [B, H, T] in token order: log of the sum of exp(scale * q k^T); -inf where a query keeps no key
};

struct TfgenBlocksparseBackward {
  struct TfgenBlocksparseShape shape;
  struct TfgenBlocksparseLists rows, columns;
  const void *q, *k, *v, *out, *dout;
  const float* lse;
  float* delta;  // [B, H, T] scratch: rowsum(dout * out), some kernels keep its negative
  void *dq, *dk, *dv;
};

// CPU. Work is cut into units that write disjoint memory, so that results do not depend on threads. A caller runs
// ranges of units on its own threads. Scratch memory is on the stack or thread local.
int64_t tfgen_blocksparse_units(const struct TfgenBlocksparseShape* shape);  // B * H * n, for each pass
void tfgen_blocksparse_forward_cpu(const struct TfgenBlocksparseForward* args, int64_t first, int64_t last);
// Pass 1: delta and dq, by query block. Pass 2, after all of pass 1: dk and dv, by key block.
void tfgen_blocksparse_backward_query_cpu(const struct TfgenBlocksparseBackward* args, int64_t first, int64_t last);
void tfgen_blocksparse_backward_key_cpu(const struct TfgenBlocksparseBackward* args, int64_t first, int64_t last);
// Where the layout falls into groups of g neighbouring block rows that share no block (strided and chunked patterns):
// g; otherwise 0. Such a layout may take one pass instead of two, which computes the scores once. Its units are the
// groups: B * H * n / g. It writes everything but delta.
int64_t tfgen_blocksparse_group_blocks(const struct TfgenBlocksparseShape* shape,
                                       const struct TfgenBlocksparseLists* rows);
void tfgen_blocksparse_backward_group_cpu(const struct TfgenBlocksparseBackward* args, int64_t first, int64_t last);
const char* tfgen_blocksparse_cpu_isa(void);  // "avx512_bf16", "avx512", "avx2" or "portable": what runs here

#define TFGEN_BLOCKSPARSE_MAX_CUDA_SIZE 256  // features of a head's keys and of its values

// CUDA (compiled from blocksparse.cu). All pointers, those of the lists included, are device memory; `stream` is a
// cudaStream_t. Returns a cudaError_t, 0 for success.
int tfgen_blocksparse_forward_cuda(const struct TfgenBlocksparseForward* args, void* stream);
int tfgen_blocksparse_backward_cuda(const struct TfgenBlocksparseBackward* args, void* stream);

#ifdef __cplusplus
}
#endif
#endif  // TFGEN_KERNELS_BLOCKSPARSE_BLOCKSPARSE_H_
