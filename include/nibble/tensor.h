// Where numbers lie: views that own nothing, and tensors that own host, mapped or device memory.
#ifndef NIBBLE_TENSOR_H_
#define NIBBLE_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "nibble/dtype.h"
#include "nibble/status.h"

namespace nibble {

enum class Device : uint8_t { kCpu, kCuda };

// A row-major matrix in someone else's memory. A weight is [out_features, in_features]: one row
// holds the weights of one output. `row_stride` counts elements and is at least `cols`.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
  Device device = Device::kCpu;

  const void* Row(int64_t row) const {
    return static_cast<const std::byte*>(data) +
           static_cast<size_t>(row * row_stride) * DTypeBytes(dtype);
  }
};

// The same, writable.
struct MutableTensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
  Device device = Device::kCpu;

  void* Row(int64_t row) const {
    return static_cast<std::byte*>(data) +
           static_cast<size_t>(row * row_stride) * DTypeBytes(dtype);
  }
  operator TensorView() const { return {data, dtype, rows, cols, row_stride, device}; }
};

inline TensorView ViewOf(const float* data, int64_t rows, int64_t cols) {
  return {data, DType::kF32, rows, cols, cols, Device::kCpu};
}
inline MutableTensorView ViewOf(float* data, int64_t rows, int64_t cols) {
  return {data, DType::kF32, rows, cols, cols, Device::kCpu};
}

// Checks a view that came from outside: positive sizes, stride >= cols, a size that does not
// overflow, a pointer. `what` begins the message.
Status CheckView(const TensorView& view, const char* what);

// Bytes with an owner: aligned host memory, a mapped file or device memory; shared between copies.
class Buffer {
 public:
  static constexpr size_t kAlignment = 64;

  Buffer() = default;

  // Zeroed host memory aligned to kAlignment.
  static Result<Buffer> Allocate(size_t bytes);
  // Other memory: `release(data, bytes)` runs when the last copy goes.
  static Buffer Adopt(std::byte* data, size_t bytes, Device device,
                      void (*release)(std::byte*, size_t));
  // Other memory that lives as long as `owner` does.
  static Buffer Share(std::shared_ptr<void> owner, std::byte* data, size_t bytes, Device device);
  // Memory that the caller keeps alive for as long as the Buffer is used. Not to be written.
  static Buffer Borrow(std::span<const std::byte> bytes, Device device = Device::kCpu);

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  Device device() const { return device_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::span<std::byte> mutable_bytes() { return {data_, size_}; }

 private:
  std::shared_ptr<void> owner_;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  Device device_ = Device::kCpu;
};

// A matrix that owns its memory (or shares a mapped file's).
class Tensor {
 public:
  Tensor() = default;
  // Zeroed, rows packed tightly.
  static Result<Tensor> Allocate(DType dtype, int64_t rows, int64_t cols);
  // `buffer` holds rows * cols elements from its beginning.
  static Result<Tensor> FromBuffer(Buffer buffer, DType dtype, int64_t rows, int64_t cols);

  TensorView view() const {
    return {buffer_.data(), dtype_, rows_, cols_, cols_, buffer_.device()};
  }
  MutableTensorView mutable_view() {
    return {buffer_.data(), dtype_, rows_, cols_, cols_, buffer_.device()};
  }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  DType dtype() const { return dtype_; }

 private:
  Buffer buffer_;
  DType dtype_ = DType::kF32;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

}  // namespace nibble

#endif  // NIBBLE_TENSOR_H_
