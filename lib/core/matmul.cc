#include "nibble/matmul.h"

#include <span>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "kernels/dequantize.h"
#include "kernels/gemm_bf16.h"
#include "kernels/gemm_int8.h"
#include "kernels/gemv_blocks.h"
#include "kernels/gemv_float.h"
#include "kernels/gemv_int8.h"
#include "kernels/gemm_w8a8.h"
#include "kernels/gemv_planar.h"
#include "kernels/matmul.h"
#include "kernels/pack.h"
#include "kernels/pack_bf16.h"
#include "kernels/pack_planar.h"
#include "lib/core/packed_weights.h"
#include "lib/quantize/planar.h"
#include "nibble/backend.h"

namespace nibble {
namespace {

// Tiles hold 16 activation rows; with fewer than half of them, decoding for vectors is faster.
constexpr int64_t kFewestTileRows = 8;
// With blocks, int8 dot products beat decoding for tiles while activations are few: packed blocks,
// and canonical ones.
constexpr int64_t kMostInt8Rows = 24;
constexpr int64_t kMostInt8RowsOfBlocks = 12;

bool IsActivationType(DType t) { return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16; }

std::string Shape(int64_t rows, int64_t cols) {
  return std::to_string(rows) + " x " + std::to_string(cols);
}

// A product as the caller states it.
struct Operands {
  TensorView activations;
  std::span<const float> activation_scales;
  std::span<const int32_t> index;  // the activation rows to take; empty: all
  int64_t rows, cols;              // of the weights
  MutableTensorView out;
  std::span<const float> bias;
};

Status CheckOperands(const Operands& p) {
  NIBBLE_RETURN_IF_ERROR(CheckView(p.activations, "activations"));
  NIBBLE_RETURN_IF_ERROR(CheckView(p.out, "output"));
  const bool is_int8 = p.activations.dtype == DType::kI8;
  if (!IsActivationType(p.activations.dtype) && !is_int8) {
    return InvalidArgument(std::string("activations: type ") + DTypeName(p.activations.dtype) +
                           " where f32, f16 or bf16, or i8 with scales, is needed");
  }
  const int64_t scales = static_cast<int64_t>(p.activation_scales.size());
  if (is_int8 ? scales != 1 && scales != p.activations.rows : scales != 0) {
    return InvalidArgument("matmul: " + std::to_string(scales) + " scales of " +
                           std::to_string(p.activations.rows) + " activation rows of type " +
                           DTypeName(p.activations.dtype));
  }
  if (p.out.dtype != DType::kF32) {
    return InvalidArgument(std::string("output: type ") + DTypeName(p.out.dtype) +
                           " where f32 is needed");
  }
  if (p.activations.device != Device::kCpu || p.out.device != Device::kCpu) {
    return Unsupported("matmul: an operand is not in host memory");
  }
  const int64_t taken = p.index.empty() ? p.activations.rows : static_cast<int64_t>(p.index.size());
  if (p.activations.cols != p.cols || p.out.rows != taken || p.out.cols != p.rows) {
    return InvalidArgument("matmul: activations " + Shape(taken, p.activations.cols) +
                           " and weights " + Shape(p.rows, p.cols) + " do not give output " +
                           Shape(p.out.rows, p.out.cols));
  }
  for (const int32_t row : p.index) {
    if (row < 0 || row >= p.activations.rows) {
      return InvalidArgument("matmul: activation row " + std::to_string(row) + " is not one of " +
                             std::to_string(p.activations.rows));
    }
  }
  if (!p.bias.empty() && static_cast<int64_t>(p.bias.size()) != p.rows) {
    return InvalidArgument("matmul: bias of " + std::to_string(p.bias.size()) + " values for " +
                           std::to_string(p.rows) + " output columns");
  }
  if (reinterpret_cast<uintptr_t>(p.out.data) % alignof(float) != 0) {
    return InvalidArgument("output: a pointer that is not aligned for f32");
  }
  if (reinterpret_cast<uintptr_t>(p.activations.data) % DTypeBytes(p.activations.dtype) != 0) {
    return InvalidArgument("activations: a pointer that is not aligned for their type");
  }
  return OkStatus();
}

void DecodeBlockRow(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                    float* out) {
  const Format format = static_cast<Format>(weights.kind);
  const FormatInfo& info = GetFormatInfo(format);
  const std::byte* blocks = static_cast<const std::byte*>(weights.source) +
                            row * weights.row_bytes + col / info.block_weights * info.block_bytes;
  DecodeRow(format, blocks, count, out);
}

WeightRows BlockRows(Format format, const std::byte* blocks, int64_t rows, int64_t cols) {
  const FormatInfo& info = GetFormatInfo(format);
  WeightRows weights;
  weights.rows = rows;
  weights.cols = cols;
  weights.unit = info.block_weights;
  weights.source = blocks;
  weights.codes = blocks;
  weights.row_bytes = cols / info.block_weights * info.block_bytes;
  weights.kind = static_cast<uint32_t>(format);
  weights.decode = DecodeBlockRow;
  // Blocks are structs of halves and bytes; a mapped file may hold them at odd addresses.
  const bool aligned = reinterpret_cast<uintptr_t>(blocks) % alignof(F16) == 0;
  weights.decode_bf16 = aligned ? FindDecodeBf16(format) : nullptr;
  if (weights.decode_bf16 == nullptr) weights.decode_bf16 = DecodeBf16ByFloat;
  return weights;
}

Status CheckWeights(const QuantizedTensor& tensor) {
  if (tensor.rows() <= 0 || tensor.cols() <= 0) return InvalidArgument("matmul: empty weights");
  if (tensor.device() != Device::kCpu) {
    return Unsupported("matmul: the weights are not in host memory");
  }
  if (tensor.is_block_format()) {
    const FormatInfo& info = GetFormatInfo(tensor.format());
    if (!info.can_decode()) return Unsupported(std::string("matmul: weights of type ") + info.name);
    return OkStatus();
  }
  const PlanarPlanes planes = PlanesOf(tensor);
  for (int64_t c = 0; planes.group_index != nullptr && c < planes.cols; ++c) {
    if (const int64_t group = planes.Group(c); group < 0 || group >= planes.groups) {
      return InvalidArgument("matmul: group index " + std::to_string(group) + " of column " +
                             std::to_string(c) + " is not one of the " +
                             std::to_string(planes.groups) + " groups");
    }
  }
  return OkStatus();
}

// The products of one call, by the kernel that runs them.
class Group {
 public:
  Group(const MatmulOptions& options, size_t members) : options_(options) {
    planar_.reserve(members);  // products point into these
    planar_int8_.reserve(members);
  }

  Status Add(const Operands& operands, const QuantizedTensor& weights) {
    NIBBLE_RETURN_IF_ERROR(CheckWeights(weights));
    NIBBLE_RETURN_IF_ERROR(CheckOperands(operands));
    if (options_.precision == Precision::kInt8PerRow || is_int8(operands)) {
      const bool takes = !weights.is_block_format() && TakesW8A8(PlanesOf(weights));
      if (takes) {
        w8a8_.push_back({RowsOf(operands),
                         {PlanesOf(weights), operands.activation_scales},
                         OutputOf(operands)});
        return OkStatus();
      }
      if (is_int8(operands)) {
        return Unsupported(
            "matmul: int8 activations need weights \"int8 sym\" by channel or tensor");
      }
    }
    if (weights.is_block_format()) {
      AddBlocks(operands, weights.format(), weights.plane(Plane::kCodes).data());
    } else {
      AddPlanes(operands, PlanesOf(weights));
    }
    return OkStatus();
  }

  Status Add(const Operands& operands, const PackedWeightsAccess::Impl& weights) {
    if (weights.device != Device::kCpu) {
      return InvalidArgument("matmul: weights packed on a device that the output does not lie on");
    }
    if (weights.canonical) return Add(operands, *weights.canonical);
    NIBBLE_RETURN_IF_ERROR(CheckOperands(operands));
    if (is_int8(operands)) return Unsupported("matmul: int8 activations with packed blocks");
    const bool tiles = operands.out.rows > kMostInt8Rows && AmxGemmBf16() != nullptr;
    if (is_rounded() && !tiles) {
      auto& products = operands.out.rows < FewestGemmInt8Rows() ? int8_ : packed_;
      products.push_back({RowsOf(operands),
                          {weights.format, weights.payload, weights.rows, weights.cols},
                          OutputOf(operands)});
    } else {
      AddDecoded(operands, PackedRows(weights.format, weights.payload, weights.rows, weights.cols));
    }
    return OkStatus();
  }

  Status Run() const {
    if (!int8_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulInt8(int8_, options_.parallel));
    if (!blocks_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulInt8Blocks(blocks_, options_.parallel));
    if (!planes_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulInt8Planar(planes_, options_.parallel));
    if (!floats_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulFloatRows(floats_, options_.parallel));
    if (!packed_.empty()) NIBBLE_RETURN_IF_ERROR(GemmInt8(packed_, options_.parallel));
    if (!many_blocks_.empty()) NIBBLE_RETURN_IF_ERROR(GemmInt8(many_blocks_, options_.parallel));
    if (!w8a8_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulW8A8(w8a8_, options_.parallel));
    if (!bf16_.empty()) {
      NIBBLE_RETURN_IF_ERROR(MatmulBf16(*AmxGemmBf16(), bf16_, options_.parallel));
    }
    if (!f32_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulF32(f32_, options_.parallel));
    return OkStatus();
  }

 private:
  static bool is_int8(const Operands& p) { return p.activations.dtype == DType::kI8; }

  // Whether activations may be rounded to int8 with a scale for each 32 columns.
  bool is_rounded() const {
    return options_.precision == Precision::kInt8 || options_.precision == Precision::kInt8PerRow;
  }

  // Products with canonical blocks, and with numbers.
  void AddBlocks(const Operands& operands, Format format, const std::byte* blocks) {
    const bool is_block = GetFormatInfo(format).block_weights > 1;
    const int64_t m_rows = operands.out.rows;
    const bool few = m_rows < kFewestTileRows;
    const bool many = m_rows >= kFewestGemmInt8RowsOfBlocks && HasGemmInt8(format);
    const bool tiles = m_rows >= kFewestTileRows && !(many && m_rows <= kMostInt8RowsOfBlocks) &&
                       AmxGemmBf16() != nullptr;
    const Product<BlockWeights> product = {
        RowsOf(operands), {format, blocks, operands.rows, operands.cols}, OutputOf(operands)};
    if (is_block && !tiles && is_rounded()) {
      (many ? many_blocks_ : blocks_).push_back(product);
    } else if (few && HasGemvFloat(format)) {
      floats_.push_back(product);
    } else {
      AddDecoded(operands, BlockRows(format, blocks, operands.rows, operands.cols));
    }
  }

  void AddPlanes(const Operands& operands, const PlanarPlanes& planes) {
    const bool few = operands.out.rows < kFewestTileRows || AmxGemmBf16() == nullptr;
    if (is_rounded() && few && PlanarInt8::Takes(planes)) {
      planar_int8_.emplace_back(planes);
      planes_.push_back({RowsOf(operands), &planar_int8_.back(), OutputOf(operands)});
    } else {
      planar_.emplace_back(planes);
      AddDecoded(operands, planar_.back().rows());
    }
  }

  // Decoded products, in tiles where the machine has them.
  void AddDecoded(const Operands& operands, const WeightRows& weights) {
    const bool tiles = options_.precision != Precision::kF32 &&
                       operands.out.rows >= kFewestTileRows && AmxGemmBf16() != nullptr;
    (tiles ? bf16_ : f32_).push_back({RowsOf(operands), weights, OutputOf(operands)});
  }

  static ActivationRows RowsOf(const Operands& p) {
    const TensorView& a = p.activations;
    return {static_cast<const std::byte*>(a.data),
            a.dtype,
            p.out.rows,
            a.cols,
            a.row_stride * static_cast<int64_t>(DTypeBytes(a.dtype)),
            p.index.empty() ? nullptr : p.index.data()};
  }

  ProductOutput OutputOf(const Operands& p) const {
    return {static_cast<float*>(p.out.data), p.out.row_stride,
            p.bias.empty() ? nullptr : p.bias.data(), options_.accumulate};
  }

  const MatmulOptions& options_;
  std::vector<PlanarRows> planar_;
  std::vector<PlanarInt8> planar_int8_;
  std::vector<Product<PackedTiles>> int8_;
  std::vector<Product<PackedTiles>> packed_;  // of many activation rows
  std::vector<Product<BlockWeights>> blocks_, floats_;
  std::vector<Product<const PlanarInt8*>> planes_;
  std::vector<Product<BlockWeights>> many_blocks_;
  std::vector<Product<W8A8Weights>> w8a8_;
  std::vector<Product<WeightRows>> bf16_, f32_;
};

}  // namespace

Status Matmul(TensorView activations, const QuantizedTensor& weights, MutableTensorView out,
              const MatmulOptions& options) {
  if (out.device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(out.device));
    return backend->matmul(activations, weights, out, options);
  }
  Group group(options, 1);
  NIBBLE_RETURN_IF_ERROR(group.Add({activations,
                                    options.activation_scales,
                                    {},
                                    weights.rows(),
                                    weights.cols(),
                                    out,
                                    options.bias},
                                   weights));
  return group.Run();
}

Status Matmul(TensorView activations, const PackedWeights& weights, MutableTensorView out,
              const MatmulOptions& options) {
  if (out.device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(out.device));
    MatmulOptions shared = options;
    shared.bias = {};
    const MatmulMember member = {&weights, out, options.bias, {}};
    return backend->matmul_group(activations, {&member, 1}, shared);
  }
  const auto* packed = PackedWeightsAccess::Get(weights);
  if (packed == nullptr) return InvalidArgument("matmul: empty weights");
  Group group(options, 1);
  NIBBLE_RETURN_IF_ERROR(group.Add(
      {activations, options.activation_scales, {}, packed->rows, packed->cols, out, options.bias},
      *packed));
  return group.Run();
}

Status MatmulGroup(TensorView activations, std::span<const MatmulMember> members,
                   const MatmulOptions& options) {
  if (!options.bias.empty()) {
    return InvalidArgument("matmul: the members of a group have biases of their own");
  }
  if (activations.device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(activations.device));
    return backend->matmul_group(activations, members, options);
  }
  Group group(options, members.size());
  for (size_t i = 0; i < members.size(); ++i) {
    const MatmulMember& member = members[i];
    if (member.out.rows == 0) continue;
    const auto add = [&](const auto* weights) -> Status {
      if (weights == nullptr) return InvalidArgument("no weights");
      const Operands operands = {activations,     options.activation_scales, member.rows,
                                 weights->rows(), weights->cols(),           member.out,
                                 member.bias};
      if constexpr (std::is_same_v<decltype(weights), const QuantizedTensor*>) {
        return group.Add(operands, *weights);
      } else {
        const auto* packed = PackedWeightsAccess::Get(*weights);
        if (packed == nullptr) return InvalidArgument("empty weights");
        return group.Add(operands, *packed);
      }
    };
    NIBBLE_RETURN_IF_ERROR(
        std::visit(add, member.weights).WithContext("member " + std::to_string(i)));
  }
  return group.Run();
}

}  // namespace nibble
