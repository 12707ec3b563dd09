#include "lib/model/run_text.h"

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace nibble {

Status CheckText(const Model& model, const CalibrationText& text) {
  if (text.context < 1 || text.context > model.config().context || text.windows() == 0) {
    return InvalidArgument("calibration needs a window of 1 to " +
                           std::to_string(model.config().context) + " tokens, not " +
                           std::to_string(text.context));
  }
  for (const int32_t token : text.tokens) {
    if (token < 0 || token >= model.config().vocab_size) {
      return InvalidArgument("token " + std::to_string(token) + " is not one of " +
                             std::to_string(model.config().vocab_size));
    }
  }
  return OkStatus();
}

Status ForEachBatch(const CalibrationText& text, int64_t batch_tokens,
                    const std::function<Status(WindowBatch)>& function) {
  const int64_t step = std::max<int64_t>(1, batch_tokens / text.context);
  for (int64_t first = 0; first < text.windows(); first += step) {
    NIBBLE_RETURN_IF_ERROR(function({first, std::min(step, text.windows() - first)}));
  }
  return OkStatus();
}

Status RunText(const Model& model, const CalibrationText& text, int64_t batch_tokens,
               const ParallelFor& parallel, const LayerObserver& observer,
               const std::function<Status(WindowBatch, TensorView hidden)>& visit) {
  RunnerOptions run;
  run.precision = Precision::kF32;
  run.parallel = parallel;
  run.observer = observer;
  Runner runner(model, run);
  NIBBLE_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(model.config()));
  std::vector<float> hidden;
  return ForEachBatch(text, batch_tokens, [&](WindowBatch batch) -> Status {
    std::vector<SequenceInput> inputs;
    for (int64_t w = batch.first; w < batch.first + batch.windows; ++w) {
      inputs.push_back(
          {cache.AddSequence(),
           std::span(text.tokens)
               .subspan(static_cast<size_t>(w * text.context), static_cast<size_t>(text.context)),
           true});
    }
    NIBBLE_RETURN_IF_ERROR(runner.Forward(cache, inputs, &hidden));
    for (const SequenceInput& input : inputs) NIBBLE_RETURN_IF_ERROR(cache.Remove(input.sequence));
    return visit(batch, ViewOf(std::as_const(hidden).data(), batch.windows * text.context,
                               model.config().width));
  });
}

}  // namespace nibble
