#include "nibble/matmul.h"

#include <string>

#include "kernels/dequantize.h"
#include "kernels/gemm_bf16.h"
#include "kernels/matmul.h"
#include "kernels/pack_bf16.h"

namespace nibble {
namespace {

// Tiles hold 16 activation rows; with fewer than half of them, decoding for vectors is faster.
constexpr int64_t kFewestTileRows = 8;

bool IsActivationType(DType t) { return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16; }

std::string Shape(int64_t rows, int64_t cols) {
  return std::to_string(rows) + " x " + std::to_string(cols);
}

Status CheckOperands(const TensorView& activations, int64_t rows, int64_t cols,
                     const MutableTensorView& out, const MatmulOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckView(activations, "activations"));
  NIBBLE_RETURN_IF_ERROR(CheckView(out, "output"));
  if (!IsActivationType(activations.dtype)) {
    return InvalidArgument(std::string("activations: type ") + DTypeName(activations.dtype) +
                           " where f32, f16 or bf16 is needed");
  }
  if (out.dtype != DType::kF32) {
    return InvalidArgument(std::string("output: type ") + DTypeName(out.dtype) +
                           " where f32 is needed");
  }
  if (activations.device != Device::kCpu || out.device != Device::kCpu) {
    return Unsupported("matmul: an operand is not in host memory");
  }
  if (activations.cols != cols || out.rows != activations.rows || out.cols != rows) {
    return InvalidArgument("matmul: activations " + Shape(activations.rows, activations.cols) +
                           " and weights " + Shape(rows, cols) + " do not give output " +
                           Shape(out.rows, out.cols));
  }
  if (!options.bias.empty() && static_cast<int64_t>(options.bias.size()) != rows) {
    return InvalidArgument("matmul: bias of " + std::to_string(options.bias.size()) +
                           " values for " + std::to_string(rows) + " output columns");
  }
  if (reinterpret_cast<uintptr_t>(out.data) % alignof(float) != 0) {
    return InvalidArgument("output: a pointer that is not aligned for f32");
  }
  if (reinterpret_cast<uintptr_t>(activations.data) % DTypeBytes(activations.dtype) != 0) {
    return InvalidArgument("activations: a pointer that is not aligned for their type");
  }
  return OkStatus();
}

ProductOutput OutputOf(const MutableTensorView& out, const MatmulOptions& options) {
  return {static_cast<float*>(out.data), out.row_stride,
          options.bias.empty() ? nullptr : options.bias.data(), options.accumulate};
}

void DecodeBlockRow(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                    float* out) {
  const Format format = static_cast<Format>(weights.kind);
  const FormatInfo& info = GetFormatInfo(format);
  const std::byte* blocks = static_cast<const std::byte*>(weights.source) +
                            row * weights.row_bytes + col / info.block_weights * info.block_bytes;
  DecodeRow(format, blocks, count, out);
}

Result<WeightRows> RowsOf(const QuantizedTensor& tensor) {
  if (tensor.rows() <= 0 || tensor.cols() <= 0) return InvalidArgument("matmul: empty weights");
  if (tensor.device() != Device::kCpu) {
    return Unsupported("matmul: the weights are not in host memory");
  }
  if (!tensor.is_block_format()) return Unsupported("matmul: planar schemes");
  const FormatInfo& info = GetFormatInfo(tensor.format());
  if (!info.can_decode()) return Unsupported(std::string("matmul: weights of type ") + info.name);
  WeightRows rows;
  rows.rows = tensor.rows();
  rows.cols = tensor.cols();
  rows.unit = info.block_weights;
  rows.source = tensor.plane(Plane::kCodes).data();
  rows.row_bytes = tensor.cols() / info.block_weights * info.block_bytes;
  rows.kind = static_cast<uint32_t>(tensor.format());
  rows.decode = DecodeBlockRow;
  // Blocks are structs of halves and bytes; a mapped file may hold them at odd addresses.
  const bool aligned = reinterpret_cast<uintptr_t>(rows.source) % alignof(F16) == 0;
  rows.decode_bf16 = aligned ? FindDecodeBf16(tensor.format()) : nullptr;
  if (rows.decode_bf16 == nullptr) rows.decode_bf16 = DecodeBf16ByFloat;
  return rows;
}

}  // namespace

Status Matmul(TensorView activations, const QuantizedTensor& weights, MutableTensorView out,
              const MatmulOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const WeightRows rows, RowsOf(weights));
  NIBBLE_RETURN_IF_ERROR(CheckOperands(activations, rows.rows, rows.cols, out, options));
  const ProductOutput output = OutputOf(out, options);
  if (options.precision != Precision::kF32 && activations.rows >= kFewestTileRows) {
    if (const GemmBf16* gemm = AmxGemmBf16()) {
      return MatmulBf16(*gemm, activations, rows, output, options.parallel);
    }
  }
  return MatmulF32(activations, rows, output, options.parallel);
}

}  // namespace nibble
