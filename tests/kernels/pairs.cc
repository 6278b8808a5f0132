// The forward pass of bfloat16 on pairs, in vectors as wide as those of AVX-512, for any processor: the compiler splits
// the vectors, and ordinary arithmetic stands for the one instruction. All else is what runs where there is AVX-512.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#include "kernels/blocksparse/cpu_dispatch.h"

// Vectors are passed to inlined functions only.
#pragma GCC diagnostic ignored "-Wpsabi"

#define TFGEN_ISA wide_pairs
#define TFGEN_LANES 16
#include "kernels/blocksparse/cpu_kernels.h"

extern "C" void tfgen_test_forward_pairs(const TfgenBlocksparseForward* args, int64_t first, int64_t last) {
  tfgen::wide_pairs::forward_pairs(*args, first, last);
}
