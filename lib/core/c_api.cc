#include "lib/core/c_api.h"

#include <array>
#include <memory>
#include <string>

#include "nibble/format.h"
#include "nibble/matmul.h"
#include "nibble/quantized_tensor.h"
#include "nibble/scheme.h"

using nibble::Buffer;
using nibble::Format;
using nibble::FormatInfo;
using nibble::MutableTensorView;
using nibble::OkStatus;
using nibble::QuantizedTensor;
using nibble::Result;
using nibble::Status;
using nibble::TensorView;
using nibble::c_api::Call;
using nibble::c_api::CheckPointer;

struct nibble_tensor {
  QuantizedTensor value;
};

namespace {

static_assert(NIBBLE_INTERNAL == static_cast<int>(nibble::StatusCode::kInternal));
static_assert(NIBBLE_PRECISION_F32 == static_cast<int>(nibble::Precision::kF32));
static_assert(static_cast<int>(NIBBLE_PLANE_COUNT) == nibble::kPlaneCount);
static_assert(static_cast<int>(NIBBLE_PLANE_SUPER_SCALES) ==
              static_cast<int>(nibble::Plane::kSuperScales));

nibble_format_info ToInfo(const FormatInfo& info) {
  return {static_cast<uint32_t>(info.format),
          info.name,
          info.block_weights,
          info.block_bytes,
          info.can_encode(),
          info.can_decode()};
}

Status CopyInfo(const FormatInfo* found, const std::string& what, nibble_format_info* info) {
  NIBBLE_RETURN_IF_ERROR(CheckPointer(info, "info"));
  if (found == nullptr) return nibble::NotFound("no format has " + what);
  *info = ToInfo(*found);
  return OkStatus();
}

Status Release(Result<QuantizedTensor> result, nibble_tensor** tensor) {
  if (!result.ok()) return std::move(result).status();
  *tensor = new nibble_tensor{*std::move(result)};
  return OkStatus();
}

}  // namespace

extern "C" {

const char* nibble_status_name(nibble_status status) {
  return nibble::StatusCodeName(static_cast<nibble::StatusCode>(status));
}

const char* nibble_version(void) { return NIBBLE_VERSION; }

size_t nibble_format_count(void) { return nibble::AllFormats().size(); }

nibble_status nibble_format_at(size_t index, nibble_format_info* info, nibble_error* error) {
  return Call(error, [&] {
    const auto formats = nibble::AllFormats();
    return CopyInfo(index < formats.size() ? &formats[index] : nullptr,
                    "place " + std::to_string(index), info);
  });
}

nibble_status nibble_format_by_id(uint32_t id, nibble_format_info* info, nibble_error* error) {
  return Call(error, [&] {
    return CopyInfo(nibble::FindFormat(static_cast<Format>(id)), "number " + std::to_string(id),
                    info);
  });
}

nibble_status nibble_format_by_name(const char* name, nibble_format_info* info,
                                    nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(name, "name"));
    return CopyInfo(nibble::FindFormat(name), "the name '" + std::string(name) + "'", info);
  });
}

nibble_status nibble_format_bytes(uint32_t format, int64_t rows, int64_t cols, size_t* bytes,
                                  nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(bytes, "bytes"));
    NIBBLE_ASSIGN_OR_RETURN(*bytes, nibble::FormatBytes(static_cast<Format>(format), rows, cols));
    return OkStatus();
  });
}

nibble_status nibble_quantize(nibble_matrix weights, uint32_t format, void* out, size_t out_bytes,
                              const nibble_quantize_options* options, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(out, "out"));
    NIBBLE_ASSIGN_OR_RETURN(const auto view, nibble::c_api::ToView<TensorView>(weights));
    return nibble::QuantizeTo(view, static_cast<Format>(format),
                              {static_cast<std::byte*>(out), out_bytes},
                              nibble::c_api::ToOptions(options, weights.cols));
  });
}

nibble_status nibble_dequantize(uint32_t format, const void* blocks, size_t blocks_bytes,
                                nibble_mutable_matrix out, const nibble_parallel_for* parallel,
                                nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(blocks, "blocks"));
    NIBBLE_ASSIGN_OR_RETURN(const auto view, nibble::c_api::ToView<MutableTensorView>(out));
    return nibble::Dequantize(static_cast<Format>(format),
                              nibble::c_api::ToBytes(blocks, blocks_bytes), view,
                              nibble::c_api::ToParallelFor(parallel));
  });
}

nibble_status nibble_tensor_quantize(nibble_matrix weights, const char* type,
                                     const nibble_quantize_options* options, nibble_tensor** tensor,
                                     nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(type, "type"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(tensor, "tensor"));
    NIBBLE_ASSIGN_OR_RETURN(const auto view, nibble::c_api::ToView<TensorView>(weights));
    const auto quantize_options = nibble::c_api::ToOptions(options, weights.cols);
    if (const FormatInfo* info = nibble::FindFormat(type)) {
      return Release(nibble::Quantize(view, info->format, quantize_options), tensor);
    }
    NIBBLE_ASSIGN_OR_RETURN(const nibble::Scheme scheme, nibble::ParseScheme(type));
    return Release(nibble::Quantize(view, scheme, quantize_options), tensor);
  });
}

nibble_status nibble_tensor_borrow(const char* type, int64_t rows, int64_t cols,
                                   const void* const planes[NIBBLE_PLANE_COUNT],
                                   const size_t plane_bytes[NIBBLE_PLANE_COUNT],
                                   nibble_tensor** tensor, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(type, "type"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(planes, "planes"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(plane_bytes, "plane_bytes"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(tensor, "tensor"));
    std::array<Buffer, nibble::kPlaneCount> buffers;
    for (int i = 0; i < nibble::kPlaneCount; ++i) {
      if (plane_bytes[i] == 0) continue;
      NIBBLE_RETURN_IF_ERROR(CheckPointer(planes[i], "a plane that has bytes"));
      buffers[i] = Buffer::Borrow(nibble::c_api::ToBytes(planes[i], plane_bytes[i]));
    }
    if (const FormatInfo* info = nibble::FindFormat(type)) {
      for (int i = 1; i < nibble::kPlaneCount; ++i) {
        if (plane_bytes[i] != 0) return nibble::InvalidArgument("a block format has one plane");
      }
      return Release(QuantizedTensor::Create(info->format, rows, cols, buffers[0]), tensor);
    }
    NIBBLE_ASSIGN_OR_RETURN(const nibble::Scheme scheme, nibble::ParseScheme(type));
    return Release(QuantizedTensor::Create(scheme, rows, cols, std::move(buffers)), tensor);
  });
}

int64_t nibble_tensor_rows(const nibble_tensor* tensor) { return tensor->value.rows(); }
int64_t nibble_tensor_cols(const nibble_tensor* tensor) { return tensor->value.cols(); }
size_t nibble_tensor_bytes(const nibble_tensor* tensor) { return tensor->value.bytes(); }

const void* nibble_tensor_plane(const nibble_tensor* tensor, nibble_plane plane, size_t* bytes) {
  const bool known = plane >= 0 && plane < NIBBLE_PLANE_COUNT;
  const Buffer buffer = known ? tensor->value.plane(static_cast<nibble::Plane>(plane)) : Buffer();
  if (bytes != nullptr) *bytes = buffer.size();
  return buffer.size() == 0 ? nullptr : buffer.data();
}

nibble_status nibble_tensor_dequantize(const nibble_tensor* tensor, nibble_mutable_matrix out,
                                       const nibble_parallel_for* parallel, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(tensor, "tensor"));
    NIBBLE_ASSIGN_OR_RETURN(const auto view, nibble::c_api::ToView<MutableTensorView>(out));
    return nibble::Dequantize(tensor->value, view, nibble::c_api::ToParallelFor(parallel));
  });
}

void nibble_tensor_free(nibble_tensor* tensor) { delete tensor; }

nibble_status nibble_matmul(nibble_matrix activations, const nibble_tensor* weights,
                            nibble_mutable_matrix out, const nibble_matmul_options* options,
                            nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(weights, "weights"));
    NIBBLE_ASSIGN_OR_RETURN(const auto in, nibble::c_api::ToView<TensorView>(activations));
    NIBBLE_ASSIGN_OR_RETURN(const auto result, nibble::c_api::ToView<MutableTensorView>(out));
    nibble::MatmulOptions matmul_options;
    if (options != nullptr) {
      if (options->precision < NIBBLE_PRECISION_INT8 || options->precision > NIBBLE_PRECISION_F32) {
        return nibble::InvalidArgument("no precision has number " +
                                       std::to_string(static_cast<int>(options->precision)));
      }
      matmul_options.precision = static_cast<nibble::Precision>(options->precision);
      matmul_options.accumulate = options->accumulate != 0;
      if (options->bias != nullptr) {
        matmul_options.bias = {options->bias, static_cast<size_t>(weights->value.rows())};
      }
      matmul_options.parallel = nibble::c_api::ToParallelFor(&options->parallel);
    }
    return nibble::Matmul(in, weights->value, result, matmul_options);
  });
}

}  // extern "C"
