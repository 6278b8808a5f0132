// Everything of the kernels that is a CUDA instruction and not C++: the dynamic shared memory, PTX for tensor cores,
// matrices and asynchronous copies. The kernels use these functions alone, so that the tests can compile them for a CPU
// with functions of the same names that do what the PTX manual says (tests/kernels/cuda_emulation).
//
// An address of shared memory is a 32-bit number, as in PTX.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_INSTRUCTIONS_CUH_
#define TFGEN_KERNELS_BLOCKSPARSE_INSTRUCTIONS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace tfgen {
namespace blocksparse {

constexpr int kSharedAlignment = 256;

// The dynamic shared memory of the thread block, and its address.
__device__ inline float4* shared_memory() {
  extern __shared__ __align__(kSharedAlignment) float4 dynamic_shared[];
  return dynamic_shared;
}
__device__ inline uint32_t shared_address() { return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory())); }

// `count` times `bytes` further, in one instruction.
template <typename T>
__device__ inline T* offset_by(T* pointer, uint32_t count, uint32_t bytes) {
  uint64_t address;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(address) : "r"(count), "r"(bytes), "l"(pointer));
  return reinterpret_cast<T*>(address);
}

// 2^x to 2 ulp of float32, 0 at -inf. One instruction, where exp2f spends four to keep subnormal results.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// To 2^-22, absolute for x in [1/2, 2] and relative elsewhere.
__device__ inline float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to 1 ulp.
__device__ inline float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// d = c + a b with a [16, 16] by rows, b [16, 8] by columns, c [16, 8] in float32. With r = lane / 4 and i = lane % 4 a
// thread holds
//   a0: a[r][2i, 2i + 1]      a1: a[r + 8][2i, 2i + 1]      a2: a[r][2i + 8, 2i + 9]      a3: a[r + 8][2i + 8, 2i + 9]
//   b0: b[2i, 2i + 1][r]      b1: b[2i + 8, 2i + 9][r]
//   c[0], c[1]: c[r][2i, 2i + 1]                            c[2], c[3]: c[r + 8][2i, 2i + 1]
// Volatile, as are all instructions of a whole warp, so that the compiler moves none to where some lanes are absent.
template <typename T>
__device__ inline void multiply(float (&d)[4], const float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                uint32_t b0, uint32_t b1);
template <>
__device__ inline void multiply<__half>(float (&d)[4], const float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
template <>
__device__ inline void multiply<__nv_bfloat16>(float (&d)[4], const float (&c)[4], uint32_t a0, uint32_t a1,
                                               uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// c += a b.
template <typename T>
__device__ inline void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                uint32_t b1) {
  multiply<T>(c, c, a0, a1, a2, a3, b0, b1);
}

// Four [8, 8] matrices of 16-bit numbers from shared memory. Lane 8m + r passes the address of the 16 bytes of row r of
// matrix m, and receives [lane / 4][2 (lane % 4), + 1] of each matrix.
__device__ inline uint4 load_matrices(uint32_t address) {
  uint4 m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
               : "r"(address)
               : "memory");
  return m;
}

// The same, transposed: [2 (lane % 4), + 1][lane / 4] of each matrix.
__device__ inline uint4 load_matrices_transposed(uint32_t address) {
  uint4 m;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
               : "r"(address)
               : "memory");
  return m;
}

// Sixteen bytes of device memory.
__device__ inline void store16(void* target, const uint4& four) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(target)), "r"(four.x),
               "r"(four.y), "r"(four.z), "r"(four.w)
               : "memory");
}

// Copies 16 or 4 bytes from device to shared memory, or writes zeros where `copied` is false, in the background: this
// thread sees them after wait_copies, the others after a barrier that follows it. 16 bytes pass by the L1 cache.
__device__ inline void copy16(uint32_t target, const void* source, bool copied) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target),
               "l"(__cvta_generic_to_global(source)), "r"(copied ? 16 : 0)
               : "memory");
}
__device__ inline void copy4(uint32_t target, const void* source, bool copied) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target),
               "l"(__cvta_generic_to_global(source)), "r"(copied ? 4 : 0)
               : "memory");
}

// Closes a group of copies of this thread: those since the last call, possibly none.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all groups but the latest `kPending` are complete.
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Eight, sixteen or four bytes of shared memory.
__device__ inline int2 load_shared(uint32_t address) {
  int2 pair;
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(pair.x), "=r"(pair.y) : "r"(address) : "memory");
  return pair;
}
__device__ inline uint32_t load_shared4(uint32_t address) {
  uint32_t bits;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(bits) : "r"(address) : "memory");
  return bits;
}
__device__ inline uint4 load_shared16(uint32_t address) {
  uint4 four;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
               : "r"(address)
               : "memory");
  return four;
}
__device__ inline void store_shared(uint32_t address, int2 pair) {
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(pair.x), "r"(pair.y) : "memory");
}
__device__ inline void store_shared4(uint32_t address, uint32_t bits) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(bits) : "memory");
}

}  // namespace blocksparse
}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_INSTRUCTIONS_CUH_
