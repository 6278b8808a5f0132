// The C interface of the CPU kernels: chooses the instruction set and forwards.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/blocksparse/cpu_dispatch.h"
#include "kernels/blocksparse/decode.h"

namespace tfgen {

namespace {

enum Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };
constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

Isa best_isa() {
#if TFGEN_X86_KERNELS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!avx512) return kAvx2;
#if TFGEN_BFLOAT16_KERNELS
    if (__builtin_cpu_supports("avx512bf16")) return kAvx512Bf16;
#endif
    return kAvx512;
  }
#endif
  return kPortable;
}

// The environment variable TFGEN_CPU_ISA (portable, avx2, avx512 or avx512_bf16) lowers the choice, for tests and for
// comparing machines. It cannot raise it above what the machine has.
Isa choose_isa() {
  const Isa best = best_isa();
  const char* wanted = getenv("TFGEN_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (int isa = kPortable; isa <= kAvx512Bf16; ++isa) {
    if (strcmp(wanted, kIsaNames[isa]) == 0) return isa < best ? static_cast<Isa>(isa) : best;
  }
  fprintf(stderr, "TFGEN_CPU_ISA must be portable, avx2, avx512 or avx512_bf16, found \"%s\"; using %s\n", wanted,
          kIsaNames[best]);
  return best;
}

Isa chosen_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

CpuKernels kernels_of(Isa isa) {
#if TFGEN_BFLOAT16_KERNELS
  if (isa == kAvx512Bf16) return avx512_bf16_kernels();
#endif
#if TFGEN_X86_KERNELS
  if (isa == kAvx512) return avx512_kernels();
  if (isa == kAvx2) return avx2_kernels();
#endif
  (void)isa;
  return portable_kernels();
}

const CpuKernels& kernels(int32_t blocksize) {
  static const CpuKernels widest = kernels_of(chosen_isa());
  // Lanes are the rows of a block: 8 rows fill the 8 lanes of AVX2 and would leave half of AVX-512 idle.
  static const CpuKernels for_eight_rows = kernels_of(chosen_isa() >= kAvx512 ? kAvx2 : chosen_isa());
  return blocksize == 8 ? for_eight_rows : widest;
}

class ThreadBuffer {
 public:
  ThreadBuffer() = default;
  ThreadBuffer(const ThreadBuffer&) = delete;
  ThreadBuffer& operator=(const ThreadBuffer&) = delete;
  ~ThreadBuffer() { free(memory_); }

  void* get(size_t bytes) {
    if (bytes <= size_) return memory_;
    free(memory_);
    size_ = 0;
    memory_ = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (memory_ == nullptr) throw std::bad_alloc();
    size_ = bytes;
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

}  // namespace

int64_t blocks_in_group(const TfgenBlocksparseShape& shape, const TfgenBlocksparseLists& lists) {
  const int64_t blocks = shape.length / shape.blocksize;
  const auto fits = [&](int64_t together) {
    for (int64_t layout = 0; layout < lists.layouts; ++layout) {
      const int32_t* offsets = lists.offsets + layout * (blocks + 1);
      for (int64_t row = 0; row < blocks; ++row) {
        for (int32_t entry = offsets[row]; entry < offsets[row + 1]; ++entry) {
          if (lists.columns[entry] / together != row / together) return false;
        }
      }
    }
    return true;
  };
  for (int64_t together = 1; together <= blocks && together * shape.blocksize <= kMaxGroupRows; ++together) {
    if (blocks % together == 0 && fits(together)) return together;
  }
  return 0;
}

void* thread_scratch(size_t bytes) {
  thread_local ThreadBuffer buffer;
  return buffer.get(bytes);
}

}  // namespace tfgen

int64_t tfgen_blocksparse_units(const TfgenBlocksparseShape* shape) {
  return shape->batch * shape->heads * (shape->length / shape->blocksize);
}

const char* tfgen_blocksparse_cpu_isa(void) { return tfgen::kIsaNames[tfgen::chosen_isa()]; }

void tfgen_blocksparse_forward_cpu(const TfgenBlocksparseForward* args, int64_t first, int64_t last) {
  tfgen::kernels(args->shape.blocksize).forward(*args, first, last);
}

void tfgen_blocksparse_backward_query_cpu(const TfgenBlocksparseBackward* args, int64_t first, int64_t last) {
  tfgen::kernels(args->shape.blocksize).backward_query(*args, first, last);
}

void tfgen_blocksparse_backward_key_cpu(const TfgenBlocksparseBackward* args, int64_t first, int64_t last) {
  tfgen::kernels(args->shape.blocksize).backward_key(*args, first, last);
}

int64_t tfgen_blocksparse_group_blocks(const TfgenBlocksparseShape* shape, const TfgenBlocksparseLists* rows) {
  return tfgen::blocks_in_group(*shape, *rows);
}

void tfgen_blocksparse_backward_group_cpu(const TfgenBlocksparseBackward* args, int64_t first, int64_t last) {
  tfgen::kernels(args->shape.blocksize).backward_group(*args, first, last);
}

void tfgen_blocksparse_decode_cpu(const TfgenBlocksparseDecode* args, int64_t first, int64_t last) {
  constexpr int32_t kAnyBlocksize = 0;
  tfgen::kernels(kAnyBlocksize).decode(*args, first, last);
}
