#include "tools/nibble/report.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "fmt/core.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

using nlohmann::ordered_json;

std::string PlusMinus(const Estimate& e, int digits, double scale = 1) {
  return fmt::format("{:.{}f} ± {:.{}f}", scale * e.value, digits, scale * e.error, digits);
}

// The reference and then the models.
std::vector<const ModelEvaluation*> All(const Evaluation& evaluation) {
  std::vector<const ModelEvaluation*> all = {&evaluation.reference};
  for (const ModelEvaluation& model : evaluation.models) all.push_back(&model);
  return all;
}

ordered_json Json(const Estimate& e) { return {{"value", e.value}, {"error", e.error}}; }

ordered_json Json(const ModelEvaluation& model, const Evaluation& evaluation, bool reference) {
  ordered_json json = {{"path", model.path},
                       {"file_bytes", model.file_bytes},
                       {"weights", model.weights},
                       {"bits_per_weight", model.bits_per_weight}};
  if (evaluation.has_text) {
    json["perplexity"] = Json(model.perplexity.perplexity);
    if (!reference) {
      const Divergence& d = model.perplexity.divergence;
      json["divergence"] = {{"kl", Json(d.kl)},
                            {"kl_median", d.kl_median},
                            {"kl_p99", d.kl_p99},
                            {"kl_max", d.kl_max},
                            {"top1_agreement", Json(d.top1_agreement)},
                            {"log_ratio", Json(d.log_ratio)}};
    }
  }
  if (evaluation.has_speed) {
    json["prefill_tokens_per_second"] = model.speed.prefill_tokens_per_second;
    json["decode_tokens_per_second"] = model.speed.decode_tokens_per_second;
    json["cache_bytes"] = model.speed.cache_bytes;
    json["peak_memory_bytes"] =
        model.peak_memory_bytes == 0 ? ordered_json() : ordered_json(model.peak_memory_bytes);
  }
  for (size_t t = 0; t < model.tasks.size(); ++t) {
    const TaskResult& task = model.tasks[t];
    ordered_json entry = {
        {"name", task.name},
        {"kind", task.kind == TaskKind::kMultipleChoice ? "multiple_choice" : "exact_match"},
        {"items", task.correct.size()},
        {"accuracy", Json(task.accuracy)}};
    if (!reference) entry["drop"] = Json(model.task_drops[t]);
    entry["correct"] = task.correct;
    json["tasks"].push_back(std::move(entry));
  }
  if (reference) return json;
  json["verdict"] = VerdictName(model);
  for (const Criterion& criterion : model.criteria) {
    constexpr const char* kKinds[] = {"perplexity_increase", "perplexity_share", "task_drop"};
    ordered_json entry = {{"kind", kKinds[static_cast<size_t>(criterion.kind)]},
                          {"value", Json(criterion.value)},
                          {"limit", criterion.limit},
                          {"passed", criterion.passed()},
                          {"words", Words(criterion)}};
    if (criterion.kind == Criterion::Kind::kTaskDrop) entry["task"] = criterion.task;
    json["criteria"].push_back(std::move(entry));
  }
  for (const TensorComparison& tensor : model.tensors) {
    json["tensors"].push_back({{"name", tensor.name},
                               {"format", GetFormatInfo(tensor.format).name},
                               {"rmse", tensor.error.Rmse()},
                               {"nmse", tensor.error.Nmse()},
                               {"snr_db", tensor.error.SnrDb()}});
  }
  return json;
}

// Text in a cell of a Markdown table.
std::string MarkdownCell(const std::string& text) {
  std::string cell;
  for (const char c : text) {
    if (c == '|' || c == '\\' || c == '`' || c == '*' || c == '_' || c == '<') cell += '\\';
    cell += c;
  }
  return cell;
}

}  // namespace

std::vector<std::string> ModelNames(const Evaluation& evaluation) {
  std::vector<std::string> names;
  for (const ModelEvaluation* model : All(evaluation)) {
    std::filesystem::path path = model->path;
    if (!path.has_filename()) path = path.parent_path();  // a folder's name with a slash behind it
    names.push_back(path.filename().string());
  }
  std::vector<std::string> unique = names;
  for (size_t i = 0; i < names.size(); ++i) {
    if (std::count(names.begin(), names.end(), names[i]) > 1) unique[i] = All(evaluation)[i]->path;
  }
  return unique;
}

const char* VerdictName(const ModelEvaluation& model) { return model.passed() ? "PASS" : "REVIEW"; }

std::string Words(const Criterion& criterion) {
  const auto change = [&](const char* what, const char* worse, const char* better, double scale,
                          int digits, const char* unit) {
    const Estimate& e = criterion.value;
    return fmt::format("{} {} {:.{}f} ± {:.{}f}{} (limit {:g})", what, e.value < 0 ? better : worse,
                       std::abs(scale * e.value), digits, scale * e.error, digits, unit,
                       scale * criterion.limit);
  };
  switch (criterion.kind) {
    case Criterion::Kind::kPerplexityIncrease:
      return change("perplexity", "up", "down", 1, 3, "");
    case Criterion::Kind::kPerplexityShare:
      return change("perplexity", "up", "down", 100, 2, " %");
    case Criterion::Kind::kTaskDrop:
      break;
  }
  return change(criterion.task.c_str(), "down", "up", 100, 1, " points");
}

std::vector<std::string> Reasons(const ModelEvaluation& model) {
  std::vector<std::string> reasons;
  const Criterion* worst_task = nullptr;
  for (const Criterion& criterion : model.criteria) {
    const bool is_task = criterion.kind == Criterion::Kind::kTaskDrop;
    if (is_task && (worst_task == nullptr || criterion.value.value > worst_task->value.value)) {
      worst_task = &criterion;
    }
    if (!criterion.passed() || (model.passed() && !is_task)) reasons.push_back(Words(criterion));
  }
  if (model.passed() && worst_task != nullptr) {
    reasons.push_back("worst task: " + Words(*worst_task));
  }
  return reasons;
}

std::vector<ReportTable> ReportTables(const Evaluation& evaluation) {
  const std::vector<std::string> names = ModelNames(evaluation);
  const auto all = All(evaluation);
  ReportTable quality{"Quality", {"model", "size", "bits/weight"}, {false, true, true}, {}};
  if (evaluation.has_text) {
    for (const char* column :
         {"perplexity", "mean KL", "median KL", "99 % KL", "same top token, %"}) {
      quality.heading.push_back(column);
      quality.numbers.push_back(true);
    }
  }
  quality.heading.push_back("verdict");
  quality.numbers.push_back(false);
  ReportTable speed{"Speed and memory",
                    {"model", "prefill, tokens/s", "decode, tokens/s", "peak memory"},
                    {false, true, true, true},
                    {}};
  ReportTable tasks{
      "Tasks: accuracy in %, change against the reference in points", {"model"}, {false}, {}};
  for (const TaskResult& task : evaluation.reference.tasks) {
    tasks.heading.push_back(fmt::format("{} ({})", task.name, task.correct.size()));
    tasks.numbers.push_back(true);
  }
  for (size_t i = 0; i < all.size(); ++i) {
    const ModelEvaluation& model = *all[i];
    std::vector<std::string> row = {names[i], Size(model.file_bytes),
                                    fmt::format("{:.3f}", model.bits_per_weight)};
    if (evaluation.has_text) {
      const Divergence& d = model.perplexity.divergence;
      row.push_back(PlusMinus(model.perplexity.perplexity, 4));
      row.push_back(i == 0 ? "" : PlusMinus(d.kl, 5));
      row.push_back(i == 0 ? "" : fmt::format("{:.5f}", d.kl_median));
      row.push_back(i == 0 ? "" : fmt::format("{:.4f}", d.kl_p99));
      row.push_back(i == 0 ? "" : PlusMinus(d.top1_agreement, 2, 100));
    }
    row.push_back(i == 0 ? "reference" : VerdictName(model));
    quality.rows.push_back(std::move(row));
    speed.rows.push_back({names[i], fmt::format("{:.1f}", model.speed.prefill_tokens_per_second),
                          fmt::format("{:.1f}", model.speed.decode_tokens_per_second),
                          model.peak_memory_bytes == 0 ? "?" : Size(model.peak_memory_bytes)});
    std::vector<std::string> cells = {names[i]};
    for (size_t t = 0; t < model.tasks.size(); ++t) {
      std::string cell = fmt::format("{:.1f}", 100 * model.tasks[t].accuracy.value);
      cells.push_back(i == 0 ? fmt::format("{} ± {:.1f}", cell, 100 * model.tasks[t].accuracy.error)
                             : fmt::format("{} ({:+.1f} ± {:.1f})", cell,
                                           0 - 100 * model.task_drops[t].value,
                                           100 * model.task_drops[t].error));
    }
    tasks.rows.push_back(std::move(cells));
  }
  std::vector<ReportTable> tables = {std::move(quality)};
  if (!evaluation.reference.tasks.empty()) tables.push_back(std::move(tasks));
  if (evaluation.has_speed) tables.push_back(std::move(speed));
  return tables;
}

std::string Conditions(const Evaluation& evaluation, const ReportSettings& settings) {
  std::string line = fmt::format("nibble {}, {} {} on {}, {} products", settings.version,
                                 settings.threads, settings.threads == 1 ? "thread" : "threads",
                                 settings.target, settings.precision);
  if (evaluation.has_text) {
    const PerplexityResult& p = evaluation.reference.perplexity;
    line += fmt::format("; {} tokens of {} scored in {} windows of {}", p.scored_tokens,
                        settings.text_name, p.windows, evaluation.context);
  }
  if (evaluation.has_speed) {
    line += fmt::format("; speed: {} tokens read, {} written, the median of {} runs",
                        settings.speed.prompt_tokens, settings.speed.decode_tokens,
                        settings.speed.runs);
  }
  return line;
}

ordered_json ReportJson(const Evaluation& evaluation, const ReportSettings& settings) {
  ordered_json json = {{"version", settings.version},
                       {"target", settings.target},
                       {"precision", settings.precision},
                       {"threads", settings.threads}};
  if (evaluation.has_text) {
    const PerplexityResult& p = evaluation.reference.perplexity;
    json["text"] = {{"name", settings.text_name},
                    {"context", evaluation.context},
                    {"windows", p.windows},
                    {"scored_tokens", p.scored_tokens}};
  }
  if (evaluation.has_speed) {
    json["speed"] = {{"prompt_tokens", settings.speed.prompt_tokens},
                     {"decode_tokens", settings.speed.decode_tokens},
                     {"runs", settings.speed.runs}};
  }
  json["reference"] = Json(evaluation.reference, evaluation, true);
  for (const ModelEvaluation& model : evaluation.models) {
    json["models"].push_back(Json(model, evaluation, false));
  }
  return json;
}

std::string ReportMarkdown(const Evaluation& evaluation, const ReportSettings& settings) {
  const std::vector<std::string> names = ModelNames(evaluation);
  std::string text =
      fmt::format("# {} models against {}\n\n{}.\n\n", evaluation.models.size(),
                  MarkdownCell(names[0]), MarkdownCell(Conditions(evaluation, settings)));
  for (size_t i = 0; i < evaluation.models.size(); ++i) {
    text +=
        fmt::format("- **{}** {}:", VerdictName(evaluation.models[i]), MarkdownCell(names[i + 1]));
    const char* separator = " ";
    for (const std::string& reason : Reasons(evaluation.models[i])) {
      text += separator + MarkdownCell(reason);
      separator = "; ";
    }
    text += "\n";
  }
  for (const ReportTable& table : ReportTables(evaluation)) {
    text += fmt::format("\n## {}\n\n|", table.title);
    for (const std::string& cell : table.heading) text += fmt::format(" {} |", MarkdownCell(cell));
    text += "\n|";
    for (const bool number : table.numbers) text += number ? "---:|" : "---|";
    text += "\n";
    for (const auto& row : table.rows) {
      text += "|";
      for (const std::string& cell : row) text += fmt::format(" {} |", MarkdownCell(cell));
      text += "\n";
    }
  }
  return text;
}

}  // namespace nibble::tools
