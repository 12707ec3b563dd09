#include <string>
#include <utility>

#include "lib/model/run_text.h"
#include "lib/model/weights.h"
#include "nibble/calibrate.h"

namespace nibble {

Result<ImportanceMatrix> GatherStatistics(const Model& model, const CalibrationText& text,
                                          const std::string& dataset,
                                          const StatisticsOptions& options) {
  if (text.windows() == 0) return InvalidArgument("a calibration text without a window");
  ImportanceMatrix result;
  result.datasets = {dataset};
  result.chunks = text.windows();
  result.chunk_tokens = text.context;
  Status seen;
  const auto see = [&](std::string_view name, TensorView inputs) {
    if (!seen.ok()) return;
    LayerStatistics& layer =
        result.layers.try_emplace(std::string(name), inputs.cols, /*matrices=*/1).first->second;
    seen = layer.Add(inputs).WithContext(std::string(name));
  };
  NIBBLE_RETURN_IF_ERROR(RunText(
      model, text, options.batch_tokens, options.parallel, see,
      [&](WindowBatch batch, TensorView hidden) -> Status {
        if (options.output) see(model.weights().head.name, hidden);
        if (!seen.ok()) {
          return Status(seen).WithContext("windows from " + std::to_string(batch.first) + " on");
        }
        if (options.progress && !options.progress(batch.first + batch.windows, text.windows())) {
          return Cancelled("cancelled");
        }
        return OkStatus();
      }));
  return result;
}

}  // namespace nibble
