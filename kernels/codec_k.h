// Codecs of the k-quants and iq4_xs: super-blocks of 256 weights. See kernels/codec.h.
#ifndef NIBBLE_KERNELS_CODEC_K_H_
#define NIBBLE_KERNELS_CODEC_K_H_

#include "kernels/codec_simple.h"
#include "nibble/blocks.h"

namespace nibble {

// Two bits of weight i where 32 bytes hold 128 weights.
constexpr NIBBLE_HD int TwoBits(const uint8_t* qs, int i) {
  return (qs[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32))) & 3;
}

// Nibble of weight i where 32 bytes hold 64 weights.
constexpr NIBBLE_HD int KNibble(const uint8_t* qs, int i) {
  return (qs[32 * (i / 64) + i % 32] >> (4 * (i % 64 / 32))) & 15;
}

// The 12 bytes of q4_K and q5_K: scales 0-3 and minima 0-3 in the low six bits of bytes 0-3 and
// 4-7; scales 4-7 and minima 4-7 as the nibbles of bytes 8-11 with their top two bits in the top of
// bytes 0-3 and 4-7.
constexpr NIBBLE_HD int KScale(const uint8_t* scales, int g) {
  return g < 4 ? scales[g] & 63 : (scales[g + 4] & 15) | (scales[g - 4] >> 6) << 4;
}
constexpr NIBBLE_HD int KMin(const uint8_t* scales, int g) {
  return g < 4 ? scales[g + 4] & 63 : scales[g + 4] >> 4 | (scales[g] >> 6) << 4;
}
// The inverse: scale[8] and min[8], each in [0, 63].
constexpr NIBBLE_HD void PackKScales(const uint8_t* scale, const uint8_t* min, uint8_t* packed) {
  for (int g = 0; g < 4; ++g) {
    packed[g] = static_cast<uint8_t>(scale[g] | (scale[g + 4] >> 4) << 6);
    packed[g + 4] = static_cast<uint8_t>(min[g] | (min[g + 4] >> 4) << 6);
    packed[g + 8] = static_cast<uint8_t>((scale[g + 4] & 15) | (min[g + 4] & 15) << 4);
  }
}

struct CodecQ2_K {
  using Block = BlockQ2_K;
  static constexpr int kWeights = 256, kGroup = 16;
  static constexpr bool kHasMin = true;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) { return TwoBits(b.qs, i); }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(b.scales[g] & 15);
  }
  static constexpr NIBBLE_HD float Min(const Block& b, int g) {
    return ToFloat(b.dmin) * static_cast<float>(b.scales[g] >> 4);
  }
};

struct CodecQ3_K {
  using Block = BlockQ3_K;
  static constexpr int kWeights = 256, kGroup = 16;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    return (TwoBits(b.qs, i) | ((b.hmask[i % 32] >> (i / 32)) & 1) << 2) - 4;
  }
  // Six bits: a nibble of bytes 0-7 and two bits of bytes 8-11.
  static constexpr NIBBLE_HD int RawScale(const uint8_t* scales, int g) {
    return ((scales[g % 8] >> (4 * (g / 8))) & 15) | ((scales[8 + g % 4] >> (2 * (g / 4))) & 3)
                                                         << 4;
  }
  // The inverse, for 16 values in [0, 63].
  static constexpr NIBBLE_HD void PackScales(const uint8_t* raw, uint8_t* scales) {
    for (int i = 0; i < 12; ++i) scales[i] = 0;
    for (int g = 0; g < 16; ++g) {
      scales[g % 8] = static_cast<uint8_t>(scales[g % 8] | (raw[g] & 15) << (4 * (g / 8)));
      scales[8 + g % 4] = static_cast<uint8_t>(scales[8 + g % 4] | (raw[g] >> 4) << (2 * (g / 4)));
    }
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(RawScale(b.scales, g) - 32);
  }
};

struct CodecQ4_K {
  using Block = BlockQ4_K;
  static constexpr int kWeights = 256, kGroup = 32;
  static constexpr bool kHasMin = true;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) { return KNibble(b.qs, i); }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(KScale(b.scales, g));
  }
  static constexpr NIBBLE_HD float Min(const Block& b, int g) {
    return ToFloat(b.dmin) * static_cast<float>(KMin(b.scales, g));
  }
};

struct CodecQ5_K {
  using Block = BlockQ5_K;
  static constexpr int kWeights = 256, kGroup = 32;
  static constexpr bool kHasMin = true;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    return KNibble(b.qs, i) | ((b.qh[i % 32] >> (i / 32)) & 1) << 4;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(KScale(b.scales, g));
  }
  static constexpr NIBBLE_HD float Min(const Block& b, int g) {
    return ToFloat(b.dmin) * static_cast<float>(KMin(b.scales, g));
  }
};

struct CodecQ6_K {
  using Block = BlockQ6_K;
  static constexpr int kWeights = 256, kGroup = 16;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    const int low = (b.ql[64 * (i / 128) + i % 64] >> (4 * (i % 128 / 64))) & 15;
    return (low | TwoBits(b.qh, i) << 4) - 32;
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    return ToFloat(b.d) * static_cast<float>(b.scales[g]);
  }
};

// Activations. The sums are a convenience and take no part in decoding.
struct CodecQ8_K {
  using Block = BlockQ8_K;
  static constexpr int kWeights = 256, kGroup = 256;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) { return b.qs[i]; }
  static constexpr NIBBLE_HD float Scale(const Block& b, int) { return b.d; }
};

struct CodecIQ4_XS {
  using Block = BlockIQ4_XS;
  static constexpr int kWeights = 256, kGroup = 32;
  static constexpr bool kHasMin = false;
  static constexpr NIBBLE_HD int Code(const Block& b, int i) {
    return kIq4Values[SplitNibble(b.qs + 16 * (i / 32), i % 32)];
  }
  static constexpr NIBBLE_HD float Scale(const Block& b, int g) {
    const int low = (b.scales_l[g / 2] >> (4 * (g % 2))) & 15;
    const int raw = low | ((b.scales_h >> (2 * g)) & 3) << 4;
    return ToFloat(b.d) * static_cast<float>(raw - 32);
  }
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CODEC_K_H_
