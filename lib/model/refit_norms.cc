#include "nibble/refit_norms.h"

#include <Eigen/Cholesky>
#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "lib/model/round_trip.h"
#include "nibble/equivalent.h"

namespace nibble {
namespace {

using Matrices = std::map<std::string, QuantizedTensor, std::less<>>;

// The quadratic form r A r^T - 2 b r^T + energy of a norm's gains r, relative to the original ones.
struct Quadratic {
  Eigen::MatrixXd a;
  Eigen::VectorXd b;
  double energy = 0;

  double Error(const Eigen::VectorXd& r) const { return r.dot(a * r) - 2 * b.dot(r) + energy; }
};

Result<Quadratic> QuadraticOf(const ChannelPair& pair, const Model& model,
                              const Matrices& quantized, const RowMatrix& hessian,
                              const ParallelFor& parallel) {
  const int64_t n = hessian.cols();
  Quadratic form{Eigen::MatrixXd::Zero(n, n), Eigen::VectorXd::Zero(n), 0};
  RowMatrix gram = RowMatrix::Zero(n, n);  // sum of Q^T Q
  for (const std::string& name : pair.consumers) {
    NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor exact, model.Matrix(name));
    const auto it = quantized.find(name);
    const QuantizedTensor& now = it == quantized.end() ? exact : it->second;
    if (now.rows() != exact.rows() || now.cols() != n) {
      return InvalidArgument(name + ": quantized to another shape");
    }
    NIBBLE_ASSIGN_OR_RETURN(const RowMatrix w, DecodedMatrix(exact, parallel));
    NIBBLE_ASSIGN_OR_RETURN(const RowMatrix q, DecodedMatrix(now, parallel));
    constexpr int64_t kBand = 64;
    RowMatrix wh = RowMatrix::Zero(w.rows(), n);
    parallel((w.rows() + kBand - 1) / kBand, [&](int64_t band, int) {
      const int64_t first = band * kBand, count = std::min(kBand, w.rows() - first);
      AddProduct(Strided(w.data() + first * n, n), Strided(hessian.data(), n), count, n, n, 1.0f,
                 wh.data() + first * n, n);
    });
    parallel((n + kBand - 1) / kBand, [&](int64_t band, int) {
      const int64_t first = band * kBand, count = std::min(kBand, n - first);
      AddProduct(Transposed(q.data() + first, n), Strided(q.data(), n), count, n, q.rows(), 1.0f,
                 gram.data() + first * n, n);
    });
    form.b += wh.cast<double>().cwiseProduct(q.cast<double>()).colwise().sum().transpose();
    form.energy += wh.cast<double>().cwiseProduct(w.cast<double>()).sum();
  }
  form.a = gram.cast<double>().cwiseProduct(hessian.cast<double>());
  return form;
}

}  // namespace

Result<ModelEdits> RefitNorms(const ModelSource& source, const Model& model,
                              const Matrices& quantized, const CalibrationText& text,
                              const RefitNormsOptions& options,
                              std::vector<RefitNormReport>* reports) {
  if (!(options.damping > 0)) return InvalidArgument("refitting norms needs damping above 0");
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<ChannelPair> pairs, ChannelPairs(source));
  std::map<std::string, const ChannelPair*, std::less<>> by_first;
  std::vector<std::string> names;
  for (const ChannelPair& pair : pairs) {
    if (!pair.is_norm) continue;
    by_first[pair.consumers.front()] = &pair;
    names.push_back(pair.consumers.front());
  }
  ModelEdits edits;
  edits.label = "refit_norms";
  const auto visit = [&](std::string_view name, const LayerInputs& inputs) -> Status {
    const ChannelPair& pair = *by_first.find(name)->second;
    NIBBLE_ASSIGN_OR_RETURN(const RowMatrix hessian, MeanHessian(inputs.hessian));
    NIBBLE_ASSIGN_OR_RETURN(Quadratic form,
                            QuadraticOf(pair, model, quantized, hessian, options.inputs.parallel));
    const int64_t n = form.a.cols();
    const Eigen::VectorXd ones = Eigen::VectorXd::Ones(n);
    const double mean = form.a.diagonal().mean();
    if (!(mean > 0)) return OkStatus();  // nothing passes
    const double pull = options.damping * mean;
    const Eigen::MatrixXd held = form.a + pull * Eigen::MatrixXd::Identity(n, n);
    const Eigen::LLT<Eigen::MatrixXd> cholesky(held);
    RefitNormReport report{pair.producer, form.Error(ones) / form.energy, 0};
    report.error_after = report.error_before;
    if (cholesky.info() == Eigen::Success) {
      const Eigen::VectorXd gains = cholesky.solve(form.b + pull * ones);
      const double error = form.Error(gains) / form.energy;
      if (error < report.error_before && gains.allFinite()) {
        report.error_after = error;
        const auto shared =
            std::make_shared<const std::vector<double>>(gains.data(), gains.data() + n);
        edits.edits[pair.producer].push_back([shared](MutableTensorView norm) -> Status {
          if (norm.rows * norm.cols != static_cast<int64_t>(shared->size())) {
            return InvalidArgument("a norm of " + std::to_string(norm.rows * norm.cols) +
                                   " gains where " + std::to_string(shared->size()) +
                                   " were fitted");
          }
          float* g = static_cast<float*>(norm.data);
          for (size_t i = 0; i < shared->size(); ++i) {
            g[i] = static_cast<float>(g[i] * (*shared)[i]);
          }
          return OkStatus();
        });
      }
    }
    if (reports != nullptr) reports->push_back(report);
    return OkStatus();
  };
  NIBBLE_RETURN_IF_ERROR(VisitLayerInputs(model, text, names, options.inputs, visit));
  return edits;
}

}  // namespace nibble
