#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "nibble/calibration.h"

namespace nibble {

LayerStatistics::LayerStatistics(int64_t columns, int64_t matrix_count)
    : cols(columns),
      sum_squares(static_cast<size_t>(columns * matrix_count)),
      counts(static_cast<size_t>(matrix_count)),
      maxima(sum_squares.size()) {}

Status LayerStatistics::Add(TensorView inputs, int64_t m) {
  NIBBLE_RETURN_IF_ERROR(CheckView(inputs, "inputs"));
  if (inputs.dtype != DType::kF32 || inputs.device != Device::kCpu) {
    return InvalidArgument("inputs: f32 in host memory is needed");
  }
  if (inputs.cols != cols || m < 0 || m >= matrices()) {
    return InvalidArgument("inputs of " + std::to_string(inputs.cols) + " columns for matrix " +
                           std::to_string(m) + " where there are " + std::to_string(matrices()) +
                           " of " + std::to_string(cols));
  }
  std::vector<double> sums(static_cast<size_t>(cols));
  std::vector<float> largest(static_cast<size_t>(cols));
  for (int64_t r = 0; r < inputs.rows; ++r) {
    const float* row = static_cast<const float*>(inputs.Row(r));
    for (size_t j = 0; j < sums.size(); ++j) {
      if (!std::isfinite(row[j])) {
        return InvalidArgument("inputs: not finite at token " + std::to_string(r) + ", column " +
                               std::to_string(j));
      }
      sums[j] += static_cast<double>(row[j]) * static_cast<double>(row[j]);
      largest[j] = std::max(largest[j], std::fabs(row[j]));
    }
  }
  const size_t first = static_cast<size_t>(m * cols);
  for (size_t j = 0; j < sums.size(); ++j) {
    sum_squares[first + j] = static_cast<float>(sum_squares[first + j] + sums[j]);
    if (!maxima.empty()) maxima[first + j] = std::max(maxima[first + j], largest[j]);
  }
  counts[static_cast<size_t>(m)] += inputs.rows;
  return OkStatus();
}

std::vector<float> LayerStatistics::MeanSquares(int64_t m) const {
  if (m < 0 || m >= matrices() || counts[static_cast<size_t>(m)] <= 0) return {};
  const auto count = static_cast<float>(counts[static_cast<size_t>(m)]);
  const auto first = sum_squares.begin() + m * cols;
  std::vector<float> means(first, first + cols);
  for (float& mean : means) mean /= count;
  return means;
}

const LayerStatistics* ImportanceMatrix::Find(std::string_view name) const {
  const auto found = layers.find(name);
  return found == layers.end() ? nullptr : &found->second;
}

Status ImportanceMatrix::Merge(const ImportanceMatrix& other) {
  for (const auto& [name, theirs] : other.layers) {
    const LayerStatistics* ours = Find(name);
    if (ours != nullptr && (ours->cols != theirs.cols || ours->matrices() != theirs.matrices())) {
      return InvalidArgument(name + ": " + std::to_string(ours->matrices()) + " x " +
                             std::to_string(ours->cols) + " inputs in one importance matrix, " +
                             std::to_string(theirs.matrices()) + " x " +
                             std::to_string(theirs.cols) + " in the other");
    }
  }
  for (const auto& [name, theirs] : other.layers) {
    const auto [entry, is_new] = layers.emplace(name, theirs);
    if (is_new) continue;
    LayerStatistics& ours = entry->second;
    for (size_t i = 0; i < theirs.sum_squares.size(); ++i) {
      ours.sum_squares[i] += theirs.sum_squares[i];
    }
    for (size_t m = 0; m < theirs.counts.size(); ++m) ours.counts[m] += theirs.counts[m];
    if (theirs.maxima.empty()) ours.maxima.clear();
    for (size_t i = 0; i < ours.maxima.size(); ++i) {
      ours.maxima[i] = std::max(ours.maxima[i], theirs.maxima[i]);
    }
  }
  datasets.insert(datasets.end(), other.datasets.begin(), other.datasets.end());
  chunks += other.chunks;
  if (chunk_tokens == 0) chunk_tokens = other.chunk_tokens;
  return OkStatus();
}

}  // namespace nibble
