// The points of kernels/iq_grids.h spelled out, made by the compiler: eight codes in a 64-bit word
// or four in 32 bits, first code in the lowest byte. A word a point beats vectors here: points lie
// scattered, and a word is loaded, given its signs and stored by a handful of instructions.
#ifndef NIBBLE_KERNELS_IQ_POINTS_H_
#define NIBBLE_KERNELS_IQ_POINTS_H_

#include <cstddef>
#include <cstdint>

#include "kernels/codec_iq.h"

namespace nibble {

template <size_t kPoints>
struct Points8 {
  uint64_t at[kPoints];
  constexpr Points8(const uint16_t (&grid)[kPoints], const int8_t (&values)[4]) : at() {
    for (size_t p = 0; p < kPoints; ++p) {
      for (int j = 0; j < 8; ++j) {
        at[p] |= uint64_t{static_cast<uint8_t>(values[Coordinate8(grid[p], j)])} << (8 * j);
      }
    }
  }
};

template <size_t kPoints>
struct Points4 {
  uint32_t at[kPoints];
  constexpr Points4(const uint16_t (&grid)[kPoints], const int8_t (&values)[8]) : at() {
    for (size_t p = 0; p < kPoints; ++p) {
      for (int j = 0; j < 4; ++j) {
        at[p] |= uint32_t{static_cast<uint8_t>(values[Coordinate4(grid[p], j)])} << (8 * j);
      }
    }
  }
};

inline constexpr Points8<256> kPointsIQ2_XXS(kGridIQ2_XXS, kIq2Values);
inline constexpr Points8<512> kPointsIQ2_XS(kGridIQ2_XS, kIq2Values);
inline constexpr Points8<1024> kPointsIQ2_S(kGridIQ2_S, kIq2Values);
inline constexpr Points8<2048> kPointsIQ1(kGridIQ1, kIq1Values);
inline constexpr Points4<256> kPointsIQ3_XXS(kGridIQ3_XXS, kIq3XxsValues);
inline constexpr Points4<512> kPointsIQ3_S(kGridIQ3_S, kIq3SValues);

// Masks of the bytes to negate: for eight sign bits, and for seven whose eighth makes them even.
struct SignMasks {
  uint64_t all[256];
  uint64_t even[128];
  constexpr SignMasks() : all(), even() {
    for (uint32_t bits = 0; bits < 256; ++bits) {
      for (int j = 0; j < 8; ++j) all[bits] |= bits >> j & 1 ? uint64_t{255} << (8 * j) : 0;
    }
    for (uint32_t bits = 0; bits < 128; ++bits) even[bits] = all[EvenSigns(bits)];
  }
};
inline constexpr SignMasks kSignMasks;

// Negates the masked bytes of a word, none of which is zero, so that no carry leaves its byte.
constexpr uint64_t NegateBytes(uint64_t bytes, uint64_t mask) {
  return (bytes ^ mask) + (mask & 0x0101010101010101u);
}

// Adds the bytes of two words, each modulo 256.
constexpr uint64_t AddBytes(uint64_t a, uint64_t b) {
  constexpr uint64_t kTop = 0x8080808080808080u;
  return ((a & ~kTop) + (b & ~kTop)) ^ ((a ^ b) & kTop);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_IQ_POINTS_H_
