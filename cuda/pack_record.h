// The words of packed records, each from canonical bytes, for device and host: the inverse of
// cuda/decode_record.h.
//
// A source tells, of weights in their canonical bytes,
//   uint32_t Code(row, col)        the stored code: an integer plus Format::kOffset, an entry's
//                                  number, or a float's bits
//   float Scale(row, col)          the scale of the group that begins at a column, and
//   float Min(row, col)            what lies beside it, of kGroup and kGroupMin
//   uint32_t Super(row, record)    the bits of two f16, scale and minimum, and
//   uint8_t Sub(row, record, i)    byte i of the smaller scales, of the others
#ifndef NIBBLE_CUDA_PACK_RECORD_H_
#define NIBBLE_CUDA_PACK_RECORD_H_

#include <cstdint>
#include <type_traits>

#include "cuda/decode_record.h"
#include "cuda/packed_format.h"
#include "kernels/codec.h"
#include "kernels/codec_planar.h"

namespace nibble::cuda {

// The row of element i among 16 whose rows g and g + 8 lie side by side.
constexpr NIBBLE_HD int InterleavedRow(int i) { return i / 2 + 8 * (i % 2); }

// Word `at` of a plane that holds the bits of codes from `first_bit` on.
template <class Format, int kBits, class Source>
NIBBLE_HD uint32_t PlaneWord(const Source& source, const PackedMatrix& matrix, int64_t row,
                             int64_t col, int first_bit, int at) {
  constexpr bool kIsBook = Format::kValues == Values::kBook;
  const WordPlace place = WordAt(kBits, Format::kCols, at);
  uint32_t word = 0;
  for (int step = place.word * 4 / kBits; step <= place.word * 4 / kBits + 3 / kBits; ++step) {
    for (int c = 0; c < kStepCodes; ++c) {
      const BitPlace bits = BitsOf<kBits, kIsBook>(step, c);
      const CodePlace code = PlaceOf(place.lane, step, c);
      if (bits.word != place.word || row + code.row >= matrix.rows ||
          col + code.col >= matrix.cols) {
        continue;
      }
      const uint32_t value = source.Code(row + code.row, col + code.col) >> first_bit;
      word |= (value & ((1u << kBits) - 1)) << bits.shift;
    }
  }
  return word;
}

// Word `at` of the scales of a record.
template <class Format, class Source>
NIBBLE_HD uint32_t ScaleWord(const Source& source, const PackedMatrix& matrix, int64_t row,
                             int64_t record, int at) {
  if constexpr (Format::kIsSuper) {
    if (at < Format::kSuperBytes / 4) {
      uint32_t word = 0;
      for (int i = 0; i < 2; ++i) {
        const int64_t r = row + InterleavedRow(2 * (at % 8) + i);
        if (r < matrix.rows) {
          word |= ((source.Super(r, record) >> (16 * (at / 8))) & 0xFFFFu) << (16 * i);
        }
      }
      return word;
    }
    const int byte = 4 * at - Format::kSuperBytes;
    const int64_t r = row + byte / Format::kSubBytes;
    uint32_t word = 0;
    for (int i = 0; i < 4 && r < matrix.rows; ++i) {
      word |= uint32_t{source.Sub(r, record, byte % Format::kSubBytes + i)} << (8 * i);
    }
    return word;
  } else {
    const int group_words = matrix.scale_stride() / 4;
    const int groups = matrix.panel_groups;
    const bool is_min = at / group_words >= groups;
    const int64_t col = record * Format::kCols + at / group_words % groups * (kPanelCols / groups);
    const auto element = [&](int i) {
      const int64_t r = row + InterleavedRow(i);
      if (r >= matrix.rows || col >= matrix.cols) return 0.0f;
      return is_min ? source.Min(r, col) : source.Scale(r, col);
    };
    const int in_group = at % group_words;
    if (matrix.wide_scales) return std::bit_cast<uint32_t>(element(in_group));
    return ToF16(element(2 * in_group)).bits | uint32_t{ToF16(element(2 * in_group + 1)).bits}
                                                   << 16;
  }
}

// Word `at` of a record.
template <class Format, class Source>
NIBBLE_HD uint32_t RecordWord(const Source& source, const PackedMatrix& matrix, int64_t row_tile,
                              int64_t record, int at) {
  const int64_t row = row_tile * kTileRows, col = record * Format::kCols;
  if (at < Format::kLowBytes / 4) {
    return PlaneWord<Format, Format::kLow>(source, matrix, row, col, 0, at);
  }
  if constexpr (Format::kHigh > 0) {
    if (at < Format::kCodeBytes / 4) {
      return PlaneWord<Format, Format::kHigh>(source, matrix, row, col, Format::kLow,
                                              at - Format::kLowBytes / 4);
    }
  }
  return ScaleWord<Format>(source, matrix, row, record, at - Format::kCodeBytes / 4);
}

// The largest magnitude that a weight may have under the scales that lane 4 g has of a step of a
// panel of a record.
template <class Format>
NIBBLE_HD float LargestUnderScales(const PackedMatrix& matrix, const uint8_t* record, int panel,
                                   int step, int g) {
  LaneScales<Format> scales;
  scales.Load(record, 4 * g, panel);
  const GroupScales group = scales.Get(matrix, step, 4 * g);
  float largest = 0;
  for (int i = 0; i < 2; ++i) {
    const float scale = group.scale[i] < 0 ? -group.scale[i] : group.scale[i];
    const float min = group.min[i] < 0 ? -group.min[i] : group.min[i];
    const float weight = scale * matrix.largest_value + min;
    largest = weight > largest ? weight : largest;
  }
  return largest;
}

// The power of two that brings `largest` to [2^10, 2^11); 1 for what is no number, or none.
NIBBLE_HD inline float MultiplierFor(float largest) {
  const int exponent = static_cast<int>(std::bit_cast<uint32_t>(largest) >> 23);
  if (exponent < 1 || exponent > 254) return 1.0f;
  const int wanted = 127 + 10 - (exponent - 127);
  return std::bit_cast<float>(static_cast<uint32_t>(wanted < 1     ? 1
                                                    : wanted > 253 ? 253
                                                                   : wanted)
                              << 23);
}

// --- Sources -------------------------------------------------------------------------------------

// Blocks. Those of 32 weights, and ternary ones of 256, have one scale each.
template <class Codec, class Format>
struct BlockPackSource {
  using Block = typename Codec::Block;
  const Block* blocks;
  int64_t blocks_per_row;

  NIBBLE_HD const Block& BlockAt(int64_t row, int64_t col) const {
    return blocks[row * blocks_per_row + col / Codec::kWeights];
  }
  NIBBLE_HD uint32_t Code(int64_t row, int64_t col) const {
    const Block& b = BlockAt(row, col);
    const int i = static_cast<int>(col % Codec::kWeights);
    if constexpr (Format::kValues != Values::kBook) {
      return static_cast<uint32_t>(Codec::Code(b, i) + kStoredOffset);
    } else if constexpr (std::is_same_v<Codec, CodecIQ4_XS>) {
      return static_cast<uint32_t>(SplitNibble(b.qs + 16 * (i / 32), i % 32));
    } else {
      return static_cast<uint32_t>(SplitNibble(b.qs, i));
    }
  }
  NIBBLE_HD float Scale(int64_t row, int64_t col) const {
    return Codec::Scale(BlockAt(row, col), 0);
  }
  NIBBLE_HD float Min(int64_t row, int64_t col) const {
    if constexpr (Codec::kHasMin) return Codec::Min(BlockAt(row, col), 0);
    return static_cast<float>(kStoredOffset);  // a zero
  }
  NIBBLE_HD uint32_t Super(int64_t row, int64_t record) const {
    const Block& b = blocks[row * blocks_per_row + record];
    if constexpr (Codec::kHasMin) {
      return b.d.bits | uint32_t{b.dmin.bits} << 16;
    } else {
      return b.d.bits;
    }
  }
  // A block whose super-scales are 1 has the smaller ones as its scales.
  NIBBLE_HD uint8_t Sub(int64_t row, int64_t record, int i) const {
    constexpr F16 kOne = {0x3C00};
    Block unit = blocks[row * blocks_per_row + record];
    unit.d = kOne;
    if constexpr (Codec::kHasMin) unit.dmin = kOne;
    int value = 0;
    if constexpr (Format::kScales == Scales::kSuper) {
      value = static_cast<int>(Codec::Scale(unit, i)) + 128;
    } else if constexpr (Format::kScales == Scales::kSuperMin) {
      constexpr int kGroups = Format::kSubBytes / 2;
      value = static_cast<int>(i < kGroups ? Codec::Scale(unit, i) : Codec::Min(unit, i - kGroups));
    } else if constexpr (Format::kScales == Scales::kSuperNibble) {
      value = static_cast<int>(Codec::Scale(unit, i)) | static_cast<int>(Codec::Min(unit, i)) << 4;
    }
    return static_cast<uint8_t>(value);
  }

 private:
  // Codes below zero are moved up, by what the decoder takes away or by a zero.
  static constexpr int kStoredOffset = Codec::kHasMin           ? 0
                                       : Format::kOffset > 0    ? Format::kOffset
                                       : Codec::kWeights == 256 ? 1    // ternary
                                                                : 16;  // q5_0
};

// Planes. `order`, where there is one, gives the column of each packed column.
template <class Format>
struct PlanarPackSource {
  PlanarPlanes planes;
  const int32_t* order;

  NIBBLE_HD int64_t Column(int64_t col) const { return order == nullptr ? col : order[col]; }
  NIBBLE_HD uint32_t Code(int64_t row, int64_t col) const {
    const Scheme& s = planes.scheme;
    const uint32_t code =
        PlanarCode(planes.codes + row * PlanarRowBytes(s.bits, planes.cols), s.bits, Column(col));
    if (Format::kValues != Values::kInteger || !s.symmetric) return code;
    return static_cast<uint32_t>(SignExtend(code, s.bits) + (1 << (Format::kBits - 1)));
  }
  NIBBLE_HD float Scale(int64_t row, int64_t col) const { return planes.Scale(At(row, col)); }
  // The zero of stored codes, less what the decoder takes away.
  NIBBLE_HD float Min(int64_t row, int64_t col) const {
    const float zero = planes.scheme.symmetric ? static_cast<float>(1 << (Format::kBits - 1))
                                               : planes.Zero(At(row, col));
    return zero - static_cast<float>(Format::kOffset);
  }
  NIBBLE_HD uint32_t Super(int64_t, int64_t) const { return 0; }
  NIBBLE_HD uint8_t Sub(int64_t, int64_t, int) const { return 0; }

 private:
  NIBBLE_HD int64_t At(int64_t row, int64_t col) const {
    return planes.ScaleAt(row, planes.Group(Column(col)));
  }
};

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_PACK_RECORD_H_
