// Half-quadratic quantization (HQQ; Badri and Shaji, 2023, mobiusml.github.io/hqq_blog): zeros that
// minimise a norm which forgives outliers, from the weights alone.
#ifndef NIBBLE_LIB_QUANTIZE_HQQ_H_
#define NIBBLE_LIB_QUANTIZE_HQQ_H_

#include <cstdint>

#include "lib/quantize/planar_scales.h"

namespace nibble {

// |e|^p for e >= 0 with p = 11/16: next to the published 0.7, and a product of square roots, which
// every machine rounds alike; pow() is not.
double HalfQuadraticNorm(double e);

// The scale and zero of a group of `count` finite weights with the least sum of |w - decoded w|^p
// that alternating descent finds. The published method fits the zero under the scale of the range;
// here ranges that clip more and more are tried as well, and nothing is taken that would make the
// sum of squares greater than rounding to nearest has it. `codes` and `decoded`: scratch of
// `count`.
ScaleZero FitHalfQuadratic(const Scheme& scheme, const PlanarCodebook& book, const float* x,
                           int64_t count, uint8_t* codes, float* decoded);

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_HQQ_H_
