#include "nibble/matmul.h"

#include <span>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "kernels/additive.h"
#include "kernels/dequantize.h"
#include "kernels/gemm_bf16.h"
#include "kernels/gemm_int8.h"
#include "kernels/gemv_additive.h"
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
constexpr int64_t kMostInt8Rows = 12;
constexpr int64_t kMostInt8RowsOfBlocks = 10;

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
  if (info.block_weights > 1) weights.piece_cols = kBlockCols;  // what each call costs weighs more
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

// What runs a product.
enum class Kernel : uint8_t {
  kInt8Tiles,      // packed blocks, few activation rows
  kInt8ManyTiles,  // many
  kInt8Blocks,     // canonical blocks, few
  kInt8ManyBlocks,
  kInt8Planes,
  kInt8PerRow,
  kInt8Tables,  // additive codebooks, few
  kNumbers,
  kBf16Tiles,  // anything that decodes
  kF32,
};

MatmulPlan PlanOf(Kernel kernel) {
  switch (kernel) {
    case Kernel::kInt8Tiles:
      return {"int8 dots with packed tiles", Precision::kInt8};
    case Kernel::kInt8ManyTiles:
      return {"int8 panels of packed tiles", Precision::kInt8};
    case Kernel::kInt8Blocks:
      return {"int8 dots with blocks", Precision::kInt8};
    case Kernel::kInt8ManyBlocks:
      return {"int8 panels of blocks", Precision::kInt8};
    case Kernel::kInt8Planes:
      return {"int8 dots with planes", Precision::kInt8};
    case Kernel::kInt8PerRow:
      return {"int8 x int8", Precision::kInt8PerRow};
    case Kernel::kInt8Tables:
      return {"int8 tables of codebooks", Precision::kInt8};
    case Kernel::kNumbers:
      return {"f32 dots with numbers", Precision::kF32};
    case Kernel::kBf16Tiles:
      return {"bf16 tiles of decoded weights", Precision::kBf16};
    case Kernel::kF32:
      break;
  }
  return {"f32 panels of decoded weights", Precision::kF32};
}

// Whether activations may be rounded to int8 with a scale for each 32 columns.
bool IsRounded(Precision p) { return p == Precision::kInt8 || p == Precision::kInt8PerRow; }

// Decoded products: in tiles where the machine has them.
Kernel KernelOfRows(int64_t m_rows, Precision precision) {
  const bool tiles = precision != Precision::kF32 && m_rows >= kFewestTileRows;
  return tiles && AmxGemmBf16() != nullptr ? Kernel::kBf16Tiles : Kernel::kF32;
}

// Canonical blocks, and numbers.
Kernel KernelOfBlocks(Format format, int64_t m_rows, Precision precision) {
  const bool is_block = GetFormatInfo(format).block_weights > 1;
  const bool many = m_rows >= kFewestGemmInt8RowsOfBlocks && HasGemmInt8(format);
  const bool tiles = m_rows >= kFewestTileRows && !(many && m_rows <= kMostInt8RowsOfBlocks) &&
                     AmxGemmBf16() != nullptr;
  if (is_block && !tiles && IsRounded(precision)) {
    return many ? Kernel::kInt8ManyBlocks : Kernel::kInt8Blocks;
  }
  if (m_rows < kFewestTileRows && HasGemvFloat(format)) return Kernel::kNumbers;
  return KernelOfRows(m_rows, precision);
}

Kernel KernelOfTiles(int64_t m_rows, Precision precision) {
  const bool tiles = m_rows > kMostInt8Rows && AmxGemmBf16() != nullptr;
  if (!IsRounded(precision) || tiles) return KernelOfRows(m_rows, precision);
  return m_rows < FewestGemmInt8Rows() ? Kernel::kInt8Tiles : Kernel::kInt8ManyTiles;
}

Kernel KernelOfPlanes(const PlanarPlanes& planes, int64_t m_rows, Precision precision) {
  if (planes.scheme.code == Code::kAdditive) {
    const bool tables = m_rows < kFewestTileRows && HasCodeTiles(planes.scheme);
    return tables && IsRounded(precision) ? Kernel::kInt8Tables : KernelOfRows(m_rows, precision);
  }
  if (precision == Precision::kInt8PerRow && TakesW8A8(planes)) return Kernel::kInt8PerRow;
  const bool few = m_rows < kFewestTileRows || AmxGemmBf16() == nullptr;
  const bool dots = IsRounded(precision) && few && PlanarInt8::Takes(planes);
  return dots ? Kernel::kInt8Planes : KernelOfRows(m_rows, precision);
}

Kernel KernelOf(const QuantizedTensor& weights, int64_t m_rows, Precision precision) {
  return weights.is_block_format() ? KernelOfBlocks(weights.format(), m_rows, precision)
                                   : KernelOfPlanes(PlanesOf(weights), m_rows, precision);
}

// The products of one call, by the kernel that runs them.
class Group {
 public:
  Group(const MatmulOptions& options, size_t members) : options_(options) {
    planar_.reserve(members);  // products point into these
    planar_int8_.reserve(members);
    additive_.reserve(members);
    additive_tables_.reserve(members);
  }

  Status Add(const Operands& operands, const QuantizedTensor& weights) {
    NIBBLE_RETURN_IF_ERROR(CheckWeights(weights));
    NIBBLE_RETURN_IF_ERROR(CheckOperands(operands));
    const bool is_int8 = operands.activations.dtype == DType::kI8;
    const Kernel kernel =
        KernelOf(weights, operands.out.rows, is_int8 ? Precision::kInt8PerRow : options_.precision);
    if (is_int8 && kernel != Kernel::kInt8PerRow) {
      return Unsupported("matmul: int8 activations need weights \"int8 sym\" by channel or tensor");
    }
    if (weights.is_block_format()) {
      AddBlocks(kernel, operands, weights.format(), weights.plane(Plane::kCodes).data());
    } else if (weights.scheme().code == Code::kAdditive) {
      return AddCodebooks(kernel, operands, PlanesOf(weights));
    } else {
      AddPlanes(kernel, operands, PlanesOf(weights));
    }
    return OkStatus();
  }

  Status Add(const Operands& operands, const PackedWeightsAccess::Impl& weights) {
    if (weights.device != Device::kCpu) {
      return InvalidArgument("matmul: weights packed on a device that the output does not lie on");
    }
    if (weights.canonical) return Add(operands, *weights.canonical);
    NIBBLE_RETURN_IF_ERROR(CheckOperands(operands));
    if (operands.activations.dtype == DType::kI8) {
      return Unsupported("matmul: int8 activations with packed tiles");
    }
    if (weights.books) {
      const PlanarPlanes planes = PlanesOf(*weights.books);
      return AddCodebooks(KernelOfPlanes(planes, operands.out.rows, options_.precision), operands,
                          planes, planes.codes);
    }
    const Kernel kernel = KernelOfTiles(operands.out.rows, options_.precision);
    if (kernel == Kernel::kInt8Tiles || kernel == Kernel::kInt8ManyTiles) {
      (kernel == Kernel::kInt8Tiles ? tiles_ : many_tiles_)
          .push_back({RowsOf(operands),
                      {weights.format, weights.payload, weights.rows, weights.cols},
                      OutputOf(operands)});
    } else {
      AddRows(kernel, operands,
              PackedRows(weights.format, weights.payload, weights.rows, weights.cols));
    }
    return OkStatus();
  }

  Status Run() const {
    const ParallelFor& parallel = options_.parallel;
    if (!tiles_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulInt8(tiles_, parallel));
    if (!blocks_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulInt8Blocks(blocks_, parallel));
    if (!planes_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulInt8Planar(planes_, parallel));
    if (!tables_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulAdditive(tables_, parallel));
    if (!numbers_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulFloatRows(numbers_, parallel));
    if (!many_tiles_.empty()) NIBBLE_RETURN_IF_ERROR(GemmInt8(many_tiles_, parallel));
    if (!many_blocks_.empty()) NIBBLE_RETURN_IF_ERROR(GemmInt8(many_blocks_, parallel));
    if (!per_row_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulW8A8(per_row_, parallel));
    if (!bf16_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulBf16(*AmxGemmBf16(), bf16_, parallel));
    if (!bf16_pairs_.empty()) {
      NIBBLE_RETURN_IF_ERROR(MatmulBf16(*AmxGemmBf16(true), bf16_pairs_, parallel));
    }
    if (!f32_.empty()) NIBBLE_RETURN_IF_ERROR(MatmulF32(f32_, parallel));
    return OkStatus();
  }

 private:
  void AddBlocks(Kernel kernel, const Operands& operands, Format format, const std::byte* blocks) {
    const Product<BlockWeights> product = {
        RowsOf(operands), {format, blocks, operands.rows, operands.cols}, OutputOf(operands)};
    if (kernel == Kernel::kInt8Blocks) {
      blocks_.push_back(product);
    } else if (kernel == Kernel::kInt8ManyBlocks) {
      many_blocks_.push_back(product);
    } else if (kernel == Kernel::kNumbers) {
      numbers_.push_back(product);
    } else {
      AddRows(kernel, operands, BlockRows(format, blocks, operands.rows, operands.cols));
    }
  }

  void AddPlanes(Kernel kernel, const Operands& operands, const PlanarPlanes& planes) {
    if (kernel == Kernel::kInt8PerRow) {
      per_row_.push_back(
          {RowsOf(operands), {planes, operands.activation_scales}, OutputOf(operands)});
    } else if (kernel == Kernel::kInt8Planes) {
      planar_int8_.emplace_back(planes);
      planes_.push_back({RowsOf(operands), &planar_int8_.back(), OutputOf(operands)});
    } else {
      planar_.emplace_back(planes);
      AddRows(kernel, operands, planar_.back().rows());
    }
  }

  // `tiles`: the codes, where they are not in their plane.
  Status AddCodebooks(Kernel kernel, const Operands& operands, const PlanarPlanes& planes,
                      const uint8_t* tiles = nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(AdditiveRows rows, AdditiveRows::Make(planes, tiles));
    additive_.push_back(std::move(rows));
    const AdditiveRows& weights = additive_.back();
    // A table cannot tell a code of what is not finite from the others.
    if (kernel != Kernel::kInt8Tables || !weights.AllFinite()) {
      AddRows(kernel, operands, weights.rows());
      return OkStatus();
    }
    NIBBLE_ASSIGN_OR_RETURN(AdditiveTables tables, AdditiveTables::Make(weights));
    additive_tables_.push_back(std::move(tables));
    tables_.push_back({RowsOf(operands), &additive_tables_.back(), OutputOf(operands)});
    return OkStatus();
  }

  void AddRows(Kernel kernel, const Operands& operands, const WeightRows& weights) {
    auto& tiles = weights.column_pairs ? bf16_pairs_ : bf16_;
    auto& products = kernel == Kernel::kBf16Tiles ? tiles : f32_;
    products.push_back({RowsOf(operands), weights, OutputOf(operands)});
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
  std::vector<AdditiveRows> additive_;
  std::vector<AdditiveTables> additive_tables_;
  std::vector<Product<PackedTiles>> tiles_, many_tiles_;
  std::vector<Product<BlockWeights>> blocks_, many_blocks_, numbers_;
  std::vector<Product<const PlanarInt8*>> planes_;
  std::vector<Product<W8A8Weights>> per_row_;
  std::vector<Product<const AdditiveTables*>> tables_;
  std::vector<Product<WeightRows>> bf16_, bf16_pairs_, f32_;
};

}  // namespace

Result<MatmulPlan> PlanMatmul(const QuantizedTensor& weights, int64_t activation_rows,
                              Precision precision) {
  NIBBLE_RETURN_IF_ERROR(CheckWeights(weights));
  return PlanOf(KernelOf(weights, activation_rows, precision));
}

Result<MatmulPlan> PlanMatmul(const PackedWeights& weights, int64_t activation_rows,
                              Precision precision) {
  const auto* packed = PackedWeightsAccess::Get(weights);
  if (packed == nullptr) return InvalidArgument("matmul: empty weights");
  if (packed->device != Device::kCpu) {
    return Unsupported("matmul: the weights are not in host memory");
  }
  if (packed->canonical) return PlanMatmul(*packed->canonical, activation_rows, precision);
  if (packed->books) {
    return PlanOf(KernelOfPlanes(PlanesOf(*packed->books), activation_rows, precision));
  }
  return PlanOf(KernelOfTiles(activation_rows, precision));
}

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
