// Quantizes whole models, tensor by tensor, from any source to GGUF. Memory is bounded by the
// largest tensor. Plan, look at what will happen, then run.
#ifndef NIBBLE_QUANTIZE_MODEL_H_
#define NIBBLE_QUANTIZE_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/calibration.h"
#include "nibble/gguf.h"
#include "nibble/hessian_file.h"
#include "nibble/method.h"
#include "nibble/mix.h"
#include "nibble/model_source.h"
#include "nibble/parallel.h"
#include "nibble/quantize.h"
#include "nibble/quantized_tensor.h"
#include "nibble/status.h"

namespace nibble {

// What decides the bytes of the result, beside the source and nibble's version.
struct ModelRecipe {
  // A name for ParseType, or kCopyType.
  std::string type = "Q4_K_M";
  bool pure = false;                         // of a mix only its base format
  std::vector<TensorTypeRule> tensor_types;  // exceptions; the first that matches decides
  const ImportanceMatrix* importance = nullptr;
  // A calibrated method makes tensors beforehand (ModelRunOptions::ready) and leaves a note.
  Method method = Method::kRtn;
  CalibrationNote calibration;
  NonFinite non_finite = NonFinite::kError;
};

// As a recipe's type: every tensor keeps the format it has.
inline constexpr const char* kCopyType = "copy";

// What is refused unless asked for.
struct ModelPermissions {
  bool requantize = false;          // from a block format to another
  bool fallback = true;             // a row length that does not fit the format chosen
  bool missing_importance = false;  // matrices that the importance matrix lacks
};

struct TensorTask {
  const ModelTensor* source = nullptr;
  FormatChoice choice;
  uint64_t bytes = 0;  // in the file
};

// All that can be known before the work.
struct ModelPlan {
  ModelRecipe recipe;
  GgufMetadata metadata;  // of the file, the recipe included; its two hashes are still blank
  std::vector<TensorTask> tensors;
  std::vector<std::string> notices;  // a line each: fallbacks, kept matrices, missing importance

  std::vector<GgufTensorInfo> Layout() const;  // the tensors of the file
  uint64_t weights() const;
};

// Refuses what would go wrong hours later: a rule that matches no tensor, importance of the wrong
// size, what `permissions` does not permit. Reads no weights. `source` must outlive the plan.
Result<ModelPlan> PlanModel(const ModelSource& source, const ModelRecipe& recipe,
                            const ModelPermissions& permissions = {});

// The exact size of the file or files that WriteModel makes.
Result<uint64_t> PlannedBytes(const ModelPlan& plan, const GgufWriteOptions& files = {});

// Refuses a target that is one of the source's files, by whatever name; that exists, unless
// `overwrite`; whose folder is missing or closed; or whose disk has less than `bytes` free.
Status CheckModelTarget(const ModelSource& source, const std::string& target, uint64_t bytes,
                        bool overwrite, uint64_t max_shard_bytes = 0);

struct ModelProgress {
  std::string_view tensor;  // being worked on
  size_t index = 0;         // of `count` tensors
  size_t count = 0;
  uint64_t weights_done = 0;
  uint64_t weights_total = 0;
};

struct ModelRunOptions {
  ParallelFor parallel;
  // Called between pieces of work, on the calling thread; false cancels.
  std::function<bool(const ModelProgress&)> progress;
  // Tensors quantized beforehand, by name (see calibrate.h): WriteModel takes them as they are.
  // They must have the formats and shapes of the plan. The recipe alone does not give such a file
  // again.
  const std::map<std::string, QuantizedTensor, std::less<>>* ready = nullptr;
};

struct ModelHashes {
  std::string source;   // of the source's tensors
  std::string content;  // of the file's tensors
};

// Makes the file. The target appears whole or not at all.
Result<ModelHashes> WriteModel(const ModelSource& source, const ModelPlan& plan,
                               const std::string& target, const GgufWriteOptions& files = {},
                               const ModelRunOptions& options = {});

// The same plan as safetensors: names as they are, shapes slowest first, no metadata of the
// model's. Both fail, before any work, where a tensor would be in a block format.
Result<uint64_t> PlannedSafetensorsBytes(const ModelPlan& plan, const std::string& target,
                                         uint64_t max_shard_bytes = 0);
Status WriteModelSafetensors(const ModelSource& source, const ModelPlan& plan,
                             const std::string& target, uint64_t max_shard_bytes = 0,
                             const ModelRunOptions& options = {});

// Checks every tensor of a file: that all weights are finite and, where the file tells a hash, that
// its bytes are those that were written. True: there was a hash.
Result<bool> VerifyModel(const GgufFile& file, const ModelRunOptions& options = {});

// The recipe in a file's metadata. `importance` stays null: `has_importance` tells that it needs
// one.
Result<ModelRecipe> ReadRecipe(const GgufMetadata& metadata, bool* has_importance);

// Makes `file` again from its source, by the recipe it tells and the same importance matrix, and
// compares metadata and every byte of every tensor.
Status RederiveModel(const GgufFile& file, const ModelSource& source,
                     const ImportanceMatrix* importance = nullptr,
                     const ModelRunOptions& options = {});

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_MODEL_H_
