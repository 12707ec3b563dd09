// The factorization that error feedback works with.
#ifndef NIBBLE_LIB_QUANTIZE_HESSIAN_H_
#define NIBBLE_LIB_QUANTIZE_HESSIAN_H_

#include <Eigen/Core>

#include "nibble/gptq.h"
#include "nibble/status.h"

namespace nibble {

using RowMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// H = R R^T with R upper triangular, as T = R / diag(R), unit upper triangular, and D = diag(R)^2.
struct FeedbackFactor {
  RowMatrix unit;
  Eigen::VectorXf diagonal;
};

// Fails (kInvalidArgument) where H is not positive definite.
Result<FeedbackFactor> FactorHessian(const Eigen::Ref<const RowMatrix>& hessian);

// H / tokens. Fails where there was no token, or its diagonal is not finite.
Result<RowMatrix> MeanHessian(const Hessian& hessian);

// `mean` plus damping: columns that were always zero get a diagonal, the rest what is needed for it
// to be positive definite. Writes what it did to `report`.
Result<RowMatrix> Damp(RowMatrix mean, double damping, FeedbackFactor* factor, GptqReport* report);
// Both.
Result<RowMatrix> DampedHessian(const Hessian& hessian, double damping, FeedbackFactor* factor,
                                GptqReport* report);

}  // namespace nibble

#endif  // NIBBLE_LIB_QUANTIZE_HESSIAN_H_
