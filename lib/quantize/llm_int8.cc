#include "nibble/llm_int8.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "kernels/convert.h"
#include "kernels/gemm_w8a8.h"
#include "lib/quantize/checks.h"
#include "lib/quantize/planar.h"
#include "nibble/backend.h"
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

// Of the outliers' product, which is added to the regular one.
MatmulOptions OutlierOptions(const MatmulOptions& options) {
  MatmulOptions result = options;
  result.precision = Precision::kF32;
  result.accumulate = true;
  result.bias = {};
  return result;
}

// The largest magnitude in each column; infinity where one is not finite.
Result<std::vector<float>> ColumnMaxima(TensorView matrix) {
  std::vector<float> maxima(static_cast<size_t>(matrix.cols)), row(maxima.size());
  for (int64_t r = 0; r < matrix.rows; ++r) {
    ConvertToFloat(matrix.dtype, matrix.Row(r), matrix.cols, row.data());
    for (size_t c = 0; c < row.size(); ++c) {
      const float magnitude = std::fabs(row[c]);
      maxima[c] = magnitude <= maxima[c] ? maxima[c] : magnitude;
      if (std::isnan(magnitude)) maxima[c] = std::numeric_limits<float>::infinity();
    }
  }
  return maxima;
}

// Some columns of int8 weights.
Result<QuantizedTensor> Gather(const QuantizedTensor& weights, std::span<const int32_t> columns) {
  const int64_t count = static_cast<int64_t>(columns.size());
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor gathered,
                          QuantizedTensor::Allocate(weights.scheme(), weights.rows(), count));
  gathered.plane(Plane::kScales) = weights.plane(Plane::kScales);
  const std::byte* from = weights.plane(Plane::kCodes).data();
  std::byte* to = gathered.plane(Plane::kCodes).data();
  for (int64_t r = 0; r < weights.rows(); ++r, from += weights.cols()) {
    for (const int32_t column : columns) *to++ = from[column];
  }
  return gathered;
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
  NIBBLE_ASSIGN_OR_RETURN(const Parts parts, Split(activations, weights.columns, options.parallel));
  MatmulOptions regular = options;
  regular.precision = Precision::kInt8PerRow;
  NIBBLE_RETURN_IF_ERROR(Matmul(parts.regular.view(), weights.regular, out, regular));
  if (weights.columns.empty()) return OkStatus();
  return Matmul(parts.outliers.view(), weights.outliers, out, OutlierOptions(options));
}

Status MatmulLlmInt8(TensorView activations, const QuantizedTensor& weights, MutableTensorView out,
                     float threshold, const MatmulOptions& options) {
  if (out.device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(out.device));
    return backend->matmul_llm_int8(activations, weights, out, threshold, options);
  }
  NIBBLE_RETURN_IF_ERROR(CheckMatrix(activations, "activations"));
  if (weights.is_block_format() || !TakesW8A8(PlanesOf(weights))) {
    return Unsupported("LLM.int8() products need weights \"int8 sym\" by channel or tensor");
  }
  if (activations.cols != weights.cols()) {
    return InvalidArgument("activations of " + std::to_string(activations.cols) +
                           " columns for weights of " + std::to_string(weights.cols()));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> maxima, ColumnMaxima(activations));
  const std::vector<int32_t> columns = OutlierColumns(maxima, threshold);
  MatmulOptions regular = options;
  regular.precision = Precision::kInt8PerRow;
  if (columns.empty()) return Matmul(activations, weights, out, regular);
  NIBBLE_ASSIGN_OR_RETURN(const Parts parts, Split(activations, columns, options.parallel));
  NIBBLE_RETURN_IF_ERROR(Matmul(parts.regular.view(), weights, out, regular));
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor outliers, Gather(weights, columns));
  return Matmul(parts.outliers.view(), outliers, out, OutlierOptions(options));
}

}  // namespace nibble
