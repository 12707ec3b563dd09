#include <algorithm>
#include <cmath>
#include <cstring>

#include "lib/io/mapped_file.h"
#include "lib/model/content_hash.h"
#include "lib/model/produce_tensor.h"
#include "nibble/quantize_model.h"

namespace nibble {
namespace {

// An error for the first weight of a tensor that is not finite, named by its place in the file.
Status CheckFinite(const GgufTensor& tensor, const ParallelFor& parallel, ProgressMeter& meter) {
  const int64_t rows = tensor.rows(), cols = tensor.cols();
  if (rows == 0 || cols == 0) return OkStatus();
  const int64_t step = std::min(RowsPerPiece(cols), rows);
  const size_t row_bytes = tensor.data.size() / static_cast<size_t>(rows);
  const FormatInfo& info = GetFormatInfo(tensor.format);
  NIBBLE_ASSIGN_OR_RETURN(Tensor floats, Tensor::Allocate(DType::kF32, step, cols));
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t count = std::min(step, rows - first);
    const std::span<const std::byte> piece = tensor.data.subspan(
        static_cast<size_t>(first) * row_bytes, static_cast<size_t>(count) * row_bytes);
    MutableTensorView view = floats.mutable_view();
    view.rows = count;
    NIBBLE_RETURN_IF_ERROR(Dequantize(tensor.format, piece, view, parallel));
    const float* values = static_cast<const float*>(view.data);
    const float* end = values + count * cols;
    const float* bad = std::find_if(values, end, [](float x) { return !std::isfinite(x); });
    if (bad != end) {
      const int64_t index = bad - values;
      const int64_t row = first + index / cols, col = index % cols;
      const uint64_t block = static_cast<uint64_t>(col) / info.block_weights;
      return Corrupt(tensor.name + ": row " + std::to_string(row) + ", column " +
                     std::to_string(col) + ": not a finite weight (" + info.name +
                     " block at offset " +
                     std::to_string(tensor.file_offset + static_cast<uint64_t>(row) * row_bytes +
                                    block * info.block_bytes) +
                     ")");
    }
    NIBBLE_RETURN_IF_ERROR(meter.Advance(static_cast<uint64_t>(count * cols)));
  }
  return OkStatus();
}

uint64_t TotalWeights(std::span<const GgufTensor> tensors) {
  uint64_t total = 0;
  for (const GgufTensor& tensor : tensors) {
    total += static_cast<uint64_t>(tensor.rows()) * static_cast<uint64_t>(tensor.cols());
  }
  return total;
}

// Keys that tell how a file is laid out, not what is in it.
bool IsLayoutKey(const std::string& key) {
  return key.starts_with("split.") || key == "general.alignment";
}

bool IsHashKey(const std::string& key) {
  return key == recipe_key::kSourceHash || key == recipe_key::kContentHash;
}

Status CompareMetadata(const GgufMetadata& file, const GgufMetadata& made) {
  for (const auto& [key, value] : made.entries()) {
    const GgufValue* found = file.Find(key);
    if (found == nullptr) return Corrupt("the metadata lacks " + key);
    if (!IsHashKey(key) && *found != value) return Corrupt("the metadata differs in " + key);
  }
  for (const auto& [key, value] : file.entries()) {
    if (!IsLayoutKey(key) && made.Find(key) == nullptr) {
      return Corrupt("the metadata has " + key + ", which the source does not give");
    }
  }
  return OkStatus();
}

}  // namespace

Result<bool> VerifyModel(const GgufFile& file, const ModelRunOptions& options) {
  ContentHash hash;
  ProgressMeter meter(options, file.tensors().size(), TotalWeights(file.tensors()));
  for (const GgufTensor& tensor : file.tensors()) {
    NIBBLE_RETURN_IF_ERROR(meter.Begin(tensor.name));
    hash.BeginTensor(tensor);
    hash.Add(tensor.data);
    if (GetFormatInfo(tensor.format).can_decode()) {
      NIBBLE_RETURN_IF_ERROR(CheckFinite(tensor, options.parallel, meter));
    }
    DropPages(tensor.data);
  }
  const Result<std::string> told = file.metadata().GetString(recipe_key::kContentHash);
  if (!told.ok()) return false;
  if (*told != hash.Hex()) {
    return Corrupt("the tensors are not those that were written: their hash is " + hash.Hex() +
                   ", the file tells " + *told);
  }
  return true;
}

Result<ModelRecipe> ReadRecipe(const GgufMetadata& metadata, bool* has_importance) {
  ModelRecipe recipe;
  const Result<std::string> version = metadata.GetString(recipe_key::kVersion);
  const Result<std::string> type = metadata.GetString(recipe_key::kType);
  if (!version.ok() || !type.ok()) return NotFound("the file tells no recipe of nibble's");
  if (*version != NIBBLE_VERSION) {
    return Unsupported("made by version " + *version + " of nibble; this is " NIBBLE_VERSION);
  }
  if (const Result<std::string> method = metadata.GetString(recipe_key::kMethod); method.ok()) {
    const Result<std::string> text = metadata.GetString(recipe_key::kCalibrationText);
    return Unsupported("made by the method " + *method + " on the calibration text " +
                       (text.ok() ? *text : std::string("of its maker")) +
                       ", which the recipe cannot repeat");
  }
  if (metadata.Find(recipe_key::kReadyTensors) != nullptr) {
    return Unsupported("tensors were quantized outside the recipe, which cannot make them again");
  }
  recipe.type = *type;
  recipe.pure = metadata.GetBool(recipe_key::kPure).ok();
  if (metadata.GetBool(recipe_key::kClamp).ok()) recipe.non_finite = NonFinite::kClamp;
  if (const GgufValue* value = metadata.Find(recipe_key::kTensorTypes); value != nullptr) {
    const auto* rules = std::get_if<std::vector<std::string>>(value);
    if (rules == nullptr) return Corrupt("the recipe's tensor types are no list of names");
    for (const std::string& text : *rules) {
      NIBBLE_ASSIGN_OR_RETURN(TensorTypeRule rule, ParseTensorTypeRule(text));
      recipe.tensor_types.push_back(std::move(rule));
    }
  }
  *has_importance = metadata.Find(recipe_key::kImportanceHash) != nullptr;
  return recipe;
}

Status RederiveModel(const GgufFile& file, const ModelSource& source,
                     const ImportanceMatrix* importance, const ModelRunOptions& options) {
  bool has_importance = false;
  NIBBLE_ASSIGN_OR_RETURN(ModelRecipe recipe, ReadRecipe(file.metadata(), &has_importance));
  if (has_importance != (importance != nullptr)) {
    return InvalidArgument(has_importance ? "made with an importance matrix, which is needed again"
                                          : "made without an importance matrix");
  }
  recipe.importance = importance;
  const ModelPermissions all = {.requantize = true, .fallback = true, .missing_importance = true};
  NIBBLE_ASSIGN_OR_RETURN(const ModelPlan plan, PlanModel(source, recipe, all));
  NIBBLE_RETURN_IF_ERROR(CompareMetadata(file.metadata(), plan.metadata));
  if (plan.tensors.size() != file.tensors().size()) {
    return Corrupt(std::to_string(file.tensors().size()) + " tensors where the source gives " +
                   std::to_string(plan.tensors.size()));
  }

  ContentHash source_hash;
  ProgressMeter meter(options, plan.tensors.size(), plan.weights());
  Status difference;
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const TensorTask& made = plan.tensors[i];
    const GgufTensor& told = file.tensors()[i];
    const bool alike = told.name == made.source->name && told.dims == made.source->dims &&
                       told.format == made.choice.format;
    if (!alike && difference.ok()) {
      difference = Corrupt(told.name + ": another name, shape or format than " + made.source->name);
    }
    size_t position = 0;
    const auto sink = [&](std::span<const std::byte> bytes) -> Status {
      if (!difference.ok()) return OkStatus();
      const auto [a, b] = std::mismatch(bytes.begin(), bytes.end(), told.data.begin() + position);
      if (a != bytes.end()) {
        const auto offset = position + static_cast<size_t>(a - bytes.begin());
        difference = Corrupt(told.name + ": differs from byte " + std::to_string(offset) +
                             " on (offset " + std::to_string(told.file_offset + offset) + ")");
      }
      position += bytes.size();
      return OkStatus();
    };
    NIBBLE_RETURN_IF_ERROR(
        ProduceTensor(source, made, plan.recipe, options.parallel, source_hash, meter, sink));
    DropPages(told.data);
  }
  // Another source explains every difference.
  if (const auto told = file.metadata().GetString(recipe_key::kSourceHash);
      told.ok() && *told != source_hash.Hex()) {
    return InvalidArgument("made from another source: its tensors' hash is " + *told + ", not " +
                           source_hash.Hex());
  }
  return difference;
}

}  // namespace nibble
