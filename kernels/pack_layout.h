// Packed weights: the codes of a block format rearranged so that a vector holds sixteen rows.
//
// Sixteen rows make a tile; a tile is a run of blocks, one for each block of the format along the
// columns (32 or 256), and a block is
//
//     scales   what the format stores, a value for each of the sixteen rows after another:
//              halves d (and dmin or m), then for each group of a super-block a byte (or two)
//     codes    for each 32 columns the planes of the low and of the high bits
//
// Four consecutive columns make a quad; a chunk of 32 columns has eight. In a plane of b bits, a
// vector of 64 bytes holds 8 / b quads: byte 4 * r + i belongs to row r and column 4 * quad + i, so
// that one dot product of bytes adds a quad to sixteen sums, a row in each lane, and nothing is
// ever summed across lanes. Codes are stored without a sign, as `code + kOffset`, or as numbers of
// a codebook's entries.
//
// Nothing is rounded. Hardly anything grows where codes are stored one by one: scales of six bits
// become bytes, which adds 3% to q4_K; all else takes the bytes it has in the file. Formats of
// points in four or eight dimensions give up the points, which only gathers could look up: their
// coordinates are stored one by one, with their signs, in three or four bits. They read more memory
// for it and are faster nevertheless, because gathers need several times as long.
#ifndef NIBBLE_KERNELS_PACK_LAYOUT_H_
#define NIBBLE_KERNELS_PACK_LAYOUT_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/codec.h"
#include "nibble/format.h"

namespace nibble {

inline constexpr int kPackRows = 16;
inline constexpr int kPackCols = 32;  // of a chunk
inline constexpr int kQuads = kPackCols / 4;

enum class PackedScale : uint8_t {
  kHalf,         // d
  kHalfMin,      // d, m: w = d * q + m
  kExponent,     // a byte e: 2^(e - 128)
  kSuper,        // d; a signed byte a group
  kSuperMin,     // d, dmin; two bytes a group
  kSuperNibble,  // d, dmin; a byte of two nibbles a group
};

// Where a quad lies in a plane of `bits` bits: vector and shift.
struct QuadPlace {
  int vector, shift;
};
// Nibbles of a vector are quads v and v + 4: the halves of a chunk come from the same loads.
constexpr QuadPlace PlaceOf(int bits, int quad) {
  if (bits == 4) return {quad % 4, quad / 4 * 4};
  return {quad * bits / 8, quad * bits % 8};
}

// The packed form of one format.
template <class CodecT, int kLowBitsT, int kHighBitsT, int kOffsetT, PackedScale kScaleT>
struct PackedFormat {
  using Codec = CodecT;
  static constexpr int kLowBits = kLowBitsT, kHighBits = kHighBitsT;
  static constexpr int kOffset = kOffsetT;  // stored code - code
  static constexpr PackedScale kScale = kScaleT;
  static constexpr bool kHasTable = false;  // whether stored codes stand for entries of kTable
  static constexpr float kScaleUnit = 1;    // a power of two, of what d counts

  static constexpr int kWeights = Codec::kWeights;
  static constexpr int kGroup = Codec::kGroup;
  static constexpr int kGroups = kWeights / kGroup;
  static constexpr bool kHasMin = Codec::kHasMin;

  static constexpr int kLowBytes = kPackRows * kPackCols * kLowBits / 8;
  static constexpr int kHighBytes = kPackRows * kPackCols * kHighBits / 8;
  static constexpr int kChunkBytes = kLowBytes + kHighBytes;
  static constexpr int kScaleBytes = [] {
    switch (kScale) {
      case PackedScale::kHalf:
        return 2 * kPackRows;
      case PackedScale::kHalfMin:
        return 4 * kPackRows;
      case PackedScale::kExponent:
        return kPackRows;
      case PackedScale::kSuper:
        return (2 + kGroups) * kPackRows;
      case PackedScale::kSuperMin:
        return (4 + 2 * kGroups) * kPackRows;
      case PackedScale::kSuperNibble:
        return (4 + kGroups) * kPackRows;
    }
  }();
  static constexpr int kBlockBytes = kScaleBytes + kWeights / kPackCols * kChunkBytes;
};

// The super-block's scale.
template <class Codec>
constexpr F16 SuperScale(const typename Codec::Block& b) {
  if constexpr (std::is_same_v<Codec, CodecIQ1_M>) {
    return CodecIQ1_M::SuperScale(b);
  } else {
    return b.d;
  }
}

// The raw scale of group g of a super-block.
template <class Codec>
constexpr int RawScale(const typename Codec::Block& b, int g) {
  if constexpr (std::is_same_v<Codec, CodecQ4_K> || std::is_same_v<Codec, CodecQ5_K>) {
    return KScale(b.scales, g);
  } else if constexpr (std::is_same_v<Codec, CodecQ3_K>) {
    return CodecQ3_K::RawScale(b.scales, g) - 32;
  } else if constexpr (std::is_same_v<Codec, CodecIQ4_XS>) {
    const int low = (b.scales_l[g / 2] >> (4 * (g % 2))) & 15;
    return (low | ((b.scales_h >> (2 * g)) & 3) << 4) - 32;
  } else if constexpr (requires { Codec::OddScale(b, g); }) {
    return Codec::OddScale(b, g);
  } else {
    return b.scales[g];
  }
}

// The codes of sixteen stored ones.
using CodeTable = std::array<int8_t, 16>;

// A book's own.
constexpr CodeTable TableOf(const int8_t (&values)[16]) { return std::to_array(values); }

// Those of coordinates, then the same negated.
template <size_t kCount>
constexpr CodeTable SignedTable(const int8_t (&values)[kCount]) {
  CodeTable table = {};
  for (size_t i = 0; i < kCount; ++i) {
    table[i] = values[i];
    table[kCount + i] = static_cast<int8_t>(-values[i]);
  }
  return table;
}

// Those of coordinates shifted up by one, then down.
constexpr CodeTable ShiftedTable(const int8_t (&values)[4]) {
  CodeTable table = {};
  for (size_t i = 0; i < 4; ++i) {
    table[i] = static_cast<int8_t>(values[i] + 1);
    table[4 + i] = static_cast<int8_t>(values[i] - 1);
  }
  return table;
}

struct PackedQ4_0 : PackedFormat<CodecQ4_0, 4, 0, 8, PackedScale::kHalf> {};
struct PackedQ4_1 : PackedFormat<CodecQ4_1, 4, 0, 0, PackedScale::kHalfMin> {};
struct PackedQ5_0 : PackedFormat<CodecQ5_0, 4, 1, 16, PackedScale::kHalf> {};
struct PackedQ5_1 : PackedFormat<CodecQ5_1, 4, 1, 0, PackedScale::kHalfMin> {};
struct PackedQ8_0 : PackedFormat<CodecQ8_0, 8, 0, 128, PackedScale::kHalf> {};
struct PackedQ2_K : PackedFormat<CodecQ2_K, 2, 0, 0, PackedScale::kSuperNibble> {};
struct PackedQ3_K : PackedFormat<CodecQ3_K, 2, 1, 4, PackedScale::kSuper> {};
struct PackedQ4_K : PackedFormat<CodecQ4_K, 4, 0, 0, PackedScale::kSuperMin> {};
struct PackedQ5_K : PackedFormat<CodecQ5_K, 4, 1, 0, PackedScale::kSuperMin> {};
struct PackedQ6_K : PackedFormat<CodecQ6_K, 4, 2, 32, PackedScale::kSuper> {};
struct PackedTQ1_0 : PackedFormat<CodecTQ1_0, 2, 0, 1, PackedScale::kHalf> {};
struct PackedTQ2_0 : PackedFormat<CodecTQ2_0, 2, 0, 1, PackedScale::kHalf> {};

// What makes the entries of a table bytes without a sign, of as few bits as hold them.
constexpr int OffsetOf(const CodeTable& table) {
  int most = 0;
  for (const int8_t value : table) most = std::max(most, value < 0 ? -value : value + 1);
  return most <= 16 ? 16 : most <= 64 ? 64 : 128;
}

// Stored codes are numbers of entries of a table, which decode with kOffset added.
template <class Codec, int kLowBits, int kHighBits, PackedScale kScale, CodeTable kTableT>
struct TableFormat : PackedFormat<Codec, kLowBits, kHighBits, OffsetOf(kTableT), kScale> {
  static constexpr bool kHasTable = true;
  static constexpr CodeTable kTable = kTableT;
};
struct PackedIQ4_NL : TableFormat<CodecIQ4_NL, 4, 0, PackedScale::kHalf, TableOf(kIq4Values)> {};
struct PackedIQ4_XS : TableFormat<CodecIQ4_XS, 4, 0, PackedScale::kSuper, TableOf(kIq4Values)> {};
struct PackedMXFP4 : TableFormat<CodecMXFP4, 4, 0, PackedScale::kExponent, TableOf(kFp4Doubled)> {};
struct PackedIQ3_XXS
    : TableFormat<CodecIQ3_XXS, 4, 0, PackedScale::kSuper, SignedTable(kIq3XxsValues)> {
  static constexpr float kScaleUnit = 0.25f;
};
struct PackedIQ3_S : TableFormat<CodecIQ3_S, 4, 0, PackedScale::kSuper, SignedTable(kIq3SValues)> {
};
template <class Codec>
struct PackedIQ2 : TableFormat<Codec, 2, 1, PackedScale::kSuper, SignedTable(kIq2Values)> {
  static constexpr float kScaleUnit = 0.125f;
};
struct PackedIQ2_XXS : PackedIQ2<CodecIQ2_XXS> {};
struct PackedIQ2_XS : PackedIQ2<CodecIQ2_XS> {};
struct PackedIQ2_S : PackedIQ2<CodecIQ2_S> {};
template <class Codec>
struct PackedIQ1 : TableFormat<Codec, 2, 1, PackedScale::kSuper, ShiftedTable(kIq1Values)> {
  static constexpr float kScaleUnit = 0.125f;
};
struct PackedIQ1_S : PackedIQ1<CodecIQ1_S> {};
struct PackedIQ1_M : PackedIQ1<CodecIQ1_M> {};

// Half r of an unaligned array.
inline F16 GetHalf(const std::byte* at, int r) {
  F16 half;
  std::memcpy(&half.bits, at + 2 * r, 2);
  return half;
}

// The 32 codes of row r in a chunk. The row's quads lie 64 bytes apart.
template <class Packed>
inline void UnpackRow(const std::byte* chunk, int r, int8_t* codes) {
  uint32_t quads[kQuads];
  const auto load = [r](const std::byte* plane, int bits, int q) {
    uint32_t word;
    std::memcpy(&word, plane + PlaceOf(bits, q).vector * 64 + 4 * r, sizeof(word));
    return (word >> PlaceOf(bits, q).shift) & (((1u << bits) - 1) * 0x01010101u);
  };
  for (int q = 0; q < kQuads; ++q) {
    quads[q] = load(chunk, Packed::kLowBits, q);
    if constexpr (Packed::kHighBits > 0) {
      quads[q] |= load(chunk + Packed::kLowBytes, Packed::kHighBits, q) << Packed::kLowBits;
    }
  }
  std::memcpy(codes, quads, kPackCols);
  if constexpr (Packed::kHasTable) {
    for (int i = 0; i < kPackCols; ++i) codes[i] = Packed::kTable[static_cast<size_t>(codes[i])];
  } else {
    for (int i = 0; i < kPackCols; ++i) codes[i] = static_cast<int8_t>(codes[i] - Packed::kOffset);
  }
}

// Scale and minimum of group g of row r, with the roundings of the codec.
template <class Packed>
inline void UnpackScale(const std::byte* block, int r, int g, float* scale, float* min) {
  using Codec = typename Packed::Codec;
  constexpr PackedScale kScale = Packed::kScale;
  const auto byte = [&](int64_t at) { return static_cast<uint8_t>(block[at + r]); };
  *min = 0;
  if constexpr (kScale == PackedScale::kExponent) {
    typename Codec::Block b{};
    b.e = byte(0);
    *scale = Codec::Scale(b, 0);
  } else {
    const float d = ToFloat(GetHalf(block, r)) * Packed::kScaleUnit;
    const float second = Packed::kHasMin ? ToFloat(GetHalf(block + 2 * kPackRows, r)) : 0.0f;
    constexpr int kBytes = (Packed::kHasMin ? 4 : 2) * kPackRows;  // where the bytes begin
    if constexpr (kScale == PackedScale::kHalf) {
      *scale = d;
    } else if constexpr (kScale == PackedScale::kHalfMin) {
      *scale = d;
      *min = -second;
    } else if constexpr (kScale == PackedScale::kSuper) {
      *scale = d * static_cast<float>(static_cast<int8_t>(byte(kBytes + g * kPackRows)));
    } else if constexpr (kScale == PackedScale::kSuperMin) {
      *scale = d * static_cast<float>(byte(kBytes + g * kPackRows));
      *min = second * static_cast<float>(byte(kBytes + (Packed::kGroups + g) * kPackRows));
    } else {
      const uint8_t both = byte(kBytes + g * kPackRows);
      *scale = d * static_cast<float>(both & 15);
      *min = second * static_cast<float>(both >> 4);
    }
  }
}

// Calls visitor(PackedX{}) for a format that has a packed form; returns false for any other.
template <class Visitor>
bool VisitPacked(Format format, const Visitor& visitor) {
  switch (format) {
#define NIBBLE_VISIT(Enum)   \
  case Format::k##Enum:      \
    visitor(Packed##Enum{}); \
    return true
    NIBBLE_VISIT(Q4_0);
    NIBBLE_VISIT(Q4_1);
    NIBBLE_VISIT(Q5_0);
    NIBBLE_VISIT(Q5_1);
    NIBBLE_VISIT(Q8_0);
    NIBBLE_VISIT(Q2_K);
    NIBBLE_VISIT(Q3_K);
    NIBBLE_VISIT(Q4_K);
    NIBBLE_VISIT(Q5_K);
    NIBBLE_VISIT(Q6_K);
    NIBBLE_VISIT(TQ1_0);
    NIBBLE_VISIT(TQ2_0);
    NIBBLE_VISIT(IQ4_NL);
    NIBBLE_VISIT(IQ4_XS);
    NIBBLE_VISIT(MXFP4);
    NIBBLE_VISIT(IQ3_XXS);
    NIBBLE_VISIT(IQ3_S);
    NIBBLE_VISIT(IQ2_XXS);
    NIBBLE_VISIT(IQ2_XS);
    NIBBLE_VISIT(IQ2_S);
    NIBBLE_VISIT(IQ1_S);
    NIBBLE_VISIT(IQ1_M);
#undef NIBBLE_VISIT
    default:
      return false;
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_PACK_LAYOUT_H_
