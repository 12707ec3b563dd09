#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fmt/core.h"
#include "nibble/equivalent.h"
#include "nibble/quantize_model.h"
#include "nibble/refit_norms.h"
#include "nibble/tensor_error.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/calibration.h"
#include "tools/nibble/command.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

using Matrices = std::map<std::string, QuantizedTensor, std::less<>>;

struct RefitCommand {
  std::string model, reference, output;
  CalibrationOptions calibration;
  bool overwrite = false;
  CommonOptions common;
};

struct Sources {
  ModelSource model, reference;
  std::vector<ChannelPair> norms;  // of the reference
};

// Opens both models. A preparation would have moved factors between norms and matrices: outputs
// behind them cannot be compared then.
Result<Sources> OpenSources(const RefitCommand& options) {
  NIBBLE_ASSIGN_OR_RETURN(ModelSource model, ModelSource::Open(options.model));
  NIBBLE_ASSIGN_OR_RETURN(ModelSource reference, ModelSource::Open(options.reference));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<ChannelPair> pairs, ChannelPairs(reference));
  std::erase_if(pairs, [](const ChannelPair& pair) { return !pair.is_norm; });
  for (const ChannelPair& pair : pairs) {
    const ModelTensor* norm = model.Find(pair.producer);
    if (norm == nullptr) {
      return InvalidArgument(options.model + ": has no tensor " + pair.producer);
    }
    const Result<ErrorSums> sums =
        CompareTensors(reference, *reference.Find(pair.producer), model, *norm, {});
    if (!sums.ok()) return Status(sums.status()).WithContext(options.model + ": " + pair.producer);
    if (sums->largest != 0) {
      return InvalidArgument(options.model + ": " + pair.producer +
                             " is not the reference's: the model was prepared or refitted");
    }
  }
  return Sources{std::move(model), std::move(reference), std::move(pairs)};
}

// The matrices behind norms that are in blocks.
Result<Matrices> ReadMatrices(const Sources& sources, const std::string& path) {
  Matrices matrices;
  for (const ChannelPair& pair : sources.norms) {
    for (const std::string& name : pair.consumers) {
      const ModelTensor* tensor = sources.model.Find(name);
      if (tensor == nullptr) return InvalidArgument(path + ": has no tensor " + name);
      if (GetFormatInfo(tensor->format).block_weights == 1) continue;
      NIBBLE_ASSIGN_OR_RETURN(Buffer blocks, sources.model.Read(*tensor));
      Result<QuantizedTensor> matrix = QuantizedTensor::Create(tensor->format, tensor->rows(),
                                                               tensor->cols(), std::move(blocks));
      if (!matrix.ok()) return Status(matrix.status()).WithContext(path + ": " + name);
      matrices[name] = *std::move(matrix);
    }
  }
  if (matrices.empty()) return InvalidArgument(path + ": no matrix behind a norm is in blocks");
  return matrices;
}

// What the arguments name must not be lost.
Status CheckTarget(const RefitCommand& options, const Sources& sources, uint64_t bytes) {
  if (options.output.ends_with(".safetensors")) {
    return InvalidArgument(options.output + ": safetensors hold no blocks; name a GGUF file");
  }
  for (const ModelSource* source : {&sources.reference, &sources.model}) {
    NIBBLE_RETURN_IF_ERROR(CheckModelTarget(*source, options.output, bytes, options.overwrite));
  }
  return OkStatus();
}

Status Work(const RefitCommand& options, const Sources& sources, const Matrices& matrices,
            const Calibration& calibration, std::vector<RefitNormReport>& reports) {
  ThreadPool pool(options.common.threads);
  ModelEdits edits;
  {
    ProgressDisplay display(options.common.quiet);
    RefitNormsOptions refit;
    refit.inputs.parallel = pool.parallel_for();
    refit.inputs.progress = [&](int64_t done, int64_t batches) {
      display.Update(static_cast<double>(done) / static_cast<double>(batches), "", "refit");
      return true;
    };
    NIBBLE_ASSIGN_OR_RETURN(edits, RefitNorms(sources.reference, calibration.model, matrices,
                                              calibration.text, refit, &reports));
  }
  NIBBLE_ASSIGN_OR_RETURN(const ModelSource refitted, sources.model.Edited(std::move(edits)));
  ModelRecipe recipe;
  recipe.type = kCopyType;
  NIBBLE_ASSIGN_OR_RETURN(const ModelPlan plan, PlanModel(refitted, recipe));
  NIBBLE_ASSIGN_OR_RETURN(const uint64_t bytes, PlannedBytes(plan));
  NIBBLE_RETURN_IF_ERROR(CheckTarget(options, sources, bytes));
  ModelRunOptions run;
  run.parallel = pool.parallel_for();
  return WriteModel(refitted, plan, options.output, {}, run).status();
}

void Print(const RefitCommand& options, const std::vector<RefitNormReport>& reports) {
  double before = 0, after = 0;
  const double count = static_cast<double>(std::max<size_t>(1, reports.size()));
  for (const RefitNormReport& report : reports) {
    before += report.error_before / count;
    after += report.error_after / count;
  }
  if (options.common.json) {
    nlohmann::ordered_json document = {
        {"output", options.output}, {"error_before", before}, {"error_after", after}};
    for (const RefitNormReport& report : reports) {
      document["norms"].push_back({{"name", report.norm},
                                   {"error_before", report.error_before},
                                   {"error_after", report.error_after}});
    }
    fmt::print("{}\n", document.dump(2));
  } else if (!options.common.quiet) {
    fmt::print("{}: {} norms, mean relative error of the outputs behind them {:.4g}, was {:.4g}\n",
               options.output, reports.size(), after, before);
  }
}

int Refit(const RefitCommand& options) {
  const Result<Sources> sources = OpenSources(options);
  if (!sources.ok()) return Fail(sources.status());
  const Result<Matrices> matrices = ReadMatrices(*sources, options.model);
  if (!matrices.ok()) return Fail(matrices.status());
  if (const Status status = CheckTarget(options, *sources, 0); !status.ok()) return Fail(status);
  const Result<Calibration> calibration =
      LoadCalibration(options.reference, options.calibration, kMostWindows);
  if (!calibration.ok()) return Fail(calibration.status());  // too short a text is the caller's
  std::vector<RefitNormReport> reports;
  const Status done = Work(options, *sources, *matrices, *calibration, reports);
  if (!done.ok()) return FailAtWork(done);
  Print(options, reports);
  return kSuccess;
}

}  // namespace

void AddRefit(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "refit",
      "Fit the norms of a quantized model to the outputs of the one it was made from: recovery "
      "without training, a GGUF file of the same size");
  auto options = std::make_shared<RefitCommand>();
  command->add_option("model", options->model, "GGUF file with quantized matrices")->required();
  command
      ->add_option("--reference", options->reference,
                   "The model that it was made from: GGUF file or Hugging Face folder")
      ->required();
  command->add_option("--calibration", options->calibration.text, "A text file")->required();
  command->add_option("-o,--output", options->output, "The file to write")->required();
  AddWindowOptions(*command, options->calibration, kMostWindows);
  command->add_flag("--overwrite", options->overwrite, "Replace the output if it exists");
  AddCommonOptions(*command, options->common);
  command->callback([options, &action] { action = [options] { return Refit(*options); }; });
}

}  // namespace nibble::tools
