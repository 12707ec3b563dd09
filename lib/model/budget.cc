#include "nibble/budget.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <string>
#include <utility>

namespace nibble {
namespace {

// An expression that matches this name alone.
std::string ExactPattern(const std::string& name) {
  std::string pattern = "^";
  for (const char c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '_') pattern += '\\';
    pattern += c;
  }
  return pattern + "$";
}

// A matrix whose format is open.
struct OpenMatrix {
  const TensorTask* task;
  std::vector<Format> formats;
  std::vector<AllocationOption> options;  // of each format
};

Result<OpenMatrix> Open(const TensorTask& task, const Sensitivity& sensitivity,
                        std::span<const Format> allowed) {
  const ModelTensor& tensor = *task.source;
  const MatrixSensitivity* told = sensitivity.Find(tensor.name);
  if (told == nullptr) return NotFound("the sensitivities lack " + tensor.name);
  OpenMatrix matrix{&task, {}, {}};
  for (const Format format : BudgetFormats()) {
    const std::optional<double> loss = told->LossOf(format);
    if (!loss) continue;
    if (!allowed.empty() && std::ranges::find(allowed, format) == allowed.end()) continue;
    NIBBLE_ASSIGN_OR_RETURN(const size_t bytes, FormatBytes(format, tensor.rows(), tensor.cols()));
    matrix.formats.push_back(format);
    matrix.options.push_back({bytes, *loss});
  }
  if (matrix.formats.empty()) {
    return InvalidArgument(tensor.name + ": none of the formats allowed fits rows of " +
                           std::to_string(tensor.cols()));
  }
  return matrix;
}

// The recipe that gives each open matrix its format: the one of most weights for all, and rules.
ModelRecipe RecipeFor(const ModelRecipe& recipe, const std::vector<OpenMatrix>& open,
                      const std::vector<size_t>& choices) {
  std::map<Format, int64_t> weights;
  for (size_t i = 0; i < open.size(); ++i) {
    const ModelTensor& tensor = *open[i].task->source;
    weights[open[i].formats[choices[i]]] += tensor.rows() * tensor.cols();
  }
  const auto most = std::ranges::max_element(
      weights, [](const auto& a, const auto& b) { return a.second < b.second; });
  const Format base = most == weights.end() ? Format::kF16 : most->first;
  ModelRecipe result = recipe;
  result.type = GetFormatInfo(base).name;
  result.pure = true;
  for (size_t i = 0; i < open.size(); ++i) {
    const Format format = open[i].formats[choices[i]];
    if (format == base) continue;
    result.tensor_types.push_back({ExactPattern(open[i].task->source->name), format});
  }
  return result;
}

}  // namespace

Result<BudgetMix> PlanBudget(const ModelSource& source, const ModelRecipe& recipe,
                             const ModelPermissions& permissions, const Sensitivity& sensitivity,
                             const Budget& budget, std::span<const Format> allowed,
                             const GgufWriteOptions& files) {
  if (!(budget.bits_per_weight > 0) && budget.file_bytes == 0) {
    return InvalidArgument("a budget without a bound");
  }
  ModelRecipe draft = recipe;
  draft.type = GetFormatInfo(Format::kF16).name;
  draft.pure = true;
  const ModelPermissions all = {.requantize = true, .fallback = true, .missing_importance = true};
  NIBBLE_ASSIGN_OR_RETURN(const ModelPlan all_f16, PlanModel(source, draft, all));
  std::vector<OpenMatrix> open;
  uint64_t fixed = 0;  // bytes of all other tensors
  for (const TensorTask& task : all_f16.tensors) {
    if (!task.choice.quantizable || task.choice.rule >= 0) {
      fixed += task.bytes;
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(OpenMatrix matrix, Open(task, sensitivity, allowed));
    open.push_back(std::move(matrix));
  }
  std::vector<std::vector<AllocationOption>> items;
  for (const OpenMatrix& matrix : open) items.push_back(matrix.options);

  uint64_t bound = budget.file_bytes > 0 ? budget.file_bytes : UINT64_MAX;
  if (budget.bits_per_weight > 0) {
    const double bytes = budget.bits_per_weight / 8 * static_cast<double>(all_f16.weights());
    bound = std::min(bound, static_cast<uint64_t>(bytes));
  }
  // Tensors' bytes are what can be chosen; what metadata and padding add shows in the plan, and may
  // itself change with the rules in it.
  for (;;) {
    if (bound < fixed) {
      return InvalidArgument("the budget does not hold the " + std::to_string(fixed) +
                             " bytes of tensors whose format is not open");
    }
    Result<std::vector<size_t>> choices = Allocate(items, bound - fixed);
    if (!choices.ok()) return std::move(choices).status().WithContext("the budget is too small");
    NIBBLE_ASSIGN_OR_RETURN(ModelPlan plan,
                            PlanModel(source, RecipeFor(recipe, open, *choices), permissions));
    NIBBLE_ASSIGN_OR_RETURN(const uint64_t bytes, PlannedBytes(plan, files));
    uint64_t tensor_bytes = 0;
    for (const TensorTask& task : plan.tensors) tensor_bytes += task.bytes;
    if (budget.file_bytes > 0 && bytes > budget.file_bytes) {
      bound = tensor_bytes - std::min(tensor_bytes, bytes - budget.file_bytes);
      continue;
    }
    BudgetMix mix;
    for (const TensorTask& task : plan.tensors) {
      if (!task.choice.quantizable) continue;
      const MatrixSensitivity* told = sensitivity.Find(task.source->name);
      const double loss = told == nullptr ? 0 : told->LossOf(task.choice.format).value_or(0);
      const auto is_own = [&](const OpenMatrix& m) { return m.task->source == task.source; };
      mix.choices.push_back({task.source->name, task.choice.format, task.bytes, loss,
                             std::ranges::none_of(open, is_own)});
      mix.loss += loss;
    }
    mix.plan = std::move(plan);
    return mix;
  }
}

}  // namespace nibble
