// Codes, scales and half-precision numbers into the blocks of the searched formats: the inverses of
// kernels/codec*.h. Codes are those stored, from 0 up, in the order of the weights.
#ifndef NIBBLE_KERNELS_ENCODE_K_PACK_H_
#define NIBBLE_KERNELS_ENCODE_K_PACK_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/codec.h"

namespace nibble {

// What a search leaves of one block. `scale` and `min` are integers, as the block stores them
// before any offset; formats with one scale have none.
struct FoundBlock {
  float d;
  float min_d;
  int8_t scale[16];
  int8_t min[16];
  alignas(64) uint8_t codes[256];
};

// Two, four and eight codes a byte, `stride` weights apart.
template <int kStride>
inline void PackNibbles(const uint8_t* codes, uint8_t* qs) {
  for (int j = 0; j < kStride; ++j) {
    qs[j] = static_cast<uint8_t>((codes[j] & 15) | codes[j + kStride] << 4);
  }
}
inline void PackTwoBits(const uint8_t* codes, uint8_t* qs) {
  for (int j = 0; j < 32; ++j) {
    const int low = (codes[j] & 3) | (codes[j + 32] & 3) << 2;
    const int high = (codes[j + 64] & 3) | (codes[j + 96] & 3) << 2;
    qs[j] = static_cast<uint8_t>(low | high << 4);
  }
}
template <int kBit>
inline void PackBits(const uint8_t* codes, uint8_t* qs) {
  for (int j = 0; j < 32; ++j) {
    int byte = 0;
    for (int k = 0; k < 8; ++k) byte |= ((codes[32 * k + j] >> kBit) & 1) << k;
    qs[j] = static_cast<uint8_t>(byte);
  }
}
// Bit 4 of 32 codes as a little-endian number.
inline void PackFifthBits(const uint8_t* codes, uint8_t* qh) {
  for (int byte = 0; byte < 4; ++byte) {
    int bits = 0;
    for (int k = 0; k < 8; ++k) bits |= (codes[8 * byte + k] >> 4) << k;
    qh[byte] = static_cast<uint8_t>(bits);
  }
}

inline void Pack(const FoundBlock& found, BlockQ4_0& b) {
  b.d = ToF16(found.d);
  PackNibbles<16>(found.codes, b.qs);
}
inline void Pack(const FoundBlock& found, BlockQ4_1& b) {
  b.d = ToF16(found.d);
  b.m = ToF16(0 - found.min_d);
  PackNibbles<16>(found.codes, b.qs);
}
inline void Pack(const FoundBlock& found, BlockQ5_0& b) {
  b.d = ToF16(found.d);
  PackFifthBits(found.codes, b.qh);
  PackNibbles<16>(found.codes, b.qs);
}
inline void Pack(const FoundBlock& found, BlockQ5_1& b) {
  b.d = ToF16(found.d);
  b.m = ToF16(0 - found.min_d);
  PackFifthBits(found.codes, b.qh);
  PackNibbles<16>(found.codes, b.qs);
}
inline void Pack(const FoundBlock& found, BlockQ8_0& b) {
  b.d = ToF16(found.d);
  for (int j = 0; j < 32; ++j) b.qs[j] = static_cast<int8_t>(found.codes[j] - 127);
}
inline void Pack(const FoundBlock& found, BlockIQ4_NL& b) {
  b.d = ToF16(found.d);
  PackNibbles<16>(found.codes, b.qs);
}

inline void Pack(const FoundBlock& found, BlockQ2_K& b) {
  b.d = ToF16(found.d);
  b.dmin = ToF16(found.min_d);
  for (int g = 0; g < 16; ++g) {
    b.scales[g] = static_cast<uint8_t>(found.scale[g] | found.min[g] << 4);
  }
  PackTwoBits(found.codes, b.qs);
  PackTwoBits(found.codes + 128, b.qs + 32);
}
inline void Pack(const FoundBlock& found, BlockQ3_K& b) {
  b.d = ToF16(found.d);
  uint8_t raw[16];
  for (int g = 0; g < 16; ++g) raw[g] = static_cast<uint8_t>(found.scale[g] + 32);
  CodecQ3_K::PackScales(raw, b.scales);
  PackTwoBits(found.codes, b.qs);
  PackTwoBits(found.codes + 128, b.qs + 32);
  PackBits<2>(found.codes, b.hmask);
}
inline void PackLines(const FoundBlock& found, uint8_t* scales) {
  uint8_t scale[8], min[8];
  std::memcpy(scale, found.scale, sizeof(scale));
  std::memcpy(min, found.min, sizeof(min));
  PackKScales(scale, min, scales);
}
inline void Pack(const FoundBlock& found, BlockQ4_K& b) {
  b.d = ToF16(found.d);
  b.dmin = ToF16(found.min_d);
  PackLines(found, b.scales);
  for (int j = 0; j < 4; ++j) PackNibbles<32>(found.codes + 64 * j, b.qs + 32 * j);
}
inline void Pack(const FoundBlock& found, BlockQ5_K& b) {
  b.d = ToF16(found.d);
  b.dmin = ToF16(found.min_d);
  PackLines(found, b.scales);
  PackBits<4>(found.codes, b.qh);
  for (int j = 0; j < 4; ++j) PackNibbles<32>(found.codes + 64 * j, b.qs + 32 * j);
}
inline void Pack(const FoundBlock& found, BlockQ6_K& b) {
  b.d = ToF16(found.d);
  std::memcpy(b.scales, found.scale, sizeof(b.scales));
  uint8_t high[256];
  for (int i = 0; i < 256; ++i) high[i] = found.codes[i] >> 4;
  for (int half = 0; half < 2; ++half) {
    PackNibbles<64>(found.codes + 128 * half, b.ql + 64 * half);
    PackTwoBits(high + 128 * half, b.qh + 32 * half);
  }
}
inline void Pack(const FoundBlock& found, BlockIQ4_XS& b) {
  b.d = ToF16(found.d);
  unsigned high = 0;
  for (int g = 0; g < 8; g += 2) {
    const int even = found.scale[g] + 32, odd = found.scale[g + 1] + 32;
    b.scales_l[g / 2] = static_cast<uint8_t>((even & 15) | (odd & 15) << 4);
    high |= static_cast<unsigned>((even >> 4) | (odd >> 4) << 2) << (2 * g);
  }
  b.scales_h = static_cast<uint16_t>(high);
  for (int g = 0; g < 8; ++g) PackNibbles<16>(found.codes + 32 * g, b.qs + 16 * g);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_ENCODE_K_PACK_H_
