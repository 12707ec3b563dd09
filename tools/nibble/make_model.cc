#include "tools/nibble/make_model.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include "fmt/core.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/prepare.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

using nlohmann::ordered_json;

using SteadyTime = std::chrono::steady_clock::time_point;

struct Outcome {
  uint64_t file_bytes = 0;
  std::vector<std::string> notices;   // of the plan and of the work
  std::vector<MatrixReport> reports;  // of a calibrated method
  std::optional<BudgetMix> mix;       // of a budget; its plan has been moved out
  std::optional<ModelHashes> hashes;  // of a GGUF file that was written
  double seconds = 0;
};

uint64_t TensorBytes(const ModelPlan& plan) {
  uint64_t total = 0;
  for (const TensorTask& tensor : plan.tensors) total += tensor.bytes;
  return total;
}

struct Share {
  size_t tensors = 0;
  uint64_t weights = 0;
  uint64_t bytes = 0;
};

std::map<std::string, Share> SharesByFormat(const ModelPlan& plan) {
  std::map<std::string, Share> shares;
  for (const TensorTask& tensor : plan.tensors) {
    Share& share = shares[GetFormatInfo(tensor.choice.format).name];
    ++share.tensors;
    share.weights += static_cast<uint64_t>(tensor.source->rows() * tensor.source->cols());
    share.bytes += tensor.bytes;
  }
  return shares;
}

bool NeedsCalibration(const MakeModelOptions& options) {
  return (GetMethodInfo(options.method).calibrated && options.calibration.hessians.empty()) ||
         (options.budget.wanted() && !options.calibration.text.empty()) ||
         std::ranges::any_of(options.preparations, [](const std::string& name) {
           return FindPreparation(name)->calibrated;
         });
}

void PrintJson(const MakeModelOptions& options, const ModelPlan& plan, const Outcome& outcome) {
  ordered_json document = {
      {"output", options.output},
      {"dry_run", options.dry_run},
      {"type", plan.recipe.type},
      {"bytes", outcome.file_bytes},
      {"weights", plan.weights()},
      {"bits_per_weight", BitsPerWeight(TensorBytes(plan), plan.weights())},
      {"notices", outcome.notices},
  };
  for (const auto& [name, share] : SharesByFormat(plan)) {
    document["formats"][name] = {
        {"tensors", share.tensors}, {"weights", share.weights}, {"bytes", share.bytes}};
  }
  for (const TensorTask& tensor : plan.tensors) {
    document["tensors"].push_back({{"name", tensor.source->name},
                                   {"dims", tensor.source->dims},
                                   {"from", GetFormatInfo(tensor.source->format).name},
                                   {"to", GetFormatInfo(tensor.choice.format).name},
                                   {"bytes", tensor.bytes}});
  }
  if (outcome.mix) {
    document["budget"] = {{"divergence_measured", NeedsCalibration(options)},
                          {"loss", outcome.mix->loss}};
    for (const BudgetChoice& choice : outcome.mix->choices) {
      document["budget"]["matrices"].push_back({{"name", choice.name},
                                                {"format", GetFormatInfo(choice.format).name},
                                                {"bytes", choice.bytes},
                                                {"loss", choice.loss},
                                                {"fixed", choice.fixed}});
    }
  }
  if (const MethodInfo& method = GetMethodInfo(plan.recipe.method); method.calibrated) {
    document["method"] = method.name;
    document["calibration"] = {{"text", plan.recipe.calibration.text},
                               {"context", plan.recipe.calibration.context},
                               {"windows", plan.recipe.calibration.windows}};
  }
  for (const MatrixReport& report : outcome.reports) {
    document["calibrated"].push_back({{"name", report.name}, {"feedback", report.feedback}});
    if (report.unseen) document["calibrated"].back()["unseen"] = true;
    if (!report.feedback) continue;
    document["calibrated"].back().update(
        {{"relative_error", report.gptq.output_error / report.gptq.weight_energy},
         {"damping", report.gptq.damping},
         {"dead_columns", report.gptq.dead_columns}});
  }
  if (outcome.hashes) {
    document["source_hash"] = outcome.hashes->source;
    document["content_hash"] = outcome.hashes->content;
  }
  if (!options.dry_run) document["seconds"] = outcome.seconds;
  fmt::print("{}\n", document.dump(2));
}

void PrintSummary(const MakeModelOptions& options, const ModelPlan& plan, const Outcome& outcome) {
  if (outcome.mix) {
    fmt::print("{}\n", MixTable(*outcome.mix, NeedsCalibration(options)));
  }
  Table table({"format", "tensors", "weights", "size"}, {false, true, true, true});
  for (const auto& [name, share] : SharesByFormat(plan)) {
    table.Add(
        {name, std::to_string(share.tensors), std::to_string(share.weights), Size(share.bytes)});
  }
  fmt::print("{}", table.Text());
  fmt::print("{}: {} {} ({} bytes), {:.3f} bits per weight", options.output,
             options.dry_run ? "would be" : "is", Size(outcome.file_bytes), outcome.file_bytes,
             BitsPerWeight(TensorBytes(plan), plan.weights()));
  if (!options.dry_run) fmt::print(", made in {:.1f} s", outcome.seconds);
  fmt::print("\n");
}

// What a calibrated method leaves for the plan: of a text, or of Hessians.
Result<CalibratedTensors> Calibrate(const MakeModelOptions& options, const ModelSource& source,
                                    const ModelPlan& plan, const Calibration* calibration,
                                    const HessianFile* hessians, const ParallelFor& parallel) {
  ProgressDisplay display(options.common.quiet);
  LayerwiseOptions layerwise;
  layerwise.gptq.damping = options.calibration.damping;
  layerwise.gptq.parallel = parallel;
  layerwise.activations = ActivationsBeside(options.output, options.calibration);
  layerwise.progress = [&](const ModelProgress& progress) {
    display.Update(progress);
    return true;
  };
  if (hessians != nullptr) {
    return QuantizeWithHessians(source, plan, *hessians, layerwise,
                                options.permissions.missing_importance);
  }
  return QuantizeLayerwise(calibration->model, plan, calibration->text, layerwise);
}

// By the type, or by the budget in its place.
Result<ModelPlan> PlanAsAsked(const MakeModelOptions& options, const ModelSource& source,
                              const ModelRecipe& recipe, const Calibration* calibration,
                              Outcome& outcome) {
  if (!options.budget.wanted()) return PlanModel(source, recipe, options.permissions);
  const BudgetInputs inputs{
      source,      recipe,         options.permissions,
      calibration, options.output, {.max_shard_bytes = options.max_shard_bytes}};
  NIBBLE_ASSIGN_OR_RETURN(outcome.mix, FindMix(options.budget, inputs, options.common));
  return std::move(outcome.mix->plan);
}

// Changes the source, and with it the plan and the model that calibration runs, by what is asked
// for before the quantization. `plan` tells what the matrices will become.
Status PrepareAll(const MakeModelOptions& options, ModelSource& source, ModelPlan& plan,
                  Calibration* calibration, Outcome& outcome) {
  for (const std::string& name : options.preparations) {
    const PreparationInfo& info = *FindPreparation(name);
    if (options.dry_run && info.calibrated) continue;  // takes time and changes no size
    std::map<std::string, Format, std::less<>> formats;
    for (const TensorTask& task : plan.tensors) {
      formats[task.source->name] = task.choice.format;
    }
    const bool importance = GetMethodInfo(options.method).calibrated || !options.imatrix.empty();
    NIBBLE_RETURN_IF_ERROR(
        PrepareOne(info, [&](std::string_view tensor) { return formats.find(tensor)->second; },
                   importance, options.common, {source, calibration, outcome.notices}));
    const ModelRecipe recipe = plan.recipe;
    NIBBLE_ASSIGN_OR_RETURN(plan, PlanModel(source, recipe, options.permissions));
  }
  return OkStatus();
}

void PrintNotices(const MakeModelOptions& options, std::span<const std::string> notices) {
  if (options.common.quiet) return;
  for (const std::string& notice : notices) fmt::print(stderr, "note: {}\n", notice);
}

// Calibrates where the method asks for it, then writes the file.
Status Work(const MakeModelOptions& options, const ModelSource& source, const ModelPlan& plan,
            const Calibration* calibration, const HessianFile* hessians, bool safetensors,
            Outcome& outcome) {
  const SteadyTime start = std::chrono::steady_clock::now();
  ThreadPool pool(options.common.threads);
  ModelRunOptions run;
  run.parallel = pool.parallel_for();
  CalibratedTensors calibrated;
  if (GetMethodInfo(options.method).calibrated) {
    NIBBLE_ASSIGN_OR_RETURN(calibrated,
                            Calibrate(options, source, plan, calibration, hessians, run.parallel));
    run.ready = &calibrated.tensors;
    const std::vector<std::string> notices = CalibrationNotices(calibrated.reports);
    PrintNotices(options, notices);
    outcome.notices.insert(outcome.notices.end(), notices.begin(), notices.end());
    outcome.reports = std::move(calibrated.reports);
  }
  {
    ProgressDisplay display(options.common.quiet);
    run.progress = [&](const ModelProgress& progress) {
      display.Update(progress);
      return true;
    };
    if (safetensors) {
      NIBBLE_RETURN_IF_ERROR(
          WriteModelSafetensors(source, plan, options.output, options.max_shard_bytes, run));
    } else {
      const GgufWriteOptions files = {.max_shard_bytes = options.max_shard_bytes};
      NIBBLE_ASSIGN_OR_RETURN(outcome.hashes, WriteModel(source, plan, options.output, files, run));
    }
  }
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return OkStatus();
}

}  // namespace

void AddOutputOptions(CLI::App& command, MakeModelOptions& options) {
  command
      .add_option("model", options.model,
                  "GGUF file (any shard), .safetensors file or Hugging Face folder")
      ->required();
  command.add_option("-o,--output", options.output, "The file to write")->required();
  command
      .add_option("--max-shard-size", options.max_shard_bytes,
                  "Write shards of at most this size, e.g. 500M or 2G")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
  command.add_flag("--dry-run", options.dry_run,
                   "Tell the types and the exact size; write nothing");
  command.add_flag("--overwrite", options.overwrite, "Replace the output if it exists");
  command.add_flag("--clamp", options.clamp,
                   "Replace NaN by 0 and infinities by the largest number instead of stopping");
  AddCommonOptions(command, options.common);
}

int MakeModel(const MakeModelOptions& options) {
  ModelRecipe recipe;
  recipe.type = options.type;
  recipe.pure = options.pure;
  recipe.non_finite = options.clamp ? NonFinite::kClamp : NonFinite::kError;
  if (recipe.type != kCopyType && !options.budget.wanted()) {
    const Result<TypeChoice> type = ParseType(recipe.type, recipe.pure);
    if (!type.ok()) return Fail(type.status());
  }
  for (const std::string& text : options.tensor_types) {
    Result<TensorTypeRule> rule = ParseTensorTypeRule(text);
    if (!rule.ok()) return Fail(rule.status());
    recipe.tensor_types.push_back(*std::move(rule));
  }
  ImportanceMatrix importance;
  if (!options.imatrix.empty()) {
    Result<ImportanceMatrix> loaded = ImportanceMatrix::Load(options.imatrix);
    if (!loaded.ok()) return FailAtWork(loaded.status());
    importance = *std::move(loaded);
    recipe.importance = &importance;
  }
  Result<ModelSource> source = ModelSource::Open(options.model);
  if (!source.ok()) return FailAtWork(source.status());

  std::optional<Calibration> calibration;
  if (NeedsCalibration(options)) {
    Result<Calibration> loaded = LoadCalibration(options.model, options.calibration, kMostWindows);
    if (!loaded.ok()) return Fail(loaded.status());  // too short a text is the caller's
    calibration = *std::move(loaded);
    recipe.method = options.method;
    recipe.calibration =
        calibration->text.Note(std::filesystem::path(options.calibration.text).filename());
  }
  std::optional<HessianFile> hessians;
  if (!options.calibration.hessians.empty()) {
    Result<HessianFile> opened = HessianFile::Open(options.calibration.hessians);
    if (!opened.ok()) return FailAtWork(opened.status());
    hessians = *std::move(opened);
    recipe.method = options.method;
    recipe.calibration = NoteOf(*hessians);
  }
  if (!options.dry_run) {  // before the work
    const Status target =
        CheckModelTarget(*source, options.output, 0, options.overwrite, options.max_shard_bytes);
    if (!target.ok()) return Fail(target);
  }
  Outcome outcome;
  Result<ModelPlan> plan =
      PlanAsAsked(options, *source, recipe, calibration ? &*calibration : nullptr, outcome);
  if (!plan.ok()) return Fail(Status(plan.status()).WithContext(options.model));
  const Status prepared =
      PrepareAll(options, *source, *plan, calibration ? &*calibration : nullptr, outcome);
  if (!prepared.ok()) return FailAtWork(prepared);
  const bool safetensors = options.output.ends_with(".safetensors");
  const GgufWriteOptions files = {.max_shard_bytes = options.max_shard_bytes};
  const Result<uint64_t> bytes =
      safetensors ? PlannedSafetensorsBytes(*plan, options.output, options.max_shard_bytes)
                  : PlannedBytes(*plan, files);
  if (!bytes.ok()) return Fail(bytes.status());
  outcome.file_bytes = *bytes;
  if (const uint64_t most = options.budget.target.file_bytes; most > 0 && *bytes > most) {
    return Fail(InvalidArgument(fmt::format(
        "what --prepare adds makes the file {} bytes, more than the {} asked for", *bytes, most)));
  }
  outcome.notices.insert(outcome.notices.begin(), plan->notices.begin(), plan->notices.end());
  if (!options.dry_run) {
    const Status target = CheckModelTarget(*source, options.output, *bytes, options.overwrite,
                                           options.max_shard_bytes);
    if (!target.ok()) return Fail(target);
  }
  PrintNotices(options, outcome.notices);
  if (!options.dry_run) {
    const Status made = Work(options, *source, *plan, calibration ? &*calibration : nullptr,
                             hessians ? &*hessians : nullptr, safetensors, outcome);
    if (!made.ok()) return FailAtWork(made);
  }
  if (options.common.json) {
    PrintJson(options, *plan, outcome);
  } else if (!options.common.quiet) {
    PrintSummary(options, *plan, outcome);
  }
  return kSuccess;
}

}  // namespace nibble::tools
