#include "lib/quantize/hessian.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "lib/quantize/triangular.h"

namespace nibble {
namespace {

using RowMatrixD = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Rows or columns of one task.
constexpr int64_t kBand = 120;

int64_t Bands(int64_t count) { return (count + kBand - 1) / kBand; }

// Overwrites the lower triangle of a symmetric matrix by L, A = L L^T, a panel of columns after
// another. False where A is not positive definite, or not finite.
bool FactorLower(RowMatrixD& a, const ParallelFor& parallel) {
  const int64_t n = a.rows(), stride = a.cols();
  for (int64_t first = 0; first < n; first += kBand) {
    const int64_t count = std::min(kBand, n - first), rest = first + count;
    double* panel = a.data() + first * stride + first;
    if (!FactorCholesky(panel, stride, count)) return false;
    const std::vector<double> upper = TransposeOf(panel, stride, count);
    const int64_t bands = Bands(n - rest);
    parallel(bands, [&](int64_t band, int) {
      const int64_t row = rest + band * kBand, rows = std::min(kBand, n - row);
      SolveUpper(upper.data(), count, count, false, a.data() + row * stride + first, stride, rows);
    });
    parallel(bands, [&](int64_t band, int) {
      const int64_t row = rest + band * kBand, rows = std::min(kBand, n - row);
      const double* left = a.data() + row * stride + first;
      const double* right = a.data() + rest * stride + first;
      AddProduct(StridedMatrix<double>{left, stride, 1}, StridedMatrix<double>{right, 1, stride},
                 rows, row + rows - rest, count, -1.0, a.data() + row * stride + rest, stride);
    });
  }
  return a.diagonal().allFinite();
}

}  // namespace

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
  // Bands of the upper triangle: each band's columns from its own diagonal on.
  const float* x = static_cast<const float*>(inputs.data);
  parallel(Bands(cols_), [&](int64_t band, int) {
    const int64_t first = band * kBand, count = std::min(kBand, cols_ - first);
    AddProduct(Transposed(x + first, inputs.row_stride), Strided(x + first, inputs.row_stride),
               count, cols_ - first, inputs.rows, 1.0f, sums_.data() + first * cols_ + first,
               cols_);
  });
  parallel(Bands(cols_), [&](int64_t band, int) {
    const int64_t first = band * kBand, count = std::min(kBand, cols_ - first);
    for (int64_t i = first; i < first + count; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        sums_[static_cast<size_t>(i * cols_ + j)] = sums_[static_cast<size_t>(j * cols_ + i)];
      }
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

Result<Hessian> Hessian::FromTriangle(int64_t cols, int64_t tokens, std::span<const float> sums) {
  if (cols < 1 || tokens < 0 || static_cast<int64_t>(sums.size()) != cols * (cols + 1) / 2) {
    return InvalidArgument("a triangle of " + std::to_string(sums.size()) + " sums over " +
                           std::to_string(tokens) + " tokens for a Hessian of " +
                           std::to_string(cols) + " columns");
  }
  Hessian hessian(cols);
  hessian.tokens_ = tokens;
  const float* next = sums.data();
  for (int64_t i = 0; i < cols; ++i) {
    for (int64_t j = i; j < cols; ++j, ++next) {
      if (!std::isfinite(*next) || (i == j && *next < 0) || (tokens == 0 && *next != 0)) {
        return InvalidArgument("the sum at row " + std::to_string(i) + ", column " +
                               std::to_string(j) + " cannot be one of inputs");
      }
      hessian.sums_[static_cast<size_t>(i * cols + j)] = *next;
      hessian.sums_[static_cast<size_t>(j * cols + i)] = *next;
    }
  }
  return hessian;
}

std::vector<float> Hessian::MeanSquares() const {
  std::vector<float> means(static_cast<size_t>(cols_));
  for (size_t i = 0; i < means.size(); ++i) {
    means[i] = tokens_ == 0 ? 0.0f : sums_[i * means.size() + i] / static_cast<float>(tokens_);
  }
  return means;
}

Result<FeedbackFactor> FactorHessian(const RowMatrix& hessian, const ParallelFor& parallel) {
  // Cholesky of the matrix with rows and columns in reverse gives L; reversed again, it is R.
  const int64_t n = hessian.cols();
  RowMatrixD lower = hessian.reverse().cast<double>();
  if (!FactorLower(lower, parallel)) {
    return InvalidArgument("the Hessian is not positive definite");
  }
  const Eigen::VectorXd diagonal = lower.diagonal().reverse();
  FeedbackFactor factor;
  factor.unit = RowMatrix::Zero(n, n);
  parallel(n, [&](int64_t i, int) {
    for (int64_t j = i; j < n; ++j) {
      factor.unit(i, j) = static_cast<float>(lower(n - 1 - i, n - 1 - j) / diagonal(j));
    }
  });
  factor.diagonal = diagonal.cwiseAbs2().cast<float>();
  return factor;
}

Result<RowMatrix> InverseOf(const RowMatrix& hessian) {
  const int64_t n = hessian.cols();
  RowMatrixD lower = hessian.cast<double>();
  if (!FactorLower(lower, {})) return InvalidArgument("the Hessian is not positive definite");
  // X L^T = I, and the inverse is X X^T.
  const std::vector<double> upper = TransposeOf(lower.data(), n, n);
  RowMatrixD x = RowMatrixD::Identity(n, n), inverse = RowMatrixD::Zero(n, n);
  SolveUpper(upper.data(), n, n, false, x.data(), n, n);
  AddProduct(StridedMatrix<double>{x.data(), n, 1}, StridedMatrix<double>{x.data(), 1, n}, n, n, n,
             1.0, inverse.data(), n);
  return RowMatrix(inverse.cast<float>());
}

Result<RowMatrix> MeanHessian(const Hessian& hessian) {
  if (hessian.tokens() == 0) return InvalidArgument("the Hessian has seen no token");
  const int64_t cols = hessian.cols();
  const Eigen::Map<const RowMatrix> sums(hessian.sums().data(), cols, cols);
  RowMatrix mean = sums / static_cast<float>(hessian.tokens());
  if (!std::isfinite(mean.diagonal().sum())) return InvalidArgument("the Hessian is not finite");
  return mean;
}

Result<FactoredHessian> Factor(RowMatrix mean, double damping, const ParallelFor& parallel) {
  FactoredHessian result;
  result.damped = std::move(mean);
  const Eigen::VectorXf plain = result.damped.diagonal();
  double sum = 0;
  for (const float x : plain) sum += x;
  const float average = static_cast<float>(sum / static_cast<double>(plain.size()));
  const float unit = average > 0 ? average : 1.0f;
  result.dead_columns = (plain.array() == 0).count();
  for (double share = damping;; share = std::max(share * 10, 1e-6)) {
    for (int64_t j = 0; j < plain.size(); ++j) {
      result.damped(j, j) = (plain(j) == 0 ? unit : plain(j)) + static_cast<float>(share) * unit;
    }
    Result<FeedbackFactor> factor = FactorHessian(result.damped, parallel);
    if (factor.ok()) {
      result.factor = *std::move(factor);
      result.damping = share;
      result.raised = share > damping;
      result.added = result.damped.diagonal() - plain;
      return result;
    }
    if (share > 1e3) return std::move(factor).status();
  }
}

void SolveRows(const FeedbackFactor& factor, RowMatrix& rows, const ParallelFor& parallel) {
  // With H = T D T^T, X H = A is solved column by column: Z T^T = A from the last, X T = Z / D from
  // the first.
  constexpr int64_t kColumns = 64;
  const int64_t n = factor.unit.cols();
  const float* t = factor.unit.data();
  std::vector<std::vector<float>> lower;  // T^T of each block of the diagonal
  for (int64_t first = 0; first < n; first += kColumns) {
    lower.push_back(TransposeOf(t + first * (n + 1), n, std::min(kColumns, n - first)));
  }
  parallel(Bands(rows.rows()), [&](int64_t band, int) {
    const int64_t row = band * kBand, count = std::min(kBand, rows.rows() - row);
    float* x = rows.data() + row * n;
    for (int64_t first = (n - 1) / kColumns * kColumns; first >= 0; first -= kColumns) {
      const int64_t cols = std::min(kColumns, n - first), after = first + cols;
      AddProduct(Strided(x + after, n), Transposed(t + first * n + after, n), count, cols,
                 n - after, -1.0f, x + first, n);
      SolveUnitLower(lower[static_cast<size_t>(first / kColumns)].data(), cols, cols, x + first, n,
                     count);
    }
    for (int64_t i = row; i < row + count; ++i) {
      rows.row(i).array() /= factor.diagonal.transpose().array();
    }
    for (int64_t first = 0; first < n; first += kColumns) {
      const int64_t cols = std::min(kColumns, n - first);
      AddProduct(Strided(x, n), Strided(t + first, n), count, cols, first, -1.0f, x + first, n);
      SolveUpper(t + first * (n + 1), n, cols, true, x + first, n, count);
    }
  });
}

}  // namespace nibble
