// LLM.int8() (arXiv 2208.07339): the few columns whose inputs are large stay in f16, weights and
// inputs of all others are int8.
#ifndef NIBBLE_LLM_INT8_H_
#define NIBBLE_LLM_INT8_H_

#include <cstdint>
#include <span>
#include <vector>

#include "nibble/matmul.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

// Inputs beyond it make a column an outlier.
inline constexpr float kLlmInt8Threshold = 6.0f;

// The columns, ascending, whose inputs' largest magnitude (see LayerInputs::maxima) is at least
// `threshold`. Columns that are not finite count.
std::vector<int32_t> OutlierColumns(std::span<const float> maxima,
                                    float threshold = kLlmInt8Threshold);

// A matrix in two parts.
struct SplitInt8 {
  QuantizedTensor regular;       // "int8 sym channel": all columns, the outliers zero
  std::vector<int32_t> columns;  // of the outliers, ascending
  QuantizedTensor outliers;      // f16 [rows, columns]; of no bytes where there are none

  int64_t rows() const { return regular.rows(); }
  int64_t cols() const { return regular.cols(); }
  size_t bytes() const { return regular.bytes() + outliers.bytes() + columns.size() * 4; }
};

// `weights`: f32, f16 or bf16 [rows, cols]; `columns` ascending. Fails where an outlier column
// holds what f16 cannot.
Result<SplitInt8> SplitOutliers(TensorView weights, std::span<const int32_t> columns,
                                const ParallelFor& parallel = {});

// The decoded weights: out f32, f16 or bf16 [rows, cols].
Status Dequantize(const SplitInt8& weights, MutableTensorView out,
                  const ParallelFor& parallel = {});

// out[M, N] = activations[M, K] x weights[N, K]^T: int8 with a scale for each token over the
// regular columns, plus the outliers' product with activations as they are.
Status Matmul(TensorView activations, const SplitInt8& weights, MutableTensorView out,
              const MatmulOptions& options = {});

// The same with weights that are int8 in all columns ("int8 sym" by channel or tensor): a column is
// an outlier where one of these activations has a magnitude of at least `threshold`, or is not
// finite. Outlier columns multiply in f32, activations as they are.
Status MatmulLlmInt8(TensorView activations, const QuantizedTensor& weights, MutableTensorView out,
                     float threshold = kLlmInt8Threshold, const MatmulOptions& options = {});

}  // namespace nibble

#endif  // NIBBLE_LLM_INT8_H_
