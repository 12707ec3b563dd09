// Scales and zeros of planar schemes: from the range of a group, or by search.
#ifndef NIBBLE_LIB_QUANTIZE_PLANAR_SCALES_H_
#define NIBBLE_LIB_QUANTIZE_PLANAR_SCALES_H_

#include <cstdint>

#include "kernels/planar.h"
#include "kernels/planar_fit.h"
#include "nibble/dtype.h"
#include "nibble/scheme.h"

namespace nibble {

// The scale and zero of a group with the least sum of importance * (w - decoded w)^2 that a search
// around `start` finds; never a greater one than that of `start`. `codes` and `decoded` are scratch
// of `count` elements.
ScaleZero SearchScale(const Scheme& scheme, const PlanarCodebook& book, const float* x,
                      const float* importance, int64_t count, ScaleZero start, uint8_t* codes,
                      float* decoded);

// Writes element i of a plane; `value` is one that `dtype` holds.
void StorePlaneFloat(uint8_t* plane, DType dtype, int64_t i, float value);

// Double quantization (arXiv 2305.14314, section 3): writes a code for each of `count` scales and
// the plane kSuperScales. The mean is summed in double, from the first scale to the last.
void QuantizeScales(const float* scales, int64_t count, uint8_t* codes, uint8_t* super_scales);

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_PLANAR_SCALES_H_
