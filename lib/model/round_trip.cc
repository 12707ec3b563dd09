#include "lib/model/round_trip.h"

#include <algorithm>
#include <vector>

namespace nibble {

Result<RowMatrix> RoundTrip(const RowMatrix& weights, const QuantizationTarget& target,
                            std::span<const float> importance, const ParallelFor& parallel) {
  QuantizeOptions options;
  options.importance = importance;
  options.parallel = parallel;
  const TensorView view = ViewOf(weights.data(), weights.rows(), weights.cols());
  NIBBLE_ASSIGN_OR_RETURN(
      const QuantizedTensor quantized,
      std::visit([&](const auto& kind) { return Quantize(view, kind, options); }, target));
  return DecodedMatrix(quantized, parallel);
}

double OutputEnergy(const RowMatrix& e, const RowMatrix& hessian, const ParallelFor& parallel) {
  constexpr int64_t kRows = 64;
  const int64_t tasks = (e.rows() + kRows - 1) / kRows;
  std::vector<double> sums(static_cast<size_t>(tasks));
  parallel(tasks, [&](int64_t t, int) {
    const auto rows = e.middleRows(t * kRows, std::min<int64_t>(kRows, e.rows() - t * kRows));
    RowMatrix product = RowMatrix::Zero(rows.rows(), rows.cols());
    AddProduct(Strided(rows.data(), e.cols()), Strided(hessian.data(), hessian.cols()), rows.rows(),
               rows.cols(), rows.cols(), 1.0f, product.data(), product.cols());
    sums[static_cast<size_t>(t)] = product.cast<double>().cwiseProduct(rows.cast<double>()).sum();
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return sum;
}

Result<RowMatrix> DecodedMatrix(const QuantizedTensor& matrix, const ParallelFor& parallel) {
  RowMatrix decoded(matrix.rows(), matrix.cols());
  NIBBLE_RETURN_IF_ERROR(
      Dequantize(matrix, ViewOf(decoded.data(), matrix.rows(), matrix.cols()), parallel));
  return decoded;
}

}  // namespace nibble
