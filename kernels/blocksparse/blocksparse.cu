// The CUDA launchers of blocksparse.h: which kernel computes which shape.
//
// tensorcore.cuh: bfloat16 and float16, blocks of 16 and more, widths that are multiples of 8 up to 128, aligned rows.
// fma.cuh: everything else, float32 first of all.
//
// Each kernel is compiled for a few widths and serves all narrower ones. The list is kept short: it is what decides how
// long this file compiles.
#include <limits.h>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/blocksparse/fma.cuh"
#include "kernels/blocksparse/tensorcore.cuh"

namespace tfgen {
namespace blocksparse {
namespace {

constexpr int64_t kMaxSize = 256;        // widest head
constexpr int64_t kMaxTensorCore = 128;  // widest head whose sums fit the registers of a warp

bool supported(const TfgenBlocksparseShape& shape) {
  const int block = shape.blocksize;
  return shape.batch >= 0 && shape.heads > 0 && shape.length > 0 && shape.length <= INT_MAX && shape.key_size > 0 &&
         shape.key_size <= kMaxSize && shape.value_size > 0 && shape.value_size <= kMaxSize &&
         (block == 8 || block == 16 || block == 32 || block == 64 || block == 128) && shape.length % block == 0 &&
         shape.stride > 0 && shape.length % shape.stride == 0;
}

// Whether all rows of all heads start at a multiple of 16 bytes and are made of whole groups of 16 bytes.
template <int kCount>
bool has_vectors(const TfgenBlocksparseShape& shape, const void* const (&tensors)[kCount]) {
  const int64_t group = shape.dtype == TFGEN_FLOAT32 ? 4 : 8;
  if (shape.key_size % group || shape.value_size % group) return false;
  for (const void* tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor) % 16) return false;
  }
  return true;
}

bool on_tensor_cores(const TfgenBlocksparseShape& shape, bool vectors) {
  return vectors && shape.dtype != TFGEN_FLOAT32 && shape.blocksize >= tensorcore::kRows &&
         shape.key_size <= kMaxTensorCore && shape.value_size <= kMaxTensorCore;
}

// Launches B * H * tiles thread blocks. Shared memory beyond 48 KiB a thread block must be asked for.
template <typename Kernel, typename... Arguments>
cudaError_t launch(Kernel kernel, const TfgenBlocksparseShape& shape, int64_t tiles, int threads, size_t shared,
                   cudaStream_t stream, Arguments... arguments) {
  const int64_t blocks = shape.batch * shape.heads * tiles;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(arguments...);
  return cudaGetLastError();
}

template <typename T, int kKeyPieces, int kValuePieces>
cudaError_t tensorcore_forward(const TfgenBlocksparseForward& args, cudaStream_t stream) {
  using namespace tensorcore;
  const int64_t tiles = (args.shape.length / kRows + kWarps - 1) / kWarps;
  return launch(forward<T, kKeyPieces, kValuePieces>, args.shape, tiles, kWarps * kWarpSize, 0, stream, args);
}

template <typename T, int kKeyPieces, int kValuePieces>
cudaError_t tensorcore_backward(const TfgenBlocksparseBackward& args, cudaStream_t stream) {
  using namespace tensorcore;
  const int64_t tiles = (args.shape.length / kRows + kWarps - 1) / kWarps;
  const cudaError_t error = launch(backward<T, kKeyPieces, kValuePieces, false>, args.shape, tiles,
                                   kWarps * kWarpSize, 0, stream, args);
  if (error != cudaSuccess) return error;
  return launch(backward<T, kKeyPieces, kValuePieces, true>, args.shape, tiles, kWarps * kWarpSize, 0, stream, args);
}

template <typename T>
cudaError_t tensorcore_forward(const TfgenBlocksparseForward& args, cudaStream_t stream) {
  const int64_t key = args.shape.key_size, value = args.shape.value_size;
  if (key <= 32 && value <= 32) return tensorcore_forward<T, 1, 1>(args, stream);
  if (key <= 64 && value <= 64) return tensorcore_forward<T, 2, 2>(args, stream);
  if (key <= 64) return tensorcore_forward<T, 2, 4>(args, stream);
  return tensorcore_forward<T, 4, 4>(args, stream);
}

template <typename T>
cudaError_t tensorcore_backward(const TfgenBlocksparseBackward& args, cudaStream_t stream) {
  const int64_t key = args.shape.key_size, value = args.shape.value_size;
  if (key <= 32 && value <= 32) return tensorcore_backward<T, 1, 1>(args, stream);
  if (key <= 64 && value <= 64) return tensorcore_backward<T, 2, 2>(args, stream);
  if (key <= 64) return tensorcore_backward<T, 2, 4>(args, stream);
  return tensorcore_backward<T, 4, 4>(args, stream);
}

int fma_threads(const TfgenBlocksparseShape& shape) {
  return fma::rows_of(shape.blocksize) / fma::kRowsPerWarp * kWarpSize;
}

template <typename T, int kElements>
cudaError_t fma_forward(const TfgenBlocksparseForward& args, bool vectors, cudaStream_t stream) {
  const TfgenBlocksparseShape& shape = args.shape;
  return launch(fma::forward<T, kElements>, shape, shape.length / fma::rows_of(shape.blocksize), fma_threads(shape),
                fma::forward_shared(shape), stream, args, vectors);
}

template <typename T, int kElements>
cudaError_t fma_backward(const TfgenBlocksparseBackward& args, bool vectors, cudaStream_t stream) {
  const TfgenBlocksparseShape& shape = args.shape;
  const int64_t tiles = shape.length / fma::rows_of(shape.blocksize);
  const size_t shared = fma::backward_shared(shape);
  const cudaError_t error = launch(fma::backward<T, kElements, false>, shape, tiles, fma_threads(shape), shared,
                                   stream, args, vectors);
  if (error != cudaSuccess) return error;
  return launch(fma::backward<T, kElements, true>, shape, tiles, fma_threads(shape), shared, stream, args, vectors);
}

template <typename T>
cudaError_t fma_forward(const TfgenBlocksparseForward& args, bool vectors, cudaStream_t stream) {
  const int64_t size = args.shape.value_size;
  if constexpr (sizeof(T) == 4) {  // 16-bit types come here for odd shapes only
    if (size <= 32) return fma_forward<T, 1>(args, vectors, stream);
  }
  if (size <= 128) return fma_forward<T, 4>(args, vectors, stream);
  return fma_forward<T, 8>(args, vectors, stream);
}

template <typename T>
cudaError_t fma_backward(const TfgenBlocksparseBackward& args, bool vectors, cudaStream_t stream) {
  const int64_t size = args.shape.key_size > args.shape.value_size ? args.shape.key_size : args.shape.value_size;
  if constexpr (sizeof(T) == 4) {  // 16-bit types come here for odd shapes only
    if (size <= 32) return fma_backward<T, 1>(args, vectors, stream);
  }
  if (size <= 128) return fma_backward<T, 4>(args, vectors, stream);
  return fma_backward<T, 8>(args, vectors, stream);
}

}  // namespace
}  // namespace blocksparse
}  // namespace tfgen

extern "C" int tfgen_blocksparse_forward_cuda(const TfgenBlocksparseForward* args, void* stream) {
  using namespace tfgen::blocksparse;
  if (!supported(args->shape)) return cudaErrorInvalidValue;
  const bool vectors = has_vectors(args->shape, {args->q, args->k, args->v, args->out});
  const bool tensor_cores = on_tensor_cores(args->shape, vectors);
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (args->shape.dtype) {
    case TFGEN_FLOAT32:
      return fma_forward<float>(*args, vectors, on);
    case TFGEN_BFLOAT16:
      return tensor_cores ? tensorcore_forward<__nv_bfloat16>(*args, on)
                          : fma_forward<__nv_bfloat16>(*args, vectors, on);
    case TFGEN_FLOAT16:
      return tensor_cores ? tensorcore_forward<__half>(*args, on) : fma_forward<__half>(*args, vectors, on);
  }
  return cudaErrorInvalidValue;
}

extern "C" int tfgen_blocksparse_backward_cuda(const TfgenBlocksparseBackward* args, void* stream) {
  using namespace tfgen::blocksparse;
  if (!supported(args->shape)) return cudaErrorInvalidValue;
  const bool vectors = has_vectors(
      args->shape, {args->q, args->k, args->v, args->out, args->dout, args->dq, args->dk, args->dv});
  const bool tensor_cores = on_tensor_cores(args->shape, vectors);
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (args->shape.dtype) {
    case TFGEN_FLOAT32:
      return fma_backward<float>(*args, vectors, on);
    case TFGEN_BFLOAT16:
      return tensor_cores ? tensorcore_backward<__nv_bfloat16>(*args, on)
                          : fma_backward<__nv_bfloat16>(*args, vectors, on);
    case TFGEN_FLOAT16:
      return tensor_cores ? tensorcore_backward<__half>(*args, on) : fma_backward<__half>(*args, vectors, on);
  }
  return cudaErrorInvalidValue;
}
