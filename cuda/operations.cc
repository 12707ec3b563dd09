#include "cuda/operations.h"

#include <string>

#include "cuda/decoder_operations.h"
#include "cuda/products.h"
#include "nibble/cuda.h"

namespace nibble::cuda {

Status CheckMatrix(const TensorView& view, const char* what) {
  NIBBLE_RETURN_IF_ERROR(CheckView(view, what));
  if (view.dtype != DType::kF32 && view.dtype != DType::kF16 && view.dtype != DType::kBF16) {
    return InvalidArgument(std::string(what) + ": type " + DTypeName(view.dtype) +
                           " where f32, f16 or bf16 is needed");
  }
  if (view.device != Device::kCuda) {
    return InvalidArgument(std::string(what) + ": not in device memory, as other operands are");
  }
  if (reinterpret_cast<uintptr_t>(view.data) % DTypeBytes(view.dtype) != 0) {
    return InvalidArgument(std::string(what) + ": a pointer that is not aligned for its type");
  }
  return OkStatus();
}

namespace {

Status CheckShapes(const TensorView& activations, int64_t rows, int64_t cols,
                   const MutableTensorView& out, const MatmulOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(out, "output"));
  if (out.dtype != DType::kF32) {
    return InvalidArgument(std::string("output: type ") + DTypeName(out.dtype) +
                           " where f32 is needed");
  }
  if (activations.cols != cols || out.rows != activations.rows || out.cols != rows) {
    return InvalidArgument("matmul: activations, weights and output do not fit together");
  }
  if (!options.bias.empty() && static_cast<int64_t>(options.bias.size()) != rows) {
    return InvalidArgument("matmul: bias of " + std::to_string(options.bias.size()) +
                           " values for " + std::to_string(rows) + " output columns");
  }
  return OkStatus();
}

}  // namespace

Status CheckOperands(const TensorView& activations, int64_t rows, int64_t cols,
                     const MutableTensorView& out, const MatmulOptions& options) {
  if (DTypeBytes(activations.dtype) == 1) {
    return InvalidArgument(std::string("activations: type ") + DTypeName(activations.dtype) +
                           " needs weights of eight bits of the same kind, by channel or tensor");
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(activations, "activations"));
  return CheckShapes(activations, rows, cols, out, options);
}

Status CheckByteOperands(const TensorView& activations, int64_t rows, int64_t cols,
                         const MutableTensorView& out, const MatmulOptions& options) {
  if (DTypeBytes(activations.dtype) != 1) {
    return CheckOperands(activations, rows, cols, out, options);
  }
  NIBBLE_RETURN_IF_ERROR(CheckView(activations, "activations"));
  if (activations.device != Device::kCuda) {
    return InvalidArgument("activations: not in device memory, as other operands are");
  }
  const size_t scales = options.activation_scales.size();
  if (scales != 1 && static_cast<int64_t>(scales) != activations.rows) {
    return InvalidArgument("matmul: " + std::to_string(scales) + " activation scales for " +
                           std::to_string(activations.rows) + " rows");
  }
  return CheckShapes(activations, rows, cols, out, options);
}

void RegisterOperations() {
  static const Backend backend = {Allocate, QuantizeTo,  QuantizePlanar, Dequantize, Matmul,
                                  Pack,     MatmulGroup, MatmulLlmInt8,  &Decoder()};
  RegisterBackend(Device::kCuda, &backend);
}

}  // namespace nibble::cuda
