// The CUDA launchers of blocksparse.h: which kernel computes which shape.
//
// tensorcore.cuh: bfloat16 and float16, blocks of 16 and more, widths that are multiples of 8 up to 128, aligned rows.
// pipelined.cuh: of those, heads wider than 32 with long rows; and the gradients of keys and values where keys are
// wider than 64, at any length.
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
// Slots that a row keeps on average, blocks counted whole, from which on the pipeline is used where heads are wider
// than 32. Heads of 32 are served faster by tensorcore.cuh at any length (measured, see docs/performance.md).
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

bool fits_tensor_cores(const TfgenBlocksparseShape& shape, bool vectors) {
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
cudaError_t launch(void (*kernel)(Grid, Arguments...), const TfgenBlocksparseShape& shape, int64_t count, int threads,
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
  return cudaLaunchKernelEx(&config, kernel, Grid(shape, count), arguments...);
}

template <typename T, int kKeyWidth, int kValueWidth, bool kOwnsKeys>
cudaError_t pipelined_backward(const TfgenBlocksparseBackward& args, cudaStream_t stream) {
  using namespace pipelined;
  constexpr size_t kShared = BackwardLayout<kKeyWidth, kValueWidth, kOwnsKeys>::Type::kBytes;
  return launch(backward<T, kKeyWidth, kValueWidth, kOwnsKeys>, args.shape, tiles(args.shape, kOwn), kThreads, kShared,
                stream, args);
}

template <typename T, typename S>
cudaError_t short_rows(const TfgenBlocksparseForward& args, cudaStream_t stream) {
  return launch(tensorcore::forward<T, S>, args.shape, tiles(args.shape, S::kOwn), tensorcore::kThreads,
                tensorcore::Pipeline<T, S, false>::kBytes, stream, args);
}

template <typename T, typename S>
cudaError_t short_rows(const TfgenBlocksparseBackward& args, cudaStream_t stream) {
  using namespace tensorcore;
  const TfgenBlocksparseShape& shape = args.shape;
  const int64_t count = tiles(shape, S::kOwn);
  cudaError_t error = launch(row_products<T, S::kValueWidth / 32>, shape, tiles(shape, kWarps * kDeltaRows), kThreads,
                             0, stream, args);
  if (error != cudaSuccess) return error;
  // k, v, dk and dv of 128 wide are more than the registers of the warps of tensorcore.cuh.
  if constexpr (S::kKeyWidth + S::kValueWidth <= 192) {
    return launch(backward<T, S>, shape, 2 * count, kThreads, Pipeline<T, S, true>::kBytes, stream, args);
  } else {
    error = launch(query_backward<T, S>, shape, count, kThreads, Pipeline<T, S, false>::kBytes, stream, args);
    if (error != cudaSuccess) return error;
    return pipelined_backward<T, S::kKeyWidth, S::kValueWidth, true>(args, stream);
  }
}

template <typename T, int kKeyWidth, int kValueWidth, typename Arguments>
cudaError_t short_rows(const Arguments& args, cudaStream_t stream) {
  using tensorcore::Sizes;
  const TfgenBlocksparseShape& shape = args.shape;
  if (shape.blocksize < 32) return short_rows<T, Sizes<kKeyWidth, kValueWidth, 1, 1, false>>(args, stream);
  if constexpr (kKeyWidth == 32 && kValueWidth == 32) {
    const bool runs = shape.stride == 1 || shape.length / shape.stride % 32 == 0;
    if (shape.blocksize == 32 && shape.key_size == 32 && shape.value_size == 32 && runs) {
      return short_rows<T, Sizes<32, 32, 2, 2, true>>(args, stream);
    }
  }
  constexpr int kTiles = kKeyWidth + kValueWidth <= 64 ? 2 : 1, kStrips = kKeyWidth + kValueWidth <= 128 ? 2 : 1;
  return short_rows<T, Sizes<kKeyWidth, kValueWidth, kTiles, kStrips, false>>(args, stream);
}

// kKeyWidth and kValueWidth: the widest heads of a kernel, multiples of 32.
template <typename T, int kKeyWidth, int kValueWidth>
cudaError_t wide(const TfgenBlocksparseForward& args, cudaStream_t stream) {
  const TfgenBlocksparseShape& shape = args.shape;
  if (!has_long_rows(shape, args.rows)) return short_rows<T, kKeyWidth, kValueWidth>(args, stream);
  return launch(pipelined::forward<T, kKeyWidth, kValueWidth>, shape, tiles(shape, pipelined::kOwn),
                pipelined::kThreads, pipelined::ForwardLayout<kKeyWidth, kValueWidth>::kBytes, stream, args);
}

template <typename T, int kKeyWidth, int kValueWidth>
cudaError_t wide(const TfgenBlocksparseBackward& args, cudaStream_t stream) {
  if (!has_long_rows(args.shape, args.rows)) return short_rows<T, kKeyWidth, kValueWidth>(args, stream);
  const cudaError_t error = pipelined_backward<T, kKeyWidth, kValueWidth, false>(args, stream);
  if (error != cudaSuccess) return error;
  return pipelined_backward<T, kKeyWidth, kValueWidth, true>(args, stream);
}

template <typename T, typename Arguments>
cudaError_t on_tensor_cores(const Arguments& args, cudaStream_t stream) {
  const int64_t key = args.shape.key_size, value = args.shape.value_size;
  if (key <= 32 && value <= 32) return short_rows<T, 32, 32>(args, stream);
  if (key <= 64 && value <= 64) return wide<T, 64, 64>(args, stream);
  if (key <= 64) return wide<T, 64, 128>(args, stream);
  return wide<T, 128, 128>(args, stream);
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
  const bool tensor_cores = fits_tensor_cores(args->shape, vectors);
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (args->shape.dtype) {
    case TFGEN_FLOAT32:
      return fma_forward<float>(*args, vectors, on);
    case TFGEN_BFLOAT16:
      return tensor_cores ? on_tensor_cores<__nv_bfloat16>(*args, on)
                          : fma_forward<__nv_bfloat16>(*args, vectors, on);
    case TFGEN_FLOAT16:
      return tensor_cores ? on_tensor_cores<__half>(*args, on) : fma_forward<__half>(*args, vectors, on);
  }
  return cudaErrorInvalidValue;
}

extern "C" int tfgen_blocksparse_backward_cuda(const TfgenBlocksparseBackward* args, void* stream) {
  using namespace tfgen::blocksparse;
  if (!supported(args->shape)) return cudaErrorInvalidValue;
  const bool vectors = has_vectors(
      args->shape, {args->q, args->k, args->v, args->out, args->dout, args->dq, args->dk, args->dv});
  const bool tensor_cores = fits_tensor_cores(args->shape, vectors);
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (args->shape.dtype) {
    case TFGEN_FLOAT32:
      return fma_backward<float>(*args, vectors, on);
    case TFGEN_BFLOAT16:
      return tensor_cores ? on_tensor_cores<__nv_bfloat16>(*args, on)
                          : fma_backward<__nv_bfloat16>(*args, vectors, on);
    case TFGEN_FLOAT16:
      return tensor_cores ? on_tensor_cores<__half>(*args, on) : fma_backward<__half>(*args, vectors, on);
  }
  return cudaErrorInvalidValue;
}
