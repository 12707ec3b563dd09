#include "lib/quantize/hessian.h"

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace nibble {

Hessian::Hessian(int64_t cols)
    : cols_(cols), sums_(static_cast<size_t>(cols) * static_cast<size_t>(cols)) {}

Status Hessian::Add(TensorView inputs, const ParallelFor& parallel) {
  NIBBLE_RETURN_IF_ERROR(CheckView(inputs, "inputs"));
  if (inputs.dtype != DType::kF32 || inputs.device != Device::kCpu) {
    return InvalidArgument("inputs: f32 in host memory is needed");
  }
  if (inputs.cols != cols_) {
    return InvalidArgument("inputs of " + std::to_string(inputs.cols) +
                           " columns for a Hessian of " + std::to_string(cols_));
  }
  for (int64_t r = 0; r < inputs.rows; ++r) {
    const float* row = static_cast<const float*>(inputs.Row(r));
    for (int64_t c = 0; c < cols_; ++c) {
      if (!std::isfinite(row[c])) {
        return InvalidArgument("inputs: not finite at token " + std::to_string(r) + ", column " +
                               std::to_string(c));
      }
    }
  }
  const Eigen::Map<const RowMatrix, 0, Eigen::OuterStride<>> x(
      static_cast<const float*>(inputs.data), inputs.rows, cols_,
      Eigen::OuterStride<>(inputs.row_stride));
  Eigen::Map<RowMatrix> sums(sums_.data(), cols_, cols_);
  // Bands of the upper triangle: each band's columns from its own diagonal on.
  constexpr int64_t kBand = 128;
  parallel((cols_ + kBand - 1) / kBand, [&](int64_t band, int) {
    const int64_t first = band * kBand, count = std::min(kBand, cols_ - first);
    sums.block(first, first, count, cols_ - first).noalias() +=
        x.middleCols(first, count).transpose() * x.rightCols(cols_ - first);
  });
  parallel((cols_ + kBand - 1) / kBand, [&](int64_t band, int) {
    const int64_t first = band * kBand, count = std::min(kBand, cols_ - first);
    for (int64_t i = first; i < first + count; ++i) {
      for (int64_t j = 0; j < first; ++j) sums(i, j) = sums(j, i);
    }
  });
  tokens_ += inputs.rows;
  return OkStatus();
}

Status Hessian::Merge(const Hessian& other) {
  if (other.cols_ != cols_) return InvalidArgument("Hessians of different sizes cannot be merged");
  for (size_t i = 0; i < sums_.size(); ++i) sums_[i] += other.sums_[i];
  tokens_ += other.tokens_;
  return OkStatus();
}

std::vector<float> Hessian::MeanSquares() const {
  std::vector<float> means(static_cast<size_t>(cols_));
  for (size_t i = 0; i < means.size(); ++i) {
    means[i] = tokens_ == 0 ? 0.0f : sums_[i * means.size() + i] / static_cast<float>(tokens_);
  }
  return means;
}

Result<FeedbackFactor> FactorHessian(const Eigen::Ref<const RowMatrix>& hessian) {
  // Cholesky of the matrix with rows and columns in reverse gives L; reversed again, it is R.
  const Eigen::MatrixXd reversed = hessian.reverse().cast<double>();
  const Eigen::LLT<Eigen::MatrixXd> cholesky(reversed);
  if (cholesky.info() != Eigen::Success) {
    return InvalidArgument("the Hessian is not positive definite");
  }
  FeedbackFactor factor;
  const Eigen::MatrixXd r = Eigen::MatrixXd(cholesky.matrixL()).reverse();
  const Eigen::VectorXd diagonal = r.diagonal();
  if (!(diagonal.minCoeff() > 0) || !diagonal.allFinite()) {
    return InvalidArgument("the Hessian is not positive definite");
  }
  factor.unit = (r * diagonal.cwiseInverse().asDiagonal()).cast<float>();
  factor.diagonal = diagonal.cwiseAbs2().cast<float>();
  return factor;
}

Result<RowMatrix> MeanHessian(const Hessian& hessian) {
  if (hessian.tokens() == 0) return InvalidArgument("the Hessian has seen no token");
  const int64_t cols = hessian.cols();
  const Eigen::Map<const RowMatrix> sums(hessian.sums().data(), cols, cols);
  RowMatrix mean = sums / static_cast<float>(hessian.tokens());
  if (!std::isfinite(mean.diagonal().sum())) return InvalidArgument("the Hessian is not finite");
  return mean;
}

Result<RowMatrix> DampedHessian(const Hessian& hessian, double damping, FeedbackFactor* factor,
                                GptqReport* report) {
  NIBBLE_ASSIGN_OR_RETURN(RowMatrix mean, MeanHessian(hessian));
  return Damp(std::move(mean), damping, factor, report);
}

Result<RowMatrix> Damp(RowMatrix mean, double damping, FeedbackFactor* factor, GptqReport* report) {
  const float average = mean.diagonal().mean();
  const float unit = average > 0 ? average : 1.0f;
  report->dead_columns = 0;
  for (int64_t j = 0; j < mean.cols(); ++j) {
    if (mean(j, j) == 0) {
      ++report->dead_columns;
      mean(j, j) = unit;
    }
  }
  for (double share = damping;; share = std::max(share * 10, 1e-6)) {
    RowMatrix damped = mean;
    damped.diagonal().array() += static_cast<float>(share) * unit;
    Result<FeedbackFactor> result = FactorHessian(damped);
    if (result.ok()) {
      *factor = *std::move(result);
      report->damping = share;
      return damped;
    }
    if (share > 1e3) return std::move(result).status();
  }
}

}  // namespace nibble
