// The layout of AQLM checkpoints: the planes of additive codebooks as they are.
#include <algorithm>
#include <array>
#include <utility>

#include "lib/model/hf_layout.h"

namespace nibble {
namespace {

// Suffix and plane of each tensor.
constexpr std::array<std::pair<const char*, Plane>, 3> kParts = {
    {{"codes", Plane::kCodes}, {"codebooks", Plane::kTable}, {"scales", Plane::kScales}}};

int64_t Entries(const Scheme& scheme) { return int64_t{1} << scheme.bits; }

}  // namespace

Status CheckAqlmScheme(const Scheme& scheme) {
  if (scheme.code == Code::kAdditive) return OkStatus();
  return Unsupported("aqlm holds additive codebooks, such as '2x8g8 f16'");
}

Result<std::vector<HfTensor>> AqlmTensors(const HfQuantization& quantization, int64_t rows,
                                          int64_t cols) {
  const Scheme& s = quantization.scheme;
  if (cols % s.vector != 0) {
    return Unsupported(std::to_string(rows) + " x " + std::to_string(cols) +
                       " weights: AQLM checkpoints need multiples of " + std::to_string(s.vector));
  }
  const DType code = s.bits == 8 ? DType::kI8 : DType::kI16;
  return std::vector<HfTensor>{
      {"codes", code, {rows, cols / s.vector, s.codebooks}, {}},
      {"codebooks", s.scale_dtype, {s.codebooks, Entries(s), 1, s.vector}, {}},
      {"scales", s.scale_dtype, {rows, 1, 1, 1}, {}}};
}

Status FillAqlm(const HfQuantization&, const QuantizedTensor& matrix, DType,
                std::span<HfTensor> tensors) {
  for (size_t i = 0; i < kParts.size(); ++i) {
    std::ranges::copy(matrix.plane(kParts[i].second).bytes(), tensors[i].data.data());
  }
  return OkStatus();
}

Result<HfShape> AqlmShape(const HfQuantization& quantization, std::span<const HfTensor> tensors) {
  const HfTensor* codes = FindHfTensor(tensors, "codes");
  HfShape shape;
  if (codes == nullptr || codes->shape.size() != 3 || codes->shape[0] < 1 || codes->shape[1] < 1 ||
      __builtin_mul_overflow(codes->shape[1], int64_t{quantization.scheme.vector}, &shape.cols)) {
    return Corrupt("codes: none, or of another shape than [rows, vectors, codebooks]");
  }
  shape.rows = codes->shape[0];
  return shape;
}

Result<QuantizedTensor> ReadAqlm(const HfQuantization& quantization,
                                 std::span<const HfTensor> tensors) {
  NIBBLE_ASSIGN_OR_RETURN(const HfShape shape, AqlmShape(quantization, tensors));
  const HfTensor* scales = FindHfTensor(tensors, "scales");
  if (scales == nullptr) return Corrupt("no tensor scales");
  HfQuantization found = quantization;
  found.scheme.scale_dtype = scales->dtype;
  NIBBLE_RETURN_IF_ERROR(CheckScheme(found.scheme));
  NIBBLE_ASSIGN_OR_RETURN(const auto wanted, AqlmTensors(found, shape.rows, shape.cols));
  std::array<Buffer, kPlaneCount> planes;
  for (size_t i = 0; i < kParts.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const HfTensor* tensor, NeedHfTensor(tensors, wanted[i].suffix,
                                                                 wanted[i].dtype, wanted[i].shape));
    Buffer& plane = planes[static_cast<size_t>(kParts[i].second)];
    NIBBLE_ASSIGN_OR_RETURN(plane, Buffer::Allocate(tensor->data.size()));
    std::ranges::copy(tensor->data.bytes(), plane.data());
  }
  return QuantizedTensor::Create(found.scheme, shape.rows, shape.cols, std::move(planes));
}

}  // namespace nibble
