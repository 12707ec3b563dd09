#include <algorithm>
#include <string>

#include "lib/model/content_hash.h"
#include "nibble/calibrate.h"

namespace nibble {

CalibrationNote CalibrationText::Note(const std::string& name) const {
  ContentHash hash;
  hash.AddNumber(static_cast<uint64_t>(context));
  hash.Add(std::as_bytes(std::span(tokens)));
  return {name, hash.Hex(), context, windows()};
}

Result<CalibrationText> CutCalibrationText(const Model& model, std::string_view text,
                                           int64_t context, int64_t max_windows) {
  if (context < 1 || context > model.config().context) {
    return InvalidArgument("windows of " + std::to_string(context) +
                           " tokens: the model takes 1 to " +
                           std::to_string(model.config().context));
  }
  CalibrationText result;
  result.context = context;
  NIBBLE_ASSIGN_OR_RETURN(result.tokens, model.tokenizer().Encode(text));
  const int64_t count = static_cast<int64_t>(result.tokens.size());
  int64_t windows = count / context;
  if (windows == 0) {
    return InvalidArgument("the calibration text has " + std::to_string(count) +
                           " tokens, fewer than a window of " + std::to_string(context));
  }
  if (max_windows > 0) windows = std::min(windows, max_windows);
  result.tokens.resize(static_cast<size_t>(windows * context));
  if (model.tokenizer().adds_bos()) {
    for (size_t i = 0; i < result.tokens.size(); i += static_cast<size_t>(context)) {
      result.tokens[i] = model.tokenizer().bos();
    }
  }
  return result;
}

}  // namespace nibble
