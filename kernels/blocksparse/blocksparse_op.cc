// TensorFlow's side of block-sparse attention: operations, shape functions, checks of the inputs, kernels.
//
// The arithmetic is behind the C interface of blocksparse.h. Whatever a caller passes, it is checked here first: the
// functions behind that interface trust what they are given.
#if GOOGLE_CUDA
#define EIGEN_USE_GPU  // before any header of TensorFlow or Eigen
#include <cuda_runtime_api.h>
#endif

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/blocksparse/blocksparse.h"
#include "kernels/blocksparse/op_checks.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/errors.h"
#include "tensorflow/core/platform/mutex.h"
#include "tensorflow/core/util/work_sharder.h"

namespace tfgen {
namespace {

using tensorflow::Tensor;
using tensorflow::TensorShape;

constexpr int kListTensors = 4;  // offsets, columns, masks, mask_bits

struct Attributes {
  int num_heads = 0, blocksize = 0, stride = 0;
};

// Reads the attributes from a context of shape inference or of kernel construction.
template <typename Context>
Status ReadAttributes(Context* context, Attributes* attributes) {
  TF_RETURN_IF_ERROR(context->GetAttr("num_heads", &attributes->num_heads));
  TF_RETURN_IF_ERROR(context->GetAttr("blocksize", &attributes->blocksize));
  TF_RETURN_IF_ERROR(context->GetAttr("stride", &attributes->stride));
  const int size = attributes->blocksize;
  if (size != 8 && size != 16 && size != 32 && size != 64 && size != 128) {
    return InvalidArgument("blocksize must be 8, 16, 32, 64 or 128, found ", size);
  }
  return OkStatus();
}

struct Problem {
  int64_t batch = kUnknown, length = kUnknown, key_features = kUnknown, value_features = kUnknown;
};

Status CheckTensors(const Attributes& attributes, const Sizes& q, const Sizes& k, const Sizes& v, Problem* p) {
  for (const Sizes* sizes : {&q, &k, &v}) {
    TF_RETURN_IF_ERROR(CheckRank(*sizes, 3, "[batch, length, features]"));
    TF_RETURN_IF_ERROR(CheckSame(*sizes, 0, "the batch", &p->batch));
    TF_RETURN_IF_ERROR(CheckSame(*sizes, 1, "the length", &p->length));
    TF_RETURN_IF_ERROR(CheckNotEmpty(*sizes));
  }
  TF_RETURN_IF_ERROR(CheckSame(q, 2, "the number of features", &p->key_features));
  TF_RETURN_IF_ERROR(CheckSame(k, 2, "the number of features", &p->key_features));
  p->value_features = v[2];
  TF_RETURN_IF_ERROR(CheckFeatures("q and k", p->key_features, attributes.num_heads));
  TF_RETURN_IF_ERROR(CheckFeatures("v", p->value_features, attributes.num_heads));
  TF_RETURN_IF_ERROR(CheckElements("q", p->batch, p->length, p->key_features));
  TF_RETURN_IF_ERROR(CheckElements("v", p->batch, p->length, p->value_features));
  TF_RETURN_IF_ERROR(CheckElements("lse", p->batch, p->length, attributes.num_heads));
  if (p->length != kUnknown && p->length % attributes.blocksize != 0) {
    return InvalidArgument("the length ", p->length, " is no multiple of blocksize = ", attributes.blocksize);
  }
  if (p->length != kUnknown && p->length % attributes.stride != 0) {
    return InvalidArgument("the length ", p->length, " is no multiple of stride = ", attributes.stride);
  }
  return OkStatus();
}

// The shapes of four list tensors, the first of which is input number `first`.
template <typename Context>
Status CheckListShapes(const Attributes& attributes, Context* c, int first, const std::string& prefix, int64_t length) {
  const Sizes offsets = SizesOf(prefix + "offsets", c, first), columns = SizesOf(prefix + "columns", c, first + 1);
  const Sizes masks = SizesOf(prefix + "masks", c, first + 2), bits = SizesOf(prefix + "mask_bits", c, first + 3);
  TF_RETURN_IF_ERROR(CheckRank(offsets, 2, "[layouts, blocks + 1]"));
  TF_RETURN_IF_ERROR(CheckRank(columns, 1, "[entries]"));
  TF_RETURN_IF_ERROR(CheckRank(masks, 1, "[entries]"));
  TF_RETURN_IF_ERROR(CheckRank(bits, 3, "[masks, blocksize, words]"));
  if (offsets[0] != kUnknown && offsets[0] != 1 && offsets[0] != attributes.num_heads) {
    return InvalidArgument(offsets.name, " must have 1 layout or num_heads = ", attributes.num_heads,
                           " of them, found ",
                           offsets.Text());
  }
  if (length != kUnknown && offsets[1] != kUnknown && offsets[1] != length / attributes.blocksize + 1) {
    return InvalidArgument(offsets.name, " must have ", length / attributes.blocksize + 1, " offsets a layout (length ",
                           length, " / blocksize ", attributes.blocksize, " + 1), found ", offsets.Text());
  }
  int64_t entries = kUnknown;
  TF_RETURN_IF_ERROR(CheckSame(columns, 0, "the number of entries", &entries));
  TF_RETURN_IF_ERROR(CheckSame(masks, 0, "the number of entries", &entries));
  const int64_t words = (attributes.blocksize + 31) / 32;
  if ((bits[1] != kUnknown && bits[1] != attributes.blocksize) || (bits[2] != kUnknown && bits[2] != words)) {
    return InvalidArgument(bits.name, " must have shape [masks, ", attributes.blocksize, ", ", words, "], found ",
                           bits.Text());
  }
  return OkStatus();
}

template <typename Context>
Status CheckForward(const Attributes& attributes, Context* c, Problem* p) {
  return CheckTensors(attributes, SizesOf("q", c, 0), SizesOf("k", c, 1), SizesOf("v", c, 2), p);
}

// What the backward pass needs of the forward one: out, lse and dout, inputs 3 to 5.
template <typename Context>
Status CheckSaved(const Attributes& attributes, Context* c, Problem* p) {
  for (int input : {3, 5}) {
    const Sizes sizes = SizesOf(input == 3 ? "out" : "dout", c, input);
    TF_RETURN_IF_ERROR(CheckRank(sizes, 3, "[batch, length, features of v]"));
    TF_RETURN_IF_ERROR(CheckSame(sizes, 0, "the batch", &p->batch));
    TF_RETURN_IF_ERROR(CheckSame(sizes, 1, "the length", &p->length));
    TF_RETURN_IF_ERROR(CheckSame(sizes, 2, "the number of features", &p->value_features));
  }
  const Sizes lse = SizesOf("lse", c, 4);
  int64_t heads = attributes.num_heads;
  TF_RETURN_IF_ERROR(CheckRank(lse, 3, "[batch, num_heads, length]"));
  TF_RETURN_IF_ERROR(CheckSame(lse, 0, "the batch", &p->batch));
  TF_RETURN_IF_ERROR(CheckSame(lse, 1, "the number of heads", &heads));
  return CheckSame(lse, 2, "the length", &p->length);
}

TfgenBlocksparseLists ListsAt(OpKernelContext* c, int first) {
  TfgenBlocksparseLists lists;
  lists.layouts = static_cast<int32_t>(c->input(first).dim_size(0));
  lists.entries = static_cast<int32_t>(c->input(first + 1).NumElements());
  lists.offsets = static_cast<const int32_t*>(c->input(first).data());
  lists.columns = static_cast<const int32_t*>(c->input(first + 1).data());
  lists.masks = static_cast<const int32_t*>(c->input(first + 2).data());
  lists.mask_bits = static_cast<const uint32_t*>(c->input(first + 3).data());
  return lists;
}

// The values of lists of checked shapes. One pass over the entries: far less than one block's arithmetic for each.
Status CheckListValues(const TfgenBlocksparseLists& lists, int64_t blocks, int64_t entries, int64_t mask_count,
                       const std::string& prefix) {
  int64_t expected = 0;  // where the next row must begin: rows and layouts follow one another without gaps
  for (int64_t layout = 0; layout < lists.layouts; ++layout) {
    const int32_t* offsets = lists.offsets + layout * (blocks + 1);
    if (offsets[0] != expected) {
      return InvalidArgument(prefix, "offsets of layout ", layout, " must begin at ", expected, ", found ", offsets[0]);
    }
    for (int64_t row = 0; row < blocks; ++row) {
      const int64_t begin = offsets[row], end = offsets[row + 1];
      if (end < begin || end > entries) {
        return InvalidArgument(prefix, "offsets must not fall and not exceed the ", entries, " entries; row ", row,
                               " of layout ", layout, " has ", begin, " and ", end);
      }
      for (int64_t i = begin; i < end; ++i) {
        if (lists.columns[i] < 0 || lists.columns[i] >= blocks) {
          return InvalidArgument(prefix, "columns must be in 0 .. ", blocks - 1, ", found ", lists.columns[i],
                                 " in row ", row, " of layout ", layout);
        }
        if (i > begin && lists.columns[i] <= lists.columns[i - 1]) {
          return InvalidArgument(prefix, "columns must rise within a row, found ", lists.columns[i - 1], " before ",
                                 lists.columns[i], " in row ", row, " of layout ", layout);
        }
        if (lists.masks[i] < -1 || lists.masks[i] >= mask_count) {
          return InvalidArgument(prefix, "masks must be in -1 .. ", mask_count - 1, ", found ", lists.masks[i],
                                 " in row ", row, " of layout ", layout);
        }
      }
    }
    expected = offsets[blocks];
  }
  if (expected != entries) {
    return InvalidArgument(prefix, "offsets end at ", expected, ", but there are ", entries, " entries");
  }
  return OkStatus();
}

bool IsTransposed(const uint32_t* mask, const uint32_t* other, int size) {
  const int words = (size + 31) / 32;
  for (int r = 0; r < size; ++r) {
    for (int c = 0; c < size; ++c) {
      const bool here = mask[r * words + c / 32] >> (c % 32) & 1, there = other[c * words + r / 32] >> (r % 32) & 1;
      if (here != there) return false;
    }
  }
  return true;
}

// Whether two valid lists hold the same blocks, by row and by column. Otherwise dk and dv would not belong to dq.
Status CheckTransposed(const TfgenBlocksparseLists& rows, const TfgenBlocksparseLists& columns, int64_t blocks,
                       int64_t mask_count, int blocksize) {
  const int64_t mask_size = int64_t{blocksize} * ((blocksize + 31) / 32);
  std::vector<int32_t> seen(mask_count, -1);  // the last mask found to be the transposition of each
  std::vector<int32_t> next(blocks);          // the next entry of each column: rows come in rising order
  for (int64_t layout = 0; layout < rows.layouts; ++layout) {
    const int32_t* row_offsets = rows.offsets + layout * (blocks + 1);
    const int32_t* column_offsets = columns.offsets + layout * (blocks + 1);
    std::copy(column_offsets, column_offsets + blocks, next.begin());
    for (int64_t row = 0; row < blocks; ++row) {
      for (int32_t i = row_offsets[row]; i < row_offsets[row + 1]; ++i) {
        const int32_t column = rows.columns[i], j = next[column]++, mask = rows.masks[i];
        bool same = j < column_offsets[column + 1] && columns.columns[j] == row && (mask < 0) == (columns.masks[j] < 0);
        if (same && mask >= 0 && seen[mask] != columns.masks[j]) {
          seen[mask] = columns.masks[j];
          same = IsTransposed(rows.mask_bits + mask * mask_size, columns.mask_bits + seen[mask] * mask_size, blocksize);
        }
        if (!same) {
          return InvalidArgument("the transposed lists are not the lists transposed: block row ", row, ", column ",
                                 column, " of layout ", layout, " is missing or has another mask");
        }
      }
    }
  }
  return OkStatus();
}

// Cycles of one block row: two (forward) or about five (backward) products of each kept block at some 16 operations a
// cycle.
int64_t CostOfRow(const TfgenBlocksparseShape& shape, const TfgenBlocksparseLists& lists, int64_t entries,
                   int64_t products) {
  const int64_t blocks = shape.length / shape.blocksize;
  const int64_t block_cost = int64_t{shape.blocksize} * shape.blocksize * (shape.key_size + shape.value_size) / 16;
  return 1000 + products * block_cost * entries / (lists.layouts * blocks);
}

class BlocksparseOp : public OpKernel {
 public:
  explicit BlocksparseOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadAttributes(c, &attributes_));
    OP_REQUIRES_OK(c, c->GetAttr("T", &dtype_));
  }

 protected:
  TfgenBlocksparseShape ShapeOf(const Problem& p) const {
    TfgenBlocksparseShape shape;
    shape.batch = p.batch, shape.heads = attributes_.num_heads, shape.length = p.length;
    shape.key_size = p.key_features / attributes_.num_heads;
    shape.value_size = p.value_features / attributes_.num_heads;
    shape.blocksize = attributes_.blocksize, shape.stride = attributes_.stride;
    shape.dtype = DtypeCode(dtype_);
    shape.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.key_size)));
    return shape;
  }

  // Lists in host memory, shapes and values checked.
  Status CheckedLists(OpKernelContext* c, int first, const std::string& prefix, int64_t length,
                      TfgenBlocksparseLists* lists) const {
    TF_RETURN_IF_ERROR(CheckListShapes(attributes_, c, first, prefix, length));
    *lists = ListsAt(c, first);
    return CheckListValues(*lists, length / attributes_.blocksize, c->input(first + 1).NumElements(),
                           c->input(first + 3).dim_size(0), prefix);
  }

  Attributes attributes_;
  DataType dtype_;
};

class AttentionOp : public BlocksparseOp {
 public:
  using BlocksparseOp::BlocksparseOp;

  void Compute(OpKernelContext* c) override {
    Problem p;
    TfgenBlocksparseForward args;
    OP_REQUIRES_OK(c, CheckForward(attributes_, c, &p));
    OP_REQUIRES_OK(c, CheckedLists(c, kRows, "", p.length, &args.rows));
    args.shape = ShapeOf(p);
    Tensor *out, *lse;
    OP_REQUIRES_OK(c, c->allocate_output(0, c->input(2).shape(), &out));
    OP_REQUIRES_OK(c, c->allocate_output(1, TensorShape({p.batch, attributes_.num_heads, p.length}), &lse));
    args.q = c->input(0).data(), args.k = c->input(1).data(), args.v = c->input(2).data();
    args.out = out->data(), args.lse = lse->flat<float>().data();
    Run(c, &args);
  }

 protected:
  static constexpr int kRows = 3;  // number of the first list tensor
  virtual void Run(OpKernelContext* c, TfgenBlocksparseForward* args) = 0;
};

class AttentionGradOp : public BlocksparseOp {
 public:
  using BlocksparseOp::BlocksparseOp;

  void Compute(OpKernelContext* c) override {
    Problem p;
    TfgenBlocksparseBackward args;
    OP_REQUIRES_OK(c, CheckForward(attributes_, c, &p));
    OP_REQUIRES_OK(c, CheckSaved(attributes_, c, &p));
    OP_REQUIRES_OK(c, CheckedLists(c, kRows, "", p.length, &args.rows));
    OP_REQUIRES_OK(c, CheckedLists(c, kColumns, "transposed_", p.length, &args.columns));
    OP_REQUIRES(c, args.rows.layouts == args.columns.layouts &&
                       c->input(kRows + 1).NumElements() == c->input(kColumns + 1).NumElements(),
                InvalidArgument("the transposed lists have another number of layouts or entries than the lists"));
    OP_REQUIRES_OK(c, CheckTransposed(args.rows, args.columns, p.length / attributes_.blocksize,
                                      c->input(kRows + 3).dim_size(0), attributes_.blocksize));
    args.shape = ShapeOf(p);
    Tensor *gradients[3], delta;
    for (int i = 0; i < 3; ++i) OP_REQUIRES_OK(c, c->allocate_output(i, c->input(i).shape(), &gradients[i]));
    OP_REQUIRES_OK(c, c->allocate_temp(tensorflow::DT_FLOAT, c->input(4).shape(), &delta));
    args.q = c->input(0).data(), args.k = c->input(1).data(), args.v = c->input(2).data();
    args.out = c->input(3).data(), args.lse = c->input(4).flat<float>().data(), args.dout = c->input(5).data();
    args.delta = delta.flat<float>().data();
    args.dq = gradients[0]->data(), args.dk = gradients[1]->data(), args.dv = gradients[2]->data();
    Run(c, &args);
  }

 protected:
  static constexpr int kRows = 6, kColumns = kRows + kListTensors;
  virtual void Run(OpKernelContext* c, TfgenBlocksparseBackward* args) = 0;
};

// Units write disjoint memory: how they are cut into shards changes no bit of the result. Each unit is `blocks` block
// rows of a head.
template <typename Args, typename Pass>
void RunUnits(OpKernelContext* c, const Args& args, int64_t blocks, int64_t cost_of_block, Pass pass) {
  const auto& threads = *c->device()->tensorflow_cpu_worker_threads();
  const int64_t units = tfgen_blocksparse_units(&args.shape) / blocks;
  tensorflow::Shard(threads.num_threads, threads.workers, units, blocks * cost_of_block,
                    [&args, pass](int64_t first, int64_t last) { pass(&args, first, last); });
}

class AttentionCpuOp : public AttentionOp {
 public:
  using AttentionOp::AttentionOp;

 protected:
  void Run(OpKernelContext* c, TfgenBlocksparseForward* args) override {
    const int64_t cost = CostOfRow(args->shape, args->rows, c->input(kRows + 1).NumElements(), 2);
    RunUnits(c, *args, 1, cost, tfgen_blocksparse_forward_cpu);
  }
};

class AttentionGradCpuOp : public AttentionGradOp {
 public:
  using AttentionGradOp::AttentionGradOp;

 protected:
  void Run(OpKernelContext* c, TfgenBlocksparseBackward* args) override {
    const int64_t cost = CostOfRow(args->shape, args->rows, c->input(kRows + 1).NumElements(), 4);
    // The choice is the layout's alone, so that results do not depend on the machine's threads.
    const int64_t together = tfgen_blocksparse_group_blocks(&args->shape, &args->rows);
    if (together > 0) {
      RunUnits(c, *args, together, cost, tfgen_blocksparse_backward_group_cpu);
    } else {
      RunUnits(c, *args, 1, cost, tfgen_blocksparse_backward_query_cpu);
      RunUnits(c, *args, 1, cost, tfgen_blocksparse_backward_key_cpu);
    }
  }
};

#if GOOGLE_CUDA
// The lists on the device. They arrive in host memory, where they are checked, and are constants of a graph: one copy
// serves as long as the same tensors come in. Holding on to those tensors keeps their memory from being reused.
class DeviceLists {
 public:
  Status Get(OpKernelContext* c, int first, TfgenBlocksparseLists* lists) {
    tensorflow::mutex_lock lock(mutex_);
    bool same = true;
    int64_t starts[kListTensors + 1] = {0};  // in words, each on a 16-byte boundary
    for (int i = 0; i < kListTensors; ++i) {
      const Tensor& tensor = c->input(first + i);
      const bool empty = tensor.NumElements() == 0;
      same = same && host_[i].shape() == tensor.shape() && (empty || host_[i].data() == tensor.data());
      starts[i + 1] = starts[i] + (tensor.NumElements() + 3) / 4 * 4;
    }
    if (!same) TF_RETURN_IF_ERROR(Copy(c, first, starts));
    const int32_t* data = device_.flat<int32_t>().data();
    lists->offsets = data, lists->columns = data + starts[1], lists->masks = data + starts[2];
    lists->mask_bits = reinterpret_cast<const uint32_t*>(data + starts[3]);
    return OkStatus();
  }

 private:
  Status Copy(OpKernelContext* c, int first, const int64_t* starts) {
    std::vector<int32_t> words(starts[kListTensors]);
    for (int i = 0; i < kListTensors; ++i) {
      const Tensor& tensor = c->input(first + i);
      if (tensor.NumElements() > 0) std::memcpy(words.data() + starts[i], tensor.data(), tensor.TotalBytes());
    }
    Tensor copy;
    TF_RETURN_IF_ERROR(c->allocate_temp(tensorflow::DT_INT32, TensorShape({starts[kListTensors]}), &copy));
    // From pageable memory: `words` has been read when this returns.
    const cudaError_t error = cudaMemcpyAsync(copy.data(), words.data(), words.size() * sizeof(int32_t),
                                              cudaMemcpyHostToDevice, c->eigen_gpu_device().stream());
    if (error != cudaSuccess) {
      return tensorflow::errors::Internal("copying block lists to the device: ", cudaGetErrorString(error));
    }
    device_ = copy;
    for (int i = 0; i < kListTensors; ++i) host_[i] = c->input(first + i);
    return OkStatus();
  }

  tensorflow::mutex mutex_;
  Tensor host_[kListTensors], device_;
};

void RequireSuccess(OpKernelContext* c, int error) {
  OP_REQUIRES(c, error == cudaSuccess,
              tensorflow::errors::Internal("block-sparse attention: ",
                                           cudaGetErrorString(static_cast<cudaError_t>(error))));
}

Status CheckSizes(const TfgenBlocksparseShape& shape) {
  const int64_t widest = shape.key_size > shape.value_size ? shape.key_size : shape.value_size;
  if (widest <= TFGEN_BLOCKSPARSE_MAX_CUDA_SIZE) return OkStatus();
  return InvalidArgument("block-sparse attention on a GPU takes heads of up to ", TFGEN_BLOCKSPARSE_MAX_CUDA_SIZE,
                         " features, found ", widest, "; use more heads, or TFGEN_PURE_TF=1");
}

class AttentionGpuOp : public AttentionOp {
 public:
  using AttentionOp::AttentionOp;

 protected:
  void Run(OpKernelContext* c, TfgenBlocksparseForward* args) override {
    OP_REQUIRES_OK(c, CheckSizes(args->shape));
    OP_REQUIRES_OK(c, rows_.Get(c, kRows, &args->rows));
    RequireSuccess(c, tfgen_blocksparse_forward_cuda(args, c->eigen_gpu_device().stream()));
  }

 private:
  DeviceLists rows_;
};

class AttentionGradGpuOp : public AttentionGradOp {
 public:
  using AttentionGradOp::AttentionGradOp;

 protected:
  void Run(OpKernelContext* c, TfgenBlocksparseBackward* args) override {
    OP_REQUIRES_OK(c, CheckSizes(args->shape));
    OP_REQUIRES_OK(c, rows_.Get(c, kRows, &args->rows));
    OP_REQUIRES_OK(c, columns_.Get(c, kColumns, &args->columns));
    RequireSuccess(c, tfgen_blocksparse_backward_cuda(args, c->eigen_gpu_device().stream()));
  }

 private:
  DeviceLists rows_, columns_;
};
#endif  // GOOGLE_CUDA

Status AttentionShapes(InferenceContext* c) {
  Attributes attributes;
  Problem p;
  TF_RETURN_IF_ERROR(ReadAttributes(c, &attributes));
  TF_RETURN_IF_ERROR(CheckForward(attributes, c, &p));
  TF_RETURN_IF_ERROR(CheckListShapes(attributes, c, 3, "", p.length));
  TF_RETURN_IF_ERROR(CheckListShapes(attributes, c, 3 + kListTensors, "transposed_", p.length));
  c->set_output(0, c->MakeShape({c->MakeDim(p.batch), c->MakeDim(p.length), c->MakeDim(p.value_features)}));
  c->set_output(1, c->MakeShape({c->MakeDim(p.batch), c->MakeDim(attributes.num_heads), c->MakeDim(p.length)}));
  return OkStatus();
}

Status AttentionGradShapes(InferenceContext* c) {
  Attributes attributes;
  Problem p;
  TF_RETURN_IF_ERROR(ReadAttributes(c, &attributes));
  TF_RETURN_IF_ERROR(CheckForward(attributes, c, &p));
  TF_RETURN_IF_ERROR(CheckSaved(attributes, c, &p));
  TF_RETURN_IF_ERROR(CheckListShapes(attributes, c, 6, "", p.length));
  TF_RETURN_IF_ERROR(CheckListShapes(attributes, c, 6 + kListTensors, "transposed_", p.length));
  for (int i = 0; i < 3; ++i) c->set_output(i, c->input(i));
  return OkStatus();
}

// The forward operation does not read the transposed lists: it carries them to its gradient.
REGISTER_OP("TfgenBlocksparseAttention")
    .Input("q: T")
    .Input("k: T")
    .Input("v: T")
    .Input("offsets: int32")
    .Input("columns: int32")
    .Input("masks: int32")
    .Input("mask_bits: uint32")
    .Input("transposed_offsets: int32")
    .Input("transposed_columns: int32")
    .Input("transposed_masks: int32")
    .Input("transposed_mask_bits: uint32")
    .Output("out: T")
    .Output("lse: float")
    .Attr("T: {float, bfloat16, half}")
    .Attr("num_heads: int >= 1")
    .Attr("blocksize: int >= 8")
    .Attr("stride: int >= 1 = 1")
    .SetShapeFn(AttentionShapes);

REGISTER_OP("TfgenBlocksparseAttentionGrad")
    .Input("q: T")
    .Input("k: T")
    .Input("v: T")
    .Input("out: T")
    .Input("lse: float")
    .Input("dout: T")
    .Input("offsets: int32")
    .Input("columns: int32")
    .Input("masks: int32")
    .Input("mask_bits: uint32")
    .Input("transposed_offsets: int32")
    .Input("transposed_columns: int32")
    .Input("transposed_masks: int32")
    .Input("transposed_mask_bits: uint32")
    .Output("dq: T")
    .Output("dk: T")
    .Output("dv: T")
    .Attr("T: {float, bfloat16, half}")
    .Attr("num_heads: int >= 1")
    .Attr("blocksize: int >= 8")
    .Attr("stride: int >= 1 = 1")
    .SetShapeFn(AttentionGradShapes);

using tensorflow::DEVICE_CPU;

#define TFGEN_REGISTER(T)                                                                                          \
  REGISTER_KERNEL_BUILDER(Name("TfgenBlocksparseAttention").Device(DEVICE_CPU).TypeConstraint<T>("T"),             \
                          AttentionCpuOp);                                                                         \
  REGISTER_KERNEL_BUILDER(Name("TfgenBlocksparseAttentionGrad").Device(DEVICE_CPU).TypeConstraint<T>("T"),         \
                          AttentionGradCpuOp)
TFGEN_REGISTER(float);
TFGEN_REGISTER(tensorflow::bfloat16);
TFGEN_REGISTER(Eigen::half);
#undef TFGEN_REGISTER

REGISTER_KERNEL_BUILDER(Name("TfgenBlocksparseAttention").Device("XLA_CPU_JIT"), RefuseXlaOp);
REGISTER_KERNEL_BUILDER(Name("TfgenBlocksparseAttentionGrad").Device("XLA_CPU_JIT"), RefuseXlaOp);
REGISTER_KERNEL_BUILDER(Name("TfgenBlocksparseAttention").Device("XLA_GPU_JIT"), RefuseXlaOp);
REGISTER_KERNEL_BUILDER(Name("TfgenBlocksparseAttentionGrad").Device("XLA_GPU_JIT"), RefuseXlaOp);

#if GOOGLE_CUDA
// The lists stay in host memory, where they can be checked; see DeviceLists.
#define TFGEN_HOST_LISTS                                                                                     \
  HostMemory("offsets").HostMemory("columns").HostMemory("masks").HostMemory("mask_bits")                    \
      .HostMemory("transposed_offsets").HostMemory("transposed_columns").HostMemory("transposed_masks")      \
      .HostMemory("transposed_mask_bits")
#define TFGEN_REGISTER(T)                                                                                    \
  REGISTER_KERNEL_BUILDER(                                                                                   \
      Name("TfgenBlocksparseAttention").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T").TFGEN_HOST_LISTS, \
      AttentionGpuOp);                                                                                       \
  REGISTER_KERNEL_BUILDER(                                                                                   \
      Name("TfgenBlocksparseAttentionGrad").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T").TFGEN_HOST_LISTS, \
      AttentionGradGpuOp)
TFGEN_REGISTER(float);
TFGEN_REGISTER(tensorflow::bfloat16);
TFGEN_REGISTER(Eigen::half);
#undef TFGEN_REGISTER
#undef TFGEN_HOST_LISTS
#endif  // GOOGLE_CUDA

}  // namespace
}  // namespace tfgen
