#include <cmath>
#include <memory>

#include "fmt/core.h"
#include "nibble/tensor_error.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/command.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

using nlohmann::ordered_json;

struct CompareOptions {
  std::string reference;
  std::string other;
  CommonOptions common;
};

std::string Decibels(double db) {
  return std::isinf(db) && db > 0 ? "exact" : fmt::format("{:.2f}", db);
}

// Infinities are null in JSON.
ordered_json ToJson(const ErrorSums& sums) {
  const auto number = [](double x) { return std::isfinite(x) ? ordered_json(x) : ordered_json(); };
  return {{"weights", sums.weights},     {"rmse", number(sums.Rmse())},
          {"nmse", number(sums.Nmse())}, {"snr_db", number(sums.SnrDb())},
          {"cosine", sums.Cosine()},     {"max_error", number(sums.largest)}};
}

std::vector<std::string> Cells(const std::string& name, const std::string& formats,
                               const ErrorSums& sums) {
  return {name,
          formats,
          fmt::format("{:.3e}", sums.Rmse()),
          Decibels(sums.SnrDb()),
          fmt::format("{:.6f}", sums.Cosine()),
          fmt::format("{:.3e}", sums.largest),
          sums.worst_row < 0 ? "" : std::to_string(sums.worst_row),
          sums.worst_row < 0 ? "" : Decibels(-10 * std::log10(sums.worst_row_nmse))};
}

// "3 tensors are only in A: x, y, ..."
void NoteMissing(const ModelSource& a, const ModelSource& b, const std::string& name,
                 std::vector<std::string>& notices) {
  size_t count = 0;
  std::string first;
  for (const ModelTensor& tensor : a.tensors()) {
    if (b.Find(tensor.name) != nullptr) continue;
    if (count++ == 0) first = tensor.name;
  }
  if (count > 0) {
    notices.push_back(fmt::format("{} {} only in {}, {} first", count,
                                  count == 1 ? "tensor is" : "tensors are", name, first));
  }
}

int Compare(const CompareOptions& options) {
  const Result<ModelSource> a = ModelSource::Open(options.reference);
  if (!a.ok()) return FailAtWork(a.status());
  const Result<ModelSource> b = ModelSource::Open(options.other);
  if (!b.ok()) return FailAtWork(b.status());
  std::vector<std::string> notices;
  NoteMissing(*a, *b, options.reference, notices);
  NoteMissing(*b, *a, options.other, notices);

  ThreadPool pool(options.common.threads);
  ProgressDisplay display(options.common.quiet);
  Table table(
      {"tensor", "formats", "RMSE", "SNR dB", "cosine", "max error", "worst row", "its SNR"},
      {false, false, true, true, true, true, true, true});
  ordered_json rows = ordered_json::array();
  ErrorSums total, matrices;
  ModelProgress progress;
  progress.count = a->tensors().size();
  for (const ModelTensor& tensor : a->tensors()) {
    progress.weights_total += static_cast<uint64_t>(tensor.rows() * tensor.cols());
  }
  size_t compared = 0;
  for (const ModelTensor& tensor : a->tensors()) {
    progress.tensor = tensor.name;
    display.Update(progress);
    ++progress.index;
    progress.weights_done += static_cast<uint64_t>(tensor.rows() * tensor.cols());
    const ModelTensor* other = b->Find(tensor.name);
    if (other == nullptr) continue;
    const FormatInfo& from = GetFormatInfo(tensor.format);
    const FormatInfo& to = GetFormatInfo(other->format);
    if (!from.can_decode() || !to.can_decode()) {
      notices.push_back(tensor.name + ": holds no weights, not compared");
      continue;
    }
    const Result<ErrorSums> sums = CompareTensors(*a, tensor, *b, *other, pool.parallel_for());
    if (!sums.ok()) {
      display.Clear();
      return FailAtWork(Status(sums.status()).WithContext(tensor.name));
    }
    ++compared;
    total.Add(*sums);
    if (tensor.dims.size() > 1) matrices.Add(*sums);
    const std::string formats =
        from.name == to.name ? std::string(to.name) : fmt::format("{} -> {}", from.name, to.name);
    table.Add(Cells(tensor.name, formats, *sums));
    ordered_json row = {
        {"name", tensor.name}, {"reference_format", from.name}, {"format", to.name}};
    row.update(ToJson(*sums));
    if (sums->worst_row >= 0) row["worst_row"] = sums->worst_row;
    rows.push_back(std::move(row));
  }
  display.Clear();
  if (compared == 0) {
    return FailAtWork(NotFound(
        fmt::format("{} and {} have no tensor name in common", options.reference, options.other)));
  }
  for (const std::string& notice : notices) {
    if (!options.common.quiet) fmt::print(stderr, "note: {}\n", notice);
  }
  if (options.common.json) {
    const ordered_json document = {
        {"reference", options.reference}, {"other", options.other}, {"tensors", rows},
        {"matrices", ToJson(matrices)},   {"total", ToJson(total)}, {"notices", notices}};
    fmt::print("{}\n", document.dump(2));
    return kSuccess;
  }
  table.Add(Cells("all matrices", "", matrices));
  table.Add(Cells("all", "", total));
  fmt::print("{}", table.Text());
  return kSuccess;
}

}  // namespace

void AddCompare(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "compare", "Compare a model's weights, tensor by tensor, with a reference");
  auto options = std::make_shared<CompareOptions>();
  command->add_option("reference", options->reference, "What the other one should be like")
      ->required();
  command->add_option("other", options->other, "A model of the same tensor names")->required();
  AddCommonOptions(*command, options->common);
  command->footer(
      "SNR: energy of the reference's weights over that of the error. Worst row: the one that "
      "loses "
      "the largest share of its own energy.");
  command->callback([options, &action] { action = [options] { return Compare(*options); }; });
}

}  // namespace nibble::tools
