// Group normalisation as TensorFlow operations for the CPU.
#include "kernels/group_norm/group_norm.h"

#include <tuple>

#include "kernels/blocksparse/blocksparse.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace tfgen {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Cycles of an element, for the decision how many threads share an array: without SiLU, and what it adds.
constexpr int64_t kForwardCycles = 2, kBackwardCycles = 3, kSiluCycles = 4;

int32_t DtypeCode(tensorflow::DataType dtype) {
  return dtype == tensorflow::DT_FLOAT ? TFGEN_FLOAT32 : dtype == tensorflow::DT_HALF ? TFGEN_FLOAT16 : TFGEN_BFLOAT16;
}

// Rows of a gain or offset: 1, or as many as samples.
Status CheckRows(const char* op, const char* name, const Tensor& rows, const TfgenGroupNormShape& shape,
                 int64_t* count) {
  if (rows.dims() != 2 || rows.dim_size(1) != shape.channels ||
      (rows.dim_size(0) != 1 && rows.dim_size(0) != shape.batch)) {
    return InvalidArgument(op, ": ", name, " has shape ", rows.shape().DebugString(), ", expected [1 or ", shape.batch,
                           ", ", shape.channels, "]");
  }
  *count = rows.dim_size(0);
  return tensorflow::OkStatus();
}

// The first three inputs, which both operations share: x, gain, offset.
class GroupNormBase : public OpKernel {
 public:
  explicit GroupNormBase(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("groups", &groups_));
    OP_REQUIRES_OK(c, c->GetAttr("silu", &silu_));
  }

 protected:
  Status Check(OpKernelContext* c, float epsilon, TfgenGroupNormShape* shape) const {
    const char* op = type_string().c_str();
    const Tensor& x = c->input(0);
    if (x.dims() != 4) {
      return InvalidArgument(op, ": x has shape ", x.shape().DebugString(),
                             ", expected [batch, height, width, channels]");
    }
    shape->batch = x.dim_size(0), shape->pixels = x.dim_size(1) * x.dim_size(2), shape->channels = x.dim_size(3);
    shape->groups = groups_, shape->silu = silu_, shape->epsilon = epsilon, shape->dtype = DtypeCode(x.dtype());
    if (shape->channels == 0 || shape->channels % groups_) {
      return InvalidArgument(op, ": ", shape->channels, " channels do not form ", groups_,
                             " equal groups: make their number a multiple of it");
    }
    TF_RETURN_IF_ERROR(CheckRows(op, "gain", c->input(1), *shape, &shape->gain_rows));
    return CheckRows(op, "offset", c->input(2), *shape, &shape->offset_rows);
  }

  template <typename Args>
  static void Run(OpKernelContext* c, Args args, int64_t cycles, void (*kernel)(const Args*, int64_t, int64_t)) {
    const auto* threads = c->device()->tensorflow_cpu_worker_threads();
    TfgenGroupNormShape& shape = args.shape;
    shape.threads = threads->num_threads;
    const int64_t units = tfgen_group_norm_units(&shape);
    if (units == 0) return;
    Tensor scratch;
    const TensorShape numbers({tfgen_group_norm_scratch(&shape)});
    OP_REQUIRES_OK(c, c->allocate_temp(tensorflow::DT_DOUBLE, numbers, &scratch));
    args.scratch = scratch.flat<double>().data();
    const int64_t elements = shape.batch * shape.pixels * shape.channels / units;
    tensorflow::Shard(threads->num_threads, threads->workers, units,
                      1000 + elements * (cycles + (shape.silu ? kSiluCycles : 0)),
                      [&args, kernel](int64_t first, int64_t last) { kernel(&args, first, last); });
  }

  int64_t groups_;
  bool silu_;
};

class GroupNormOp : public GroupNormBase {
 public:
  explicit GroupNormOp(OpKernelConstruction* c) : GroupNormBase(c) {
    OP_REQUIRES_OK(c, c->GetAttr("epsilon", &epsilon_));
    OP_REQUIRES(c, epsilon_ > 0, InvalidArgument("TfgenGroupNorm: epsilon is ", epsilon_, ", expected more than 0"));
  }

  void Compute(OpKernelContext* c) override {
    TfgenGroupNormForward args;
    OP_REQUIRES_OK(c, Check(c, epsilon_, &args.shape));
    Tensor *y = nullptr, *mean = nullptr, *inverse = nullptr;
    const TensorShape statistics({args.shape.batch, args.shape.groups});
    OP_REQUIRES_OK(c, c->forward_input_or_allocate_output({0}, 0, c->input(0).shape(), &y));
    OP_REQUIRES_OK(c, c->allocate_output(1, statistics, &mean));
    OP_REQUIRES_OK(c, c->allocate_output(2, statistics, &inverse));
    args.x = c->input(0).data(), args.y = y->data();
    args.gain = c->input(1).flat<float>().data(), args.offset = c->input(2).flat<float>().data();
    args.mean = mean->flat<float>().data(), args.inverse = inverse->flat<float>().data();
    Run(c, args, kForwardCycles, tfgen_group_norm_forward_cpu);
  }

 private:
  float epsilon_;
};

class GroupNormGradOp : public GroupNormBase {
 public:
  using GroupNormBase::GroupNormBase;

  void Compute(OpKernelContext* c) override {
    TfgenGroupNormBackward args;
    OP_REQUIRES_OK(c, Check(c, 0.0f, &args.shape));
    const Tensor& x = c->input(0);
    const TensorShape statistics({args.shape.batch, args.shape.groups});
    for (const auto& [place, name, expected] : {std::tuple(3, "dy", x.shape()), std::tuple(4, "mean", statistics),
                                                std::tuple(5, "inverse", statistics)}) {
      OP_REQUIRES(c, c->input(place).shape() == expected,
                  InvalidArgument("TfgenGroupNormGrad: ", name, " has shape ", c->input(place).shape().DebugString(),
                                  ", expected ", expected.DebugString()));
    }
    Tensor* dx = nullptr;
    OP_REQUIRES_OK(c, c->forward_input_or_allocate_output({3}, 0, x.shape(), &dx));
    args.x = x.data(), args.dy = c->input(3).data(), args.dx = dx->data();
    args.gain = c->input(1).flat<float>().data(), args.offset = c->input(2).flat<float>().data();
    args.mean = c->input(4).flat<float>().data(), args.inverse = c->input(5).flat<float>().data();
    // The kernel writes a row for each sample; one row that serves all samples gets their sum afterwards.
    Tensor rows[2];
    for (int i = 0; i < 2; ++i) {
      OP_REQUIRES_OK(c, c->allocate_temp(tensorflow::DT_FLOAT, {args.shape.batch, args.shape.channels}, &rows[i]));
    }
    args.dgain = rows[0].flat<float>().data(), args.doffset = rows[1].flat<float>().data();
    Run(c, args, kBackwardCycles, tfgen_group_norm_backward_cpu);
    if (!c->status().ok()) return;
    for (int i = 0; i < 2; ++i) {
      if (c->input(1 + i).dim_size(0) == args.shape.batch) {
        c->set_output(1 + i, rows[i]);
        continue;
      }
      Tensor* total = nullptr;
      OP_REQUIRES_OK(c, c->allocate_output(1 + i, {1, args.shape.channels}, &total));
      SumRows(rows[i], total);
    }
  }

 private:
  // In the order of samples, whatever threads wrote them.
  static void SumRows(const Tensor& rows, Tensor* total) {
    const auto from = rows.matrix<float>();
    auto to = total->matrix<float>();
    for (int64_t channel = 0; channel < rows.dim_size(1); ++channel) {
      double sum = 0;
      for (int64_t sample = 0; sample < rows.dim_size(0); ++sample) sum += from(sample, channel);
      to(0, channel) = static_cast<float>(sum);
    }
  }
};

Status ForwardShapes(InferenceContext* c) {
  ShapeHandle x, rows;
  DimensionHandle merged;
  int64_t groups;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
  for (int i = 1; i < 3; ++i) {
    TF_RETURN_IF_ERROR(c->WithRank(c->input(i), 2, &rows));
    TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 3), c->Dim(rows, 1), &merged));
  }
  TF_RETURN_IF_ERROR(c->GetAttr("groups", &groups));
  c->set_output(0, x);
  for (int i = 1; i < 3; ++i) c->set_output(i, c->Matrix(c->Dim(x, 0), groups));
  return tensorflow::OkStatus();
}

Status BackwardShapes(InferenceContext* c) {
  ShapeHandle x;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
  TF_RETURN_IF_ERROR(c->Merge(x, c->input(3), &x));
  c->set_output(0, x);
  for (int i = 1; i < 3; ++i) {
    ShapeHandle rows;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(i), 2, &rows));
    c->set_output(i, rows);
  }
  return tensorflow::OkStatus();
}

REGISTER_OP("TfgenGroupNorm")
    .Input("x: T")
    .Input("gain: float")
    .Input("offset: float")
    .Output("y: T")
    .Output("mean: float")
    .Output("inverse: float")
    .Attr("T: {float, bfloat16, half}")
    .Attr("groups: int >= 1")
    .Attr("epsilon: float")
    .Attr("silu: bool")
    .SetShapeFn(ForwardShapes);

REGISTER_OP("TfgenGroupNormGrad")
    .Input("x: T")
    .Input("gain: float")
    .Input("offset: float")
    .Input("dy: T")
    .Input("mean: float")
    .Input("inverse: float")
    .Output("dx: T")
    .Output("dgain: float")
    .Output("doffset: float")
    .Attr("T: {float, bfloat16, half}")
    .Attr("groups: int >= 1")
    .Attr("silu: bool")
    .SetShapeFn(BackwardShapes);

REGISTER_KERNEL_BUILDER(Name("TfgenGroupNorm").Device(tensorflow::DEVICE_CPU), GroupNormOp);
REGISTER_KERNEL_BUILDER(Name("TfgenGroupNormGrad").Device(tensorflow::DEVICE_CPU), GroupNormGradOp);

}  // namespace
}  // namespace tfgen
