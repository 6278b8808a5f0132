// TensorFlow's side of the Langevin step: operations, shape functions, checks of the inputs, kernels for CPU and GPU.
//
// The arithmetic is behind the C interface of langevin.h. Whatever a caller passes is checked here: the functions
// behind that interface trust what they are given.
#if GOOGLE_CUDA
#define EIGEN_USE_GPU  // before any header of TensorFlow or Eigen
#include <cuda_runtime_api.h>
#endif

#include <string>

#include "kernels/langevin/langevin.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace tfgen {
namespace {

using tensorflow::OkStatus;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Cycles of an element, for the decision how many threads share a tensor: of the arithmetic, and of a random number.
constexpr int64_t kStepCycles = 2, kRandomCycles = 8;
constexpr int64_t kMostOf32Bits = 0xffffffff;

// A number, in host memory.
template <typename T>
Status ReadScalar(OpKernelContext* c, const char* name, T* value) {
  const Tensor* tensor;
  TF_RETURN_IF_ERROR(c->input(name, &tensor));
  if (tensor->dims() != 0) return InvalidArgument(name, " must be a scalar, found ", tensor->shape().DebugString());
  *value = tensor->scalar<T>()();
  return OkStatus();
}

// seed, step, first_element and the attribute stream.
Status ReadRandom(OpKernelContext* c, int64_t stream, TfgenRandom* random) {
  int64_t seed, step, first_element;
  TF_RETURN_IF_ERROR(ReadScalar(c, "seed", &seed));
  TF_RETURN_IF_ERROR(ReadScalar(c, "step", &step));
  TF_RETURN_IF_ERROR(ReadScalar(c, "first_element", &first_element));
  if (step < 0 || step > kMostOf32Bits) {
    return InvalidArgument("step must be in 0 .. ", kMostOf32Bits, ", found ", step);
  }
  if (first_element < 0) return InvalidArgument("first_element must be 0 or more, found ", first_element);
  random->seed = static_cast<uint64_t>(seed), random->first_element = static_cast<uint64_t>(first_element);
  random->step = static_cast<uint32_t>(step), random->stream = static_cast<uint32_t>(stream);
  return OkStatus();
}

Status ReadStream(OpKernelConstruction* c, int64_t* stream) {
  TF_RETURN_IF_ERROR(c->GetAttr("stream", stream));
  if (*stream > kMostOf32Bits) return InvalidArgument("stream must be in 0 .. ", kMostOf32Bits, ", found ", *stream);
  return OkStatus();
}

// The tensor of a list of none or one.
Status ReadOptional(OpKernelContext* c, const char* name, const Tensor** tensor) {
  tensorflow::OpInputList list;
  TF_RETURN_IF_ERROR(c->input_list(name, &list));
  if (list.size() > 1) return InvalidArgument(name, " must be at most one tensor, found ", list.size());
  *tensor = list.size() == 1 ? &list[0] : nullptr;
  return OkStatus();
}

// Samples and their size. A scalar would have neither.
Status ReadSizes(const Tensor& x, int64_t* samples, int64_t* size) {
  if (x.dims() < 1) return InvalidArgument("x must have a first axis of samples, found ", x.shape().DebugString());
  *samples = x.dim_size(0);
  *size = *samples == 0 ? 0 : x.NumElements() / *samples;
  return OkStatus();
}

// A mask for all samples has 1 for the first axis, one for each has as many as x; all else is as in x.
Status ReadMask(OpKernelContext* c, const Tensor& x, TfgenLangevinMask* mask) {
  const Tensor* tensor;
  TF_RETURN_IF_ERROR(ReadOptional(c, "mask", &tensor));
  mask->values = nullptr, mask->rows = 0;
  if (tensor == nullptr) return OkStatus();
  TensorShape shared = x.shape();
  shared.set_dim(0, 1);
  if (tensor->shape() != x.shape() && tensor->shape() != shared) {
    return InvalidArgument("mask must have shape ", x.shape().DebugString(), " or ", shared.DebugString(), ", found ",
                           tensor->shape().DebugString());
  }
  mask->values = tensor->flat<float>().data(), mask->rows = tensor->dim_size(0);
  return OkStatus();
}

Status CheckSameShape(const char* name, const Tensor& tensor, const Tensor& x) {
  if (tensor.shape() == x.shape()) return OkStatus();
  return InvalidArgument(name, " must have the shape of x, ", x.shape().DebugString(), ", found ",
                         tensor.shape().DebugString());
}

// Where kernels run: `Device` of the operations below.
class Cpu {
 public:
  static void Forward(OpKernelContext* c, const TfgenLangevinForward& args) { Phases(c, args, false, Cycles(args)); }
  static void Backward(OpKernelContext* c, const TfgenLangevinBackward& args) {
    Phases(c, args, true, kStepCycles + (args.step.gradient_first ? kRandomCycles : 0));
  }
  static void Noise(OpKernelContext* c, const TfgenLangevinNoise& args) {
    Share(c, tfgen_langevin_element_units(args.samples * args.size), args.samples * args.size, kRandomCycles,
          [&args](int64_t first, int64_t last) { tfgen_langevin_noise_cpu(&args, first, last); });
  }
  static void Random(OpKernelContext* c, const TfgenRandomDraw& args) {
    Share(c, tfgen_langevin_element_units(args.count), args.count, kRandomCycles,
          [&args](int64_t first, int64_t last) { tfgen_random_cpu(&args, first, last); });
  }

 private:
  static int64_t Cycles(const TfgenLangevinForward& args) {
    const int draws = (args.step.gradient_first ? 1 : 0) + (args.y_next != nullptr ? 1 : 0);
    return kStepCycles + (args.step.sigma == 0.0f ? 0 : draws * kRandomCycles);
  }
  static void Run(const TfgenLangevinForward& args, int phase, int64_t first, int64_t last) {
    tfgen_langevin_forward_cpu(&args, phase, first, last);
  }
  static void Run(const TfgenLangevinBackward& args, int phase, int64_t first, int64_t last) {
    tfgen_langevin_backward_cpu(&args, phase, first, last);
  }

  template <typename Args>
  static void Phases(OpKernelContext* c, const Args& args, bool backward, int64_t cycles) {
    for (int phase = 0; phase < TFGEN_LANGEVIN_PHASES; ++phase) {
      Share(c, tfgen_langevin_units(&args.step, phase, backward), args.step.samples * args.step.size, cycles,
            [&args, phase](int64_t first, int64_t last) { Run(args, phase, first, last); });
    }
  }

  template <typename Work>
  static void Share(OpKernelContext* c, int64_t units, int64_t elements, int64_t cycles, Work work) {
    if (units == 0) return;
    const auto* threads = c->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(threads->num_threads, threads->workers, units, 100 + elements / units * cycles, work);
  }
};

#if GOOGLE_CUDA
class Gpu {
 public:
  static void Forward(OpKernelContext* c, const TfgenLangevinForward& args) {
    RequireSuccess(c, tfgen_langevin_forward_cuda(&args, c->eigen_gpu_device().stream()));
  }
  static void Backward(OpKernelContext* c, const TfgenLangevinBackward& args) {
    RequireSuccess(c, tfgen_langevin_backward_cuda(&args, c->eigen_gpu_device().stream()));
  }
  static void Noise(OpKernelContext* c, const TfgenLangevinNoise& args) {
    RequireSuccess(c, tfgen_langevin_noise_cuda(&args, c->eigen_gpu_device().stream()));
  }
  static void Random(OpKernelContext* c, const TfgenRandomDraw& args) {
    RequireSuccess(c, tfgen_random_cuda(&args, c->eigen_gpu_device().stream()));
  }

 private:
  static void RequireSuccess(OpKernelContext* c, int error) {
    OP_REQUIRES(c, error == cudaSuccess,
                tensorflow::errors::Internal("Langevin step: ", cudaGetErrorString(static_cast<cudaError_t>(error))));
  }
};
#endif  // GOOGLE_CUDA

// What the step and its gradient share.
class StepOpBase : public OpKernel {
 public:
  explicit StepOpBase(OpKernelConstruction* c) : OpKernel(c) {
    std::string clip_mode, projection;
    OP_REQUIRES_OK(c, c->GetAttr("clip_mode", &clip_mode));
    OP_REQUIRES_OK(c, c->GetAttr("projection", &projection));
    OP_REQUIRES_OK(c, c->GetAttr("gradient_first", &gradient_first_));
    OP_REQUIRES_OK(c, ReadStream(c, &stream_));
    clip_mode_ = clip_mode == "none"          ? TFGEN_CLIP_NONE
                 : clip_mode == "value"       ? TFGEN_CLIP_VALUE
                 : clip_mode == "tensor_norm" ? TFGEN_CLIP_TENSOR_NORM
                                              : TFGEN_CLIP_SAMPLE_NORM;
    projection_ = projection == "range" ? TFGEN_PROJECT_RANGE
                  : projection == "box" ? TFGEN_PROJECT_BOX
                                        : TFGEN_PROJECT_BALL;
  }

 protected:
  // Everything but the norms.
  Status ReadStep(OpKernelContext* c, TfgenLangevinStep* step) const {
    const Tensor *x, *g, *anchor;
    TF_RETURN_IF_ERROR(c->input("x", &x));
    TF_RETURN_IF_ERROR(c->input("g", &g));
    TF_RETURN_IF_ERROR(ReadOptional(c, "anchor", &anchor));
    TF_RETURN_IF_ERROR(ReadSizes(*x, &step->samples, &step->size));
    TF_RETURN_IF_ERROR(CheckSameShape("g", *g, *x));
    TF_RETURN_IF_ERROR(ReadMask(c, *x, &step->mask));
    TF_RETURN_IF_ERROR(ReadRandom(c, stream_, &step->random));
    for (auto [name, value] : {std::pair("eta", &step->eta), std::pair("sigma", &step->sigma),
                               std::pair("lower", &step->lower), std::pair("upper", &step->upper),
                               std::pair("clip", &step->clip), std::pair("radius", &step->radius)}) {
      TF_RETURN_IF_ERROR(ReadScalar(c, name, value));
    }
    step->clip_mode = clip_mode_, step->projection = projection_, step->gradient_first = gradient_first_;
    step->x = x->flat<float>().data(), step->g = g->flat<float>().data(), step->anchor = nullptr;
    if (clip_mode_ != TFGEN_CLIP_NONE && !(step->clip > 0)) {
      return InvalidArgument("clip must be more than 0, found ", step->clip);
    }
    if (projection_ == TFGEN_PROJECT_RANGE) {
      if (anchor != nullptr) return InvalidArgument("a projection to a range takes no anchor");
      if (step->lower <= step->upper) return OkStatus();
      return InvalidArgument("lower must not exceed upper, found ", step->lower, " and ", step->upper);
    }
    if (anchor == nullptr) return InvalidArgument("a projection to a box or ball needs an anchor");
    if (!(step->radius > 0)) return InvalidArgument("radius must be more than 0, found ", step->radius);
    step->anchor = anchor->flat<float>().data();
    return CheckSameShape("anchor", *anchor, *x);
  }

  int64_t GradientNorms(const TfgenLangevinStep& step) const {
    if (clip_mode_ == TFGEN_CLIP_TENSOR_NORM) return 1;
    return clip_mode_ == TFGEN_CLIP_SAMPLE_NORM ? step.samples : 0;
  }
  int64_t DisplacementNorms(const TfgenLangevinStep& step) const {
    return projection_ == TFGEN_PROJECT_BALL ? step.samples : 0;
  }

  static Status AllocateScratch(OpKernelContext* c, const TfgenLangevinStep& step, Tensor* scratch) {
    return c->allocate_temp(tensorflow::DT_DOUBLE, TensorShape({tfgen_langevin_scratch(&step)}), scratch);
  }

 private:
  int32_t clip_mode_, projection_;
  bool gradient_first_;
  int64_t stream_;
};

template <class Device>
class StepOp : public StepOpBase {
 public:
  explicit StepOp(OpKernelConstruction* c) : StepOpBase(c) { OP_REQUIRES_OK(c, c->GetAttr("next", &next_)); }

  void Compute(OpKernelContext* c) override {
    TfgenLangevinForward args;
    OP_REQUIRES_OK(c, ReadStep(c, &args.step));
    OP_REQUIRES(c, next_ <= 1, InvalidArgument("next must be 0 or 1, found ", next_));
    const TensorShape& shape = c->input(0).shape();
    Tensor *x_next, *gradient_norms, *displacement_norms, *y_next = nullptr, scratch;
    OP_REQUIRES_OK(c, c->forward_input_or_allocate_output({0}, 0, shape, &x_next));
    OP_REQUIRES_OK(c, c->allocate_output(1, TensorShape({GradientNorms(args.step)}), &gradient_norms));
    OP_REQUIRES_OK(c, c->allocate_output(2, TensorShape({DisplacementNorms(args.step)}), &displacement_norms));
    if (next_ == 1) OP_REQUIRES_OK(c, c->allocate_output(3, shape, &y_next));
    OP_REQUIRES_OK(c, AllocateScratch(c, args.step, &scratch));
    args.step.gradient_norms = gradient_norms->flat<float>().data();
    args.step.displacement_norms = displacement_norms->flat<float>().data();
    args.x_next = x_next->flat<float>().data(), args.scratch = scratch.flat<double>().data();
    args.y_next = y_next == nullptr ? nullptr : y_next->flat<float>().data();
    Device::Forward(c, args);
  }

 private:
  int64_t next_;
};

template <class Device>
class StepGradOp : public StepOpBase {
 public:
  using StepOpBase::StepOpBase;

  void Compute(OpKernelContext* c) override {
    TfgenLangevinBackward args;
    OP_REQUIRES_OK(c, ReadStep(c, &args.step));
    const Tensor& x = c->input(0);
    tensorflow::OpInputList upstream;
    OP_REQUIRES_OK(c, c->input_list("upstream", &upstream));
    OP_REQUIRES(c, upstream.size() <= 2, InvalidArgument("upstream must be one or two tensors"));
    for (const Tensor& tensor : upstream) OP_REQUIRES_OK(c, CheckSameShape("upstream", tensor, x));
    OP_REQUIRES_OK(c, ReadNorms(c, "gradient_norms", GradientNorms(args.step), &args.step.gradient_norms));
    OP_REQUIRES_OK(c, ReadNorms(c, "displacement_norms", DisplacementNorms(args.step), &args.step.displacement_norms));
    Tensor *dx, *dg, scratch;
    OP_REQUIRES_OK(c, c->allocate_output(0, x.shape(), &dx));
    OP_REQUIRES_OK(c, c->allocate_output(1, x.shape(), &dg));
    OP_REQUIRES_OK(c, AllocateScratch(c, args.step, &scratch));
    args.dx_next = upstream[0].flat<float>().data();
    args.dy_next = upstream.size() == 2 ? upstream[1].flat<float>().data() : nullptr;
    args.dx = dx->flat<float>().data(), args.dg = dg->flat<float>().data();
    args.scratch = scratch.flat<double>().data();
    Device::Backward(c, args);
  }

 private:
  // The kernels only read them.
  static Status ReadNorms(OpKernelContext* c, const char* name, int64_t count, float** norms) {
    const Tensor* tensor;
    TF_RETURN_IF_ERROR(c->input(name, &tensor));
    if (tensor->shape() != TensorShape({count})) {
      return InvalidArgument(name, " must have shape [", count, "], found ", tensor->shape().DebugString());
    }
    *norms = const_cast<float*>(tensor->flat<float>().data());
    return OkStatus();
  }
};

template <class Device>
class NoiseOp : public OpKernel {
 public:
  explicit NoiseOp(OpKernelConstruction* c) : OpKernel(c) { OP_REQUIRES_OK(c, ReadStream(c, &stream_)); }

  void Compute(OpKernelContext* c) override {
    TfgenLangevinNoise args;
    const Tensor& x = c->input(0);
    OP_REQUIRES_OK(c, ReadSizes(x, &args.samples, &args.size));
    OP_REQUIRES_OK(c, ReadMask(c, x, &args.mask));
    OP_REQUIRES_OK(c, ReadScalar(c, "sigma", &args.sigma));
    OP_REQUIRES_OK(c, ReadRandom(c, stream_, &args.random));
    Tensor* y;
    OP_REQUIRES_OK(c, c->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    args.x = x.flat<float>().data(), args.y = y->flat<float>().data();
    Device::Noise(c, args);
  }

 private:
  int64_t stream_;
};

template <class Device, TfgenRandomKind kKind>
class RandomOp : public OpKernel {
 public:
  explicit RandomOp(OpKernelConstruction* c) : OpKernel(c) { OP_REQUIRES_OK(c, ReadStream(c, &stream_)); }

  void Compute(OpKernelContext* c) override {
    TfgenRandomDraw args;
    TensorShape shape;
    const Tensor& sizes = c->input(0);
    OP_REQUIRES(c, sizes.dims() == 1, InvalidArgument("shape must be a vector, found ", sizes.shape().DebugString()));
    OP_REQUIRES_OK(c, tensorflow::TensorShapeUtils::MakeShape(sizes.vec<int64_t>(), &shape));
    OP_REQUIRES_OK(c, ReadRandom(c, stream_, &args.random));
    Tensor* out;
    OP_REQUIRES_OK(c, c->allocate_output(0, shape, &out));
    args.count = out->NumElements(), args.kind = kKind, args.out = out->data();
    Device::Random(c, args);
  }

 private:
  int64_t stream_;
};

// Shapes -------------------------------------------------------------------------------------------------------------

Status StepShapes(InferenceContext* c) {
  ShapeHandle x;
  std::string clip_mode, projection;
  int64_t next;
  TF_RETURN_IF_ERROR(c->GetAttr("clip_mode", &clip_mode));
  TF_RETURN_IF_ERROR(c->GetAttr("projection", &projection));
  TF_RETURN_IF_ERROR(c->GetAttr("next", &next));
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 1, &x));
  TF_RETURN_IF_ERROR(c->Merge(x, c->input(1), &x));
  const auto samples = c->RankKnown(x) ? c->Dim(x, 0) : c->UnknownDim();
  c->set_output(0, x);
  c->set_output(1, clip_mode == "sample_norm" ? c->Vector(samples) : c->Vector(clip_mode == "tensor_norm" ? 1 : 0));
  c->set_output(2, projection == "ball" ? c->Vector(samples) : c->Vector(0));
  for (int i = 0; i < next; ++i) c->set_output(3 + i, x);
  return OkStatus();
}

Status StepGradShapes(InferenceContext* c) {
  ShapeHandle x;
  TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &x));
  c->set_output(0, x);
  c->set_output(1, x);
  return OkStatus();
}

Status DrawShape(InferenceContext* c) {
  ShapeHandle shape;
  TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(0, &shape));
  c->set_output(0, shape);
  return OkStatus();
}

#define TFGEN_STEP_ARGUMENTS                                             \
  Input("x: float")                                                      \
      .Input("g: float")                                                 \
      .Input("mask: masks * float")                                      \
      .Input("anchor: anchors * float")                                  \
      .Input("eta: float")                                               \
      .Input("sigma: float")                                             \
      .Input("lower: float")                                             \
      .Input("upper: float")                                             \
      .Input("clip: float")                                              \
      .Input("radius: float")                                            \
      .Input("seed: int64")                                              \
      .Input("step: int64")                                              \
      .Input("first_element: int64")                                     \
      .Attr("masks: int >= 0")                                           \
      .Attr("anchors: int >= 0")                                         \
      .Attr("clip_mode: {'none', 'value', 'tensor_norm', 'sample_norm'}") \
      .Attr("projection: {'range', 'box', 'ball'}")                      \
      .Attr("gradient_first: bool")                                      \
      .Attr("stream: int >= 0")

REGISTER_OP("TfgenLangevinStep")
    .TFGEN_STEP_ARGUMENTS.Output("x_next: float")
    .Output("gradient_norms: float")
    .Output("displacement_norms: float")
    .Output("y_next: next * float")
    .Attr("next: int >= 0")
    .SetShapeFn(StepShapes);

REGISTER_OP("TfgenLangevinStepGrad")
    .TFGEN_STEP_ARGUMENTS.Input("gradient_norms: float")
    .Input("displacement_norms: float")
    .Input("upstream: upstreams * float")
    .Output("dx: float")
    .Output("dg: float")
    .Attr("upstreams: int >= 1")
    .SetShapeFn(StepGradShapes);

REGISTER_OP("TfgenLangevinNoise")
    .Input("x: float")
    .Input("mask: masks * float")
    .Input("sigma: float")
    .Input("seed: int64")
    .Input("step: int64")
    .Input("first_element: int64")
    .Output("y: float")
    .Attr("masks: int >= 0")
    .Attr("stream: int >= 0")
    .SetShapeFn(tensorflow::shape_inference::UnchangedShape);

#define TFGEN_DRAW(name, type)      \
  REGISTER_OP(name)                 \
      .Input("shape: int64")        \
      .Input("seed: int64")         \
      .Input("step: int64")         \
      .Input("first_element: int64") \
      .Output("values: " type)      \
      .Attr("stream: int >= 0")     \
      .SetShapeFn(DrawShape)
TFGEN_DRAW("TfgenPhiloxWords", "uint32");
TFGEN_DRAW("TfgenPhiloxUniform", "float");
TFGEN_DRAW("TfgenPhiloxNormal", "float");
#undef TFGEN_DRAW

// Kernels ------------------------------------------------------------------------------------------------------------

// Numbers stay in host memory, where they are checked.
#define TFGEN_HOST_RANDOM HostMemory("seed").HostMemory("step").HostMemory("first_element")
#define TFGEN_HOST_STEP \
  HostMemory("eta").HostMemory("sigma").HostMemory("lower").HostMemory("upper").HostMemory("clip").HostMemory("radius")
#define TFGEN_REGISTER(device, Where)                                                                               \
  REGISTER_KERNEL_BUILDER(Name("TfgenLangevinStep").Device(device).TFGEN_HOST_RANDOM.TFGEN_HOST_STEP,                \
                          StepOp<Where>);                                                                           \
  REGISTER_KERNEL_BUILDER(Name("TfgenLangevinStepGrad").Device(device).TFGEN_HOST_RANDOM.TFGEN_HOST_STEP,            \
                          StepGradOp<Where>);                                                                       \
  REGISTER_KERNEL_BUILDER(Name("TfgenLangevinNoise").Device(device).TFGEN_HOST_RANDOM.HostMemory("sigma"),           \
                          NoiseOp<Where>);                                                                          \
  REGISTER_KERNEL_BUILDER(Name("TfgenPhiloxWords").Device(device).TFGEN_HOST_RANDOM.HostMemory("shape"),             \
                          RandomOp<Where, TFGEN_RANDOM_WORDS>);                                                     \
  REGISTER_KERNEL_BUILDER(Name("TfgenPhiloxUniform").Device(device).TFGEN_HOST_RANDOM.HostMemory("shape"),           \
                          RandomOp<Where, TFGEN_RANDOM_UNIFORM>);                                                   \
  REGISTER_KERNEL_BUILDER(Name("TfgenPhiloxNormal").Device(device).TFGEN_HOST_RANDOM.HostMemory("shape"),            \
                          RandomOp<Where, TFGEN_RANDOM_NORMAL>)
TFGEN_REGISTER(tensorflow::DEVICE_CPU, Cpu);
#if GOOGLE_CUDA
TFGEN_REGISTER(tensorflow::DEVICE_GPU, Gpu);
#endif

}  // namespace
}  // namespace tfgen
