// Additive codebooks as rows that products decode: each vector of weights is the sum of one entry
// of every codebook, times the scale of its row.
#ifndef NIBBLE_KERNELS_ADDITIVE_H_
#define NIBBLE_KERNELS_ADDITIVE_H_

#include <cstdint>

#include "hwy/aligned_allocator.h"
#include "kernels/codec_planar.h"
#include "kernels/matmul.h"
#include "nibble/status.h"

namespace nibble {

// The entries of all codebooks in f32, as kernels read them.
struct AdditiveBooks {
  const float* entries;  // [codebooks, 2^bits, vector]
  int codebooks;
  int bits;
  int vector;
};

// Codes of 8 bits, rearranged for products with few activation rows: tiles of 64 weight rows, each
// [codes of a row, 64], so that code i of the rows of a tile lies side by side. Rows that the last
// tile lacks are zeros.
inline constexpr int64_t kCodeTileRows = 64;
inline bool HasCodeTiles(const Scheme& scheme) {
  return scheme.code == Code::kAdditive && scheme.bits == 8;
}
inline int64_t CodeTileBytes(const PlanarPlanes& planes) {
  return planes.row_bytes() * kCodeTileRows;
}
// `out`: CodeTileBytes() zeros.
void PackCodeTile(const PlanarPlanes& planes, int64_t tile, uint8_t* out);

class AdditiveRows {
 public:
  // Decodes the codebooks. Codes lie in `tiles`, or, where it is null, in their plane. Fails where
  // there is no memory for the codebooks.
  static Result<AdditiveRows> Make(const PlanarPlanes& planes, const uint8_t* tiles = nullptr);

  const PlanarPlanes& planes() const { return planes_; }
  const uint8_t* tiles() const { return tiles_; }
  AdditiveBooks books() const {
    const Scheme& s = planes_.scheme;
    return {entries_.get(), s.codebooks, s.bits, s.vector};
  }

  // Whether all entries are finite.
  bool AllFinite() const;

  // Valid while this lives where it is. The unit is a vector.
  WeightRows rows() const;

 private:
  static void Decode(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                     float* out);
  static void DecodeTiles(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                          float* out);

  PlanarPlanes planes_;
  const uint8_t* tiles_ = nullptr;
  hwy::AlignedFreeUniquePtr<float[]> entries_;
};

// `count` weights from the first code of a vector on: what kernels/codec_planar.h says, to the bit,
// on every target.
void DecodeAdditive(const AdditiveBooks& books, const uint8_t* codes, float scale, int64_t count,
                    float* out);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_ADDITIVE_H_
