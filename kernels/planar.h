// Rows of planar schemes, vectorised: pack and unpack codes, find ranges, choose and decode codes.
// Every function gives what kernels/codec_planar.h says, to the bit, on every target.
#ifndef NIBBLE_KERNELS_PLANAR_H_
#define NIBBLE_KERNELS_PLANAR_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/codec_planar.h"
#include "nibble/scheme.h"

namespace nibble {

// All that kernels know of a scheme.
struct PlanarCodebook {
  Code code = Code::kUniform;
  int bits = 0;
  bool symmetric = true;
  float low = 0, high = 0;                // uniform: the range of codes
  int values_count = 0;                   // nf4, fp4, tables: 2^bits
  alignas(64) float values[256] = {};     // by code
  alignas(64) float midpoints[256] = {};  // between neighbours in rank, then infinities
  alignas(64) uint8_t code_of_rank[256] = {};
};

// `table`: the plane of Code::kTable, 2^bits ascending values.
PlanarCodebook MakePlanarCodebook(const Scheme& scheme, const uint8_t* table);

// Consecutive weights under one scale: those from the end of the group before to `end`.
struct PlanarGroup {
  int64_t end;
  float scale;
  float zero;  // 0 where the scheme has none
};

struct Range {
  float min;
  float max;
};

// Codes, one a byte, to and from a stream of `bits`-bit codes. Touches PlanarRowBytes(bits, count)
// bytes of the stream, no more.
void UnpackCodes(const uint8_t* stream, int bits, int64_t count, uint8_t* codes);
void PackCodes(const uint8_t* codes, int bits, int64_t count, uint8_t* stream);

// Least and greatest of count > 0 finite values.
Range FindRange(const float* x, int64_t count);

// Whether all values are finite.
bool AllFinite(const float* x, int64_t count);

// The code nearest to each of the finite values x, group by group.
void ChooseCodes(const PlanarCodebook& book, std::span<const PlanarGroup> groups, const float* x,
                 uint8_t* codes);

// The weights that codes stand for, group by group.
void DecodeCodes(const PlanarCodebook& book, std::span<const PlanarGroup> groups,
                 const uint8_t* codes, float* out);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_PLANAR_H_
