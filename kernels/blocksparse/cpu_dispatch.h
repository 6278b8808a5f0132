// What one instruction set offers, and the memory its kernels work in. Private to the CPU kernels.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_CPU_DISPATCH_H_
#define TFGEN_KERNELS_BLOCKSPARSE_CPU_DISPATCH_H_

#include <stddef.h>
#include <stdint.h>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/blocksparse/decode.h"

// GCC takes the instruction set of a file from a pragma, so that one plain command line compiles every file. Other
// compilers and processors get the portable kernels only.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TFGEN_X86_KERNELS 1
#else
#define TFGEN_X86_KERNELS 0
#endif

// GCC 10 is the first that knows the instructions for bfloat16.
#if TFGEN_X86_KERNELS && __GNUC__ >= 10
#define TFGEN_BFLOAT16_KERNELS 1
#else
#define TFGEN_BFLOAT16_KERNELS 0
#endif

namespace tfgen {

struct CpuKernels {
  void (*forward)(const TfgenBlocksparseForward&, int64_t first, int64_t last);
  void (*backward_query)(const TfgenBlocksparseBackward&, int64_t first, int64_t last);
  void (*backward_key)(const TfgenBlocksparseBackward&, int64_t first, int64_t last);
  void (*backward_group)(const TfgenBlocksparseBackward&, int64_t first, int64_t last);
  void (*decode)(const TfgenBlocksparseDecode&, int64_t first, int64_t last);
};

CpuKernels portable_kernels();
#if TFGEN_X86_KERNELS
CpuKernels avx2_kernels();
CpuKernels avx512_kernels();
#endif
#if TFGEN_BFLOAT16_KERNELS
CpuKernels avx512_bf16_kernels();
#endif

constexpr int64_t kMaxGroupRows = 256;  // of a group of blocks; their rows in every tensor fit the L2 cache

// The smallest g for which the kept blocks lie in squares of g x g blocks along the diagonal, so that groups of g block
// rows share no block; 0 if there is none of at most kMaxGroupRows rows.
int64_t blocks_in_group(const TfgenBlocksparseShape& shape, const TfgenBlocksparseLists& lists);

// At least `bytes` of memory at a multiple of 64 bytes, the calling thread's own until it asks again. The content is
// undefined. Throws std::bad_alloc.
void* thread_scratch(size_t bytes);

}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_CPU_DISPATCH_H_
