// calibrate --hessians: gathers, merges and saves them, one at a time.
#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "fmt/core.h"
#include "nibble/hessian_file.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/calibrate.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

// What the new file will hold: the model's inputs in the order of its run, then what only files
// know.
Result<std::vector<SharedInputs>> Everything(const Calibration* calibration,
                                             std::span<const HessianFile> files) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<SharedInputs> merged, MergedInputs(files));
  if (calibration == nullptr) return merged;
  std::vector<SharedInputs> all = InputsOf(calibration->model);
  for (const SharedInputs& inputs : merged) {
    const auto same = std::ranges::find(all, inputs.matrices, &SharedInputs::matrices);
    if (same == all.end()) {
      all.push_back(inputs);
    } else if (same->cols != inputs.cols) {
      return InvalidArgument(fmt::format("{}: {} inputs in the files to merge, {} in the model",
                                         inputs.matrices.front(), inputs.cols, same->cols));
    }
  }
  return all;
}

Status Gather(const CalibrateCommand& options, const Calibration& calibration,
              std::span<const HessianFile> files, HessianWriter& writer) {
  ThreadPool pool(options.common.threads);
  ProgressDisplay display(options.common.quiet);
  StatisticsOptions run;
  run.activations = ActivationsBeside(options.output, options.calibration);
  run.parallel = pool.parallel_for();
  std::string seen;
  run.progress = [&](int64_t done, int64_t batches) {
    display.Update(static_cast<double>(done) / static_cast<double>(batches), "", seen);
    return true;
  };
  return VisitHessians(calibration.model, calibration.text, run,
                       [&](const SharedInputs& inputs, const Hessian& hessian) -> Status {
                         seen = inputs.matrices.front();
                         NIBBLE_ASSIGN_OR_RETURN(Hessian sum, MergedHessian(files, inputs));
                         NIBBLE_RETURN_IF_ERROR(sum.Merge(hessian));
                         return writer.Append(sum);
                       });
}

Status Write(const CalibrateCommand& options, const Calibration* calibration,
             std::span<const HessianFile> files, const std::vector<SharedInputs>& inputs,
             std::span<const CalibrationNote> texts) {
  NIBBLE_ASSIGN_OR_RETURN(HessianWriter writer,
                          HessianWriter::Create(options.output, inputs, texts));
  size_t done = 0;
  if (calibration != nullptr) {
    NIBBLE_RETURN_IF_ERROR(Gather(options, *calibration, files, writer));
    done = InputsOf(calibration->model).size();
  }
  for (; done < inputs.size(); ++done) {
    NIBBLE_ASSIGN_OR_RETURN(const Hessian sum, MergedHessian(files, inputs[done]));
    NIBBLE_RETURN_IF_ERROR(writer.Append(sum));
  }
  return writer.Finish();
}

}  // namespace

int CalibrateHessians(const CalibrateCommand& options) {
  std::vector<HessianFile> files;
  std::vector<CalibrationNote> texts;
  for (const std::string& path : options.merge) {
    Result<HessianFile> file = HessianFile::Open(path);
    if (!file.ok()) return FailAtWork(file.status());
    texts.insert(texts.end(), file->texts().begin(), file->texts().end());
    files.push_back(*std::move(file));
  }
  std::optional<Calibration> calibration;
  if (!options.model.empty()) {
    Result<Calibration> loaded =
        LoadCalibration(options.model, options.calibration, /*most_windows=*/0);
    if (!loaded.ok()) return Fail(loaded.status());
    calibration = *std::move(loaded);
    texts.push_back(
        calibration->text.Note(std::filesystem::path(options.calibration.text).filename()));
  }
  const Calibration* run = calibration ? &*calibration : nullptr;
  const Result<std::vector<SharedInputs>> inputs = Everything(run, files);
  if (!inputs.ok()) return Fail(inputs.status());
  const Status written = Write(options, run, files, *inputs, texts);
  if (!written.ok()) return Fail(written);

  int64_t windows = 0;
  for (const CalibrationNote& text : texts) windows += text.windows;
  size_t matrices = 0;
  for (const SharedInputs& shared : *inputs) matrices += shared.matrices.size();
  if (options.common.json) {
    nlohmann::ordered_json document = {{"output", options.output}, {"windows", windows}};
    for (const CalibrationNote& text : texts) {
      document["texts"].push_back(
          {{"text", text.text}, {"context", text.context}, {"windows", text.windows}});
    }
    for (const SharedInputs& shared : *inputs) {
      document["inputs"].push_back({{"matrices", shared.matrices}, {"inputs", shared.cols}});
    }
    fmt::print("{}\n", document.dump(2));
  } else if (!options.common.quiet) {
    std::error_code error;
    fmt::print("{}: Hessians for {} matrices over {} windows, {}\n", options.output, matrices,
               windows, Size(std::filesystem::file_size(options.output, error)));
  }
  return kSuccess;
}

}  // namespace nibble::tools
