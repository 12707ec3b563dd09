#include "tools/nibble/calibrate.h"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "fmt/core.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

Result<ImportanceMatrix> Gather(const CalibrateCommand& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Calibration calibration,
                          LoadCalibration(options.model, options.calibration, /*most_windows=*/0));
  ThreadPool pool(options.common.threads);
  ProgressDisplay display(options.common.quiet);
  StatisticsOptions statistics;
  statistics.output = options.output_layer;
  statistics.parallel = pool.parallel_for();
  statistics.progress = [&](int64_t done, int64_t windows) {
    const double rate = static_cast<double>(done * calibration.text.context) / display.Seconds();
    display.Update(static_cast<double>(done) / static_cast<double>(windows),
                   fmt::format("{:.0f} tokens/s", rate), std::string());
    return true;
  };
  return GatherStatistics(calibration.model, calibration.text,
                          std::filesystem::path(options.calibration.text).filename(), statistics);
}

int Calibrate(const CalibrateCommand& options) {
  std::error_code error;
  if (!options.overwrite && std::filesystem::exists(options.output, error)) {
    return Fail(InvalidArgument(options.output + ": exists already"));
  }
  if (options.hessians) return CalibrateHessians(options);
  ImportanceMatrix all;
  for (const std::string& path : options.merge) {
    const Result<ImportanceMatrix> loaded = ImportanceMatrix::Load(path);
    if (!loaded.ok()) return FailAtWork(loaded.status());
    const Status merged = all.Merge(*loaded);
    if (!merged.ok()) return Fail(Status(merged).WithContext(path));
  }
  if (!options.model.empty()) {
    const Result<ImportanceMatrix> gathered = Gather(options);
    if (!gathered.ok()) return Fail(gathered.status());
    const Status merged = all.Merge(*gathered);
    if (!merged.ok()) return Fail(merged);
  }
  const Status saved =
      options.output.ends_with(".dat") ? all.SaveDat(options.output) : all.SaveGguf(options.output);
  if (!saved.ok()) return FailAtWork(saved);
  if (options.common.json) {
    nlohmann::ordered_json document = {{"output", options.output},
                                       {"datasets", all.datasets},
                                       {"windows", all.chunks},
                                       {"context", all.chunk_tokens}};
    for (const auto& [name, layer] : all.layers) {
      document["matrices"].push_back(
          {{"name", name}, {"inputs", layer.cols}, {"tokens", layer.counts}});
    }
    fmt::print("{}\n", document.dump(2));
  } else if (!options.common.quiet) {
    fmt::print("{}: inputs of {} matrices over {} windows\n", options.output, all.layers.size(),
               all.chunks);
  }
  return kSuccess;
}

}  // namespace

void AddCalibrate(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "calibrate",
      "Gather statistics of what a model's matrices see: an importance matrix, or Hessians");
  auto options = std::make_shared<CalibrateCommand>();
  CLI::Option* model =
      command->add_option("model", options->model, "GGUF file or Hugging Face folder");
  CLI::Option* text = command->add_option("text", options->calibration.text, "A text file");
  model->needs(text);
  CLI::Option* merge =
      command
          ->add_option("--merge", options->merge,
                       "Add the statistics of this file; may be given again, and without a model")
          ->take_all()
          ->expected(1);
  command
      ->add_option("-o,--output", options->output,
                   "The file to write: llama.cpp's GGUF, or its older format where the name ends "
                   "in .dat; Hessians as safetensors")
      ->required();
  AddWindowOptions(*command, options->calibration, 0);
  AddMemoryOption(*command, options->calibration);
  CLI::Option* process_output =
      command->add_flag("--process-output", options->output_layer,
                        "Of the output matrix (or the embeddings in its place) too");
  command
      ->add_flag("--hessians", options->hessians,
                 "Hessians of all matrices' inputs, for quantize --hessians; --merge adds files of "
                 "them")
      ->excludes(process_output);
  command->add_flag("--overwrite", options->overwrite, "Replace the output if it exists");
  AddCommonOptions(*command, options->common);
  command->callback([options, model, merge, &action] {
    if (model->empty() && merge->empty()) {
      throw CLI::RequiredError("a model and a text, or --merge");
    }
    action = [options] { return Calibrate(*options); };
  });
}

}  // namespace nibble::tools
