// Planar schemes as rows that products decode.
#ifndef NIBBLE_KERNELS_PACK_PLANAR_H_
#define NIBBLE_KERNELS_PACK_PLANAR_H_

#include "kernels/matmul.h"
#include "kernels/planar_bf16.h"

namespace nibble {

class PlanarRows {
 public:
  // Group indices, where there are any, must lie in [0, planes.groups).
  explicit PlanarRows(const PlanarPlanes& planes);

  // Valid while this lives where it is.
  WeightRows rows() const;

 private:
  static void Decode(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                     float* out);
  static void DecodeBf16(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                         uint16_t* out, int64_t stride);

  PlanarMatrix matrix_;
  DecodePlanarBf16 decode_bf16_;
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_PACK_PLANAR_H_
