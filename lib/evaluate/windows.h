// Runs models over the windows of a text and hands out the logits of the tokens that count.
#ifndef NIBBLE_LIB_EVALUATE_WINDOWS_H_
#define NIBBLE_LIB_EVALUATE_WINDOWS_H_

#include <functional>
#include <span>
#include <vector>

#include "nibble/evaluate.h"

namespace nibble {

// Scored positions, some rows at a time. `targets[r]` is the token that row r should have
// predicted.
struct ScoredRows {
  std::span<const int32_t> targets;
  std::vector<std::span<const float>> logits;  // of each model: [rows, vocab]
  int64_t vocab = 0;
  int64_t first = 0;  // index of the first row among all scored rows
};

struct WindowPlan {
  int64_t windows = 0;
  int64_t stride = 0;        // tokens of the text in a window
  bool bos_before = false;   // a BOS is put before them
  bool bos_instead = false;  // a BOS replaces the first of them
  int64_t scored_per_window = 0;
  int64_t rows() const { return windows * scored_per_window; }
};

Result<WindowPlan> PlanWindows(const Model& model, std::span<const int32_t> tokens,
                               const PerplexityOptions& options);

// Calls `rows` for all scored positions in order and `batch_done(windows done)` after each batch.
Status RunWindows(std::span<const Model* const> models, std::span<const int32_t> tokens,
                  const PerplexityOptions& options, const WindowPlan& plan,
                  const std::function<Status(const ScoredRows&)>& rows,
                  const std::function<Status(int64_t)>& batch_done);

}  // namespace nibble

#endif  // NIBBLE_LIB_EVALUATE_WINDOWS_H_
