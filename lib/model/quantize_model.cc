#include "nibble/quantize_model.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <set>
#include <tuple>

#include "lib/io/output_file.h"
#include "lib/io/shards.h"
#include "lib/model/content_hash.h"
#include "lib/model/produce_tensor.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

std::string Percent(uint64_t part, uint64_t whole) {
  char text[16];
  std::snprintf(text, sizeof(text), "%.1f%%", whole == 0 ? 0 : 100.0 * part / whole);
  return text;
}

std::string Plural(size_t n, const char* one, const char* many) {
  return std::to_string(n) + " " + (n == 1 ? one : many);
}

uint64_t Weights(const GgufTensorInfo& tensor) {
  return static_cast<uint64_t>(tensor.rows()) * static_cast<uint64_t>(tensor.cols());
}

// "a, b, c and 7 more"
std::string List(const std::vector<std::string>& names) {
  constexpr size_t kShown = 3;
  std::string text;
  for (size_t i = 0; i < std::min(kShown, names.size()); ++i) {
    text += (i == 0 ? "" : ", ") + names[i];
  }
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

bool IsBlockFormat(Format format) {
  const FormatUse use = GetFormatInfo(format).use;
  return use == FormatUse::kWeight || use == FormatUse::kDecodeOnly;
}

// --- What each tensor gets. ---

Status CheckRules(const ModelRecipe& recipe, const std::vector<TensorTask>& tensors) {
  std::set<int> used;
  for (const TensorTask& tensor : tensors) used.insert(tensor.choice.rule);
  for (size_t i = 0; i < recipe.tensor_types.size(); ++i) {
    if (used.contains(static_cast<int>(i))) continue;
    return InvalidArgument("the tensor type '" + recipe.tensor_types[i].pattern + "=" +
                           GetFormatInfo(recipe.tensor_types[i].format).name +
                           "' decides for no tensor: no matrix that can be quantized matches, or "
                           "earlier patterns match them all");
  }
  return OkStatus();
}

Status CheckRequantize(const std::vector<TensorTask>& tensors) {
  std::vector<std::string> names;
  for (const TensorTask& tensor : tensors) {
    const ModelTensor& in = *tensor.source;
    if (IsBlockFormat(in.format) && tensor.choice.format != in.format) {
      names.push_back(in.name + " (" + GetFormatInfo(in.format).name + ")");
    } else if (in.was_quantized && IsBlockFormat(tensor.choice.format)) {
      names.push_back(in.name);
    }
  }
  if (names.empty()) return OkStatus();
  return InvalidArgument(Plural(names.size(), "tensor is", "tensors are") +
                         " quantized already, and quantizing again loses more than from the "
                         "original: " +
                         List(names));
}

// One line for each pair of formats, with the share of the model that it concerns.
std::vector<std::string> DescribeFallbacks(const ModelPlan& plan) {
  struct Group {
    size_t tensors = 0;
    uint64_t weights = 0;
    std::set<int64_t> cols;
  };
  std::map<std::pair<Format, Format>, Group> groups;
  for (const TensorTask& tensor : plan.tensors) {
    if (!tensor.choice.fell_back()) continue;
    Group& group = groups[{tensor.choice.wanted, tensor.choice.format}];
    ++group.tensors;
    group.weights += Weights(*tensor.source);
    group.cols.insert(tensor.source->cols());
  }
  std::vector<std::string> lines;
  for (const auto& [formats, group] : groups) {
    const FormatInfo& wanted = GetFormatInfo(formats.first);
    lines.push_back(
        Plural(group.tensors, "tensor", "tensors") + " (" + Percent(group.weights, plan.weights()) +
        " of the weights) " + (group.tensors == 1 ? "gets " : "get ") +
        GetFormatInfo(formats.second).name + " instead of " + wanted.name + ": rows of " +
        std::to_string(*group.cols.begin()) + (group.cols.size() > 1 ? " and other lengths" : "") +
        " are no multiple of its blocks of " + std::to_string(wanted.block_weights));
  }
  return lines;
}

// Checks that the importance matrix fits the tensors; returns notices.
Result<std::vector<std::string>> CheckImportance(const ModelPlan& plan, bool allow_missing) {
  std::vector<std::string> missing, unmeasured, notices;
  size_t found = 0;
  for (const TensorTask& tensor : plan.tensors) {
    const ModelTensor& in = *tensor.source;
    const LayerStatistics* layer = plan.recipe.importance->Find(in.name);
    if (layer != nullptr) ++found;
    if (!IsBlockFormat(tensor.choice.format) || tensor.choice.format == in.format) continue;
    if (layer == nullptr) {
      // Embeddings are looked up, not multiplied with; the output's inputs are seldom measured.
      const bool usual = in.name == "token_embd.weight" || in.name == "output.weight";
      (usual ? unmeasured : missing).push_back(in.name);
      continue;
    }
    const int64_t matrices = in.dims.size() > 1 ? in.rows() / std::max<int64_t>(1, in.dims[1]) : 1;
    const int64_t expected = matrices * in.cols();
    if (static_cast<int64_t>(layer->sum_squares.size()) != expected ||
        (layer->matrices() != 1 && layer->matrices() != matrices)) {
      return InvalidArgument("the importance matrix has " +
                             std::to_string(layer->sum_squares.size()) + " values for " + in.name +
                             ", whose inputs are " + std::to_string(expected));
    }
    const auto unseen = static_cast<size_t>(std::ranges::count(layer->counts, 0));
    if (unseen > 0) {
      notices.push_back(in.name + ": " + std::to_string(unseen) + " of " +
                        Plural(layer->counts.size(), "matrix", "matrices") +
                        " saw no calibration token: their errors count alike");
    }
  }
  if (!missing.empty()) {
    const std::string line = "the importance matrix lacks " +
                             Plural(missing.size(), "matrix", "matrices") + ": " + List(missing);
    if (!allow_missing) return InvalidArgument(line);
    notices.push_back(line);
  }
  if (!unmeasured.empty()) {
    notices.push_back("without importance, as usual for them: " + List(unmeasured));
  }
  if (found < plan.recipe.importance->layers.size()) {
    notices.push_back(std::to_string(plan.recipe.importance->layers.size() - found) +
                      " entries of the importance matrix match no tensor");
  }
  return notices;
}

void NoteKeptMatrices(ModelPlan& plan) {
  std::vector<std::string> names;
  for (const TensorTask& tensor : plan.tensors) {
    const ModelTensor& in = *tensor.source;
    if (!tensor.choice.quantizable && in.dims.size() > 1 && in.rows() > 1 && in.cols() > 1 &&
        GetFormatInfo(in.format).can_decode()) {
      names.push_back(in.name);
    }
  }
  if (names.empty()) return;
  plan.notices.push_back(Plural(names.size(), "matrix is", "matrices are") +
                         " not quantized: " + List(names));
}

// --- Metadata. ---

// general.file_type of a file whose tensors keep their formats: the plainest mix of the format that
// holds most weights.
uint32_t FileTypeOf(const std::vector<TensorTask>& tensors) {
  std::map<Format, uint64_t> weights;
  for (const TensorTask& tensor : tensors) {
    if (tensor.choice.quantizable) weights[tensor.choice.format] += Weights(*tensor.source);
  }
  const auto most = std::ranges::max_element(
      weights, [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most == weights.end()) return 0;
  const Result<TypeChoice> type = ParseType(GetFormatInfo(most->first).name, /*pure=*/true);
  return type.ok() ? type->file_type : 0;
}

void SetMetadata(ModelPlan& plan, const ModelSource& source, const TypeChoice& type, bool copy) {
  std::vector<std::string> stale;  // of an earlier recipe, or of files that are no more
  plan.metadata = source.metadata();
  for (const auto& [key, value] : plan.metadata.entries()) {
    if (key.starts_with(recipe_key::kPrefix) || key.starts_with("split.") ||
        key == "general.alignment") {
      stale.push_back(key);
    }
  }
  for (const std::string& key : stale) plan.metadata.Erase(key);

  GgufMetadata& m = plan.metadata;
  const ModelRecipe& recipe = plan.recipe;
  if (!copy || m.Find("general.file_type") == nullptr) {
    m.Set("general.file_type", copy ? FileTypeOf(plan.tensors) : type.file_type);
  }
  m.Set("general.quantization_version", uint32_t{2});
  if (recipe.importance != nullptr) {  // the keys of llama-quantize
    const auto& texts = recipe.importance->datasets;
    if (!texts.empty()) m.Set("quantize.imatrix.dataset", texts.back());
    m.Set("quantize.imatrix.entries_count",
          static_cast<uint32_t>(recipe.importance->layers.size()));
    m.Set("quantize.imatrix.chunks_count", static_cast<uint32_t>(recipe.importance->chunks));
  }
  m.Set(recipe_key::kVersion, std::string(NIBBLE_VERSION));
  m.Set(recipe_key::kType, recipe.type);
  if (recipe.pure) m.Set(recipe_key::kPure, true);
  if (!recipe.tensor_types.empty()) {
    std::vector<std::string> rules;
    for (const TensorTypeRule& rule : recipe.tensor_types) {
      rules.push_back(rule.pattern + "=" + GetFormatInfo(rule.format).name);
    }
    m.Set(recipe_key::kTensorTypes, rules);
  }
  if (recipe.non_finite == NonFinite::kClamp) m.Set(recipe_key::kClamp, true);
  if (recipe.importance != nullptr) {
    m.Set(recipe_key::kImportanceHash, HashOf(*recipe.importance));
  }
  if (const MethodInfo& method = GetMethodInfo(recipe.method); method.calibrated) {
    m.Set(recipe_key::kMethod, std::string(method.name));
    m.Set(recipe_key::kCalibrationText, recipe.calibration.text);
    m.Set(recipe_key::kCalibrationHash, recipe.calibration.hash);
    m.Set(recipe_key::kCalibrationContext, static_cast<uint32_t>(recipe.calibration.context));
    m.Set(recipe_key::kCalibrationWindows, static_cast<uint32_t>(recipe.calibration.windows));
    m.Set(recipe_key::kReadyTensors, uint32_t{0});  // known after the work; its place is not
  }
  m.Set(recipe_key::kSourceHash, std::string(kBlankHash));
  m.Set(recipe_key::kContentHash, std::string(kBlankHash));
}

// --- Targets. ---

bool IsSameFile(const std::string& a, const std::string& b) {
  std::error_code error;
  return fs::equivalent(a, b, error) && !error;
}

// The files that writing `target` replaces, as far as they exist.
std::vector<std::string> ExistingTargets(const std::string& target, bool sharded) {
  std::error_code error;
  std::vector<std::string> found;
  if (!sharded) {
    if (fs::exists(fs::symlink_status(target, error))) found.push_back(target);
    return found;
  }
  const char* extension = target.ends_with(".safetensors") ? ".safetensors" : ".gguf";
  const std::string stem(WithoutExtension(target, extension));
  fs::path folder = fs::path(target).parent_path();
  if (folder.empty()) folder = ".";
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const auto shard = ParseShardName(it->path().filename().string(), extension);
    if (shard && shard->stem == fs::path(stem).filename()) found.push_back(it->path().string());
  }
  return found;
}

// --- Tensors made beforehand. ---

using ReadyTensors = std::map<std::string, QuantizedTensor, std::less<>>;

Status CheckReady(const ModelPlan& plan, const ReadyTensors& ready) {
  size_t used = 0;
  for (const TensorTask& task : plan.tensors) {
    const auto it = ready.find(task.source->name);
    if (it == ready.end()) continue;
    ++used;
    const QuantizedTensor& tensor = it->second;
    if (!tensor.is_block_format() || tensor.format() != task.choice.format ||
        tensor.rows() != task.source->rows() || tensor.cols() != task.source->cols()) {
      return InvalidArgument("the ready tensor " + it->first + " is not as planned");
    }
  }
  return used == ready.size() ? OkStatus()
                              : InvalidArgument("a ready tensor is none of the model's");
}

// As ProduceTensor.
Status PassReady(const ModelSource& source, const ModelTensor& in, const QuantizedTensor& tensor,
                 ContentHash& source_hash, ProgressMeter& meter,
                 const std::function<Status(std::span<const std::byte>)>& sink) {
  NIBBLE_RETURN_IF_ERROR(meter.Begin(in.name));
  NIBBLE_ASSIGN_OR_RETURN(const Buffer data, source.Read(in));
  source_hash.BeginTensor(in);
  source_hash.Add(data.bytes());
  NIBBLE_RETURN_IF_ERROR(sink(tensor.plane(Plane::kCodes).bytes()));
  source.Release(in);
  return meter.Advance(Weights(in));
}

}  // namespace

std::vector<GgufTensorInfo> ModelPlan::Layout() const {
  std::vector<GgufTensorInfo> layout;
  for (const TensorTask& tensor : tensors) {
    layout.push_back(*tensor.source);
    layout.back().format = tensor.choice.format;
  }
  return layout;
}

uint64_t ModelPlan::weights() const {
  uint64_t total = 0;
  for (const TensorTask& tensor : tensors) total += Weights(*tensor.source);
  return total;
}

Result<ModelPlan> PlanModel(const ModelSource& source, const ModelRecipe& recipe,
                            const ModelPermissions& permissions) {
  const bool copy = recipe.type == kCopyType;
  TypeChoice type;
  ModelPlan plan;
  plan.recipe = recipe;
  plan.notices.assign(source.notices().begin(), source.notices().end());
  if (!copy) {
    NIBBLE_ASSIGN_OR_RETURN(type, ParseType(recipe.type, recipe.pure));
    // The name in one spelling, and "pure" only where it makes a difference.
    plan.recipe.type = type.mix != nullptr ? type.mix->name : GetFormatInfo(type.format).name;
    plan.recipe.pure = type.mix == nullptr && ParseType(plan.recipe.type)->mix != nullptr;
  }
  const std::vector<GgufTensorInfo> infos(source.tensors().begin(), source.tensors().end());
  if (infos.empty()) return InvalidArgument("the model has no tensors");
  const bool weighed = recipe.importance != nullptr || GetMethodInfo(recipe.method).calibrated;
  NIBBLE_ASSIGN_OR_RETURN(
      const std::vector<FormatChoice> choices,
      ChooseFormats(source.metadata(), infos, type, recipe.tensor_types, weighed));
  for (size_t i = 0; i < infos.size(); ++i) {
    TensorTask tensor{&source.tensors()[i], choices[i], 0};
    FormatChoice& choice = tensor.choice;
    if (copy && choice.rule < 0) choice.format = choice.wanted = infos[i].format;
    // GGUF holds norms, biases and the like in f32 when they come from elsewhere.
    if (!choice.quantizable && source.container() == Container::kSafetensors &&
        ScalarType(infos[i].format)) {
      choice.format = choice.wanted = Format::kF32;
    }
    NIBBLE_ASSIGN_OR_RETURN(tensor.bytes,
                            FormatBytes(choice.format, infos[i].rows(), infos[i].cols()));
    plan.tensors.push_back(tensor);
  }
  NIBBLE_RETURN_IF_ERROR(CheckRules(recipe, plan.tensors));
  if (!permissions.requantize) NIBBLE_RETURN_IF_ERROR(CheckRequantize(plan.tensors));
  for (const std::string& line : DescribeFallbacks(plan)) {
    if (!permissions.fallback) return InvalidArgument(line);
    plan.notices.push_back(line);
  }
  if (recipe.importance != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> lines,
                            CheckImportance(plan, permissions.missing_importance));
    plan.notices.insert(plan.notices.end(), lines.begin(), lines.end());
  }
  if (!copy) NoteKeptMatrices(plan);
  SetMetadata(plan, source, type, copy);
  return plan;
}

Result<uint64_t> PlannedBytes(const ModelPlan& plan, const GgufWriteOptions& files) {
  return GgufWriter::TotalBytes(plan.metadata, plan.Layout(), files);
}

Status CheckModelTarget(const ModelSource& source, const std::string& target, uint64_t bytes,
                        bool overwrite, uint64_t max_shard_bytes) {
  const std::vector<std::string> existing = ExistingTargets(target, max_shard_bytes > 0);
  for (const std::string& input : source.paths()) {
    for (const std::string& output : existing) {
      if (IsSameFile(input, output)) {
        return InvalidArgument(target + ": is the input itself");
      }
    }
  }
  NIBBLE_RETURN_IF_ERROR(CheckOutputPath(target));
  if (!existing.empty() && !overwrite) {
    return InvalidArgument(existing.front() + ": exists already");
  }
  return CheckFreeSpace(target, bytes);
}

Result<ModelHashes> WriteModel(const ModelSource& source, const ModelPlan& plan,
                               const std::string& target, const GgufWriteOptions& files,
                               const ModelRunOptions& options) {
  const std::vector<GgufTensorInfo> layout = plan.Layout();
  static const ReadyTensors kNone;
  const ReadyTensors& ready = options.ready != nullptr ? *options.ready : kNone;
  NIBBLE_RETURN_IF_ERROR(CheckReady(plan, ready));
  GgufMetadata metadata = plan.metadata;
  if (!ready.empty()) {
    metadata.Set(recipe_key::kReadyTensors, static_cast<uint32_t>(ready.size()));
  }
  NIBBLE_ASSIGN_OR_RETURN(GgufWriter writer, GgufWriter::Create(target, metadata, layout, files));
  ContentHash source_hash, content_hash;
  ProgressMeter meter(options, plan.tensors.size(), plan.weights());
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    content_hash.BeginTensor(layout[i]);
    const auto sink = [&](std::span<const std::byte> bytes) -> Status {
      content_hash.Add(bytes);
      return writer.Append(bytes);
    };
    const ModelTensor& in = *plan.tensors[i].source;
    const auto made = ready.find(in.name);
    NIBBLE_RETURN_IF_ERROR(made != ready.end()
                               ? PassReady(source, in, made->second, source_hash, meter, sink)
                               : ProduceTensor(source, plan.tensors[i], plan.recipe,
                                               options.parallel, source_hash, meter, sink));
  }
  const ModelHashes hashes = {source_hash.Hex(), content_hash.Hex()};
  NIBBLE_RETURN_IF_ERROR(writer.Amend(recipe_key::kSourceHash, hashes.source));
  NIBBLE_RETURN_IF_ERROR(writer.Amend(recipe_key::kContentHash, hashes.content));
  NIBBLE_RETURN_IF_ERROR(writer.Finish());
  return hashes;
}

}  // namespace nibble
