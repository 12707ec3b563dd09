#include "lib/core/packed_weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/additive.h"
#include "kernels/convert.h"
#include "kernels/pack.h"
#include "kernels/pack_layout.h"
#include "lib/quantize/planar.h"
#include "nibble/backend.h"

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

// The layouts there are. All suit every processor; a change of layout changes its number.
constexpr char kTiles[] = "tiles16/1";        // kernels/pack_layout.h
constexpr char kCanonical[] = "canonical/1";  // the blocks as they are
constexpr char kPlanes[] = "planes/1";        // the scheme's name, then its planes, as they are
constexpr char kCodeTiles[] = "codes64/1";    // likewise, with codes in tiles: kernels/additive.h

constexpr size_t kNameBytes = 64;  // of a scheme, filled up with zeros
constexpr size_t kPlaneAlignment = 64;

Result<int64_t> TilesBytes(Format format, int64_t rows, int64_t cols) {
  // Tiles take at most a quarter more than their rows, the last of which may be absent; where four
  // times the rows have a size, the product below has one.
  if (rows > INT64_MAX / 4 - kPackRows) return InvalidArgument("packed weights: too large");
  const int64_t tiles = DivideUp(rows, kPackRows);
  NIBBLE_RETURN_IF_ERROR(FormatBytes(format, 4 * tiles * kPackRows, cols).status());
  return tiles * PackedTileBytes(format, cols);
}

// Where the planes of a scheme lie in a payload: sizes, and offsets that are multiples of
// kPlaneAlignment.
struct PlaneLayout {
  std::array<size_t, kPlaneCount> sizes = {}, offsets = {};
  size_t bytes = kNameBytes;
};
Result<PlaneLayout> LayOutPlanes(const Scheme& scheme, bool code_tiles, int64_t rows,
                                 int64_t cols) {
  // The last tile has room for rows that there are not.
  if (rows > INT64_MAX - kCodeTileRows) return InvalidArgument("packed weights: too large");
  PlaneLayout layout;
  for (int p = 0; p < kPlaneCount; ++p) {
    const Plane plane = static_cast<Plane>(p);
    NIBBLE_ASSIGN_OR_RETURN(layout.sizes[p], PlaneBytes(scheme, plane, rows, cols));
    size_t room = layout.sizes[p];
    if (code_tiles && plane == Plane::kCodes) {
      NIBBLE_ASSIGN_OR_RETURN(room, PlaneBytes(scheme, plane, RoundUp(rows, kCodeTileRows), cols));
    }
    layout.offsets[p] = layout.bytes;
    if (room > SIZE_MAX / 4 || layout.bytes > SIZE_MAX / 4) {
      return InvalidArgument("packed weights: too large");
    }
    layout.bytes += (room + kPlaneAlignment - 1) / kPlaneAlignment * kPlaneAlignment;
  }
  return layout;
}

Result<QuantizedTensor> ReadPlanes(std::span<const std::byte> payload, bool code_tiles,
                                   int64_t rows, int64_t cols) {
  if (payload.size() < kNameBytes) return Corrupt("packed weights: no scheme");
  const char* name = reinterpret_cast<const char*>(payload.data());
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme,
                          ParseScheme(std::string_view(name, strnlen(name, kNameBytes))));
  if (code_tiles && !HasCodeTiles(scheme)) return Corrupt("tiles of " + SchemeName(scheme));
  NIBBLE_ASSIGN_OR_RETURN(const PlaneLayout layout, LayOutPlanes(scheme, code_tiles, rows, cols));
  if (layout.bytes != payload.size()) return Corrupt("packed weights: planes of another size");
  std::array<Buffer, kPlaneCount> planes;
  for (int p = 0; p < kPlaneCount; ++p) {
    if (layout.sizes[p] == 0) continue;
    planes[p] = Buffer::Borrow(payload.subspan(layout.offsets[p], layout.sizes[p]));
  }
  return QuantizedTensor::Create(scheme, rows, cols, std::move(planes));
}

void WritePlanes(const QuantizedTensor& weights, const std::string& name, const PlaneLayout& layout,
                 bool code_tiles, const ParallelFor& parallel, std::byte* payload) {
  std::memcpy(payload, name.data(), name.size());
  for (int p = 0; p < kPlaneCount; ++p) {
    const Plane plane = static_cast<Plane>(p);
    std::byte* out = payload + layout.offsets[p];
    if (code_tiles && plane == Plane::kCodes) {
      const PlanarPlanes planes = PlanesOf(weights);
      const int64_t tile_bytes = CodeTileBytes(planes);
      parallel(DivideUp(planes.rows, kCodeTileRows), [&](int64_t tile, int) {
        PackCodeTile(planes, tile, reinterpret_cast<uint8_t*>(out) + tile * tile_bytes);
      });
    } else if (layout.sizes[p] > 0) {
      std::memcpy(out, weights.plane(plane).data(), layout.sizes[p]);
    }
  }
}

// A header and room, zeroed, for the payload.
Result<Buffer> Allocate(const char* target, const QuantizedTensor& weights, size_t payload_bytes) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer bytes, Buffer::Allocate(payload_bytes + sizeof(PackedHeader)));
  PackedHeader header = {};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  std::strncpy(header.target, target, sizeof(header.target) - 1);
  if (weights.is_block_format()) header.format = static_cast<uint32_t>(weights.format());
  header.rows = weights.rows();
  header.cols = weights.cols();
  std::memcpy(bytes.data(), &header, sizeof(header));
  return bytes;
}

// f32 weights, which may lie at any address, rounded to bf16.
Result<QuantizedTensor> ToBf16(const QuantizedTensor& weights, const ParallelFor& parallel) {
  constexpr int64_t kPiece = 1024;
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor rounded,
                          QuantizedTensor::Allocate(Format::kBF16, weights.rows(), weights.cols()));
  const std::byte* from = weights.plane(Plane::kCodes).data();
  std::byte* to = rounded.plane(Plane::kCodes).data();
  const int64_t count = weights.rows() * weights.cols();
  parallel(DivideUp(count, kPiece), [&](int64_t piece, int) {
    const int64_t begin = piece * kPiece, n = std::min(kPiece, count - begin);
    float values[kPiece];
    std::memcpy(values, from + begin * 4, static_cast<size_t>(n) * 4);
    ConvertFromFloat(DType::kBF16, values, n, to + begin * 2);
  });
  return rounded;
}

}  // namespace

int64_t PackedWeights::rows() const { return impl_ ? impl_->rows : 0; }
int64_t PackedWeights::cols() const { return impl_ ? impl_->cols : 0; }
size_t PackedWeights::bytes() const {
  return impl_ ? impl_->bytes.size() + impl_->device_bytes : 0;
}
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
  impl->format = static_cast<Format>(header.format);
  impl->rows = header.rows;
  impl->cols = header.cols;
  const std::span<const std::byte> payload = std::as_const(bytes).bytes().subspan(sizeof(header));
  impl->payload = payload.data();
  const auto corrupt = [](const Status& status) {
    return Corrupt("packed weights: impossible format or shape: " + status.message());
  };
  if (impl->target == kTiles) {
    const FormatInfo* info = FindFormat(impl->format);
    const bool known = info != nullptr && PackedTileBytes(impl->format, 256) > 0;
    if (!known || impl->rows <= 0 || impl->cols <= 0) {
      return Corrupt("packed weights: impossible format or shape");
    }
    const auto size = TilesBytes(impl->format, impl->rows, impl->cols);
    if (!size.ok()) return corrupt(size.status());
    if (static_cast<uint64_t>(*size) != payload.size()) {
      return Corrupt("packed weights: " + std::to_string(payload.size()) +
                     " bytes of tiles where the shape needs " + std::to_string(*size));
    }
  } else if (impl->target == kCanonical) {
    if (FindFormat(impl->format) == nullptr) return Corrupt("packed weights: unknown format");
    auto tensor =
        QuantizedTensor::Create(impl->format, impl->rows, impl->cols, Buffer::Borrow(payload));
    if (!tensor.ok()) return corrupt(tensor.status());
    impl->canonical = *std::move(tensor);
  } else if (impl->target == kPlanes || impl->target == kCodeTiles) {
    const bool code_tiles = impl->target == kCodeTiles;
    auto tensor = ReadPlanes(payload, code_tiles, impl->rows, impl->cols);
    if (!tensor.ok()) return corrupt(tensor.status());
    (code_tiles ? impl->books : impl->canonical) = *std::move(tensor);
  } else {
    return Unsupported("packed weights: made for another target");
  }
  impl->bytes = std::move(bytes);
  return PackedWeightsAccess::Make(std::move(impl));
}

PackedWeights MakePackedWeights(int64_t rows, int64_t cols, size_t bytes, Device device,
                                std::string target, std::shared_ptr<const void> details) {
  auto impl = std::make_shared<PackedWeightsAccess::Impl>();
  impl->device_bytes = bytes;
  impl->device = device;
  impl->details = std::move(details);
  impl->target = std::move(target);
  impl->rows = rows;
  impl->cols = cols;
  return PackedWeightsAccess::Make(std::move(impl));
}

const void* DetailsOf(const PackedWeights& weights, Device device) {
  const auto* impl = PackedWeightsAccess::Get(weights);
  return impl != nullptr && impl->device == device ? impl->details.get() : nullptr;
}

Result<PackedWeights> Pack(const QuantizedTensor& weights, Precision precision,
                           const ParallelFor& parallel) {
  const bool rounded = precision == Precision::kInt8 || precision == Precision::kInt8PerRow;
  if (weights.rows() <= 0 || weights.cols() <= 0) return InvalidArgument("pack: empty weights");
  if (weights.device() != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(weights.device()));
    return backend->pack(weights, precision, parallel);
  }
  if (!weights.is_block_format()) {
    // Products read other planes as they are at the speed of memory.
    const bool code_tiles = rounded && HasCodeTiles(weights.scheme());
    const std::string name = SchemeName(weights.scheme());
    if (name.size() > kNameBytes) return Unsupported("pack: the scheme " + name);
    NIBBLE_ASSIGN_OR_RETURN(const PlaneLayout layout, LayOutPlanes(weights.scheme(), code_tiles,
                                                                   weights.rows(), weights.cols()));
    NIBBLE_ASSIGN_OR_RETURN(Buffer bytes,
                            Allocate(code_tiles ? kCodeTiles : kPlanes, weights, layout.bytes));
    WritePlanes(weights, name, layout, code_tiles, parallel, bytes.data() + sizeof(PackedHeader));
    return PackedWeights::FromBytes(std::move(bytes));
  }
  const Format format = weights.format();
  const FormatInfo& info = GetFormatInfo(format);
  if (!info.can_decode()) return Unsupported(std::string("pack: weights of type ") + info.name);
  if (format == Format::kF32 && precision != Precision::kF32) {
    NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor rounded_weights, ToBf16(weights, parallel));
    return Pack(rounded_weights, precision, parallel);
  }
  const int64_t tile_bytes = rounded ? PackedTileBytes(format, weights.cols()) : 0;
  const std::span<const std::byte> blocks = weights.plane(Plane::kCodes).bytes();
  if (tile_bytes == 0) {
    NIBBLE_ASSIGN_OR_RETURN(Buffer bytes, Allocate(kCanonical, weights, blocks.size()));
    std::memcpy(bytes.data() + sizeof(PackedHeader), blocks.data(), blocks.size());
    return PackedWeights::FromBytes(std::move(bytes));
  }
  NIBBLE_ASSIGN_OR_RETURN(const int64_t size, TilesBytes(format, weights.rows(), weights.cols()));
  NIBBLE_ASSIGN_OR_RETURN(Buffer bytes, Allocate(kTiles, weights, static_cast<size_t>(size)));
  std::byte* payload = bytes.data() + sizeof(PackedHeader);
  const int64_t row_bytes = weights.cols() / info.block_weights * info.block_bytes;
  parallel(DivideUp(weights.rows(), kPackRows), [&](int64_t tile, int) {
    const int64_t row = tile * kPackRows;
    PackTile(format, blocks.data() + row * row_bytes, row_bytes,
             std::min<int64_t>(kPackRows, weights.rows() - row), weights.cols(),
             payload + tile * tile_bytes);
  });
  return PackedWeights::FromBytes(std::move(bytes));
}

}  // namespace nibble
