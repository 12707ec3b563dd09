// Planar schemes as rows that products decode.
#ifndef NIBBLE_KERNELS_PACK_PLANAR_H_
#define NIBBLE_KERNELS_PACK_PLANAR_H_

#include "kernels/matmul.h"
#include "kernels/planar.h"

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

  PlanarPlanes planes_;
  PlanarCodebook book_;
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_PACK_PLANAR_H_
