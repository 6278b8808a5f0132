// One step of sampling: attention of one query per (batch, head) over cached keys and values. Plain C.
//
// They lie in a table, and may go on in a second store. Both hold tokens that the mode of the layer lets the query see,
// in any order: attention does not depend on the order of the keys. A ring buffer therefore needs no unrolling. The
// table is written slot by slot while sampling runs, so that a slot holds all sequences of the batch; the second store
// is only read, so that each (batch, head) has its slots side by side.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_DECODE_H_
#define TFGEN_KERNELS_BLOCKSPARSE_DECODE_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct TfgenBlocksparseDecode {
  int64_t batch, heads, slots;   // B, H, S
  int64_t key_size, value_size;  // Dk, Dv
  int64_t visible;               // the first `visible` slots of the table are seen; 0 .. S
  int64_t earlier;               // P, slots of the second store, all of them seen; 0 for none
  int32_t dtype;                 // TfgenDtype of q, keys, values and out; sums are float32
  float scale;                   // multiplies q k^T, usually 1 / sqrt(Dk)
  const void* q;                 // [B, H * Dk]
  const void* keys;              // [S, B, H * Dk]
  const void* values;            // [S, B, H * Dv]
  const void* earlier_keys;      // [B, H, P, Dk]; not read where P is 0
  const void* earlier_values;    // [B, H, P, Dv]
  void* out;                     // [B, H * Dv]; zero where no slot is visible
};

// Computes the units first .. last - 1 of the B * H (unit b * H + h); units write disjoint memory.
void tfgen_blocksparse_decode_cpu(const struct TfgenBlocksparseDecode* args, int64_t first, int64_t last);

#ifdef __cplusplus
}
#endif
#endif  // TFGEN_KERNELS_BLOCKSPARSE_DECODE_H_
