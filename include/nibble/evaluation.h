// Whether quantized models are good enough: everything measured of them beside their reference, and
// a verdict.
#ifndef NIBBLE_EVALUATION_H_
#define NIBBLE_EVALUATION_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/evaluate.h"
#include "nibble/speed.h"
#include "nibble/status.h"
#include "nibble/tasks.h"
#include "nibble/tensor_error.h"

namespace nibble {

// What a model may lose against its reference.
struct Thresholds {
  double perplexity_increase = 1.0;  // perplexity minus the reference's
  double perplexity_share = 0;       // that as a share of the reference's; 0: not judged
  double task_drop = 0.05;           // of each task's accuracy, which lies in [0, 1]
};

// One thing that was judged.
struct Criterion {
  enum class Kind : uint8_t { kPerplexityIncrease, kPerplexityShare, kTaskDrop };
  Kind kind = Kind::kPerplexityIncrease;
  std::string task;  // of kTaskDrop
  Estimate value;
  double limit = 0;
  bool passed() const { return value.value <= limit; }
};

struct TensorComparison {
  std::string name;
  Format format = Format::kF32;
  ErrorSums error;
};

struct ModelEvaluation {
  std::string path;
  uint64_t file_bytes = 0;
  uint64_t weights = 0;
  double bits_per_weight = 0;   // of the tensors' bytes, without metadata
  PerplexityResult perplexity;  // where there was a text; with a divergence except the reference's
  std::vector<TaskResult> tasks;
  std::vector<Estimate> task_drops;       // of each task, against the reference
  std::vector<TensorComparison> tensors;  // matrices; empty for the reference
  SpeedResult speed;                      // where it was timed
  uint64_t peak_memory_bytes = 0;         // of the process while it was timed; 0: not known
  std::vector<Criterion> criteria;        // empty for the reference

  bool passed() const;  // all criteria
};

struct Evaluation {
  ModelEvaluation reference;
  std::vector<ModelEvaluation> models;
  bool has_text = false;
  bool has_speed = false;
  int64_t context = 0;  // tokens of a window of the text
};

struct EvaluateProgress {
  double fraction = 0;  // of all the work, as foreseen
  std::string_view step;
  std::string_view model;  // a path; empty where all models are at work
};

struct EvaluateOptions {
  std::string text;         // for perplexity; empty: none
  std::vector<Task> tasks;  // may be empty
  bool measure_speed = true;
  bool compare_tensors = true;
  PerplexityOptions perplexity;  // context 0: 512, or the models' context where that is smaller
  SpeedOptions speed;
  Thresholds thresholds;
  RunnerOptions runner;  // these two take the place of those in the options above
  KvCacheOptions cache;
  std::function<bool(const EvaluateProgress&)> progress;  // false stops (kCancelled)
};

// Each model is timed alone; then all run side by side over the text, and do the tasks one by one.
// Errors name the model. A model whose vocabulary is not the reference's is refused.
Result<Evaluation> Evaluate(const std::string& reference, std::span<const std::string> models,
                            const EvaluateOptions& options);

// What there is to judge of a model against its reference.
std::vector<Criterion> Judge(const ModelEvaluation& model, const ModelEvaluation& reference,
                             const Thresholds& thresholds);

// Fails, with the first token that differs, where two models number other tokens.
Status CheckSameVocabulary(const Tokenizer& reference, const Tokenizer& other);

}  // namespace nibble

#endif  // NIBBLE_EVALUATION_H_
