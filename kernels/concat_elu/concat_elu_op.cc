// Concatenated ELU as TensorFlow operations for the CPU.
#include "kernels/concat_elu/concat_elu.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace tfgen {
namespace {

using tensorflow::OkStatus;
using tensorflow::OpKernel;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Cycles of an element of x, for the decision how many threads share an array.
constexpr int64_t kForwardCycles = 2, kBackwardCycles = 2;

// The shape with twice as many channels.
Status Doubled(const TensorShape& x, TensorShape* doubled) {
  if (x.dims() == 0) return InvalidArgument("x must have channels, [..., channels], found a scalar");
  *doubled = x;
  doubled->set_dim(x.dims() - 1, 2 * x.dim_size(x.dims() - 1));
  return OkStatus();
}

class ConcatEluOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* c) override {
    const Tensor& x = c->input(0);
    TensorShape doubled;
    OP_REQUIRES_OK(c, Doubled(x.shape(), &doubled));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, doubled, &y));
    if (x.NumElements() == 0) return;
    const int64_t channels = x.dim_size(x.dims() - 1);
    const float* from = x.flat<float>().data();
    float* to = y->flat<float>().data();
    const auto* threads = c->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(threads->num_threads, threads->workers, x.NumElements() / channels, kForwardCycles * channels,
                      [=](int64_t first, int64_t last) {
                        tfgen_concat_elu_forward_cpu(from + first * channels, to + 2 * first * channels, last - first,
                                                     channels);
                      });
  }
};

class ConcatEluGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* c) override {
    const Tensor &x = c->input(0), &dy = c->input(1);
    TensorShape doubled;
    OP_REQUIRES_OK(c, Doubled(x.shape(), &doubled));
    OP_REQUIRES(c, dy.shape() == doubled,
                InvalidArgument("TfgenConcatEluGrad: dy has shape ", dy.shape().DebugString(),
                                ", expected that of x with twice the channels, ", doubled.DebugString()));
    Tensor* dx = nullptr;
    OP_REQUIRES_OK(c, c->forward_input_or_allocate_output({0}, 0, x.shape(), &dx));
    if (x.NumElements() == 0) return;
    const int64_t channels = x.dim_size(x.dims() - 1);
    const float *at = x.flat<float>().data(), *upstream = dy.flat<float>().data();
    float* to = dx->flat<float>().data();
    const auto* threads = c->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(threads->num_threads, threads->workers, x.NumElements() / channels, kBackwardCycles * channels,
                      [=](int64_t first, int64_t last) {
                        tfgen_concat_elu_backward_cpu(at + first * channels, upstream + 2 * first * channels,
                                                      to + first * channels, last - first, channels);
                      });
  }
};

Status DoubledShape(InferenceContext* c, ShapeHandle* doubled) {
  ShapeHandle x;
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 1, &x));
  *doubled = c->UnknownShape();
  if (!c->RankKnown(x)) return OkStatus();
  DimensionHandle channels;
  TF_RETURN_IF_ERROR(c->Multiply(c->Dim(x, -1), 2, &channels));
  return c->ReplaceDim(x, -1, channels, doubled);
}

REGISTER_OP("TfgenConcatElu").Input("x: float").Output("y: float").SetShapeFn([](InferenceContext* c) {
  ShapeHandle doubled;
  TF_RETURN_IF_ERROR(DoubledShape(c, &doubled));
  c->set_output(0, doubled);
  return OkStatus();
});

REGISTER_OP("TfgenConcatEluGrad")
    .Input("x: float")
    .Input("dy: float")
    .Output("dx: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle doubled;
      TF_RETURN_IF_ERROR(DoubledShape(c, &doubled));
      TF_RETURN_IF_ERROR(c->Merge(doubled, c->input(1), &doubled));
      c->set_output(0, c->input(0));
      return OkStatus();
    });

REGISTER_KERNEL_BUILDER(Name("TfgenConcatElu").Device(tensorflow::DEVICE_CPU), ConcatEluOp);
REGISTER_KERNEL_BUILDER(Name("TfgenConcatEluGrad").Device(tensorflow::DEVICE_CPU), ConcatEluGradOp);

}  // namespace
}  // namespace tfgen
