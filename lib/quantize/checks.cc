#include "lib/quantize/checks.h"

#include <cmath>
#include <limits>
#include <string>

namespace nibble {
namespace {

bool IsWeightType(DType t) { return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16; }

}  // namespace

Status CheckMatrix(const TensorView& view, const char* what) {
  NIBBLE_RETURN_IF_ERROR(CheckView(view, what));
  if (!IsWeightType(view.dtype)) {
    return InvalidArgument(std::string(what) + ": type " + DTypeName(view.dtype) +
                           " where f32, f16 or bf16 is needed");
  }
  if (view.device != Device::kCpu) {
    return Unsupported(std::string(what) + ": not in host memory");
  }
  return OkStatus();
}

Status CheckImportance(std::span<const float> importance, int64_t cols) {
  if (importance.empty()) return OkStatus();
  if (static_cast<int64_t>(importance.size()) != cols) {
    return InvalidArgument("importance of " + std::to_string(importance.size()) +
                           " columns for weights of " + std::to_string(cols));
  }
  for (size_t i = 0; i < importance.size(); ++i) {
    if (!(importance[i] >= 0) || std::isinf(importance[i])) {
      return InvalidArgument("importance of column " + std::to_string(i) +
                             " is negative or not finite");
    }
  }
  return OkStatus();
}

float LargestFinite(DType t) {
  switch (t) {
    case DType::kF16:
      return ToFloat(F16{0x7BFF});
    case DType::kBF16:
      return ToFloat(BF16{0x7F7F});
    default:
      return std::numeric_limits<float>::max();
  }
}

}  // namespace nibble
