#include "kernels/pack.h"

#include <array>
#include <cstring>

#include "kernels/pack_bf16.h"
#include "kernels/pack_layout.h"

namespace nibble {
namespace {

void PutHalf(F16 half, int r, std::byte* at) { std::memcpy(at + 2 * r, &half.bits, 2); }

template <class Packed>
void PackScales(const typename Packed::Codec::Block& b, int r, std::byte* to) {
  using Codec = typename Packed::Codec;
  constexpr PackedScale kScale = Packed::kScale;
  if constexpr (kScale == PackedScale::kExponent) {
    to[r] = static_cast<std::byte>(b.e);
    return;
  } else {
    PutHalf(SuperScale<Codec>(b), r, to);
    to += 2 * kPackRows;
    if constexpr (kScale == PackedScale::kHalfMin) PutHalf(b.m, r, to);
    if constexpr (kScale == PackedScale::kSuperMin || kScale == PackedScale::kSuperNibble) {
      PutHalf(b.dmin, r, to);
      to += 2 * kPackRows;
    }
    if constexpr (kScale == PackedScale::kSuper || kScale == PackedScale::kSuperMin ||
                  kScale == PackedScale::kSuperNibble) {
      for (int g = 0; g < Packed::kGroups; ++g, to += kPackRows) {
        to[r] = static_cast<std::byte>(RawScale<Codec>(b, g));
      }
    }
    if constexpr (kScale == PackedScale::kSuperMin) {
      for (int g = 0; g < Packed::kGroups; ++g, to += kPackRows) {
        to[r] = static_cast<std::byte>(KMin(b.scales, g));
      }
    }
  }
}

// Numbers of the entries of a table, by the unsigned byte of what they stand for.
template <class Packed>
constexpr std::array<uint8_t, 256> EntryNumbers() {
  std::array<uint8_t, 256> numbers = {};
  for (size_t i = 16; i-- > 0;) numbers[static_cast<uint8_t>(Packed::kTable[i])] = i;
  return numbers;
}

// The stored form of a code: an entry's number or the code without a sign.
template <class Packed>
uint32_t StoredCode(const typename Packed::Codec::Block& b, int i) {
  const int code = Packed::Codec::Code(b, i);
  if constexpr (Packed::kHasTable) {
    static constexpr std::array<uint8_t, 256> kNumbers = EntryNumbers<Packed>();
    return kNumbers[static_cast<uint8_t>(code)];
  } else {
    return static_cast<uint32_t>(code + Packed::kOffset);
  }
}

// Column i of a chunk, row r: its byte in a plane.
constexpr int ByteOf(int bits, int r, int i) {
  return PlaceOf(bits, i / 4).vector * 64 + 4 * r + i % 4;
}

template <class Packed>
void PackBlock(const typename Packed::Codec::Block& b, int r, std::byte* to) {
  PackScales<Packed>(b, r, to);
  to += Packed::kScaleBytes;
  for (int c = 0; c < Packed::kWeights; c += kPackCols, to += Packed::kChunkBytes) {
    for (int i = 0; i < kPackCols; ++i) {
      const uint32_t code = StoredCode<Packed>(b, c + i);
      const uint32_t low = code & ((1u << Packed::kLowBits) - 1);
      to[ByteOf(Packed::kLowBits, r, i)] |=
          static_cast<std::byte>(low << PlaceOf(Packed::kLowBits, i / 4).shift);
      if constexpr (Packed::kHighBits > 0) {
        to[Packed::kLowBytes + ByteOf(Packed::kHighBits, r, i)] |= static_cast<std::byte>(
            code >> Packed::kLowBits << PlaceOf(Packed::kHighBits, i / 4).shift);
      }
    }
  }
}

template <class Packed>
void PackTileOf(const std::byte* blocks, int64_t row_bytes, int64_t row_count, int64_t cols,
                std::byte* tile) {
  using Block = typename Packed::Codec::Block;
  const int64_t count = cols / Packed::kWeights;
  std::memset(tile, 0, static_cast<size_t>(count * Packed::kBlockBytes));
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t r = 0; r < row_count; ++r) {
      Block block;
      std::memcpy(&block, blocks + r * row_bytes + i * static_cast<int64_t>(sizeof(Block)),
                  sizeof(Block));
      PackBlock<Packed>(block, static_cast<int>(r), tile + i * Packed::kBlockBytes);
    }
  }
}

template <class Packed>
void DecodeRowOf(const WeightRows& weights, int64_t row, int64_t col, int64_t count, float* out) {
  const int r = static_cast<int>(row % kPackRows);
  const std::byte* block = static_cast<const std::byte*>(weights.source) +
                           row / kPackRows * kPackRows * weights.row_bytes +
                           col / Packed::kWeights * Packed::kBlockBytes;
  for (int64_t i = 0; i < count; i += Packed::kWeights, block += Packed::kBlockBytes) {
    int8_t codes[Packed::kWeights];
    for (int c = 0; c < Packed::kWeights; c += kPackCols) {
      UnpackRow<Packed>(block + Packed::kScaleBytes + c / kPackCols * Packed::kChunkBytes, r,
                        codes + c);
    }
    for (int g = 0; g < Packed::kGroups; ++g) {
      float scale, min;
      UnpackScale<Packed>(block, r, g, &scale, &min);
      for (int j = g * Packed::kGroup; j < (g + 1) * Packed::kGroup; ++j) {
        const float product = scale * static_cast<float>(codes[j]);
        *out++ = Packed::kHasMin ? product - min : product;
      }
    }
  }
}

}  // namespace

int64_t PackedTileBytes(Format format, int64_t cols) {
  int64_t bytes = 0;
  VisitPacked(format, [&](auto packed) {
    using Packed = decltype(packed);
    bytes = cols / Packed::kWeights * Packed::kBlockBytes;
  });
  return bytes;
}

void PackTile(Format format, const std::byte* blocks, int64_t row_bytes, int64_t row_count,
              int64_t cols, std::byte* tile) {
  VisitPacked(format, [&](auto packed) {
    PackTileOf<decltype(packed)>(blocks, row_bytes, row_count, cols, tile);
  });
}

WeightRows PackedRows(Format format, const std::byte* tiles, int64_t rows, int64_t cols) {
  WeightRows weights;
  weights.rows = rows;
  weights.cols = cols;
  weights.source = tiles;
  weights.codes = tiles;
  weights.row_bytes = PackedTileBytes(format, cols) / kPackRows;
  weights.tile_rows = kPackRows;
  weights.kind = static_cast<uint32_t>(format);
  weights.decode_bf16 = FindDecodePackedBf16(format);
  weights.column_pairs = true;
  VisitPacked(format, [&](auto packed) {
    weights.unit = decltype(packed)::kWeights;
    weights.decode = DecodeRowOf<decltype(packed)>;
  });
  return weights;
}

}  // namespace nibble
