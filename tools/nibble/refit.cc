#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fmt/core.h"
#include "nibble/quantize_model.h"
#include "nibble/refit_norms.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/calibration.h"
#include "tools/nibble/command.h"
#include "tools/nibble/make_model.h"
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

// The matrices of `source` in their blocks.
Result<Matrices> ReadMatrices(const ModelSource& source) {
  Matrices matrices;
  for (const ModelTensor& tensor : source.tensors()) {
    if (GetFormatInfo(tensor.format).block_weights == 1 || tensor.dims.size() != 2) continue;
    NIBBLE_ASSIGN_OR_RETURN(Buffer blocks, source.Read(tensor));
    NIBBLE_ASSIGN_OR_RETURN(
        matrices[tensor.name],
        QuantizedTensor::Create(tensor.format, tensor.rows(), tensor.cols(), std::move(blocks)));
  }
  if (matrices.empty()) return InvalidArgument("no matrix is quantized in blocks");
  return matrices;
}

Result<std::vector<float>> Decode(const ModelSource& source, const ModelTensor& tensor) {
  NIBBLE_ASSIGN_OR_RETURN(const Buffer bytes, source.Read(tensor));
  std::vector<float> values(static_cast<size_t>(tensor.rows() * tensor.cols()));
  NIBBLE_RETURN_IF_ERROR(Dequantize(tensor.format, bytes.bytes(),
                                    ViewOf(values.data(), tensor.rows(), tensor.cols())));
  return values;
}

// A preparation has moved factors between norms and matrices: outputs cannot be compared then.
Status CheckNorms(const ModelSource& model, const ModelSource& reference, const ModelEdits& edits) {
  for (const auto& [name, edit] : edits.edits) {
    const ModelTensor* norm = model.Find(name);
    if (norm == nullptr) return InvalidArgument("no tensor " + name);
    const ModelTensor& original = *reference.Find(name);
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, Decode(model, *norm));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> before, Decode(reference, original));
    if (values != before) {
      return InvalidArgument(name + " is not the reference's: the model was prepared or refitted");
    }
  }
  return OkStatus();
}

Status Work(const RefitCommand& options, std::vector<RefitNormReport>& reports) {
  NIBBLE_ASSIGN_OR_RETURN(const ModelSource model, ModelSource::Open(options.model));
  const auto of_model = [&](Status status) { return std::move(status).WithContext(options.model); };
  const Result<Matrices> matrices = ReadMatrices(model);
  if (!matrices.ok()) return of_model(matrices.status());
  NIBBLE_ASSIGN_OR_RETURN(const ModelSource reference, ModelSource::Open(options.reference));
  NIBBLE_ASSIGN_OR_RETURN(const Calibration calibration,
                          LoadCalibration(options.reference, options.calibration, kMostWindows));
  NIBBLE_RETURN_IF_ERROR(CheckModelTarget(model, options.output, 0, options.overwrite));

  ThreadPool pool(options.common.threads);
  Result<ModelEdits> edits = ModelEdits();
  {
    ProgressDisplay display(options.common.quiet);
    RefitNormsOptions refit;
    refit.inputs.parallel = pool.parallel_for();
    refit.inputs.progress = [&](int64_t done, int64_t batches) {
      display.Update(static_cast<double>(done) / static_cast<double>(batches), "", "refit");
      return true;
    };
    edits = RefitNorms(reference, calibration.model, *matrices, calibration.text, refit, &reports);
  }
  if (!edits.ok()) return of_model(edits.status());
  if (const Status same = CheckNorms(model, reference, *edits); !same.ok()) return of_model(same);
  NIBBLE_ASSIGN_OR_RETURN(const ModelSource refitted, model.Edited(*std::move(edits)));
  ModelRecipe recipe;
  recipe.type = kCopyType;
  NIBBLE_ASSIGN_OR_RETURN(const ModelPlan plan, PlanModel(refitted, recipe));
  ModelRunOptions run;
  run.parallel = pool.parallel_for();
  return WriteModel(refitted, plan, options.output, {}, run).status();
}

int Refit(const RefitCommand& options) {
  std::vector<RefitNormReport> reports;
  if (const Status status = Work(options, reports); !status.ok()) return Fail(status);
  double before = 0, after = 0;
  for (const RefitNormReport& report : reports) {
    before += report.error_before / static_cast<double>(reports.size());
    after += report.error_after / static_cast<double>(reports.size());
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
  AddWindowOptions(*command, options->calibration, "128");
  command->add_flag("--overwrite", options->overwrite, "Replace the output if it exists");
  AddCommonOptions(*command, options->common);
  command->callback([options, &action] { action = [options] { return Refit(*options); }; });
}

}  // namespace nibble::tools
