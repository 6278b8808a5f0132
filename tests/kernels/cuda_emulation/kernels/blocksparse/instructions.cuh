// The functions of kernels/blocksparse/instructions.cuh for a CPU, by the layouts of the PTX manual. Found before that
// file, as this folder comes first where the compiler looks for headers.
#ifndef TFGEN_TESTS_CUDA_EMULATION_INSTRUCTIONS_CUH_
#define TFGEN_TESTS_CUDA_EMULATION_INSTRUCTIONS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace tfgen {
namespace blocksparse {

constexpr int kSharedAlignment = 256;

inline float4* shared_memory() { return reinterpret_cast<float4*>(emulator::machine.shared); }
inline uint32_t shared_address() { return emulator::kSharedBase; }

template <typename T>
T* offset_by(T* pointer, uint32_t count, uint32_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(pointer) + static_cast<uint64_t>(count) * bytes);
}

inline float exp2_approx(float x) { return exp2f(x) < 1.17549435e-38f ? 0.0f : exp2f(x); }

inline float log2_approx(float x) { return log2f(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }

inline float element(__half, uint16_t bits) { return __half2float(__half{bits}); }
inline float element(__nv_bfloat16, uint16_t bits) { return __bfloat162float(__nv_bfloat16{bits}); }

struct Multiplication {
  float* d;
  const float* c;
  uint32_t a[4], b[2];
};

template <typename T>
void multiply(float (&d)[4], const float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
              uint32_t b1) {
  Multiplication mine{d, c, {a0, a1, a2, a3}, {b0, b1}};
  emulator::together(__PRETTY_FUNCTION__, mine, [](Multiplication** lanes) {
    float a[16][16], b[8][16];  // b by columns
    for (int lane = 0; lane < emulator::kWarp; ++lane) {
      const int group = lane / 4, in_group = lane % 4;
      for (int i = 0; i < 8; ++i) {  // the manual's a0 .. a7: row + 8 for i in 2, 3, 6, 7; column + 8 from i = 4 on
        const int row = group + (i / 2 % 2 ? 8 : 0), column = in_group * 2 + i % 2 + (i >= 4 ? 8 : 0);
        a[row][column] = element(T(), static_cast<uint16_t>(lanes[lane]->a[i / 2] >> (i % 2 * 16)));
      }
      for (int i = 0; i < 4; ++i) {
        const int row = in_group * 2 + i % 2 + (i >= 2 ? 8 : 0);
        b[group][row] = element(T(), static_cast<uint16_t>(lanes[lane]->b[i / 2] >> (i % 2 * 16)));
      }
    }
    for (int lane = 0; lane < emulator::kWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
        float sum = 0.0f;
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
        lanes[lane]->d[i] = lanes[lane]->c[i] + sum;
      }
    }
  });
}

template <typename T>
void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  multiply<T>(c, c, a0, a1, a2, a3, b0, b1);
}

struct Matrices {
  uint32_t address, fragments[4];
};

// [8, 8] matrices, rows from their addresses; the fragment of a lane is row lane / 4, elements 2 (lane % 4) and + 1, of
// the matrix or of its transposition.
inline uint4 load_matrices(const char* name, uint32_t address, bool transposed) {
  Matrices mine{address, {}};
  emulator::together(name, mine, [transposed](Matrices** lanes) {
    for (int m = 0; m < 4; ++m) {
      uint16_t matrix[8][8];
      unsigned banks = 0;
      for (int row = 0; row < 8; ++row) {
        const uint32_t from = lanes[8 * m + row]->address;
        const size_t offset = emulator::offset_of(from, 16);
        emulator::watch_read(offset, 16, emulator::kWholeWarp);
        memcpy(matrix[row], emulator::machine.shared + offset, 16);
        banks |= 1u << from / 16 % 8;
      }
      if (banks != 0xff) emulator::fail("rows of a matrix in shared memory meet in a bank");
      for (int lane = 0; lane < emulator::kWarp; ++lane) {
        const int row = lane / 4, column = lane % 4 * 2;
        const uint32_t low = transposed ? matrix[column][row] : matrix[row][column];
        const uint32_t high = transposed ? matrix[column + 1][row] : matrix[row][column + 1];
        lanes[lane]->fragments[m] = low | high << 16;
      }
    }
  });
  return {mine.fragments[0], mine.fragments[1], mine.fragments[2], mine.fragments[3]};
}
inline uint4 load_matrices(uint32_t address) { return load_matrices("ldmatrix", address, false); }
inline uint4 load_matrices_transposed(uint32_t address) { return load_matrices("ldmatrix.trans", address, true); }

inline void store16(void* target, const uint4& four) {
  if (reinterpret_cast<uintptr_t>(target) % 16) emulator::fail("a store to an address that is not aligned");
  memcpy(target, &four, 16);
}

inline void copy16(uint32_t target, const void* source, bool copied) {
  emulator::start_copy(target, source, 16, copied);
}
inline void copy4(uint32_t target, const void* source, bool copied) { emulator::start_copy(target, source, 4, copied); }
inline void commit_copies() { emulator::commit(); }
template <int kPending>
void wait_copies() {
  emulator::wait(kPending);
}

template <typename V>
V read_shared(uint32_t address) {
  const size_t offset = emulator::offset_of(address, sizeof(V));
  emulator::watch_read(offset, sizeof(V), emulator::machine.current);
  V value;
  memcpy(&value, emulator::machine.shared + offset, sizeof(V));
  return value;
}
template <typename V>
void write_shared(uint32_t address, V value) {
  const size_t offset = emulator::offset_of(address, sizeof(V));
  emulator::watch_write(offset, sizeof(V));
  memcpy(emulator::machine.shared + offset, &value, sizeof(V));
}
inline int2 load_shared(uint32_t address) { return read_shared<int2>(address); }
inline uint32_t load_shared4(uint32_t address) { return read_shared<uint32_t>(address); }
inline uint4 load_shared16(uint32_t address) { return read_shared<uint4>(address); }
inline void store_shared(uint32_t address, int2 pair) { write_shared(address, pair); }
inline void store_shared4(uint32_t address, uint32_t bits) { write_shared(address, bits); }

}  // namespace blocksparse
}  // namespace tfgen
#endif  // TFGEN_TESTS_CUDA_EMULATION_INSTRUCTIONS_CUH_
