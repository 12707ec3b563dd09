// One tensor of a plan, from the source's bytes to the file's, a piece at a time.
#ifndef NIBBLE_LIB_MODEL_PRODUCE_TENSOR_H_
#define NIBBLE_LIB_MODEL_PRODUCE_TENSOR_H_

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "lib/model/content_hash.h"
#include "nibble/format.h"
#include "nibble/quantize_model.h"

namespace nibble {

// Metadata keys under which a file tells how it was made.
namespace recipe_key {
inline constexpr const char* kPrefix = "nibble.";
inline constexpr const char* kVersion = "nibble.version";
inline constexpr const char* kType = "nibble.type";
inline constexpr const char* kPure = "nibble.pure";
inline constexpr const char* kTensorTypes = "nibble.tensor_types";
inline constexpr const char* kClamp = "nibble.clamp";
inline constexpr const char* kImportanceHash = "nibble.importance_hash";
inline constexpr const char* kMethod = "nibble.method";  // of those that are calibrated
inline constexpr const char* kCalibrationText = "nibble.calibration.text";
inline constexpr const char* kCalibrationHash = "nibble.calibration.hash";
inline constexpr const char* kCalibrationContext = "nibble.calibration.context";
inline constexpr const char* kCalibrationWindows = "nibble.calibration.windows";
inline constexpr const char* kReadyTensors = "nibble.ready_tensors";
inline constexpr const char* kSourceHash = "nibble.source_hash";
inline constexpr const char* kContentHash = "nibble.content_hash";
}  // namespace recipe_key

// The element type of a scalar format of floats.
std::optional<DType> ScalarType(Format format);

// A matrix's rows of a piece of work: about `kPieceWeights` weights, at least one row.
int64_t RowsPerPiece(int64_t cols);

std::string HashOf(const ImportanceMatrix& importance);

// Counts work and asks the caller's callback whether to go on.
class ProgressMeter {
 public:
  ProgressMeter(const ModelRunOptions& options, size_t count, uint64_t weights);

  Status Begin(std::string_view tensor);
  Status Advance(uint64_t weights);

 private:
  Status Report() const;

  const ModelRunOptions& options_;
  ModelProgress progress_;
  bool begun_ = false;
};

// Hands the tensor's bytes to `sink` in order, whole rows at a time, and the source's to
// `source_hash`.
Status ProduceTensor(const ModelSource& source, const TensorTask& tensor, const ModelRecipe& recipe,
                     const ParallelFor& parallel, ContentHash& source_hash, ProgressMeter& meter,
                     const std::function<Status(std::span<const std::byte>)>& sink);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_PRODUCE_TENSOR_H_
