#include "lib/core/packed_weights.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "kernels/pack.h"
#include "kernels/pack_layout.h"

namespace nibble {
namespace {

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
  impl->is_canonical = impl->target == kCanonical;
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
  impl->payload = impl->bytes.data() + sizeof(header);
  PackedWeights weights;
  weights.impl_ = std::move(impl);
  return weights;
}

Result<PackedWeights> Pack(const QuantizedTensor& weights, Precision precision,
                           const ParallelFor& parallel) {
  if (weights.rows() <= 0 || weights.cols() <= 0) return InvalidArgument("pack: empty weights");
  if (weights.device() != Device::kCpu) {
    return Unsupported("pack: the weights are not in host memory");
  }
  if (!weights.is_block_format()) return Unsupported("packed weights of a planar scheme");
  const Format format = weights.format();
  const FormatInfo& info = GetFormatInfo(format);
  if (!info.can_decode()) return Unsupported(std::string("pack: weights of type ") + info.name);
  const int64_t tile_bytes =
      precision == Precision::kInt8 ? PackedTileBytes(format, weights.cols()) : 0;
  const char* target = tile_bytes > 0 ? kTiles : kCanonical;
  NIBBLE_ASSIGN_OR_RETURN(const int64_t size,
                          PackedBytes(target, format, weights.rows(), weights.cols()));
  NIBBLE_ASSIGN_OR_RETURN(Buffer bytes,
                          Buffer::Allocate(static_cast<size_t>(size) + sizeof(PackedHeader)));

  PackedHeader header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  std::strncpy(header.target, target, sizeof(header.target) - 1);
  header.format = static_cast<uint32_t>(format);
  header.rows = weights.rows();
  header.cols = weights.cols();
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::byte* payload = bytes.data() + sizeof(header);
  const std::byte* blocks = weights.plane(Plane::kCodes).data();
  const int64_t row_bytes = weights.cols() / info.block_weights * info.block_bytes;
  if (tile_bytes == 0) {
    std::memcpy(payload, blocks, static_cast<size_t>(size));
  } else {
    parallel(DivideUp(weights.rows(), kPackRows), [&](int64_t tile, int) {
      const int64_t row = tile * kPackRows;
      PackTile(format, blocks + row * row_bytes, row_bytes,
               std::min<int64_t>(kPackRows, weights.rows() - row), weights.cols(),
               payload + tile * tile_bytes);
    });
  }
  return PackedWeights::FromBytes(std::move(bytes));
}

}  // namespace nibble
