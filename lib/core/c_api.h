// What the C entry points share: errors out, exceptions stopped, C structs turned into views.
#ifndef NIBBLE_LIB_CORE_C_API_H_
#define NIBBLE_LIB_CORE_C_API_H_

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <span>
#include <string_view>

#include "nibble/c_api.h"
#include "nibble/parallel.h"
#include "nibble/quantize.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

struct nibble_tensor {
  nibble::QuantizedTensor value;
};

namespace nibble::c_api {

inline nibble_status Report(StatusCode code, std::string_view message, nibble_error* error) {
  if (error != nullptr) {
    const size_t size = std::min(message.size(), sizeof(error->message) - 1);
    std::memcpy(error->message, message.data(), size);
    error->message[size] = '\0';
  }
  return static_cast<nibble_status>(code);
}

// Runs `body`, a Status(), and turns its outcome, exceptions included, into a C status.
template <class Body>
nibble_status Call(nibble_error* error, const Body& body) noexcept {
  try {
    const Status status = body();
    return Report(status.code(), status.message(), error);
  } catch (const std::bad_alloc&) {
    return Report(StatusCode::kOutOfMemory, "out of memory", error);
  } catch (const std::exception& e) {
    return Report(StatusCode::kInternal, e.what(), error);
  } catch (...) {
    return Report(StatusCode::kInternal, "unknown exception", error);
  }
}

// Refuses a null pointer argument by name.
inline Status CheckPointer(const void* pointer, const char* name) {
  if (pointer != nullptr) return OkStatus();
  return InvalidArgument(std::string(name) + " is a null pointer");
}

inline Result<DType> ToDType(nibble_dtype dtype) {
  if (dtype == NIBBLE_F32) return DType::kF32;
  if (dtype == NIBBLE_F16) return DType::kF16;
  if (dtype == NIBBLE_BF16) return DType::kBF16;
  if (dtype == NIBBLE_I8) return DType::kI8;
  return InvalidArgument("no dtype has number " + std::to_string(static_cast<int>(dtype)));
}

inline Result<Device> ToDevice(nibble_device device) {
  if (device == NIBBLE_DEVICE_CPU) return Device::kCpu;
  if (device == NIBBLE_DEVICE_CUDA) return Device::kCuda;
  return InvalidArgument("no device has number " + std::to_string(static_cast<int>(device)));
}

// nibble_matrix or nibble_mutable_matrix to TensorView or MutableTensorView.
template <class View, class Matrix>
Result<View> ToView(const Matrix& matrix) {
  NIBBLE_ASSIGN_OR_RETURN(const DType dtype, ToDType(matrix.dtype));
  NIBBLE_ASSIGN_OR_RETURN(const Device device, ToDevice(matrix.device));
  return View{matrix.data,
              dtype,
              matrix.rows,
              matrix.cols,
              matrix.row_stride == 0 ? matrix.cols : matrix.row_stride,
              device};
}

inline ParallelFor ToParallelFor(const nibble_parallel_for* parallel) {
  if (parallel == nullptr) return {};
  ParallelFor result;
  if (parallel->run != nullptr) {
    result = {parallel->run, parallel->context, parallel->workers};
  }
  result.stream = parallel->stream;
  return result;
}

inline QuantizeOptions ToOptions(const nibble_quantize_options* options, int64_t cols) {
  if (options == nullptr) return {};
  QuantizeOptions result;
  if (options->importance != nullptr && cols > 0) {
    result.importance = {options->importance, static_cast<size_t>(cols)};
  }
  result.non_finite = options->clamp_non_finite ? NonFinite::kClamp : NonFinite::kError;
  result.parallel = ToParallelFor(&options->parallel);
  return result;
}

// Hands a result to the caller as a handle.
template <class Handle, class Value>
Status Release(Result<Value> result, Handle** handle) {
  if (!result.ok()) return std::move(result).status();
  *handle = new Handle{*std::move(result)};
  return OkStatus();
}

inline std::span<const std::byte> ToBytes(const void* data, size_t bytes) {
  return {static_cast<const std::byte*>(data), bytes};
}

}  // namespace nibble::c_api

#endif  // NIBBLE_LIB_CORE_C_API_H_
