// GELU as TensorFlow operations for the CPU.
#include "kernels/gelu/gelu.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace tfgen {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::shape_inference::InferenceContext;

// Cycles of an element, for the decision how many threads share an array.
constexpr int64_t kForwardCycles = 2, kBackwardCycles = 3;

class GeluOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* c) override {
    const Tensor& x = c->input(0);
    Tensor* y = nullptr;
    OP_REQUIRES_OK(c, c->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    const float* from = x.flat<float>().data();
    float* to = y->flat<float>().data();
    const auto* threads = c->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(threads->num_threads, threads->workers, x.NumElements(), kForwardCycles,
                      [=](int64_t first, int64_t last) {
                        tfgen_gelu_forward_cpu(from + first, to + first, last - first);
                      });
  }
};

class GeluGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* c) override {
    const Tensor &x = c->input(0), &dy = c->input(1);
    OP_REQUIRES(c, x.shape() == dy.shape(),
                tensorflow::errors::InvalidArgument("TfgenGeluGrad: dy has shape ", dy.shape().DebugString(),
                                                    ", expected that of x, ", x.shape().DebugString()));
    Tensor* dx = nullptr;
    OP_REQUIRES_OK(c, c->forward_input_or_allocate_output({1, 0}, 0, x.shape(), &dx));
    const float *at = x.flat<float>().data(), *upstream = dy.flat<float>().data();
    float* to = dx->flat<float>().data();
    const auto* threads = c->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(threads->num_threads, threads->workers, x.NumElements(), kBackwardCycles,
                      [=](int64_t first, int64_t last) {
                        tfgen_gelu_backward_cpu(at + first, upstream + first, to + first, last - first);
                      });
  }
};

REGISTER_OP("TfgenGelu").Input("x: float").Output("y: float").SetShapeFn(tensorflow::shape_inference::UnchangedShape);

REGISTER_OP("TfgenGeluGrad")
    .Input("x: float")
    .Input("dy: float")
    .Output("dx: float")
    .SetShapeFn([](InferenceContext* c) {
      tensorflow::shape_inference::ShapeHandle merged;
      TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &merged));
      c->set_output(0, merged);
      return tensorflow::OkStatus();
    });

REGISTER_KERNEL_BUILDER(Name("TfgenGelu").Device(tensorflow::DEVICE_CPU), GeluOp);
REGISTER_KERNEL_BUILDER(Name("TfgenGeluGrad").Device(tensorflow::DEVICE_CPU), GeluGradOp);

}  // namespace
}  // namespace tfgen
