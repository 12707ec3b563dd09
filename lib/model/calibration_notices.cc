#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "nibble/calibrate.h"

namespace nibble {
namespace {

// "blk.0.ffn_down.weight", or "3 matrices (blk.0.ffn_down.weight first)".
std::string Describe(const std::vector<const MatrixReport*>& reports) {
  if (reports.size() == 1) return reports[0]->name;
  return std::to_string(reports.size()) + " matrices (" + reports[0]->name + " first)";
}

std::vector<const MatrixReport*> Those(std::span<const MatrixReport> reports,
                                       const std::function<bool(const MatrixReport&)>& wanted) {
  std::vector<const MatrixReport*> found;
  for (const MatrixReport& report : reports) {
    if (wanted(report)) found.push_back(&report);
  }
  return found;
}

}  // namespace

std::vector<std::string> CalibrationNotices(std::span<const MatrixReport> reports) {
  std::vector<std::string> lines;
  const auto unseen = Those(reports, [](const MatrixReport& r) { return r.unseen; });
  if (!unseen.empty()) {
    lines.push_back(Describe(unseen) + ": no calibration token is known, rounded to nearest");
  }
  const auto plain = Those(reports, [](const MatrixReport& r) { return !r.feedback && !r.unseen; });
  if (!plain.empty()) {
    lines.push_back(Describe(plain) + ": without error feedback, weighed by importance alone");
  }
  const auto raised =
      Those(reports, [](const MatrixReport& r) { return r.feedback && r.gptq.damping_raised; });
  if (!raised.empty()) {
    double most = 0;
    for (const MatrixReport* report : raised) most = std::max(most, report->gptq.damping);
    char share[32];
    std::snprintf(share, sizeof(share), "%g", most);
    lines.push_back(Describe(raised) +
                    ": the Hessian was not positive definite; damping was raised to as much as " +
                    share);
  }
  const auto dead =
      Those(reports, [](const MatrixReport& r) { return r.feedback && r.gptq.dead_columns > 0; });
  if (!dead.empty()) {
    int64_t most = 0;
    for (const MatrixReport* report : dead) most = std::max(most, report->gptq.dead_columns);
    lines.push_back(Describe(dead) + ": up to " + std::to_string(most) +
                    " inputs were zero at every calibration token");
  }
  return lines;
}

}  // namespace nibble
