// The part of CUDA's language and runtime that the kernels use, for a CPU: see emulator.h.
#ifndef TFGEN_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H_
#define TFGEN_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H_

#include <dlfcn.h>
#include <math.h>

#include <algorithm>
#include <set>
#include <string>

#include "emulator.h"

#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)
#define __shared__ static  // thread blocks run one after the other; accesses are not watched

using std::max;
using std::min;

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __int_as_float(int bits) { return bits_as<float>(bits); }
inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }

// Rounded by themselves: the tests compile without contraction of a product and a sum to one operation.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }

template <typename V>
V __ldg(const V* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % sizeof(V)) emulator::fail("a load from an address that is not aligned");
  return *pointer;
}

inline void __syncthreads() { emulator::barrier(); }
inline void __syncwarp() {
  int nothing = 0;
  emulator::together("__syncwarp", nothing, [](int**) { ++emulator::machine.warps[emulator::current_warp()].epoch; });
}

struct Shuffle {
  uint32_t value;
  int from;
  uint32_t result;
};
template <typename V>
V shuffle(const char* name, unsigned mask, V value, int from) {
  if (mask != 0xffffffffu) emulator::fail("only shuffles of whole warps are emulated");
  Shuffle mine{bits_as<uint32_t>(value), from, 0};
  emulator::together(name, mine, [](Shuffle** lanes) {
    for (int i = 0; i < emulator::kWarp; ++i) lanes[i]->result = lanes[lanes[i]->from % emulator::kWarp]->value;
  });
  return bits_as<V>(mine.result);
}
template <typename V>
V __shfl_sync(unsigned mask, V value, int from) {
  return shuffle("__shfl_sync", mask, value, from);
}
template <typename V>
V __shfl_xor_sync(unsigned mask, V value, int distance) {
  return shuffle("__shfl_xor_sync", mask, value, static_cast<int>(threadIdx.x) % emulator::kWarp ^ distance);
}
inline int __reduce_min_sync(unsigned mask, int value) {
  if (mask != 0xffffffffu) emulator::fail("only reductions of whole warps are emulated");
  emulator::together("__reduce_min_sync", value, [](int** lanes) {
    int least = *lanes[0];
    for (int i = 1; i < emulator::kWarp; ++i) least = min(least, *lanes[i]);
    for (int i = 0; i < emulator::kWarp; ++i) *lanes[i] = least;
  });
  return value;
}

inline int __any_sync(unsigned mask, int predicate) {
  if (mask != 0xffffffffu) emulator::fail("only votes of whole warps are emulated");
  emulator::together("__any_sync", predicate, [](int** lanes) {
    bool any = false;
    for (int i = 0; i < emulator::kWarp; ++i) any = any || *lanes[i];
    for (int i = 0; i < emulator::kWarp; ++i) *lanes[i] = any;
  });
  return predicate;
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  if (mask != 0xffffffffu) emulator::fail("only votes of whole warps are emulated");
  unsigned vote = predicate != 0;
  emulator::together("__ballot_sync", vote, [](unsigned** lanes) {
    unsigned votes = 0;
    for (int i = 0; i < emulator::kWarp; ++i) votes |= (*lanes[i] ? 1u : 0u) << i;
    for (int i = 0; i < emulator::kWarp; ++i) *lanes[i] = votes;
  });
  return vote;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// Launches --------------------------------------------------------------------------------------------------------

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9;
constexpr cudaError_t cudaErrorLaunchFailure = 719;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulator {
inline std::set<std::string> launched;       // mangled names of kernels, since the last call of tfgen_emulated_kernels
inline std::set<const void*> large_kernels;  // may use more than 48 KiB of shared memory
}  // namespace emulator

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  if (bytes > static_cast<int>(emulator::kMaxShared)) return cudaErrorInvalidValue;
  emulator::large_kernels.insert(reinterpret_cast<const void*>(kernel));
  return cudaSuccess;
}

template <typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Arguments...), Arguments... arguments) {
  const void* address = reinterpret_cast<const void*>(kernel);
  if (config->dynamicSmemBytes > 48 * 1024 && !emulator::large_kernels.count(address)) return cudaErrorInvalidValue;
  Dl_info information;
  if (!dladdr(address, &information) || !information.dli_sname) return cudaErrorLaunchFailure;
  emulator::launched.insert(information.dli_sname);
  const bool well = emulator::run(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes,
                                  [kernel, arguments...] { kernel(arguments...); });
  return well ? cudaSuccess : cudaErrorLaunchFailure;
}

// For the tests: what went wrong in the last launch, and which kernels were launched since the last call.
extern "C" inline __attribute__((used)) const char* tfgen_emulated_error() { return emulator::machine.error.c_str(); }
extern "C" inline __attribute__((used)) const char* tfgen_emulated_kernels() {
  static std::string names;
  names.clear();
  for (const std::string& name : emulator::launched) names += name + "\n";
  emulator::launched.clear();
  return names.c_str();
}

#endif  // TFGEN_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H_
