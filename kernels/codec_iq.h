// Codecs of the formats whose weights come from codebooks of 4- or 8-dimensional points. See
// kernels/codec.h. All their products are exact in float, so that the order in which others
// multiply scale, point and sign does not matter.
#ifndef NIBBLE_KERNELS_CODEC_IQ_H_
#define NIBBLE_KERNELS_CODEC_IQ_H_

#include "kernels/iq_grids.h"
#include "nibble/blocks.h"

namespace nibble {

// Their groups' raw scales are odd: OddScale(), of units of the super-block's.

// What the coordinates of a point stand for. No point of iq1 or iq2 has a coordinate 3.
NIBBLE_TABLE int8_t kIq1Values[4] = {-8, 0, 8, 0};
NIBBLE_TABLE int8_t kIq2Values[4] = {8, 25, 43, 0};
NIBBLE_TABLE int8_t kIq3XxsValues[8] = {4, 12, 20, 28, 36, 44, 52, 62};
NIBBLE_TABLE int8_t kIq3SValues[8] = {1, 3, 5, 7, 9, 11, 13, 15};

// Coordinate j of a point.
constexpr NIBBLE_HD int Coordinate8(uint16_t point, int j) { return (point >> (2 * j)) & 3; }
constexpr NIBBLE_HD int Coordinate4(uint16_t point, int j) { return (point >> (4 * j)) & 15; }

// Eight signs from seven bits: their number is even.
constexpr NIBBLE_HD int EvenSigns(uint32_t seven_bits) {
  uint32_t parity = seven_bits ^ (seven_bits >> 4);
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return static_cast<int>(seven_bits | (parity & 1) << 7);
}

// value, negated where bit j of `signs` is set.
constexpr NIBBLE_HD int Signed(int value, int signs, int j) {
  return (signs >> j) & 1 ? -value : value;
}

constexpr NIBBLE_HD uint32_t LittleEndian32(const uint8_t* bytes) {
  return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<uint32_t>(bytes[3]) << 24;
}

struct CodecIQ2_XXS {
  using Block = BlockIQ2_XXS;
  static constexpr int kWeights = 256, kGroup = 32;
  static constexpr bool kHasMin = false;
  // A group: four indices of 8 bits, then four times seven sign bits and a scale of 4 bits.
  static constexpr NIBBLE_HD int Index(const Block& b, int point) {
    return (b.qs[4 * (point / 4) + point % 4 / 2] >> (8 * (point % 2))) & 255;
  }
  static constexpr NIBBLE_HD uint32_t SignsAndScale(const Block& b, int g) {
    return b.qs[4 * g + 2] | static_cast<uint32_t>(b.qs[4 * g + 3]) << 16;
  }
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    const int signs = EvenSigns((SignsAndScale(b, i / 32) >> (7 * (i % 32 / 8))) & 127);
    return Signed(kIq2Values[Coordinate8(kGridIQ2_XXS[Index(b, i / 8)], i % 8)], signs, i % 8);
  }
  static constexpr NIBBLE_HD int OddScale(const Block& b, int g) {
    return static_cast<int>(2 * (SignsAndScale(b, g) >> 28) + 1);
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(OddScale(b, g)) * 0.125f;
  }
};

struct CodecIQ2_XS {
  using Block = BlockIQ2_XS;
  static constexpr int kWeights = 256, kGroup = 16;
  static constexpr bool kHasMin = false;
  // A point: nine bits of index, seven of signs.
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    const uint16_t q = b.qs[i / 8];
    return Signed(kIq2Values[Coordinate8(kGridIQ2_XS[q & 511], i % 8)], EvenSigns(q >> 9), i % 8);
  }
  static constexpr NIBBLE_HD int OddScale(const Block& b, int g) {
    return 2 * ((b.scales[g / 2] >> (4 * (g % 2))) & 15) + 1;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(OddScale(b, g)) * 0.125f;
  }
};

struct CodecIQ2_S {
  using Block = BlockIQ2_S;
  static constexpr int kWeights = 256, kGroup = 16;
  static constexpr bool kHasMin = false;
  // Low bytes of 32 indices, 32 bytes of signs; two high bits an index in qh.
  static constexpr NIBBLE_HD int Index(const Block& b, int point) {
    return b.qs[point] | ((b.qh[point / 4] >> (2 * (point % 4))) & 3) << 8;
  }
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    const uint16_t point = kGridIQ2_S[Index(b, i / 8)];
    return Signed(kIq2Values[Coordinate8(point, i % 8)], b.qs[32 + i / 8], i % 8);
  }
  static constexpr NIBBLE_HD int OddScale(const Block& b, int g) {
    return 2 * ((b.scales[g / 2] >> (4 * (g % 2))) & 15) + 1;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(OddScale(b, g)) * 0.125f;
  }
};

struct CodecIQ3_XXS {
  using Block = BlockIQ3_XXS;
  static constexpr int kWeights = 256, kGroup = 32;
  static constexpr bool kHasMin = false;
  // 64 indices, then for each group four times seven sign bits and a scale of 4 bits.
  static constexpr NIBBLE_HD uint32_t SignsAndScale(const Block& b, int g) {
    return LittleEndian32(b.qs + 64 + 4 * g);
  }
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    const int signs = EvenSigns((SignsAndScale(b, i / 32) >> (7 * (i % 32 / 8))) & 127);
    const uint16_t point = kGridIQ3_XXS[b.qs[i / 4]];
    return Signed(kIq3XxsValues[Coordinate4(point, i % 4)], signs, i % 8);
  }
  static constexpr NIBBLE_HD int OddScale(const Block& b, int g) {
    return static_cast<int>(2 * (SignsAndScale(b, g) >> 28) + 1);
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(OddScale(b, g)) * 0.25f;
  }
};

struct CodecIQ3_S {
  using Block = BlockIQ3_S;
  static constexpr int kWeights = 256, kGroup = 32;
  static constexpr bool kHasMin = false;
  // The ninth bit of index k is bit k of qh.
  static constexpr NIBBLE_HD int Index(const Block& b, int point) {
    return b.qs[point] | ((b.qh[point / 8] >> (point % 8)) & 1) << 8;
  }
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    const uint16_t point = kGridIQ3_S[Index(b, i / 4)];
    return Signed(kIq3SValues[Coordinate4(point, i % 4)], b.signs[i / 8], i % 8);
  }
  static constexpr NIBBLE_HD int OddScale(const Block& b, int g) {
    return 2 * ((b.scales[g / 2] >> (4 * (g % 2))) & 15) + 1;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(OddScale(b, g));
  }
};

// The iq1 weights are scale * (coordinate + 1/8) or scale * (coordinate - 1/8) with coordinates -1,
// 0, 1: eight times that is an integer.
struct CodecIQ1_S {
  using Block = BlockIQ1_S;
  static constexpr int kWeights = 256, kGroup = 32;
  static constexpr bool kHasMin = false;
  // qh of a group: three high bits for each of four indices, a scale of 3 bits, the sign of 1/8.
  static constexpr NIBBLE_HD int Index(const Block& b, int point) {
    return b.qs[point] | ((b.qh[point / 4] >> (3 * (point % 4))) & 7) << 8;
  }
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    const int shift = b.qh[i / 32] >> 15 ? -1 : 1;
    return kIq1Values[Coordinate8(kGridIQ1[Index(b, i / 8)], i % 8)] + shift;
  }
  static constexpr NIBBLE_HD int OddScale(const Block& b, int g) {
    return 2 * ((b.qh[g] >> 12) & 7) + 1;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(OddScale(b, g)) * 0.125f;
  }
};

struct CodecIQ1_M {
  using Block = BlockIQ1_M;
  static constexpr int kWeights = 256, kGroup = 16;
  static constexpr bool kHasMin = false;
  // A nibble of qh for each point: three high bits of its index and the sign of 1/8.
  static constexpr NIBBLE_HD int HighNibble(const Block& b, int point) {
    return (b.qh[point / 2] >> (4 * (point % 2))) & 15;
  }
  static constexpr NIBBLE_HD int Index(const Block& b, int point) {
    return b.qs[point] | (HighNibble(b, point) & 7) << 8;
  }
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    const int shift = HighNibble(b, i / 8) & 8 ? -1 : 1;
    return kIq1Values[Coordinate8(kGridIQ1[Index(b, i / 8)], i % 8)] + shift;
  }
  // Four 16-bit words: four scales of 3 bits and a nibble of the super-scale in each.
  static constexpr NIBBLE_HD int ScaleWord(const Block& b, int n) {
    return b.scales[2 * n] | b.scales[2 * n + 1] << 8;
  }
  static constexpr NIBBLE_HD F16 SuperScale(const Block& b) {
    int bits = 0;
    for (int n = 0; n < 4; ++n) bits |= (ScaleWord(b, n) >> 12) << (4 * n);
    return {static_cast<uint16_t>(bits)};
  }
  static constexpr NIBBLE_HD int OddScale(const Block& b, int g) {
    return 2 * ((ScaleWord(b, g / 4) >> (3 * (g % 4))) & 7) + 1;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(SuperScale(b)) * static_cast<float>(OddScale(b, g)) * 0.125f;
  }
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CODEC_IQ_H_
