#include "nibble/quantized_tensor.h"

#include <string>
#include <utility>

namespace nibble {
namespace {

constexpr const char* kPlaneNames[kPlaneCount] = {"codes",       "scales", "zeros",
                                                  "group index", "table",  "super-scales"};

Status CheckShape(int64_t rows, int64_t cols) {
  if (rows > 0 && cols > 0) return OkStatus();
  return InvalidArgument("quantized tensor: empty or negative shape " + std::to_string(rows) +
                         " x " + std::to_string(cols));
}

// Bytes of the blocks of a format that a matrix can be decoded from.
Result<size_t> BlockBytes(Format format, int64_t rows, int64_t cols) {
  NIBBLE_RETURN_IF_ERROR(CheckShape(rows, cols));
  NIBBLE_ASSIGN_OR_RETURN(const size_t bytes, FormatBytes(format, rows, cols));
  const FormatInfo& info = GetFormatInfo(format);
  if (!info.can_decode()) return Unsupported(std::string(info.name) + " does not hold weights");
  return bytes;
}

Status CheckPlane(const Buffer& buffer, size_t expected, const char* name) {
  if (buffer.size() == expected) return OkStatus();
  return InvalidArgument("quantized tensor: " + std::to_string(buffer.size()) + " bytes of " +
                         name + " where the shape needs " + std::to_string(expected));
}

}  // namespace

Result<QuantizedTensor> QuantizedTensor::Create(Format format, int64_t rows, int64_t cols,
                                                Buffer blocks) {
  NIBBLE_ASSIGN_OR_RETURN(const size_t bytes, BlockBytes(format, rows, cols));
  NIBBLE_RETURN_IF_ERROR(CheckPlane(blocks, bytes, "blocks"));
  QuantizedTensor tensor;
  tensor.kind_ = format;
  tensor.rows_ = rows;
  tensor.cols_ = cols;
  tensor.plane(Plane::kCodes) = std::move(blocks);
  return tensor;
}

Result<QuantizedTensor> QuantizedTensor::Create(const Scheme& scheme, int64_t rows, int64_t cols,
                                                std::array<Buffer, kPlaneCount> planes) {
  NIBBLE_RETURN_IF_ERROR(CheckShape(rows, cols));
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  for (int p = 0; p < kPlaneCount; ++p) {
    NIBBLE_ASSIGN_OR_RETURN(const size_t bytes,
                            PlaneBytes(scheme, static_cast<Plane>(p), rows, cols));
    NIBBLE_RETURN_IF_ERROR(CheckPlane(planes[p], bytes, kPlaneNames[p]));
    if (bytes > 0 && planes[p].device() != planes[0].device()) {
      return InvalidArgument("quantized tensor: planes on different devices");
    }
  }
  QuantizedTensor tensor;
  tensor.kind_ = scheme;
  tensor.rows_ = rows;
  tensor.cols_ = cols;
  tensor.planes_ = std::move(planes);
  return tensor;
}

Result<QuantizedTensor> QuantizedTensor::Allocate(Format format, int64_t rows, int64_t cols) {
  NIBBLE_ASSIGN_OR_RETURN(const size_t bytes, BlockBytes(format, rows, cols));
  NIBBLE_ASSIGN_OR_RETURN(Buffer blocks, Buffer::Allocate(bytes));
  return Create(format, rows, cols, std::move(blocks));
}

Result<QuantizedTensor> QuantizedTensor::Allocate(const Scheme& scheme, int64_t rows,
                                                  int64_t cols) {
  NIBBLE_RETURN_IF_ERROR(CheckShape(rows, cols));
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  std::array<Buffer, kPlaneCount> planes;
  for (int p = 0; p < kPlaneCount; ++p) {
    NIBBLE_ASSIGN_OR_RETURN(const size_t bytes,
                            PlaneBytes(scheme, static_cast<Plane>(p), rows, cols));
    if (bytes == 0) continue;
    NIBBLE_ASSIGN_OR_RETURN(planes[p], Buffer::Allocate(bytes));
  }
  return Create(scheme, rows, cols, std::move(planes));
}

size_t QuantizedTensor::bytes() const {
  size_t total = 0;
  for (const Buffer& plane : planes_) total += plane.size();
  return total;
}

}  // namespace nibble
