// Activation rows as integer products with planes take them.
#ifndef NIBBLE_KERNELS_ROUND_PLANAR_H_
#define NIBBLE_KERNELS_ROUND_PLANAR_H_

#include <cstdint>

namespace nibble {

// One row. `phases` and `group` are PlanarInt8's, `bytes` and `groups` PlanarActivations', whose
// codes, lane_scales and sums of that row are written.
void RoundPlanarRow(const float* row, int64_t cols, int phases, int64_t group, int64_t bytes,
                    int64_t groups, int8_t* codes, float* lane_scales, float* sums);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_ROUND_PLANAR_H_
