// quantize --scheme: a Hugging Face folder in the layout of a public library.
#include <optional>
#include <utility>

#include "fmt/core.h"
#include "nibble/quantized_folder.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/make_model.h"
#include "tools/nibble/prepare.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

// What the method works with, as far as it was asked for.
struct Inputs {
  std::optional<ImportanceMatrix> importance;
  std::optional<Calibration> calibration;
  std::optional<HessianFile> hessians;
};

Result<Inputs> LoadInputs(const MakeModelOptions& options) {
  Inputs inputs;
  if (!options.imatrix.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(inputs.importance, ImportanceMatrix::Load(options.imatrix));
  }
  if (!options.calibration.hessians.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(inputs.hessians, HessianFile::Open(options.calibration.hessians));
  }
  if (!options.calibration.text.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(inputs.calibration,
                            LoadCalibration(options.model, options.calibration, kMostWindows));
  }
  return inputs;
}

Result<HfLayout> LayoutOf(const MakeModelOptions& options, const Scheme& scheme) {
  if (options.layout.empty()) return FindHfLayout(scheme);
  NIBBLE_ASSIGN_OR_RETURN(const HfLayout layout, ParseHfLayout(options.layout));
  NIBBLE_RETURN_IF_ERROR(CheckHfLayout(layout, scheme));
  return layout;
}

// The matrices' mean relative error of the output; 0 where none was measured.
double MeanError(const QuantizedFolderReport& report) {
  double sum = 0, measured = 0;
  for (const MatrixReport& matrix : report.reports) {
    if (matrix.unseen) continue;
    ++measured;
    sum += matrix.gptq.weight_energy > 0 ? matrix.gptq.output_error / matrix.gptq.weight_energy : 0;
  }
  return measured == 0 ? 0 : sum / measured;
}

struct Made {
  Scheme scheme;
  HfLayout layout = HfLayout::kGptq;
  QuantizedFolderReport report;
  std::vector<std::string> notices;
};

Result<Made> Make(const MakeModelOptions& options) {
  Made made;
  NIBBLE_ASSIGN_OR_RETURN(made.scheme, ParseScheme(options.scheme));
  NIBBLE_ASSIGN_OR_RETURN(made.layout, LayoutOf(options, made.scheme));
  NIBBLE_ASSIGN_OR_RETURN(Inputs inputs, LoadInputs(options));
  NIBBLE_ASSIGN_OR_RETURN(ModelSource source, ModelSource::Open(options.model));
  made.notices.assign(source.notices().begin(), source.notices().end());
  QuantizedFolderOptions folder;
  folder.layout = made.layout;
  folder.method = options.method;
  folder.importance = inputs.importance ? &*inputs.importance : nullptr;
  folder.hessians = inputs.hessians ? &*inputs.hessians : nullptr;
  folder.allow_missing = options.permissions.missing_importance;
  if (GetMethodInfo(options.method).calibrated && inputs.calibration) {
    folder.model = &inputs.calibration->model;
    folder.text = &inputs.calibration->text;
  }
  folder.overwrite = options.overwrite;
  folder.max_shard_bytes = options.max_shard_bytes;
  // What cannot be is refused before the preparations, which take long.
  NIBBLE_RETURN_IF_ERROR(WriteQuantizedFolder(source, options.model, options.output, made.scheme,
                                              folder, /*dry_run=*/true)
                             .status());
  for (const std::string& name : options.preparations) {
    const PreparationInfo& info = *FindPreparation(name);
    if (options.dry_run && info.calibrated) continue;  // takes time and changes no size
    NIBBLE_RETURN_IF_ERROR(
        PrepareOne(info, [&](std::string_view) { return made.scheme; },
                   folder.importance != nullptr, options.common,
                   {source, inputs.calibration ? &*inputs.calibration : nullptr, made.notices}));
  }
  ThreadPool pool(options.common.threads);
  ProgressDisplay display(options.common.quiet);
  folder.gptq.damping = options.calibration.damping;
  folder.gptq.act_order = folder.gptq.static_groups = options.calibration.static_groups;
  folder.gptq.parallel = folder.inputs.parallel = pool.parallel_for();
  const auto show = [&](double done, double all, const char* what) {
    display.Update(done / all, "", what);
    return true;
  };
  folder.sequential = options.calibration.sequential;
  folder.activations = ActivationsBeside(options.output, options.calibration);
  folder.inputs.progress = [&](int64_t done, int64_t batches) {
    return show(static_cast<double>(done), static_cast<double>(batches), "inputs");
  };
  folder.progress = [&](size_t done, size_t matrices) {
    return show(static_cast<double>(done), static_cast<double>(matrices), "matrices");
  };
  NIBBLE_ASSIGN_OR_RETURN(made.report, WriteQuantizedFolder(source, options.model, options.output,
                                                            made.scheme, folder, options.dry_run));
  const std::vector<std::string> unusual = CalibrationNotices(made.report.reports);
  made.notices.insert(made.notices.end(), unusual.begin(), unusual.end());
  return made;
}

}  // namespace

int MakeFolder(const MakeModelOptions& options) {
  const Result<Made> made = Make(options);
  if (!made.ok()) return Fail(made.status());
  const QuantizedFolderReport& report = made->report;
  if (!options.common.quiet) {
    for (const std::string& notice : made->notices) fmt::print(stderr, "note: {}\n", notice);
  }
  if (options.common.json) {
    nlohmann::ordered_json document = {{"output", options.output},
                                       {"dry_run", options.dry_run},
                                       {"scheme", SchemeName(made->scheme)},
                                       {"layout", GetHfLayoutInfo(made->layout).name},
                                       {"method", GetMethodInfo(options.method).name},
                                       {"preparations", options.preparations},
                                       {"bytes", report.bytes},
                                       {"matrices", report.matrices},
                                       {"notices", made->notices}};
    if (!report.reports.empty()) document["relative_error"] = MeanError(report);
    fmt::print("{}\n", document.dump(2));
  } else if (!options.common.quiet) {
    fmt::print("{}: {} {} of weights, {} matrices in {}, laid out as {}", options.output,
               options.dry_run ? "would be" : "is", Size(report.bytes), report.matrices,
               SchemeName(made->scheme), GetHfLayoutInfo(made->layout).name);
    if (!report.reports.empty()) {
      fmt::print(", mean relative error of their outputs {:.4g}", MeanError(report));
    }
    fmt::print("\n");
  }
  return kSuccess;
}

}  // namespace nibble::tools
