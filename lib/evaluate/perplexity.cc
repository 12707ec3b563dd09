#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <string>

#include "lib/evaluate/moments.h"
#include "lib/evaluate/reference_logits.h"
#include "lib/evaluate/windows.h"
#include "nibble/evaluate.h"

namespace nibble {
namespace {

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

Result<std::vector<PerplexityResult>> Perplexities(std::span<const Model* const> models,
                                                   std::span<const int32_t> tokens,
                                                   const PerplexityOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  if (models.empty()) return InvalidArgument("there is no model to evaluate");
  NIBBLE_ASSIGN_OR_RETURN(const WindowPlan plan, PlanWindows(*models[0], tokens, options));
  std::optional<ReferenceLogitsReader> saved;
  std::vector<const Model*> run(models.begin(), models.end());  // and the reference, the last
  if (!options.reference_logits.empty()) {
    const auto expected =
        ReferenceHeader::Make(models[0]->config().vocab_size, tokens, plan, options);
    NIBBLE_ASSIGN_OR_RETURN(saved, ReferenceLogitsReader::Open(options.reference_logits, expected));
  } else if (options.reference != nullptr) {
    run.push_back(options.reference);
  }
  const bool has_reference = saved || run.size() > models.size();

  std::vector<Totals> totals(models.size());
  std::vector<PositionScore> scores;  // [rows, models]
  const auto score_rows = [&](const ScoredRows& rows) {
    const size_t vocab = static_cast<size_t>(rows.vocab);
    scores.assign(rows.targets.size() * models.size(), {});
    options.runner.parallel(static_cast<int64_t>(rows.targets.size()), [&](int64_t r, int) {
      const size_t row = static_cast<size_t>(r);
      const auto row_of = [&](size_t m) {
        const auto logits = rows.logits[m].subspan(row * vocab, vocab);
        return std::vector<float>(logits.begin(), logits.end());
      };
      std::vector<float> reference;
      if (saved) {
        reference.resize(vocab);
        saved->Read(rows.first + r, reference);
      } else if (has_reference) {
        reference = row_of(models.size());
        LogSoftmax(reference);
      }
      for (size_t m = 0; m < models.size(); ++m) {
        std::vector<float> log_p = row_of(m);
        scores[row * models.size() + m] = ScorePosition(log_p, reference, rows.targets[row]);
      }
    });
    for (size_t i = 0; i < scores.size(); ++i) {
      const size_t m = i % models.size();
      if (!std::isfinite(scores[i].nll) || !std::isfinite(scores[i].reference_nll)) {
        const bool own = !std::isfinite(scores[i].nll);
        const std::string name = !own                ? "the reference"
                                 : models.size() > 1 ? "model " + std::to_string(m + 1)
                                                     : "the model";
        return Corrupt(name + "'s logits are not finite");
      }
      totals[m].Add(scores[i], has_reference);
    }
    return OkStatus();
  };
  const auto batch_done = [&](int64_t done) {
    const double so_far = ExpOf(totals[0].nll.estimate()).value;
    if (options.progress && !options.progress(done, plan.windows, so_far)) {
      return Cancelled("stopped after " + std::to_string(done) + " windows");
    }
    return OkStatus();
  };
  NIBBLE_RETURN_IF_ERROR(RunWindows(run, tokens, options, plan, score_rows, batch_done));

  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::vector<PerplexityResult> results;
  for (Totals& total : totals) {
    PerplexityResult result;
    result.windows = plan.windows;
    result.scored_tokens = plan.rows();
    result.mean_nll = total.nll.estimate();
    result.perplexity = ExpOf(result.mean_nll);
    result.has_divergence = has_reference;
    if (has_reference) {
      Divergence& d = result.divergence;
      d.kl = total.kl.estimate();
      d.kl_median = total.KlQuantile(0.5);
      d.kl_p99 = total.KlQuantile(0.99);
      d.kl_max = total.KlQuantile(1.0);
      d.top1_agreement = total.agreement.estimate();
      d.reference_perplexity = ExpOf(total.reference_nll.estimate());
      d.log_ratio = total.log_ratio.estimate();
    }
    result.seconds = seconds;
    results.push_back(result);
  }
  return results;
}

Result<PerplexityResult> Perplexity(const Model& model, std::span<const int32_t> tokens,
                                    const PerplexityOptions& options) {
  const Model* const models[] = {&model};
  NIBBLE_ASSIGN_OR_RETURN(const auto results, Perplexities(models, tokens, options));
  return results[0];
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
