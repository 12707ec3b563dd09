#include "nibble/matmul.h"

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "kernels/dequantize.h"
#include "kernels/gemm_bf16.h"
#include "kernels/gemv_blocks.h"
#include "kernels/gemv_int8.h"
#include "kernels/matmul.h"
#include "kernels/pack.h"
#include "kernels/pack_bf16.h"
#include "kernels/pack_layout.h"
#include "kernels/pack_planar.h"
#include "lib/quantize/planar.h"
#include "nibble/backend.h"

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
  return OkStatus();
}

Result<WeightRows> RowsOf(const QuantizedTensor& tensor) {
  NIBBLE_RETURN_IF_ERROR(CheckWeights(tensor));
  if (!tensor.is_block_format()) return Unsupported("packed weights of a planar scheme");
  const FormatInfo& info = GetFormatInfo(tensor.format());
  if (!info.can_decode()) return Unsupported(std::string("matmul: weights of type ") + info.name);
  return BlockRows(tensor.format(), tensor.plane(Plane::kCodes).data(), tensor.rows(),
                   tensor.cols());
}

// With packed weights, int8 dot products beat decoding for tiles while activations are few.
constexpr int64_t kMostInt8Rows = 32;

// Decoded products, in tiles where the machine has them.
Status MatmulDecoded(const TensorView& activations, const WeightRows& weights,
                     const MutableTensorView& out, const MatmulOptions& options) {
  const ProductOutput output = OutputOf(out, options);
  if (options.precision != Precision::kF32 && activations.rows >= kFewestTileRows) {
    if (const GemmBf16* gemm = AmxGemmBf16()) {
      return MatmulBf16(*gemm, activations, weights, output, options.parallel);
    }
  }
  return MatmulF32(activations, weights, output, options.parallel);
}

// Products with canonical blocks.
Status MatmulBlocks(const TensorView& activations, Format format, const WeightRows& rows,
                    const MutableTensorView& out, const MatmulOptions& options) {
  const bool is_block = GetFormatInfo(format).block_weights > 1;
  const bool few = activations.rows < kFewestTileRows || AmxGemmBf16() == nullptr;
  if (is_block && few && options.precision == Precision::kInt8) {
    return MatmulInt8Blocks(format, rows.codes, rows.rows, rows.cols, activations,
                            OutputOf(out, options), options.parallel);
  }
  return MatmulDecoded(activations, rows, out, options);
}

// Serialized packed weights begin with this, in little-endian order.
struct PackedHeader {
  char magic[8];    // kMagic
  char target[24];  // zero-terminated
  uint32_t format;  // as in GGUF
  uint32_t reserved;
  int64_t rows;
  int64_t cols;
  int64_t reserved2;
};
static_assert(sizeof(PackedHeader) == Buffer::kAlignment);
constexpr char kMagic[8] = {'N', 'I', 'B', 'P', 'A', 'C', 'K', '1'};

// The layouts there are. Both suit every processor; a change of layout changes its number.
constexpr char kTiles[] = "tiles16/1";        // kernels/pack_layout.h
constexpr char kCanonical[] = "canonical/1";  // the blocks as they are

Result<int64_t> PackedBytes(const std::string& target, Format format, int64_t rows, int64_t cols) {
  NIBBLE_ASSIGN_OR_RETURN(const size_t canonical, FormatBytes(format, rows, cols));
  if (target == kCanonical) return static_cast<int64_t>(canonical);
  int64_t bytes = 0;
  // A tile is at most some percent larger than its blocks, so only the rounding up can overflow.
  if (rows > INT64_MAX - kPackRows ||
      __builtin_mul_overflow(PackedTileBytes(format, cols), DivideUp(rows, kPackRows), &bytes)) {
    return InvalidArgument("packed weights: too large");
  }
  return bytes;
}

}  // namespace

Status Matmul(TensorView activations, const QuantizedTensor& weights, MutableTensorView out,
              const MatmulOptions& options) {
  if (out.device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(out.device));
    return backend->matmul(activations, weights, out, options);
  }
  NIBBLE_RETURN_IF_ERROR(CheckWeights(weights));
  NIBBLE_RETURN_IF_ERROR(CheckOperands(activations, weights.rows(), weights.cols(), out, options));
  if (!weights.is_block_format()) {
    const PlanarPlanes planes = PlanesOf(weights);
    for (int64_t c = 0; planes.group_index != nullptr && c < planes.cols; ++c) {
      if (const int64_t group = planes.Group(c); group < 0 || group >= planes.groups) {
        return InvalidArgument("matmul: group index " + std::to_string(group) + " of column " +
                               std::to_string(c) + " is not one of the " +
                               std::to_string(planes.groups) + " groups");
      }
    }
    const PlanarRows rows(planes);
    return MatmulDecoded(activations, rows.rows(), out, options);
  }
  NIBBLE_ASSIGN_OR_RETURN(const WeightRows rows, RowsOf(weights));
  return MatmulBlocks(activations, weights.format(), rows, out, options);
}

struct PackedWeights::Impl {
  Buffer bytes;  // header and payload
  std::string target;
  Format format = Format::kF32;
  int64_t rows = 0;
  int64_t cols = 0;

  const std::byte* payload() const { return bytes.data() + sizeof(PackedHeader); }
};

int64_t PackedWeights::rows() const { return impl_ ? impl_->rows : 0; }
int64_t PackedWeights::cols() const { return impl_ ? impl_->cols : 0; }
size_t PackedWeights::bytes() const { return impl_ ? impl_->bytes.size() : 0; }
const std::string& PackedWeights::target() const {
  static const std::string none;
  return impl_ ? impl_->target : none;
}
std::span<const std::byte> PackedWeights::serialized() const {
  return impl_ ? impl_->bytes.bytes() : std::span<const std::byte>();
}

Result<PackedWeights> PackedWeights::FromBytes(Buffer bytes) {
  PackedHeader header;
  if (bytes.device() != Device::kCpu) return Unsupported("packed weights: not in host memory");
  if (bytes.size() < sizeof(header)) return Corrupt("packed weights: shorter than their header");
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(PackedHeader) != 0) {
    return InvalidArgument("packed weights: memory that is not aligned to 8 bytes");
  }
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) {
    return Corrupt("packed weights: not written by nibble");
  }
  auto impl = std::make_shared<Impl>();
  impl->target.assign(header.target, strnlen(header.target, sizeof(header.target)));
  if (impl->target != kTiles && impl->target != kCanonical) {
    return Unsupported("packed weights: made for another target");
  }
  impl->format = static_cast<Format>(header.format);
  impl->rows = header.rows;
  impl->cols = header.cols;
  const FormatInfo* info = FindFormat(impl->format);
  const bool known = info != nullptr && info->can_decode() &&
                     (impl->target == kCanonical || PackedTileBytes(impl->format, 256) > 0);
  if (!known || impl->rows <= 0 || impl->cols <= 0) {
    return Corrupt("packed weights: impossible format or shape");
  }
  auto size = PackedBytes(impl->target, impl->format, impl->rows, impl->cols);
  if (!size.ok()) return Corrupt("packed weights: impossible shape");
  if (static_cast<uint64_t>(*size) != bytes.size() - sizeof(header)) {
    return Corrupt("packed weights: " + std::to_string(bytes.size()) +
                   " bytes where the shape needs " +
                   std::to_string(static_cast<uint64_t>(*size) + sizeof(header)));
  }
  impl->bytes = std::move(bytes);
  PackedWeights weights;
  weights.impl_ = std::move(impl);
  return weights;
}

Result<PackedWeights> Pack(const QuantizedTensor& weights, Precision precision,
                           const ParallelFor& parallel) {
  NIBBLE_ASSIGN_OR_RETURN(const WeightRows rows, RowsOf(weights));
  const Format format = weights.format();
  const int64_t tile_bytes = precision == Precision::kInt8 ? PackedTileBytes(format, rows.cols) : 0;
  const char* target = tile_bytes > 0 ? kTiles : kCanonical;
  NIBBLE_ASSIGN_OR_RETURN(const int64_t size, PackedBytes(target, format, rows.rows, rows.cols));
  NIBBLE_ASSIGN_OR_RETURN(Buffer bytes,
                          Buffer::Allocate(static_cast<size_t>(size) + sizeof(PackedHeader)));

  PackedHeader header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  std::strncpy(header.target, target, sizeof(header.target) - 1);
  header.format = static_cast<uint32_t>(format);
  header.rows = rows.rows;
  header.cols = rows.cols;
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::byte* payload = bytes.data() + sizeof(header);
  const std::byte* blocks = static_cast<const std::byte*>(rows.source);
  if (tile_bytes == 0) {
    std::memcpy(payload, blocks, static_cast<size_t>(size));
  } else {
    parallel(DivideUp(rows.rows, kPackRows), [&](int64_t tile, int) {
      const int64_t row = tile * kPackRows;
      PackTile(format, blocks + row * rows.row_bytes, rows.row_bytes,
               std::min<int64_t>(kPackRows, rows.rows - row), rows.cols,
               payload + tile * tile_bytes);
    });
  }
  return PackedWeights::FromBytes(std::move(bytes));
}

class PackedWeightsAccess {
 public:
  static const PackedWeights::Impl* Get(const PackedWeights& weights) {
    return weights.impl_.get();
  }
};

Status Matmul(TensorView activations, const PackedWeights& weights, MutableTensorView out,
              const MatmulOptions& options) {
  const auto* impl = PackedWeightsAccess::Get(weights);
  if (impl == nullptr) return InvalidArgument("matmul: empty weights");
  NIBBLE_RETURN_IF_ERROR(CheckOperands(activations, impl->rows, impl->cols, out, options));
  if (impl->target == kCanonical) {
    return MatmulBlocks(activations, impl->format,
                        BlockRows(impl->format, impl->payload(), impl->rows, impl->cols), out,
                        options);
  }
  const bool tiles = activations.rows > kMostInt8Rows && AmxGemmBf16() != nullptr;
  if (options.precision == Precision::kInt8 && !tiles) {
    return MatmulInt8(impl->format, impl->payload(), impl->rows, impl->cols, activations,
                      OutputOf(out, options), options.parallel);
  }
  return MatmulDecoded(
      activations, PackedRows(impl->format, impl->payload(), impl->rows, impl->cols), out, options);
}

}  // namespace nibble
