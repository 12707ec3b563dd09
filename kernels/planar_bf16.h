// Weights of planar schemes decoded to bf16.
#ifndef NIBBLE_KERNELS_PLANAR_BF16_H_
#define NIBBLE_KERNELS_PLANAR_BF16_H_

#include <cstdint>

#include "kernels/planar.h"

namespace nibble {

struct PlanarMatrix {
  PlanarPlanes planes;
  PlanarCodebook book;
  // Double quantization: what the codes of scales stand for.
  alignas(64) float scale_map[256] = {};
};

// Weights [col, col + count) of a row as WeightRows::decode_bf16 has them; col is a multiple of 32.
using DecodePlanarBf16 = void (*)(const PlanarMatrix& matrix, int64_t row, int64_t col,
                                  int64_t count, uint16_t* out, int64_t stride);

// Null where there is nothing faster than decoding to floats: group indices, groups that are no
// multiple of 32 columns, and processors without a tile unit.
DecodePlanarBf16 FindDecodePlanarBf16(const PlanarMatrix& matrix);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_PLANAR_BF16_H_
