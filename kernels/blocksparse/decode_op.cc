// TensorFlow's side of the decode form of block-sparse attention (decode.h): operation, shape function, checks, kernel.
//
// For the CPU only. It has no gradient: sampling needs none.
#include <cmath>

#include "kernels/blocksparse/decode.h"
#include "kernels/blocksparse/op_checks.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace tfgen {
namespace {

using tensorflow::Tensor;

constexpr int kVisible = 3, kEarlier = 4;  // numbers of inputs

struct DecodeAttributes {
  int num_heads = 0, stores = 0;
};

// Reads the attributes from a context of shape inference or of kernel construction.
template <typename Context>
Status ReadAttributes(Context* context, DecodeAttributes* attributes) {
  TF_RETURN_IF_ERROR(context->GetAttr("num_heads", &attributes->num_heads));
  TF_RETURN_IF_ERROR(context->GetAttr("N", &attributes->stores));
  if (attributes->stores != 0 && attributes->stores != 2) {
    return InvalidArgument("earlier must be empty, or keys and values, found ", attributes->stores, " tensors");
  }
  return OkStatus();
}

struct DecodeProblem {
  int64_t batch = kUnknown, slots = kUnknown, key_features = kUnknown, value_features = kUnknown, earlier = 0;
};

Status CheckTable(const Sizes& table, const char* features, int64_t* width, DecodeProblem* p) {
  TF_RETURN_IF_ERROR(CheckRank(table, 3, "[slots, batch, features]"));
  TF_RETURN_IF_ERROR(CheckSame(table, 0, "the number of slots", &p->slots));
  TF_RETURN_IF_ERROR(CheckSame(table, 1, "the batch", &p->batch));
  TF_RETURN_IF_ERROR(CheckSame(table, 2, features, width));
  TF_RETURN_IF_ERROR(CheckNotEmpty(table));
  return CheckElements(table.name.c_str(), table[0], table[1], table[2]);
}

// A store of earlier slots, which may be empty, of heads that are `features` wide in all.
Status CheckEarlier(const Sizes& store, int num_heads, int64_t features, DecodeProblem* p) {
  TF_RETURN_IF_ERROR(CheckRank(store, 4, "[batch, num_heads, earlier slots, size of a head]"));
  int64_t heads = num_heads, size = features == kUnknown ? kUnknown : features / num_heads;
  TF_RETURN_IF_ERROR(CheckSame(store, 0, "the batch", &p->batch));
  TF_RETURN_IF_ERROR(CheckSame(store, 1, "the number of heads", &heads));
  TF_RETURN_IF_ERROR(CheckSame(store, 2, "the number of earlier slots", &p->earlier));
  TF_RETURN_IF_ERROR(CheckSame(store, 3, "the size of a head", &size));
  return CheckElements(store.name.c_str(), store[0], store[2],
                       store[3] == kUnknown ? kUnknown : store[3] * int64_t{num_heads});
}

// All checks but that of the value of `visible`.
template <typename Context>
Status CheckShapes(const DecodeAttributes& attributes, Context* c, DecodeProblem* p) {
  const Sizes q = SizesOf("q", c, 0);
  TF_RETURN_IF_ERROR(CheckRank(q, 2, "[batch, features]"));
  TF_RETURN_IF_ERROR(CheckSame(q, 0, "the batch", &p->batch));
  TF_RETURN_IF_ERROR(CheckSame(q, 1, "the number of features", &p->key_features));
  TF_RETURN_IF_ERROR(CheckNotEmpty(q));
  TF_RETURN_IF_ERROR(CheckTable(SizesOf("keys", c, 1), "the number of features", &p->key_features, p));
  TF_RETURN_IF_ERROR(CheckTable(SizesOf("values", c, 2), "the number of features", &p->value_features, p));
  TF_RETURN_IF_ERROR(CheckFeatures("q and keys", p->key_features, attributes.num_heads));
  TF_RETURN_IF_ERROR(CheckFeatures("values", p->value_features, attributes.num_heads));
  TF_RETURN_IF_ERROR(CheckElements("q", 1, p->batch, p->key_features));
  TF_RETURN_IF_ERROR(CheckRank(SizesOf("visible", c, kVisible), 0, "a scalar"));
  if (attributes.stores == 0) return OkStatus();
  p->earlier = kUnknown;
  TF_RETURN_IF_ERROR(CheckEarlier(SizesOf("earlier keys", c, kEarlier), attributes.num_heads, p->key_features, p));
  return CheckEarlier(SizesOf("earlier values", c, kEarlier + 1), attributes.num_heads, p->value_features, p);
}

// Cycles of one unit. Keys and values come from beyond the L1 cache and are used once: some 8 floats a cycle.
int64_t CostOfUnit(const TfgenBlocksparseDecode& args) {
  return 200 + (args.visible + args.earlier) * (args.key_size + args.value_size) / 8;
}

class DecodeCpuOp : public OpKernel {
 public:
  explicit DecodeCpuOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadAttributes(c, &attributes_));
    OP_REQUIRES_OK(c, c->GetAttr("T", &dtype_));
  }

  void Compute(OpKernelContext* c) override {
    DecodeProblem p;
    OP_REQUIRES_OK(c, CheckShapes(attributes_, c, &p));
    TfgenBlocksparseDecode args;
    args.batch = p.batch, args.heads = attributes_.num_heads, args.slots = p.slots;
    args.key_size = p.key_features / attributes_.num_heads, args.value_size = p.value_features / attributes_.num_heads;
    args.visible = c->input(kVisible).scalar<int32_t>()();
    OP_REQUIRES(c, args.visible >= 0 && args.visible <= p.slots,
                InvalidArgument("visible must be in 0 .. ", p.slots, ", the number of slots, found ", args.visible));
    args.earlier = p.earlier;
    args.dtype = DtypeCode(dtype_);
    args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.key_size)));
    args.q = c->input(0).data(), args.keys = c->input(1).data(), args.values = c->input(2).data();
    args.earlier_keys = p.earlier > 0 ? c->input(kEarlier).data() : nullptr;
    args.earlier_values = p.earlier > 0 ? c->input(kEarlier + 1).data() : nullptr;
    Tensor* out = nullptr;
    OP_REQUIRES_OK(c, c->allocate_output(0, {p.batch, p.value_features}, &out));
    args.out = out->data();
    // Units write disjoint memory: how they are cut into shards changes no bit of the result.
    const auto& threads = *c->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(threads.num_threads, threads.workers, args.batch * args.heads, CostOfUnit(args),
                      [&args](int64_t first, int64_t last) { tfgen_blocksparse_decode_cpu(&args, first, last); });
  }

 private:
  DecodeAttributes attributes_;
  DataType dtype_;
};

Status DecodeShapes(InferenceContext* c) {
  DecodeAttributes attributes;
  DecodeProblem p;
  TF_RETURN_IF_ERROR(ReadAttributes(c, &attributes));
  TF_RETURN_IF_ERROR(CheckShapes(attributes, c, &p));
  c->set_output(0, c->MakeShape({c->MakeDim(p.batch), c->MakeDim(p.value_features)}));
  return OkStatus();
}

REGISTER_OP("TfgenBlocksparseDecode")
    .Input("q: T")
    .Input("keys: T")
    .Input("values: T")
    .Input("visible: int32")
    .Input("earlier: N * T")
    .Output("out: T")
    .Attr("T: {float, bfloat16, half}")
    .Attr("N: int >= 0")
    .Attr("num_heads: int >= 1")
    .SetShapeFn(DecodeShapes);

#define TFGEN_REGISTER(T)                                                                                        \
  REGISTER_KERNEL_BUILDER(Name("TfgenBlocksparseDecode").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
                          DecodeCpuOp)
TFGEN_REGISTER(float);
TFGEN_REGISTER(tensorflow::bfloat16);
TFGEN_REGISTER(Eigen::half);
#undef TFGEN_REGISTER

REGISTER_KERNEL_BUILDER(Name("TfgenBlocksparseDecode").Device("XLA_CPU_JIT"), RefuseXlaOp);
REGISTER_KERNEL_BUILDER(Name("TfgenBlocksparseDecode").Device("XLA_GPU_JIT"), RefuseXlaOp);

}  // namespace
}  // namespace tfgen
