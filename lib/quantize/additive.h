// Quantization to additive codebooks (AQLM, arXiv 2401.06118): codes, codebooks and scales that
// together give the least error of the layer's output.
#ifndef NIBBLE_LIB_QUANTIZE_ADDITIVE_H_
#define NIBBLE_LIB_QUANTIZE_ADDITIVE_H_

#include "nibble/gptq.h"
#include "nibble/quantize.h"

namespace nibble {

// Memory of both, beside weights and result, does not grow with the rows, which pass in slabs of
// 128: for each worker 2 KiB a column and, of M codebooks of vectors of V weights, M * 256 KiB;
// for all together at most 256 KiB * V for k-means and 48 KiB * M * V for sums over entries. A
// Hessian adds 16 bytes for each of its elements while it is factored and 8 afterwards.

// Whether codebooks can be made, not only read: those of 2^8 entries.
Status CheckCodebooks(const Scheme& scheme);

// As Quantize() in nibble/quantize.h: errors count by the importance of their column. Arguments are
// checked but for the scheme's own.
Result<QuantizedTensor> QuantizeAdditive(TensorView weights, const Scheme& scheme,
                                         const QuantizeOptions& options);

// As QuantizeGptq() in nibble/gptq.h.
Result<QuantizedTensor> QuantizeAdditive(TensorView weights, const Scheme& scheme,
                                         const Hessian& hessian, const GptqOptions& options,
                                         GptqReport* report);

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_ADDITIVE_H_
