// Quantization to additive codebooks (AQLM, arXiv 2401.06118): codes, codebooks and scales that
// together give the least error of the layer's output.
#ifndef NIBBLE_LIB_QUANTIZE_ADDITIVE_H_
#define NIBBLE_LIB_QUANTIZE_ADDITIVE_H_

#include "nibble/gptq.h"
#include "nibble/quantize.h"

namespace nibble {

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
