#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <string>

#include "lib/evaluate/reference_logits.h"
#include "lib/evaluate/windows.h"
#include "nibble/evaluate.h"

namespace nibble {
namespace {

// Mean and standard error of a stream of values.
class Moments {
 public:
  void Add(double x) {
    ++count_;
    const double delta = x - mean_;
    mean_ += delta / static_cast<double>(count_);
    squares_ += delta * (x - mean_);
  }
  Estimate estimate() const {
    if (count_ < 2) return {mean_, 0};
    const double n = static_cast<double>(count_);
    return {mean_, std::sqrt(squares_ / (n - 1) / n)};
  }

 private:
  int64_t count_ = 0;
  double mean_ = 0, squares_ = 0;
};

// What one scored position contributes.
struct PositionScore {
  double nll = 0;
  double reference_nll = 0;
  double kl = 0;
  bool same_top = false;
};

PositionScore ScorePosition(std::span<float> log_p, std::span<const float> reference_log_p,
                            int32_t target) {
  PositionScore score;
  LogSoftmax(log_p);
  score.nll = -log_p[static_cast<size_t>(target)];
  if (reference_log_p.empty()) return score;
  score.reference_nll = -reference_log_p[static_cast<size_t>(target)];
  for (size_t i = 0; i < log_p.size(); ++i) {
    const double r = reference_log_p[i];
    score.kl += std::exp(r) * (r - log_p[i]);
  }
  const auto top = [](std::span<const float> v) {
    return std::max_element(v.begin(), v.end()) - v.begin();
  };
  score.same_top = top(log_p) == top(reference_log_p);
  return score;
}

// exp of a mean of logarithms; the error by the derivative.
Estimate ExpOf(const Estimate& nll) {
  const double value = std::exp(nll.value);
  return {value, nll.error * value};
}

struct Totals {
  Moments nll, reference_nll, log_ratio, kl, agreement;
  std::vector<float> kls;  // of each position, for the quantiles

  void Add(const PositionScore& score, bool has_reference) {
    nll.Add(score.nll);
    if (!has_reference) return;
    reference_nll.Add(score.reference_nll);
    log_ratio.Add(score.nll - score.reference_nll);
    kl.Add(score.kl);
    agreement.Add(score.same_top ? 1 : 0);
    kls.push_back(static_cast<float>(score.kl));
  }

  double KlQuantile(double q) {
    const size_t at =
        std::min(kls.size() - 1, static_cast<size_t>(q * static_cast<double>(kls.size())));
    std::nth_element(kls.begin(), kls.begin() + static_cast<std::ptrdiff_t>(at), kls.end());
    return kls[at];
  }
};

}  // namespace

Result<PerplexityResult> Perplexity(const Model& model, std::span<const int32_t> tokens,
                                    const PerplexityOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  NIBBLE_ASSIGN_OR_RETURN(const WindowPlan plan, PlanWindows(model, tokens, options));
  std::optional<ReferenceLogitsReader> saved;
  std::vector<const Model*> models = {&model};
  if (!options.reference_logits.empty()) {
    const auto expected = ReferenceHeader::Make(model.config().vocab_size, tokens, plan, options);
    NIBBLE_ASSIGN_OR_RETURN(saved, ReferenceLogitsReader::Open(options.reference_logits, expected));
  } else if (options.reference != nullptr) {
    models.push_back(options.reference);
  }
  const bool has_reference = saved || models.size() > 1;

  Totals totals;
  std::vector<PositionScore> scores;
  const auto score_rows = [&](const ScoredRows& rows) {
    const size_t vocab = static_cast<size_t>(rows.vocab);
    scores.assign(rows.targets.size(), {});
    options.runner.parallel(static_cast<int64_t>(rows.targets.size()), [&](int64_t r, int) {
      const size_t begin = static_cast<size_t>(r) * vocab;
      const auto row_of = [&](size_t m) {
        const auto logits = rows.logits[m].subspan(begin, vocab);
        return std::vector<float>(logits.begin(), logits.end());
      };
      std::vector<float> log_p = row_of(0), reference;
      if (saved) {
        reference.resize(vocab);
        saved->Read(rows.first + r, reference);
      } else if (has_reference) {
        reference = row_of(1);
        LogSoftmax(reference);
      }
      scores[static_cast<size_t>(r)] =
          ScorePosition(log_p, reference, rows.targets[static_cast<size_t>(r)]);
    });
    for (const PositionScore& score : scores) {
      if (!std::isfinite(score.nll)) return Corrupt("the model's logits are not finite");
      totals.Add(score, has_reference);
    }
    return OkStatus();
  };
  const auto batch_done = [&](int64_t done) {
    const double so_far = ExpOf(totals.nll.estimate()).value;
    if (options.progress && !options.progress(done, plan.windows, so_far)) {
      return Cancelled("stopped after " + std::to_string(done) + " windows");
    }
    return OkStatus();
  };
  NIBBLE_RETURN_IF_ERROR(RunWindows(models, tokens, options, plan, score_rows, batch_done));

  PerplexityResult result;
  result.windows = plan.windows;
  result.scored_tokens = plan.rows();
  result.mean_nll = totals.nll.estimate();
  result.perplexity = ExpOf(result.mean_nll);
  result.has_divergence = has_reference;
  if (has_reference) {
    Divergence& d = result.divergence;
    d.kl = totals.kl.estimate();
    d.kl_median = totals.KlQuantile(0.5);
    d.kl_p99 = totals.KlQuantile(0.99);
    d.kl_max = totals.KlQuantile(1.0);
    d.top1_agreement = totals.agreement.estimate();
    d.reference_perplexity = ExpOf(totals.reference_nll.estimate());
    d.log_ratio = totals.log_ratio.estimate();
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

Status SaveReferenceLogits(const Model& model, std::span<const int32_t> tokens,
                           const std::string& path, const PerplexityOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const WindowPlan plan, PlanWindows(model, tokens, options));
  const auto header = ReferenceHeader::Make(model.config().vocab_size, tokens, plan, options);
  NIBBLE_ASSIGN_OR_RETURN(ReferenceLogitsWriter writer,
                          ReferenceLogitsWriter::Create(path, header));
  const auto save_rows = [&](const ScoredRows& rows) {
    for (size_t r = 0; r < rows.targets.size(); ++r) {
      const size_t vocab = static_cast<size_t>(rows.vocab);
      NIBBLE_RETURN_IF_ERROR(writer.Append(rows.logits[0].subspan(r * vocab, vocab)));
    }
    return OkStatus();
  };
  const auto batch_done = [&](int64_t done) {
    if (options.progress && !options.progress(done, plan.windows, 0)) {
      return Cancelled("stopped after " + std::to_string(done) + " windows");
    }
    return OkStatus();
  };
  const Model* const models[] = {&model};
  NIBBLE_RETURN_IF_ERROR(RunWindows(models, tokens, options, plan, save_rows, batch_done));
  return writer.Finish();
}

}  // namespace nibble
