// A part of a matrix that stands for the whole.
#ifndef NIBBLE_LIB_MODEL_SAMPLE_ROWS_H_
#define NIBBLE_LIB_MODEL_SAMPLE_ROWS_H_

#include <cstdint>

#include "nibble/model_source.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// Rows of a tensor, spread evenly, of about `weights` weights, decoded: f32 [count, cols].
Result<Tensor> SampleRows(const ModelSource& source, const ModelTensor& tensor, int64_t weights);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_SAMPLE_ROWS_H_
