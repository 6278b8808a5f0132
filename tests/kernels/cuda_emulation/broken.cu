// Kernels that are wrong in one way each, and one that is right: what the emulation must tell apart.
#include "kernels/blocksparse/device.cuh"

using namespace tfgen::blocksparse;

enum Fault {
  kNone, kNoWait, kNoBarrier, kOverwritten, kUnwritten, kBank, kUnaligned, kOutside, kLanes, kBarrierOfSome, kLeftBehind
};

// Two warps copy a [64, 64] matrix of 16-bit numbers to shared memory, a row a thread, and read 16 of their own 32
// rows. The lanes of the first warp store what they get of the first [8, 8] matrix.
__global__ void read_matrix(const uint16_t* source, uint32_t* target, Fault fault) {
  const int thread = threadIdx.x, lane = thread % kWarpSize;
  const auto address = [&](int row, int group) {
    return shared_address() + row * 128 + (fault == kBank ? group : group ^ row % 8) * 16;
  };
  if (fault == kUnaligned) copy16(shared_address() + 8, source, true);
  if (fault == kOutside) copy16(shared_address() + 64 * 128, source, true);
  if (fault != kUnwritten) {
    for (int group = 0; group < 8; ++group) copy16(address(thread, group), source + thread * 64 + group * 8, true);
  }
  commit_copies();
  if (fault == kLeftBehind) return;
  if (fault != kNoWait) wait_copies<0>();
  if (fault == kBarrierOfSome && thread >= 32) return;
  if (fault != kNoBarrier) __syncthreads();
  if (fault == kLanes && lane == 7) return;
  const uint4 fragments = load_matrices(address(thread / 32 * 32 + lane % 16, lane / 16));
  if (fault == kOverwritten) store_shared(address(thread, 0), make_int2(0, 0));
  if (thread < 32) target[lane] = fragments.x;
}

extern "C" int launch_read_matrix(const uint16_t* source, uint32_t* target, int fault) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(64);
  config.dynamicSmemBytes = 64 * 128;
  return cudaLaunchKernelEx(&config, read_matrix, source, target, static_cast<Fault>(fault));
}
