// quantize --scheme: a Hugging Face folder in the layout of GPTQ checkpoints.
#include <optional>
#include <utility>

#include "fmt/core.h"
#include "nibble/gptq_folder.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/make_model.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

// The matrices' mean relative error of the output; 0 where none was measured.
double MeanError(const GptqFolderReport& report) {
  double sum = 0;
  for (const MatrixReport& matrix : report.reports) {
    sum += matrix.gptq.weight_energy > 0 ? matrix.gptq.output_error / matrix.gptq.weight_energy : 0;
  }
  return report.reports.empty() ? 0 : sum / static_cast<double>(report.reports.size());
}

}  // namespace

int MakeGptqFolder(const MakeModelOptions& options) {
  const Result<Scheme> scheme = ParseScheme(options.scheme);
  if (!scheme.ok()) return Fail(scheme.status());
  std::optional<Calibration> calibration;
  GptqFolderOptions folder;
  if (GetMethodInfo(options.method).calibrated) {
    Result<Calibration> loaded = LoadCalibration(options.model, options.calibration, kMostWindows);
    if (!loaded.ok()) return Fail(loaded.status());
    calibration = *std::move(loaded);
    folder.model = &calibration->model;
    folder.text = &calibration->text;
  }
  ThreadPool pool(options.common.threads);
  ProgressDisplay display(options.common.quiet);
  folder.gptq.damping = options.calibration.damping;
  folder.gptq.parallel = folder.inputs.parallel = pool.parallel_for();
  folder.inputs.progress = [&](int64_t done, int64_t batches) {
    display.Update(static_cast<double>(done) / static_cast<double>(batches), "", "inputs");
    return true;
  };
  folder.overwrite = options.overwrite;
  folder.max_shard_bytes = options.max_shard_bytes;
  const Result<GptqFolderReport> made =
      WriteGptqFolder(options.model, options.output, *scheme, folder, options.dry_run);
  display.Clear();
  if (!made.ok()) return Fail(made.status());
  const std::vector<std::string> notices = CalibrationNotices(made->reports);
  if (!options.common.quiet) {
    for (const std::string& notice : notices) fmt::print(stderr, "note: {}\n", notice);
  }
  if (options.common.json) {
    nlohmann::ordered_json document = {{"output", options.output},
                                       {"dry_run", options.dry_run},
                                       {"scheme", SchemeName(*scheme)},
                                       {"method", GetMethodInfo(options.method).name},
                                       {"bytes", made->bytes},
                                       {"matrices", made->matrices},
                                       {"notices", notices}};
    if (!made->reports.empty()) document["relative_error"] = MeanError(*made);
    fmt::print("{}\n", document.dump(2));
  } else if (!options.common.quiet) {
    fmt::print("{}: {} {} of weights, {} matrices in {}", options.output,
               options.dry_run ? "would be" : "is", Size(made->bytes), made->matrices,
               SchemeName(*scheme));
    if (!made->reports.empty()) {
      fmt::print(", mean relative error of their outputs {:.4g}", MeanError(*made));
    }
    fmt::print("\n");
  }
  return kSuccess;
}

}  // namespace nibble::tools
