// Quantize and decode again: what a method that searches wants to know.
#ifndef NIBBLE_LIB_MODEL_ROUND_TRIP_H_
#define NIBBLE_LIB_MODEL_ROUND_TRIP_H_

#include <span>

#include "lib/quantize/hessian.h"
#include "nibble/awq.h"
#include "nibble/quantize.h"

namespace nibble {

// weights as they come back from `target`; `importance` as QuantizeOptions has it.
Result<RowMatrix> RoundTrip(const RowMatrix& weights, const QuantizationTarget& target,
                            std::span<const float> importance, const ParallelFor& parallel);

// Sum over rows of e H e^T.
double OutputEnergy(const RowMatrix& e, const RowMatrix& hessian, const ParallelFor& parallel);

// A matrix of the model, decoded.
Result<RowMatrix> DecodedMatrix(const QuantizedTensor& matrix, const ParallelFor& parallel);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_ROUND_TRIP_H_
