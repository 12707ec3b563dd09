// The factorization that error feedback works with.
#ifndef NIBBLE_LIB_QUANTIZE_HESSIAN_H_
#define NIBBLE_LIB_QUANTIZE_HESSIAN_H_

#include <Eigen/Core>
#include <span>

#include "kernels/gemm_ordered.h"
#include "nibble/gptq.h"
#include "nibble/parallel.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"

namespace nibble {

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// H = R R^T with R upper triangular, as T = R / diag(R), unit upper triangular, and D = diag(R)^2.
struct FeedbackFactor {
  RowMatrix unit;
  Eigen::VectorXf diagonal;
};

// Fails (kInvalidArgument) where H is not positive definite.
Result<FeedbackFactor> FactorHessian(const RowMatrix& hessian, const ParallelFor& parallel = {});

// H^-1. Fails likewise.
Result<RowMatrix> InverseOf(const RowMatrix& hessian);

// H / tokens. Fails where there was no token, or its diagonal is not finite.
Result<RowMatrix> MeanHessian(const Hessian& hessian);

// A Hessian made ready: shared by all matrices that see the same inputs.
struct FactoredHessian {
  RowMatrix damped;       // H / tokens + diag(added)
  Eigen::VectorXf added;  // so that it is positive definite, columns that were always zero too
  FeedbackFactor factor;  // of `damped`
  double damping = 0;     // share of the mean diagonal in `added`
  bool raised = false;    // to more than was asked
  int64_t dead_columns = 0;

  int64_t cols() const { return damped.cols(); }
};

// Makes MeanHessian() ready: columns that were always zero get a diagonal, the rest what is needed
// for it to be positive definite, `damping` or more.
Result<FactoredHessian> Factor(RowMatrix mean, double damping, const ParallelFor& parallel = {});

// rows := rows * damped^-1
void SolveRows(const FeedbackFactor& factor, RowMatrix& rows, const ParallelFor& parallel);

// As QuantizeGptq in nibble/gptq.h.
Result<QuantizedTensor> QuantizeFactored(TensorView weights, Format format,
                                         const FactoredHessian& hessian, const GptqOptions& options,
                                         GptqReport* report);

// Row i times weights[i].
inline void ScaleRows(std::span<const float> weights, RowMatrix& rows) {
  for (Eigen::Index i = 0; i < rows.rows(); ++i) rows.row(i) *= weights[static_cast<size_t>(i)];
}

inline StridedMatrix<float> Strided(const float* data, int64_t row_stride) {
  return {data, row_stride, 1};
}
inline StridedMatrix<float> Transposed(const float* data, int64_t row_stride) {
  return {data, 1, row_stride};
}

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_HESSIAN_H_
