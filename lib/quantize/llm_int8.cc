#include "nibble/llm_int8.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "kernels/convert.h"
#include "lib/quantize/checks.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

constexpr Scheme kInt8 = {.bits = 8, .granularity = Granularity::kChannel};

Status CheckColumns(std::span<const int32_t> columns, int64_t cols) {
  for (size_t i = 0; i < columns.size(); ++i) {
    if (columns[i] < 0 || columns[i] >= cols || (i > 0 && columns[i] <= columns[i - 1])) {
      return InvalidArgument("outlier column " + std::to_string(columns[i]) +
                             " is not one of the matrix's, in ascending order");
    }
  }
  return OkStatus();
}

// The two parts of a matrix, f32.
struct Parts {
  Tensor regular;   // [rows, cols], outliers zero
  Tensor outliers;  // [rows, columns]; nothing where there are none
};

Result<Parts> Split(TensorView matrix, std::span<const int32_t> columns,
                    const ParallelFor& parallel) {
  Parts parts;
  NIBBLE_ASSIGN_OR_RETURN(parts.regular, Tensor::Allocate(DType::kF32, matrix.rows, matrix.cols));
  const int64_t count = static_cast<int64_t>(columns.size());
  if (count > 0) {
    NIBBLE_ASSIGN_OR_RETURN(parts.outliers, Tensor::Allocate(DType::kF32, matrix.rows, count));
  }
  const MutableTensorView regular = parts.regular.mutable_view();
  const MutableTensorView outliers = parts.outliers.mutable_view();
  parallel(matrix.rows, [&](int64_t r, int) {
    float* row = static_cast<float*>(regular.Row(r));
    ConvertToFloat(matrix.dtype, matrix.Row(r), matrix.cols, row);
    for (int64_t i = 0; i < count; ++i) {
      static_cast<float*>(outliers.Row(r))[i] =
          std::exchange(row[columns[static_cast<size_t>(i)]], 0.0f);
    }
  });
  return parts;
}

}  // namespace

std::vector<int32_t> OutlierColumns(std::span<const float> maxima, float threshold) {
  std::vector<int32_t> columns;
  for (size_t i = 0; i < maxima.size(); ++i) {
    if (!(maxima[i] < threshold)) columns.push_back(static_cast<int32_t>(i));
  }
  return columns;
}

Result<SplitInt8> SplitOutliers(TensorView weights, std::span<const int32_t> columns,
                                const ParallelFor& parallel) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(weights, "weights"));
  NIBBLE_RETURN_IF_ERROR(CheckColumns(columns, weights.cols));
  NIBBLE_ASSIGN_OR_RETURN(const Parts parts, Split(weights, columns, parallel));
  SplitInt8 split;
  QuantizeOptions options;
  options.parallel = parallel;
  NIBBLE_ASSIGN_OR_RETURN(split.regular, Quantize(parts.regular.view(), kInt8, options));
  split.columns.assign(columns.begin(), columns.end());
  if (columns.empty()) return split;
  Result<QuantizedTensor> outliers = Quantize(parts.outliers.view(), Format::kF16, options);
  if (!outliers.ok()) return std::move(outliers).status().WithContext("outlier columns");
  split.outliers = *std::move(outliers);
  return split;
}

Status Dequantize(const SplitInt8& weights, MutableTensorView out, const ParallelFor& parallel) {
  NIBBLE_RETURN_IF_ERROR(Dequantize(weights.regular, out, parallel));
  if (weights.columns.empty()) return OkStatus();
  const int64_t count = static_cast<int64_t>(weights.columns.size());
  NIBBLE_ASSIGN_OR_RETURN(Tensor outliers, Tensor::Allocate(out.dtype, out.rows, count));
  NIBBLE_RETURN_IF_ERROR(Dequantize(weights.outliers, outliers.mutable_view(), parallel));
  const TensorView from = outliers.view();
  const size_t bytes = DTypeBytes(out.dtype);
  for (int64_t r = 0; r < out.rows; ++r) {
    const std::byte* values = static_cast<const std::byte*>(from.Row(r));
    std::byte* row = static_cast<std::byte*>(out.Row(r));
    for (size_t i = 0; i < weights.columns.size(); ++i) {
      std::copy_n(values + i * bytes, bytes, row + static_cast<size_t>(weights.columns[i]) * bytes);
    }
  }
  return OkStatus();
}

Status Matmul(TensorView activations, const SplitInt8& weights, MutableTensorView out,
              const MatmulOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(activations, "activations"));
  if (activations.cols != weights.cols()) {
    return InvalidArgument("activations of " + std::to_string(activations.cols) +
                           " columns for weights of " + std::to_string(weights.cols()));
  }
  NIBBLE_ASSIGN_OR_RETURN(Parts parts, Split(activations, weights.columns, options.parallel));
  QuantizeOptions by_token;
  by_token.parallel = options.parallel;
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor rounded,
                          Quantize(parts.regular.view(), kInt8, by_token));
  NIBBLE_RETURN_IF_ERROR(Dequantize(rounded, parts.regular.mutable_view(), options.parallel));
  // Of rounded activations the float product differs from the integer one by float rounding alone.
  MatmulOptions exact = options;
  exact.precision = Precision::kF32;
  NIBBLE_RETURN_IF_ERROR(Matmul(parts.regular.view(), weights.regular, out, exact));
  if (weights.columns.empty()) return OkStatus();
  exact.accumulate = true;
  exact.bias = {};
  return Matmul(parts.outliers.view(), weights.outliers, out, exact);
}

}  // namespace nibble
