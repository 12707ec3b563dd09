#include "lib/core/c_api.h"

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "nibble/format.h"
#include "nibble/llm_int8.h"
#include "nibble/matmul.h"
#include "nibble/quantized_tensor.h"
#include "nibble/scheme.h"

using nibble::Buffer;
using nibble::Format;
using nibble::FormatInfo;
using nibble::MutableTensorView;
using nibble::OkStatus;
using nibble::PackedWeights;
using nibble::QuantizedTensor;
using nibble::Result;
using nibble::Status;
using nibble::TensorView;
using nibble::c_api::Call;
using nibble::c_api::CheckPointer;
using nibble::c_api::Release;

struct nibble_packed {
  PackedWeights value;
};

namespace {

static_assert(NIBBLE_INTERNAL == static_cast<int>(nibble::StatusCode::kInternal));
static_assert(NIBBLE_PRECISION_INT8_PER_ROW == static_cast<int>(nibble::Precision::kInt8PerRow));
static_assert(static_cast<int>(NIBBLE_PLANE_COUNT) == nibble::kPlaneCount);
static_assert(NIBBLE_DEVICE_CUDA == static_cast<int>(nibble::Device::kCuda));
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

Result<nibble::Precision> ToPrecision(nibble_precision precision) {
  if (precision < NIBBLE_PRECISION_INT8 || precision > NIBBLE_PRECISION_INT8_PER_ROW) {
    return nibble::InvalidArgument("no precision has number " +
                                   std::to_string(static_cast<int>(precision)));
  }
  return static_cast<nibble::Precision>(precision);
}

std::span<const float> ToBias(const float* bias, int64_t rows) {
  if (bias == nullptr || rows <= 0) return {};
  return {bias, static_cast<size_t>(rows)};
}

// All but the bias, whose size the weights tell.
Result<nibble::MatmulOptions> ToMatmulOptions(const nibble_matmul_options* options) {
  nibble::MatmulOptions result;
  if (options == nullptr) return result;
  NIBBLE_ASSIGN_OR_RETURN(result.precision, ToPrecision(options->precision));
  result.accumulate = options->accumulate != 0;
  result.parallel = nibble::c_api::ToParallelFor(&options->parallel);
  if (options->activation_scales_count > 0) {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(options->activation_scales, "activation_scales"));
    result.activation_scales = {options->activation_scales, options->activation_scales_count};
  }
  return result;
}

Result<nibble::MatmulMember> ToMember(const nibble_matmul_member& member) {
  if ((member.weights == nullptr) == (member.packed == nullptr)) {
    return nibble::InvalidArgument("a member needs either weights or packed weights");
  }
  nibble::MatmulMember result;
  NIBBLE_ASSIGN_OR_RETURN(result.out, nibble::c_api::ToView<MutableTensorView>(member.out));
  if (member.weights != nullptr) {
    result.weights = &member.weights->value;
    result.bias = ToBias(member.bias, member.weights->value.rows());
  } else {
    result.weights = &member.packed->value;
    result.bias = ToBias(member.bias, member.packed->value.rows());
  }
  if (member.rows != nullptr && member.out.rows > 0) {
    result.rows = {member.rows, static_cast<size_t>(member.out.rows)};
  }
  return result;
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
                                   nibble_device device,
                                   const void* const planes[NIBBLE_PLANE_COUNT],
                                   const size_t plane_bytes[NIBBLE_PLANE_COUNT],
                                   nibble_tensor** tensor, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(type, "type"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(planes, "planes"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(plane_bytes, "plane_bytes"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(tensor, "tensor"));
    NIBBLE_ASSIGN_OR_RETURN(const nibble::Device where, nibble::c_api::ToDevice(device));
    std::array<Buffer, nibble::kPlaneCount> buffers;
    for (int i = 0; i < nibble::kPlaneCount; ++i) {
      if (plane_bytes[i] == 0) continue;
      NIBBLE_RETURN_IF_ERROR(CheckPointer(planes[i], "a plane that has bytes"));
      buffers[i] = Buffer::Borrow(nibble::c_api::ToBytes(planes[i], plane_bytes[i]), where);
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
nibble_device nibble_tensor_device(const nibble_tensor* tensor) {
  return static_cast<nibble_device>(tensor->value.device());
}

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
    NIBBLE_ASSIGN_OR_RETURN(auto matmul_options, ToMatmulOptions(options));
    if (options != nullptr) matmul_options.bias = ToBias(options->bias, weights->value.rows());
    return nibble::Matmul(in, weights->value, result, matmul_options);
  });
}

nibble_status nibble_matmul_llm_int8(nibble_matrix activations, const nibble_tensor* weights,
                                     nibble_mutable_matrix out, float threshold,
                                     const nibble_matmul_options* options, nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(weights, "weights"));
    NIBBLE_ASSIGN_OR_RETURN(const auto in, nibble::c_api::ToView<TensorView>(activations));
    NIBBLE_ASSIGN_OR_RETURN(const auto result, nibble::c_api::ToView<MutableTensorView>(out));
    NIBBLE_ASSIGN_OR_RETURN(auto matmul_options, ToMatmulOptions(options));
    if (options != nullptr) matmul_options.bias = ToBias(options->bias, weights->value.rows());
    return nibble::MatmulLlmInt8(in, weights->value, result, threshold, matmul_options);
  });
}

nibble_status nibble_pack(const nibble_tensor* weights, nibble_precision precision,
                          const nibble_parallel_for* parallel, nibble_packed** packed,
                          nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(weights, "weights"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(packed, "packed"));
    NIBBLE_ASSIGN_OR_RETURN(const auto checked, ToPrecision(precision));
    return Release(nibble::Pack(weights->value, checked, nibble::c_api::ToParallelFor(parallel)),
                   packed);
  });
}

const void* nibble_packed_bytes(const nibble_packed* packed, size_t* bytes) {
  const auto serialized = packed->value.serialized();
  if (bytes != nullptr) *bytes = serialized.size();
  return serialized.data();
}

nibble_status nibble_packed_borrow(const void* data, size_t bytes, nibble_packed** packed,
                                   nibble_error* error) {
  return Call(error, [&]() -> Status {
    NIBBLE_RETURN_IF_ERROR(CheckPointer(data, "data"));
    NIBBLE_RETURN_IF_ERROR(CheckPointer(packed, "packed"));
    return Release(PackedWeights::FromBytes(Buffer::Borrow(nibble::c_api::ToBytes(data, bytes))),
                   packed);
  });
}

void nibble_packed_free(nibble_packed* packed) { delete packed; }

nibble_status nibble_matmul_group(nibble_matrix activations, const nibble_matmul_member* members,
                                  size_t count, const nibble_matmul_options* options,
                                  nibble_error* error) {
  return Call(error, [&]() -> Status {
    if (count > 0) NIBBLE_RETURN_IF_ERROR(CheckPointer(members, "members"));
    NIBBLE_ASSIGN_OR_RETURN(const auto in, nibble::c_api::ToView<TensorView>(activations));
    NIBBLE_ASSIGN_OR_RETURN(const auto matmul_options, ToMatmulOptions(options));
    if (options != nullptr && options->bias != nullptr) {
      return nibble::InvalidArgument("matmul: the members of a group have biases of their own");
    }
    std::vector<nibble::MatmulMember> group;
    for (size_t i = 0; i < count; ++i) {
      auto member = ToMember(members[i]);
      if (!member.ok()) {
        return std::move(member).status().WithContext("member " + std::to_string(i));
      }
      group.push_back(*std::move(member));
    }
    return nibble::MatmulGroup(in, group, matmul_options);
  });
}

}  // extern "C"
