// The CUDA launchers of blocksparse.h: which kernel computes which shape.
//
// tensorcore.cuh: bfloat16 and float16, blocks of 16 and more, widths that are multiples of 8 up to 128, aligned rows.
// pipelined.cuh: of those, long rows; and the gradients of keys and values where keys are wider than 64, at any length.
// fma.cuh: everything else, float32 first of all.
//
// Each kernel is compiled for a few widths and serves all narrower ones. The list is kept short: it is what decides how
// long this file compiles.
#include <limits.h>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/blocksparse/fma.cuh"
#include "kernels/blocksparse/pipelined.cuh"
#include "kernels/blocksparse/tensorcore.cuh"

namespace tfgen {
namespace blocksparse {
namespace {

constexpr int64_t kMaxSize = TFGEN_BLOCKSPARSE_MAX_CUDA_SIZE;
constexpr int64_t kMaxTensorCore = 128;  // widest head whose sums fit the registers of a warp
// Slots that a row keeps on average, blocks counted whole, from which on the pipeline is used. A forward pass does half
// as many operations a byte: 128 here, where an A100 can do 156 and an H100 295 while it moves a byte. Below, time goes
// into moving the rows, for which tensorcore.cuh needs no barriers. An estimate, never measured.
constexpr int64_t kLongRow = 256;

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

bool has_long_rows(const TfgenBlocksparseShape& shape, const TfgenBlocksparseLists& lists) {
  const int64_t rows = lists.layouts * (shape.length / shape.blocksize);
  return static_cast<int64_t>(lists.entries) * shape.blocksize >= kLongRow * rows;
}

// Thread blocks of one head whose slots number `own`.
int64_t tiles(const TfgenBlocksparseShape& shape, int own) { return (shape.length + own - 1) / own; }

// Launches B * H * count thread blocks. Shared memory beyond 48 KiB a thread block must be asked for.
template <typename... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), const TfgenBlocksparseShape& shape, int64_t count, int threads,
                   size_t shared, cudaStream_t stream, Arguments... arguments) {
  const int64_t blocks = shape.batch * shape.heads * count;
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// kKeyWidth and kValueWidth: the widest heads of a kernel, multiples of 32.
template <typename T, int kKeyWidth, int kValueWidth>
cudaError_t wide_forward(const TfgenBlocksparseForward& args, cudaStream_t stream) {
  const TfgenBlocksparseShape& shape = args.shape;
  if (has_long_rows(shape, args.rows)) {
    return launch(pipelined::forward<T, kKeyWidth, kValueWidth>, shape, tiles(shape, pipelined::kOwn),
                  pipelined::kThreads, pipelined::ForwardLayout<kKeyWidth, kValueWidth>::kBytes, stream, args);
  }
  return launch(tensorcore::forward<T, kKeyWidth / 32, kValueWidth / 32>, shape, tiles(shape, tensorcore::kOwn),
                tensorcore::kThreads, 0, stream, args);
}

template <typename T, int kKeyWidth, int kValueWidth, bool kOwnsKeys>
cudaError_t pipelined_backward(const TfgenBlocksparseBackward& args, cudaStream_t stream) {
  using namespace pipelined;
  constexpr size_t kShared = BackwardLayout<kKeyWidth, kValueWidth, kOwnsKeys>::Type::kBytes;
  return launch(backward<T, kKeyWidth, kValueWidth, kOwnsKeys>, args.shape, tiles(args.shape, kOwn), kThreads, kShared,
                stream, args);
}

template <typename T, int kKeyWidth, int kValueWidth, bool kOwnsKeys>
cudaError_t tensorcore_backward(const TfgenBlocksparseBackward& args, cudaStream_t stream) {
  using namespace tensorcore;
  return launch(backward<T, kKeyWidth / 32, kValueWidth / 32, kOwnsKeys>, args.shape, tiles(args.shape, kOwn), kThreads,
                0, stream, args);
}

template <typename T, int kKeyWidth, int kValueWidth>
cudaError_t wide_backward(const TfgenBlocksparseBackward& args, cudaStream_t stream) {
  const bool long_rows = has_long_rows(args.shape, args.rows);
  const cudaError_t error = long_rows ? pipelined_backward<T, kKeyWidth, kValueWidth, false>(args, stream)
                                      : tensorcore_backward<T, kKeyWidth, kValueWidth, false>(args, stream);
  if (error != cudaSuccess) return error;
  // k, v, dk and dv of 128 wide are more than the registers of the warps of tensorcore.cuh.
  if constexpr (kKeyWidth + kValueWidth <= 192) {
    if (!long_rows) return tensorcore_backward<T, kKeyWidth, kValueWidth, true>(args, stream);
  }
  return pipelined_backward<T, kKeyWidth, kValueWidth, true>(args, stream);
}

template <typename T>
cudaError_t tensorcore_forward(const TfgenBlocksparseForward& args, cudaStream_t stream) {
  const int64_t key = args.shape.key_size, value = args.shape.value_size;
  if (key <= 32 && value <= 32) return wide_forward<T, 32, 32>(args, stream);
  if (key <= 64 && value <= 64) return wide_forward<T, 64, 64>(args, stream);
  if (key <= 64) return wide_forward<T, 64, 128>(args, stream);
  return wide_forward<T, 128, 128>(args, stream);
}

template <typename T>
cudaError_t tensorcore_backward(const TfgenBlocksparseBackward& args, cudaStream_t stream) {
  const int64_t key = args.shape.key_size, value = args.shape.value_size;
  if (key <= 32 && value <= 32) return wide_backward<T, 32, 32>(args, stream);
  if (key <= 64 && value <= 64) return wide_backward<T, 64, 64>(args, stream);
  if (key <= 64) return wide_backward<T, 64, 128>(args, stream);
  return wide_backward<T, 128, 128>(args, stream);
}

int fma_threads(const TfgenBlocksparseShape& shape) {
  return fma::rows_of(shape.blocksize) / fma::kRowsPerWarp * kWarpSize;
}

template <typename T, int kElements>
cudaError_t fma_forward(const TfgenBlocksparseForward& args, bool vectors, cudaStream_t stream) {
  const TfgenBlocksparseShape& shape = args.shape;
  return launch(fma::forward<T, kElements>, shape, tiles(shape, fma::rows_of(shape.blocksize)), fma_threads(shape),
                fma::forward_shared(shape), stream, args, vectors);
}

template <typename T, int kElements>
cudaError_t fma_backward(const TfgenBlocksparseBackward& args, bool vectors, cudaStream_t stream) {
  const TfgenBlocksparseShape& shape = args.shape;
  const int64_t count = tiles(shape, fma::rows_of(shape.blocksize));
  const size_t shared = fma::backward_shared(shape);
  const cudaError_t error = launch(fma::backward<T, kElements, false>, shape, count, fma_threads(shape), shared,
                                   stream, args, vectors);
  if (error != cudaSuccess) return error;
  return launch(fma::backward<T, kElements, true>, shape, count, fma_threads(shape), shared, stream, args, vectors);
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
