// Convolutions by Winograd's algorithm as TensorFlow operations for the CPU: 3x3 ones with zeros on all sides, and
// causal ones of 2x3 and 2x2, which read no row below a pixel and, with a width of 2, no column right of it.
//
// Whatever a caller passes is checked here: the functions behind winograd.h trust what they are given.
#include "kernels/blocksparse/op_checks.h"
#include "kernels/winograd/winograd.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace tfgen {
namespace {

using tensorflow::DT_FLOAT;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::ShapeHandle;

// Cycles of a tile and pair of channels (16 products, about that many in a cycle), of transforming a tile's channel and
// of transforming a pair of channels of a kernel: for the decision how many threads share the work.
constexpr int64_t kProductCycles = 1, kTileCycles = 4, kKernelCycles = 2;

// What an operation takes: kernels of `height` rows and `least_width` or more columns, up to 3.
struct Family {
  int64_t height, least_width;
  const char* kernel;  // for messages
};

constexpr Family kSquare{3, 3, "[3, 3, inputs, outputs]"}, kCausal{2, 2, "[2, 2 or 3, inputs, outputs]"};

Status CheckSides(const Family& family, const Sizes& kernel) {
  TF_RETURN_IF_ERROR(CheckRank(kernel, 4, family.kernel));
  const bool high = kernel[0] == kUnknown || kernel[0] == family.height;
  const bool wide = kernel[1] == kUnknown || (kernel[1] >= family.least_width && kernel[1] <= 3);
  if (!high || !wide) return InvalidArgument(kernel.name, " must be ", family.kernel, ", found ", kernel.Text());
  return CheckNotEmpty(kernel);
}

// Images of `channels`, which is found out if it is not known.
Status CheckImages(const Sizes& images, const char* meaning, int64_t* channels) {
  TF_RETURN_IF_ERROR(CheckRank(images, 4, "[batch, height, width, channels]"));
  return CheckSame(images, 3, meaning, channels);
}

Status CheckForward(const Family& family, const Sizes& x, const Sizes& kernel, const Sizes& bias) {
  TF_RETURN_IF_ERROR(CheckSides(family, kernel));
  int64_t inputs = kernel[2], outputs = kernel[3];
  TF_RETURN_IF_ERROR(CheckImages(x, "the number of input channels", &inputs));
  TF_RETURN_IF_ERROR(CheckRank(bias, 1, "[outputs]"));
  return CheckSame(bias, 0, "the number of output channels", &outputs);
}

Status CheckPrepared(const Sizes& x, const Sizes& points, const Sizes& bias) {
  int64_t inputs = kUnknown;
  TF_RETURN_IF_ERROR(CheckImages(x, "the number of input channels", &inputs));
  TF_RETURN_IF_ERROR(CheckRank(points, 1, "[numbers of a transformed kernel]"));
  TF_RETURN_IF_ERROR(CheckRank(bias, 1, "[outputs]"));
  if (inputs == 0 || bias[0] == 0) {
    return InvalidArgument("there are no channels in x, ", x.Text(), ", or bias, ", bias.Text());
  }
  return OkStatus();
}

Status CheckImagesGradient(const Family& family, const Sizes& kernel, const Sizes& dy) {
  TF_RETURN_IF_ERROR(CheckSides(family, kernel));
  int64_t outputs = kernel[3];
  return CheckImages(dy, "the number of output channels", &outputs);
}

Status CheckKernelGradient(const Sizes& x, const Sizes& dy) {
  int64_t inputs = kUnknown, outputs = kUnknown;
  TF_RETURN_IF_ERROR(CheckImages(x, "the number of input channels", &inputs));
  TF_RETURN_IF_ERROR(CheckImages(dy, "the number of output channels", &outputs));
  if (inputs == 0 || outputs == 0) {
    return InvalidArgument("there are no channels in x, ", x.Text(), ", or dy, ", dy.Text());
  }
  for (int i = 0; i < 3; ++i) {
    int64_t side = x[i];
    TF_RETURN_IF_ERROR(CheckSame(dy, i, "the batch and the sides of x", &side));
  }
  return OkStatus();
}

Status CheckWidth(const Family& family, int64_t width) {
  if (width >= family.least_width && width <= 3) return OkStatus();
  return InvalidArgument("kernel_width must be that of a kernel ", family.kernel, ", found ", width);
}

template <typename Work>
void Share(OpKernelContext* c, int64_t units, int64_t cycles, Work work) {
  const auto* threads = c->device()->tensorflow_cpu_worker_threads();
  tensorflow::Shard(threads->num_threads, threads->workers, units, cycles, work);
}

enum class Kind { kForward, kEnlarged, kImagesGradient };

TfgenWinogradShape ShapeOf(Kind kind, const Tensor& x, int64_t outputs, int64_t kernel_height, int64_t kernel_width) {
  const int64_t scale = kind == Kind::kEnlarged ? 2 : 1;
  return {x.dim_size(0), scale * x.dim_size(1), scale * x.dim_size(2), x.dim_size(3), outputs, kernel_height,
          kernel_width};
}

// y = x * kernel + bias, the same of images enlarged to twice their sides, or the gradient by the images, whose x is dy.
// `transform` makes units [first, last) of the kernel in `points`, or does nothing where they are there already.
template <typename Transform>
void Convolve(OpKernelContext* c, Kind kind, const TfgenWinogradShape& shape, const Tensor& x, const float* points,
              bool transformed, const Transform& transform, const float* bias) {
  Tensor* y = nullptr;
  OP_REQUIRES_OK(c, c->allocate_output(0, TensorShape({shape.batch, shape.height, shape.width, shape.outputs}), &y));
  if (y->NumElements() == 0) return;
  const bool reversed = kind == Kind::kImagesGradient, enlarged = kind == Kind::kEnlarged;
  const TfgenWinogradConvolution args{shape, x.flat<float>().data(), points, bias, y->flat<float>().data(), reversed,
                                      enlarged};
  const int64_t units = tfgen_winograd_kernel_units(&shape), tiles = tfgen_winograd_tiles(&shape);
  const int64_t unit_cycles = kKernelCycles * shape.inputs * (shape.outputs / units + 1);
  const int64_t products = kProductCycles * shape.inputs * shape.outputs * (enlarged ? 9 : 16) / 16;
  const int64_t tile_cycles = products + kTileCycles * (shape.inputs + shape.outputs);
  if (tfgen_winograd_by_kernel(&shape, c->device()->tensorflow_cpu_worker_threads()->num_threads)) {
    Share(c, units, unit_cycles + tiles * tile_cycles / units, [&](int64_t first, int64_t last) {
      transform(first, last);
      tfgen_winograd_convolve_by_kernel_cpu(&args, first, last);
    });
    return;
  }
  if (!transformed) Share(c, units, unit_cycles, transform);
  Share(c, tiles, tile_cycles, [&](int64_t first, int64_t last) { tfgen_winograd_convolve_cpu(&args, first, last); });
}

void ConvolveAndTransform(OpKernelContext* c, Kind kind, const Tensor& x, const Tensor& kernel, const float* bias) {
  const bool reversed = kind == Kind::kImagesGradient;
  const TfgenWinogradShape shape =
      ShapeOf(kind, x, kernel.dim_size(reversed ? 2 : 3), kernel.dim_size(0), kernel.dim_size(1));
  Tensor transformed;
  OP_REQUIRES_OK(c, c->allocate_temp(DT_FLOAT, TensorShape({tfgen_winograd_kernel_size(&shape)}), &transformed));
  const float* taps = kernel.flat<float>().data();
  float* points = transformed.flat<float>().data();
  const auto transform = [&](int64_t first, int64_t last) {
    tfgen_winograd_transform_kernel_cpu(&shape, taps, reversed, points, first, last);
  };
  Convolve(c, kind, shape, x, points, false, transform, bias);
}

template <const Family& family, Kind kind>
class ConvolutionOp : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* c) override {
    OP_REQUIRES_OK(c, CheckForward(family, SizesOf("x", c, 0), SizesOf("kernel", c, 1), SizesOf("bias", c, 2)));
    ConvolveAndTransform(c, kind, c->input(0), c->input(1), c->input(2).flat<float>().data());
  }
};

// The 3x3 kernel of a convolution in the transformed domain, for the instruction set of this machine.
TfgenWinogradShape KernelShape(int64_t inputs, int64_t outputs) { return {1, 1, 1, inputs, outputs, 3, 3}; }

class TransformKernelOp : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* c) override {
    OP_REQUIRES_OK(c, CheckSides(kSquare, SizesOf("kernel", c, 0)));
    const Tensor& kernel = c->input(0);
    const TfgenWinogradShape shape = KernelShape(kernel.dim_size(2), kernel.dim_size(3));
    Tensor* transformed = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, TensorShape({tfgen_winograd_kernel_size(&shape)}), &transformed));
    const float* taps = kernel.flat<float>().data();
    float* points = transformed->flat<float>().data();
    const int64_t units = tfgen_winograd_kernel_units(&shape);
    Share(c, units, kKernelCycles * shape.inputs * (shape.outputs / units + 1), [&](int64_t first, int64_t last) {
      tfgen_winograd_transform_kernel_cpu(&shape, taps, false, points, first, last);
    });
  }
};

template <Kind kind>
class PreparedConvolutionOp : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* c) override {
    OP_REQUIRES_OK(c, CheckPrepared(SizesOf("x", c, 0), SizesOf("points", c, 1), SizesOf("bias", c, 2)));
    const Tensor &x = c->input(0), &points = c->input(1), &bias = c->input(2);
    const TfgenWinogradShape shape = ShapeOf(kind, x, bias.dim_size(0), 3, 3);
    const int64_t size = tfgen_winograd_kernel_size(&shape);
    OP_REQUIRES(c, points.NumElements() == size,
                InvalidArgument("points must be a kernel transformed for ", shape.inputs, " to ", shape.outputs,
                                " channels, ", size, " numbers, found ", points.NumElements()));
    Convolve(c, kind, shape, x, points.flat<float>().data(), true, [](int64_t, int64_t) {}, bias.flat<float>().data());
  }
};

template <const Family& family>
class ImagesGradientOp : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* c) override {
    OP_REQUIRES_OK(c, CheckImagesGradient(family, SizesOf("kernel", c, 0), SizesOf("dy", c, 1)));
    ConvolveAndTransform(c, Kind::kImagesGradient, c->input(1), c->input(0), nullptr);
  }
};

template <const Family& family>
class KernelGradientOp : public OpKernel {
 public:
  explicit KernelGradientOp(OpKernelConstruction* c) : OpKernel(c) {
    if (family.least_width == 3) return;
    OP_REQUIRES_OK(c, c->GetAttr("kernel_width", &kernel_width_));
    OP_REQUIRES_OK(c, CheckWidth(family, kernel_width_));
  }
  void Compute(OpKernelContext* c) override {
    OP_REQUIRES_OK(c, CheckKernelGradient(SizesOf("x", c, 0), SizesOf("dy", c, 1)));
    const Tensor &x = c->input(0), &dy = c->input(1);
    const int64_t inputs = x.dim_size(3), outputs = dy.dim_size(3);
    const TfgenWinogradShape shape{x.dim_size(0), x.dim_size(1), x.dim_size(2), inputs, outputs, family.height,
                                   kernel_width_};
    Tensor* dkernel = nullptr;
    OP_REQUIRES_OK(
        c, c->allocate_output(0, TensorShape({family.height, kernel_width_, inputs, outputs}), &dkernel));
    if (x.NumElements() == 0) {
      dkernel->flat<float>().setZero();
      return;
    }
    const int64_t threads = c->device()->tensorflow_cpu_worker_threads()->num_threads;
    const int64_t all = tfgen_winograd_tiles(&shape), size = tfgen_winograd_chunk_tiles(&shape, threads);
    Tensor scratch;
    OP_REQUIRES_OK(c, c->allocate_temp(DT_FLOAT, TensorShape({tfgen_winograd_scratch_size(&shape, size)}), &scratch));
    const TfgenWinogradKernelGradient args{
        shape, x.flat<float>().data(), dy.flat<float>().data(), size, scratch.flat<float>().data(),
        dkernel->flat<float>().data()};
    const int64_t units = tfgen_winograd_product_units(&shape);
    for (int64_t chunk = 0; chunk < all; chunk += size) {
      const int64_t tiles = std::min(size, all - chunk);
      Share(c, tiles, kTileCycles * (inputs + outputs), [&](int64_t first, int64_t last) {
        tfgen_winograd_transform_tiles_cpu(&args, chunk, first, last);
      });
      Share(c, units, kProductCycles * inputs * outputs * tiles / units + 1, [&](int64_t first, int64_t last) {
        tfgen_winograd_add_products_cpu(&args, chunk, tiles, first, last);
      });
    }
    Share(c, inputs, kKernelCycles * outputs,
          [&](int64_t first, int64_t last) { tfgen_winograd_finish_cpu(&args, first, last); });
  }

 private:
  int64_t kernel_width_ = 3;
};

// XLA compiles graphs by running such kernels. Code "unimplemented" makes automatic clustering leave the operation to
// TensorFlow.
class RefuseXlaConvolutionOp : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* c) override {
    c->CtxFailure(tensorflow::errors::Unimplemented(
        "tfgen's compiled convolution cannot run inside jit_compile=True (XLA). Set the environment variable "
        "TFGEN_PURE_TF=1 or build the function within tfgen.ops.library.plain_tensorflow() to use that of TensorFlow, "
        "or set jit_compile=False."));
  }
};

Status SetImages(InferenceContext* c, int images, DimensionHandle channels) {
  ShapeHandle shape;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(images), 4, &shape));
  TF_RETURN_IF_ERROR(c->ReplaceDim(shape, 3, channels, &shape));
  c->set_output(0, shape);
  return OkStatus();
}

// Dimension `i` of an input; unknown where its rank is.
DimensionHandle Dimension(InferenceContext* c, int input, int i) {
  return c->RankKnown(c->input(input)) ? c->Dim(c->input(input), i) : c->UnknownDim();
}

template <const Family& family>
Status ForwardShape(InferenceContext* c) {
  TF_RETURN_IF_ERROR(CheckForward(family, SizesOf("x", c, 0), SizesOf("kernel", c, 1), SizesOf("bias", c, 2)));
  return SetImages(c, 0, Dimension(c, 1, 3));
}

Status Enlarge(InferenceContext* c) {
  ShapeHandle shape = c->output(0);
  for (int side = 1; side < 3; ++side) {
    DimensionHandle twice;
    TF_RETURN_IF_ERROR(c->Multiply(c->Dim(shape, side), 2, &twice));
    TF_RETURN_IF_ERROR(c->ReplaceDim(shape, side, twice, &shape));
  }
  c->set_output(0, shape);
  return OkStatus();
}

Status EnlargedShape(InferenceContext* c) {
  TF_RETURN_IF_ERROR(ForwardShape<kSquare>(c));
  return Enlarge(c);
}

Status TransformedKernelShape(InferenceContext* c) {
  TF_RETURN_IF_ERROR(CheckSides(kSquare, SizesOf("kernel", c, 0)));
  const DimensionHandle inputs = Dimension(c, 0, 2), outputs = Dimension(c, 0, 3);
  if (!c->ValueKnown(inputs) || !c->ValueKnown(outputs)) {
    c->set_output(0, c->Vector(c->UnknownDim()));
    return OkStatus();
  }
  const TfgenWinogradShape shape = KernelShape(c->Value(inputs), c->Value(outputs));
  c->set_output(0, c->Vector(tfgen_winograd_kernel_size(&shape)));
  return OkStatus();
}

template <Kind kind>
Status PreparedShape(InferenceContext* c) {
  TF_RETURN_IF_ERROR(CheckPrepared(SizesOf("x", c, 0), SizesOf("points", c, 1), SizesOf("bias", c, 2)));
  TF_RETURN_IF_ERROR(SetImages(c, 0, Dimension(c, 2, 0)));
  return kind == Kind::kEnlarged ? Enlarge(c) : OkStatus();
}

template <const Family& family>
Status ImagesGradientShape(InferenceContext* c) {
  TF_RETURN_IF_ERROR(CheckImagesGradient(family, SizesOf("kernel", c, 0), SizesOf("dy", c, 1)));
  return SetImages(c, 1, Dimension(c, 0, 2));
}

template <const Family& family>
Status KernelGradientShape(InferenceContext* c) {
  TF_RETURN_IF_ERROR(CheckKernelGradient(SizesOf("x", c, 0), SizesOf("dy", c, 1)));
  int64_t width = 3;
  if (family.least_width < 3) TF_RETURN_IF_ERROR(c->GetAttr("kernel_width", &width));
  TF_RETURN_IF_ERROR(CheckWidth(family, width));
  const DimensionHandle height = c->MakeDim(family.height);
  c->set_output(0, c->MakeShape({height, c->MakeDim(width), Dimension(c, 0, 3), Dimension(c, 1, 3)}));
  return OkStatus();
}

REGISTER_OP("TfgenConvolution3x3")
    .Input("x: float")
    .Input("kernel: float")
    .Input("bias: float")
    .Output("y: float")
    .SetShapeFn(ForwardShape<kSquare>);

REGISTER_OP("TfgenEnlargedConvolution3x3")
    .Input("x: float")
    .Input("kernel: float")
    .Input("bias: float")
    .Output("y: float")
    .SetShapeFn(EnlargedShape);

REGISTER_OP("TfgenConvolution3x3TransformKernel")
    .Input("kernel: float")
    .Output("points: float")
    .SetShapeFn(TransformedKernelShape);

REGISTER_OP("TfgenPreparedConvolution3x3")
    .Input("x: float")
    .Input("points: float")
    .Input("bias: float")
    .Output("y: float")
    .SetShapeFn(PreparedShape<Kind::kForward>);

REGISTER_OP("TfgenPreparedEnlargedConvolution3x3")
    .Input("x: float")
    .Input("points: float")
    .Input("bias: float")
    .Output("y: float")
    .SetShapeFn(PreparedShape<Kind::kEnlarged>);

REGISTER_OP("TfgenConvolution3x3ImagesGrad")
    .Input("kernel: float")
    .Input("dy: float")
    .Output("dx: float")
    .SetShapeFn(ImagesGradientShape<kSquare>);

REGISTER_OP("TfgenConvolution3x3KernelGrad")
    .Input("x: float")
    .Input("dy: float")
    .Output("dkernel: float")
    .SetShapeFn(KernelGradientShape<kSquare>);

REGISTER_OP("TfgenCausalConvolution")
    .Input("x: float")
    .Input("kernel: float")
    .Input("bias: float")
    .Output("y: float")
    .SetShapeFn(ForwardShape<kCausal>);

REGISTER_OP("TfgenCausalConvolutionImagesGrad")
    .Input("kernel: float")
    .Input("dy: float")
    .Output("dx: float")
    .SetShapeFn(ImagesGradientShape<kCausal>);

REGISTER_OP("TfgenCausalConvolutionKernelGrad")
    .Input("x: float")
    .Input("dy: float")
    .Output("dkernel: float")
    .Attr("kernel_width: int")
    .SetShapeFn(KernelGradientShape<kCausal>);

using ForwardOp = ConvolutionOp<kSquare, Kind::kForward>;
using EnlargedOp = ConvolutionOp<kSquare, Kind::kEnlarged>;
using CausalOp = ConvolutionOp<kCausal, Kind::kForward>;

// For the CPU, and refused within XLA.
#define TFGEN_REGISTER(name, kernel)                                          \
  REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_CPU), kernel); \
  REGISTER_KERNEL_BUILDER(Name(name).Device("XLA_CPU_JIT"), RefuseXlaConvolutionOp)

TFGEN_REGISTER("TfgenConvolution3x3", ForwardOp);
TFGEN_REGISTER("TfgenEnlargedConvolution3x3", EnlargedOp);
TFGEN_REGISTER("TfgenConvolution3x3TransformKernel", TransformKernelOp);
TFGEN_REGISTER("TfgenPreparedConvolution3x3", PreparedConvolutionOp<Kind::kForward>);
TFGEN_REGISTER("TfgenPreparedEnlargedConvolution3x3", PreparedConvolutionOp<Kind::kEnlarged>);
TFGEN_REGISTER("TfgenConvolution3x3ImagesGrad", ImagesGradientOp<kSquare>);
TFGEN_REGISTER("TfgenConvolution3x3KernelGrad", KernelGradientOp<kSquare>);
TFGEN_REGISTER("TfgenCausalConvolution", CausalOp);
TFGEN_REGISTER("TfgenCausalConvolutionImagesGrad", ImagesGradientOp<kCausal>);
TFGEN_REGISTER("TfgenCausalConvolutionKernelGrad", KernelGradientOp<kCausal>);

#undef TFGEN_REGISTER

}  // namespace
}  // namespace tfgen
