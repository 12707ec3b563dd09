#include "nibble/tensor.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <utility>

namespace nibble {

const char* DTypeName(DType t) {
  switch (t) {
    case DType::kF64:
      return "f64";
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kF8E4M3:
      return "f8_e4m3";
    case DType::kF8E5M2:
      return "f8_e5m2";
    case DType::kI64:
      return "i64";
    case DType::kI32:
      return "i32";
    case DType::kI16:
      return "i16";
    case DType::kI8:
      return "i8";
    case DType::kU64:
      return "u64";
    case DType::kU32:
      return "u32";
    case DType::kU16:
      return "u16";
    case DType::kU8:
      return "u8";
    case DType::kBool:
      return "bool";
  }
  return "unknown";
}

namespace {

// rows * stride * element bytes, or -1 where that does not fit.
int64_t ViewBytes(int64_t rows, int64_t stride, DType dtype) {
  int64_t elements = 0, bytes = 0;
  if (__builtin_mul_overflow(rows, stride, &elements) ||
      __builtin_mul_overflow(elements, static_cast<int64_t>(DTypeBytes(dtype)), &bytes)) {
    return -1;
  }
  return bytes;
}

}  // namespace

Status CheckView(const TensorView& view, const char* what) {
  const std::string shape = std::to_string(view.rows) + " x " + std::to_string(view.cols);
  if (view.rows <= 0 || view.cols <= 0) {
    return InvalidArgument(std::string(what) + ": empty or negative shape " + shape);
  }
  if (view.row_stride < view.cols) {
    return InvalidArgument(std::string(what) + ": row stride " + std::to_string(view.row_stride) +
                           " is below the " + std::to_string(view.cols) + " columns");
  }
  if (ViewBytes(view.rows, view.row_stride, view.dtype) < 0) {
    return InvalidArgument(std::string(what) + ": shape " + shape + " overflows");
  }
  if (view.data == nullptr) return InvalidArgument(std::string(what) + ": null pointer");
  return OkStatus();
}

Result<Buffer> Buffer::Allocate(size_t bytes) {
  // Rounded up, so that kernels may load whole vectors over the end.
  const size_t rounded = (bytes + kAlignment) / kAlignment * kAlignment;
  void* memory = rounded < bytes ? nullptr : std::aligned_alloc(kAlignment, rounded);
  if (memory == nullptr) {
    return OutOfMemory("cannot allocate " + std::to_string(bytes) + " bytes");
  }
  std::memset(memory, 0, rounded);
  return Adopt(static_cast<std::byte*>(memory), bytes, Device::kCpu,
               [](std::byte* data, size_t) { std::free(data); });
}

Buffer Buffer::Adopt(std::byte* data, size_t bytes, Device device,
                     void (*release)(std::byte*, size_t)) {
  return Share(std::shared_ptr<void>(data,
                                     [bytes, release](void* p) {
                                       if (release != nullptr) {
                                         release(static_cast<std::byte*>(p), bytes);
                                       }
                                     }),
               data, bytes, device);
}

Buffer Buffer::Share(std::shared_ptr<void> owner, std::byte* data, size_t bytes, Device device) {
  Buffer buffer;
  buffer.owner_ = std::move(owner);
  buffer.data_ = data;
  buffer.size_ = bytes;
  buffer.device_ = device;
  return buffer;
}

Buffer Buffer::Borrow(std::span<const std::byte> bytes, Device device) {
  Buffer buffer;
  buffer.data_ = const_cast<std::byte*>(bytes.data());
  buffer.size_ = bytes.size();
  buffer.device_ = device;
  return buffer;
}

Result<Tensor> Tensor::Allocate(DType dtype, int64_t rows, int64_t cols) {
  const int64_t bytes = rows < 0 || cols < 0 ? -1 : ViewBytes(rows, cols, dtype);
  if (bytes < 0) {
    return InvalidArgument("tensor of " + std::to_string(rows) + " x " + std::to_string(cols) +
                           " elements: negative or too large");
  }
  NIBBLE_ASSIGN_OR_RETURN(Buffer buffer, Buffer::Allocate(static_cast<size_t>(bytes)));
  return FromBuffer(std::move(buffer), dtype, rows, cols);
}

Result<Tensor> Tensor::FromBuffer(Buffer buffer, DType dtype, int64_t rows, int64_t cols) {
  const int64_t bytes = rows < 0 || cols < 0 ? -1 : ViewBytes(rows, cols, dtype);
  if (bytes < 0 || static_cast<size_t>(bytes) > buffer.size()) {
    return InvalidArgument("buffer of " + std::to_string(buffer.size()) + " bytes cannot hold " +
                           std::to_string(rows) + " x " + std::to_string(cols) + " " +
                           DTypeName(dtype));
  }
  Tensor tensor;
  tensor.buffer_ = std::move(buffer);
  tensor.dtype_ = dtype;
  tensor.rows_ = rows;
  tensor.cols_ = cols;
  return tensor;
}

}  // namespace nibble
