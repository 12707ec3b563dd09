// Codecs of the formats with one scale for a block. See kernels/codec.h.
#ifndef NIBBLE_KERNELS_CODEC_SIMPLE_H_
#define NIBBLE_KERNELS_CODEC_SIMPLE_H_

#include "nibble/blocks.h"

namespace nibble {

// Nibble i of 32 in the 16 bytes that the formats of 32 weights share.
constexpr NIBBLE_HD int SplitNibble(const uint8_t* qs, int i) {
  return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}

// Bit i of a little-endian 32-bit field.
constexpr NIBBLE_HD int Bit(const uint8_t* bytes, int i) { return (bytes[i / 8] >> (i % 8)) & 1; }

struct CodecQ4_0 {
  using Block = BlockQ4_0;
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) { return SplitNibble(b.qs, i) - 8; }
  static constexpr NIBBLE_HD float Scale(const Block& b, int) { return ToFloat(b.d); }
};

struct CodecQ4_1 {
  using Block = BlockQ4_1;
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kHasMin = true;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) { return SplitNibble(b.qs, i); }
  static constexpr NIBBLE_HD float Scale(const Block& b, int) { return ToFloat(b.d); }
  static constexpr NIBBLE_HD float Min(const Block& b, int) { return -ToFloat(b.m); }
};

struct CodecQ5_0 {
  using Block = BlockQ5_0;
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    return (SplitNibble(b.qs, i) | Bit(b.qh, i) << 4) - 16;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int) { return ToFloat(b.d); }
};

struct CodecQ5_1 {
  using Block = BlockQ5_1;
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kHasMin = true;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    return SplitNibble(b.qs, i) | Bit(b.qh, i) << 4;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int) { return ToFloat(b.d); }
  static constexpr NIBBLE_HD float Min(const Block& b, int) { return -ToFloat(b.m); }
};

struct CodecQ8_0 {
  using Block = BlockQ8_0;
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) { return b.qs[i]; }
  static constexpr NIBBLE_HD float Scale(const Block& b, int) { return ToFloat(b.d); }
};

// Activations. The sum s is a convenience and takes no part in decoding.
struct CodecQ8_1 {
  using Block = BlockQ8_1;
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) { return b.qs[i]; }
  static constexpr NIBBLE_HD float Scale(const Block& b, int) { return ToFloat(b.d); }
};

// The non-linear 4-bit codebook that iq4_nl and iq4_xs share.
NIBBLE_TABLE int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

struct CodecIQ4_NL {
  using Block = BlockIQ4_NL;
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    return kIq4Values[SplitNibble(b.qs, i)];
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int) { return ToFloat(b.d); }
};

// OCP fp4 (e2m1) times two, so that 0.5 becomes an integer; the scale is halved to match.
NIBBLE_TABLE int8_t kFp4Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct CodecMXFP4 {
  using Block = BlockMXFP4;
  static constexpr int kWeights = 32, kGroup = 32;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    return kFp4Doubled[SplitNibble(b.qs, i)];
  }
  // 2^(e - 128), which is subnormal for e < 2.
  static constexpr NIBBLE_HD float Scale(const Block& b, int) {
    return std::bit_cast<float>(b.e < 2 ? 0x00200000u << b.e
                                        : static_cast<uint32_t>(b.e - 1) << 23);
  }
};

// Byte m of a ternary block holds up to five base-3 digits as round-up(256 * value / 243): the
// digit of place n is the high byte of 3 * (byte * 3^n mod 256).
constexpr NIBBLE_HD int TernaryDigit(uint8_t byte, int place) {
  constexpr uint8_t kPower[5] = {1, 3, 9, 27, 81};
  const uint8_t shifted = static_cast<uint8_t>(byte * kPower[place]);
  return (shifted * 3) >> 8;
}

struct CodecTQ1_0 {
  using Block = BlockTQ1_0;
  static constexpr int kWeights = 256, kGroup = 256;
  static constexpr bool kHasMin = false;
  // 160 weights in 32 bytes of five digits, 80 in 16 bytes of five, 16 in 4 bytes of four.
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    if (i < 160) return TernaryDigit(b.qs[i % 32], i / 32) - 1;
    if (i < 240) return TernaryDigit(b.qs[32 + (i - 160) % 16], (i - 160) / 16) - 1;
    return TernaryDigit(b.qh[(i - 240) % 4], (i - 240) / 4) - 1;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int) { return ToFloat(b.d); }
};

struct CodecTQ2_0 {
  using Block = BlockTQ2_0;
  static constexpr int kWeights = 256, kGroup = 256;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    return ((b.qs[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32))) & 3) - 1;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int) { return ToFloat(b.d); }
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CODEC_SIMPLE_H_
