// What the operations of block-sparse attention share: checks of sizes, dtypes, and a refusal for XLA.
#ifndef TFGEN_KERNELS_BLOCKSPARSE_OP_CHECKS_H_
#define TFGEN_KERNELS_BLOCKSPARSE_OP_CHECKS_H_

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "kernels/blocksparse/blocksparse.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/errors.h"

namespace tfgen {

using tensorflow::DataType;
using tensorflow::OkStatus;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::InferenceContext;

constexpr int64_t kUnknown = -1;
constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;  // kernels may count elements in 32 bits

// Sizes of a tensor as far as they are known: one set of checks serves the shape functions, which may know little, and
// the kernels, which know all.
struct Sizes {
  std::string name;
  bool ranked = true;
  std::vector<int64_t> dims;

  int64_t operator[](int i) const { return ranked ? dims[i] : kUnknown; }
  std::string Text() const {
    std::string text = "[";
    for (size_t i = 0; i < dims.size(); ++i) {
      tensorflow::strings::StrAppend(&text, i ? ", " : "", dims[i] == kUnknown ? "?" : std::to_string(dims[i]));
    }
    return text + "]";
  }
};

inline Sizes SizesOf(const std::string& name, InferenceContext* c, int input) {
  Sizes sizes{name};
  const auto shape = c->input(input);
  sizes.ranked = c->RankKnown(shape);
  for (int i = 0; sizes.ranked && i < c->Rank(shape); ++i) sizes.dims.push_back(c->Value(c->Dim(shape, i)));
  return sizes;
}

inline Sizes SizesOf(const std::string& name, OpKernelContext* c, int input) {
  Sizes sizes{name};
  for (const auto& dim : c->input(input).shape()) sizes.dims.push_back(dim.size);
  return sizes;
}

inline Status CheckRank(const Sizes& sizes, size_t rank, const char* meaning) {
  if (sizes.ranked && sizes.dims.size() != rank) {
    return InvalidArgument(sizes.name, " must have rank ", rank, ", ", meaning, ", found ", sizes.Text());
  }
  return OkStatus();
}

inline Status CheckNotEmpty(const Sizes& sizes) {
  for (int64_t size : sizes.dims) {
    if (size == 0) return InvalidArgument(sizes.name, " has a size of zero: ", sizes.Text());
  }
  return OkStatus();
}

// Both dimensions must agree where known; what is known of either is written to `*known`.
inline Status CheckSame(const Sizes& sizes, int i, const char* meaning, int64_t* known) {
  if (sizes[i] == kUnknown) return OkStatus();
  if (*known != kUnknown && sizes[i] != *known) {
    return InvalidArgument(meaning, " must be ", *known, " in ", sizes.name, ", found ", sizes.Text());
  }
  *known = sizes[i];
  return OkStatus();
}

inline Status CheckElements(const char* name, int64_t a, int64_t b, int64_t c) {
  if (a == kUnknown || b == kUnknown || c == kUnknown) return OkStatus();
  // In floating point, where the product cannot overflow.
  if (static_cast<double>(a) * static_cast<double>(b) * static_cast<double>(c) > static_cast<double>(kMaxElements)) {
    return InvalidArgument(name, " has more than ", kMaxElements, " elements: ", a, " x ", b, " x ", c);
  }
  return OkStatus();
}

inline Status CheckFeatures(const char* name, int64_t features, int num_heads) {
  if (features != kUnknown && features % num_heads != 0) {
    return InvalidArgument("the features of ", name, ", ", features, ", must divide into num_heads = ", num_heads);
  }
  return OkStatus();
}

inline int32_t DtypeCode(DataType dtype) {
  if (dtype == tensorflow::DT_FLOAT) return TFGEN_FLOAT32;
  return dtype == tensorflow::DT_BFLOAT16 ? TFGEN_BFLOAT16 : TFGEN_FLOAT16;
}

// XLA compiles graphs by running such kernels; without one, its error would not say what to do. Code "unimplemented"
// makes automatic clustering leave the operation to TensorFlow.
class RefuseXlaOp : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext* c) override {
    c->CtxFailure(tensorflow::errors::Unimplemented(
        "tfgen's compiled block-sparse attention cannot run inside jit_compile=True (XLA). Set the environment "
        "variable TFGEN_PURE_TF=1 or build the function within tfgen.ops.blocksparse.plain_tensorflow() to use the "
        "pure-TensorFlow attention, or set jit_compile=False."));
  }
};

}  // namespace tfgen
#endif  // TFGEN_KERNELS_BLOCKSPARSE_OP_CHECKS_H_
