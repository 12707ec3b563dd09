#include "nibble/model_source.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <new>
#include <optional>
#include <unordered_map>

#include "lib/io/mapped_file.h"
#include "lib/model/folder_tensors.h"
#include "lib/model/hf_architecture.h"
#include "lib/model/hf_layout.h"
#include "lib/model/hf_tokenizer.h"
#include "lib/model/json_file.h"
#include "lib/model/tensor_plan.h"
#include "nibble/quantize.h"

namespace nibble {

namespace {

namespace fs = std::filesystem;

// What has been done to the weights, a label each.
constexpr const char* kEditsKey = "edits.applied";

constexpr uint64_t kMaxConfigBytes = 16 << 20;

// Parameters as in "7.3M" or "1.2B": at least two digits.
std::string SizeLabel(double parameters) {
  constexpr std::pair<double, const char*> kScales[] = {
      {1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {0, "K"}};
  for (const auto& [from, suffix] : kScales) {
    if (parameters < from) continue;
    const double scaled = parameters / (from == 0 ? 1e3 : from);
    char text[32];
    std::snprintf(text, sizeof(text), std::lround(scaled) >= 10 ? "%.0f%s" : "%.1f%s", scaled,
                  suffix);
    return text;
  }
  return "";
}

// With experts: their number times what one of them and everything they share has.
std::string SizeLabel(const TensorPlan& plan, int64_t experts) {
  double shared = 0, stacked = 0;
  for (const ConvertedTensor& tensor : plan.tensors) {
    const double elements = static_cast<double>(tensor.rows()) * static_cast<double>(tensor.cols());
    (tensor.parts.size() > 1 ? stacked : shared) += elements;
  }
  if (experts == 0) return SizeLabel(shared + stacked);
  return std::to_string(experts) + "x" + SizeLabel(shared + stacked / static_cast<double>(experts));
}

// llama.cpp's number for what most weights of the matrices are stored as.
uint32_t FileType(const TensorPlan& plan) {
  std::map<Format, double> weights;
  for (const ConvertedTensor& tensor : plan.tensors) {
    if (tensor.dims.size() < 2) continue;
    weights[tensor.format] +=
        static_cast<double>(tensor.rows()) * static_cast<double>(tensor.cols());
  }
  const auto most = std::ranges::max_element(
      weights, [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most == weights.end()) return 0;
  return most->first == Format::kF16 ? 1 : most->first == Format::kBF16 ? 32 : 0;
}

// From what the files say alone: the same files in another folder are the same model.
std::string ModelName(const JsonObject& config) {
  const nlohmann::json* given = config.Find("_name_or_path");
  std::string name = given != nullptr && given->is_string() ? given->get<std::string>() : "";
  while (name.ends_with('/')) name.pop_back();
  name = name.substr(name.rfind('/') + 1);
  return name == "." || name == ".." ? "" : name;
}

void AddGeneral(const std::string& architecture, const std::string& name, const TensorPlan& plan,
                int64_t experts, GgufMetadata& metadata) {
  metadata.Set("general.architecture", architecture);
  metadata.Set("general.type", std::string("model"));
  if (!name.empty()) metadata.Set("general.name", name);
  metadata.Set("general.size_label", SizeLabel(plan, experts));
  metadata.Set("general.file_type", FileType(plan));
  metadata.Set("general.quantization_version", uint32_t{2});
}

// One message a kind of notice: the first of each, and how many more there are.
void Summarise(std::vector<std::string>& notices) {
  constexpr size_t kMost = 8;
  if (notices.size() <= kMost) return;
  const size_t more = notices.size() - kMost;
  notices.resize(kMost);
  notices.push_back("and " + std::to_string(more) + " more of this kind");
}

}  // namespace

struct ModelSource::Impl {
  Container container = Container::kGguf;
  std::optional<GgufFile> gguf;
  std::optional<SafetensorsFile> safetensors;
  FolderTensors folder;   // the tensors of it
  GgufMetadata metadata;  // of safetensors; a GGUF file has its own
  std::vector<ModelTensor> tensors;
  std::vector<ConvertedTensor> planned;                // of safetensors, beside `tensors`
  std::unordered_map<std::string_view, size_t> index;  // by name, into both
  std::vector<std::string> paths;
  std::vector<std::string> notices;
  // Of an edited source: what it stands on, and the tensor there that each of `tensors` is read
  // from.
  std::shared_ptr<const Impl> base;
  std::vector<std::string> origins;
  ModelEdits edits;

  static Result<std::shared_ptr<const Impl>> Open(const std::string& path);

  const GgufMetadata& Metadata() const;
  uint64_t FileBytes() const;
  Result<Buffer> Read(std::string_view name) const;
  Result<Buffer> ReadEdited(size_t i) const;
  Result<Tensor> ReadStored(std::string_view name) const;
  bool IsEdited(std::string_view name) const;
  void Release(std::string_view name) const;
  Status Edit(std::shared_ptr<const Impl> on, ModelEdits changes);

  void MakeIndex();
  Status OpenGguf(const std::string& path);
  Status OpenSafetensors(const std::string& path);
  Status OpenFolder(const std::string& path);
  Status KeepNames(const std::string& where, const std::string& architecture,
                   const std::string& name);
  void TakePlan(TensorPlan&& plan);
};

Status ModelSource::Impl::OpenGguf(const std::string& path) {
  container = Container::kGguf;
  NIBBLE_ASSIGN_OR_RETURN(gguf, GgufFile::Open(path));
  paths.assign(gguf->paths().begin(), gguf->paths().end());
  for (const GgufTensor& tensor : gguf->tensors()) tensors.push_back({tensor, tensor.name});
  return OkStatus();
}

Status ModelSource::Impl::OpenSafetensors(const std::string& path) {
  container = Container::kSafetensors;
  NIBBLE_ASSIGN_OR_RETURN(safetensors, SafetensorsFile::Open(path));
  paths.assign(safetensors->paths().begin(), safetensors->paths().end());
  NIBBLE_ASSIGN_OR_RETURN(folder, FolderTensors::Make(*safetensors, std::nullopt, path));
  return OkStatus();
}

Status ModelSource::Impl::KeepNames(const std::string& where, const std::string& architecture,
                                    const std::string& name) {
  NIBBLE_ASSIGN_OR_RETURN(TensorPlan plan, PlanByName(folder, where));
  AddGeneral(architecture, name, plan, 0, metadata);
  TakePlan(std::move(plan));
  return OkStatus();
}

Status ModelSource::Impl::OpenFolder(const std::string& path) {
  NIBBLE_RETURN_IF_ERROR(OpenSafetensors(path));
  const std::string config_path = (fs::path(path) / "config.json").string();
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject json,
                          JsonObject::LoadIfPresent(config_path, kMaxConfigBytes));
  const std::string name = ModelName(json);
  if (json.empty()) {
    notices.push_back(path + ": no config.json: tensors keep their names");
    return KeepNames(path, "unknown", name);
  }
  paths.push_back(config_path);
  NIBBLE_ASSIGN_OR_RETURN(const std::optional<HfQuantization> quantization,
                          ReadHfQuantization(json));
  if (quantization) {
    NIBBLE_ASSIGN_OR_RETURN(folder, FolderTensors::Make(*safetensors, quantization, path));
    notices.push_back(path + ": quantized already (" + GetHfLayoutInfo(quantization->layout).name +
                      "); decoded to f32");
  }
  const Architecture* architecture = FindArchitecture(json);
  if (architecture == nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string type, json.StringOr("model_type", "unknown"));
    notices.push_back(config_path + ": an architecture that is not known here (model_type \"" +
                      Printable(type) + "\"): tensors keep their names, and there is no tokenizer");
    return KeepNames(path, type, name);
  }
  NIBBLE_ASSIGN_OR_RETURN(const HfConfig config, ReadHfConfig(*architecture, json));
  NIBBLE_ASSIGN_OR_RETURN(TensorPlan plan, PlanArchitecture(config, folder, path));
  AddGeneral(architecture->name, name, plan, config.experts, metadata);
  TakePlan(std::move(plan));
  NIBBLE_RETURN_IF_ERROR(AddHyperparameters(config, json, metadata));
  return AddTokenizer(path, config, json, metadata, paths, notices);
}

void ModelSource::Impl::TakePlan(TensorPlan&& plan) {
  planned = std::move(plan.tensors);
  tensors.assign(planned.begin(), planned.end());  // the public part of each
  notices.insert(notices.end(), plan.notices.begin(), plan.notices.end());
}

Result<std::shared_ptr<const ModelSource::Impl>> ModelSource::Impl::Open(const std::string& path) {
  auto impl = std::make_shared<Impl>();
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return NotFound(path + ": no such file or folder");
  if (error) return IoError(path + ": " + error.message());
  if (fs::is_directory(status)) {
    NIBBLE_RETURN_IF_ERROR(impl->OpenFolder(path));
  } else if (path.ends_with(".safetensors") || path.ends_with(".safetensors.index.json")) {
    NIBBLE_RETURN_IF_ERROR(impl->OpenSafetensors(path));
    impl->notices.push_back(path +
                            ": opened without its folder's config.json: tensors keep their names");
    NIBBLE_RETURN_IF_ERROR(impl->KeepNames(path, "unknown", ""));
  } else {
    NIBBLE_RETURN_IF_ERROR(impl->OpenGguf(path));
  }
  Summarise(impl->notices);
  impl->MakeIndex();
  return std::shared_ptr<const Impl>(std::move(impl));
}

Result<ModelSource> ModelSource::Open(const std::string& path) {
  try {
    ModelSource source;
    NIBBLE_ASSIGN_OR_RETURN(source.impl_, Impl::Open(path));
    return source;
  } catch (const std::bad_alloc&) {
    return OutOfMemory(path + ": not enough memory to open it");
  } catch (const std::exception& e) {  // none is expected: libraries' own checks come first
    return InternalError(path + ": " + e.what());
  }
}

void ModelSource::Impl::MakeIndex() {
  for (size_t i = 0; i < tensors.size(); ++i) index.emplace(tensors[i].name, i);
}

Status ModelSource::Impl::Edit(std::shared_ptr<const Impl> on, ModelEdits changes) {
  base = std::move(on);
  edits = std::move(changes);
  container = base->container;
  metadata = base->Metadata();
  if (!edits.label.empty()) {
    std::vector<std::string> labels;
    const GgufValue* earlier = metadata.Find(kEditsKey);
    if (const auto* list =
            earlier == nullptr ? nullptr : std::get_if<std::vector<std::string>>(earlier)) {
      labels = *list;
    }
    labels.push_back(edits.label);
    metadata.Set(kEditsKey, std::move(labels));
  }
  paths = base->paths;
  notices = base->notices;
  tensors = base->tensors;
  for (const ModelTensor& tensor : tensors) origins.push_back(tensor.name);
  for (const auto& [name, from] : edits.copies) {
    const auto it = base->index.find(from);
    if (it == base->index.end()) return NotFound("no tensor " + from + " in the model");
    if (base->index.contains(name))
      return InvalidArgument("there is a tensor " + name + " already");
    tensors.push_back(base->tensors[it->second]);
    tensors.back().name = tensors.back().source_name = name;
    origins.push_back(from);
  }
  MakeIndex();
  for (const auto& [name, steps] : edits.edits) {
    const auto it = index.find(name);
    if (it == index.end()) return NotFound("no tensor " + name + " in the model");
    ModelTensor& tensor = tensors[it->second];
    if (!GetFormatInfo(tensor.format).can_decode()) {
      return Unsupported("tensor " + name + ": type " + GetFormatInfo(tensor.format).name +
                         " cannot be decoded");
    }
    if (!steps.empty()) tensor.format = Format::kF32;
  }
  return OkStatus();
}

const GgufMetadata& ModelSource::Impl::Metadata() const {
  return gguf ? gguf->metadata() : metadata;
}

uint64_t ModelSource::Impl::FileBytes() const {
  return base ? base->FileBytes() : gguf ? gguf->file_bytes() : safetensors->file_bytes();
}

Result<Buffer> ModelSource::Impl::ReadEdited(size_t i) const {
  const ModelTensor& tensor = tensors[i];
  NIBBLE_ASSIGN_OR_RETURN(Buffer stored, base->Read(origins[i]));
  const auto steps = edits.edits.find(tensor.name);
  if (steps == edits.edits.end() || steps->second.empty()) return stored;
  const Format format = base->tensors[base->index.at(origins[i])].format;
  NIBBLE_ASSIGN_OR_RETURN(const size_t bytes,
                          FormatBytes(Format::kF32, tensor.rows(), tensor.cols()));
  NIBBLE_ASSIGN_OR_RETURN(Buffer edited, Buffer::Allocate(bytes));
  const MutableTensorView view =
      ViewOf(reinterpret_cast<float*>(edited.data()), tensor.rows(), tensor.cols());
  Status status = Dequantize(format, stored.bytes(), view);
  for (const TensorEdit& step : steps->second) {
    if (status.ok()) status = step(view);
  }
  if (!status.ok()) return std::move(status).WithContext("tensor " + tensor.name);
  return edited;
}

Result<Buffer> ModelSource::Impl::Read(std::string_view name) const {
  const auto it = index.find(name);
  if (it == index.end()) return NotFound("no tensor " + std::string(name) + " in the model");
  if (base) return ReadEdited(it->second);
  if (gguf) return Buffer::Borrow(gguf->tensors()[it->second].data);
  return MakeTensor(planned[it->second]);
}

void ModelSource::Impl::Release(std::string_view name) const {
  const auto it = index.find(name);
  if (it == index.end()) return;
  if (base) return base->Release(origins[it->second]);
  if (gguf) return DropPages(gguf->tensors()[it->second].data);
  for (const FolderTensor* part : planned[it->second].parts) {
    DropPages(part->data);
    if (part->packed == nullptr) continue;
    for (const HfTensor& tensor : part->packed->tensors) DropPages(tensor.data.bytes());
  }
}

bool ModelSource::Impl::IsEdited(std::string_view name) const {
  if (!base) return false;
  const auto it = index.find(name);
  if (it == index.end()) return false;
  const auto steps = edits.edits.find(name);
  return (steps != edits.edits.end() && !steps->second.empty()) ||
         base->IsEdited(origins[it->second]);
}

Result<Tensor> ModelSource::Impl::ReadStored(std::string_view name) const {
  const auto it = index.find(name);
  if (it == index.end()) return NotFound("no tensor " + std::string(name) + " in the model");
  const ModelTensor& tensor = tensors[it->second];
  // What the tensor is made of in the files.
  const Impl* root = this;
  std::string_view origin = name;
  while (root->base) {
    origin = root->origins[root->index.at(origin)];
    root = root->base.get();
  }
  if (root->container == Container::kGguf) return Unsupported("a GGUF file is no safetensors file");
  const ConvertedTensor& planned_tensor = root->planned[root->index.at(origin)];
  if (planned_tensor.parts.size() != 1) {
    return Unsupported("tensor " + tensor.name + " is not one of the file's");
  }
  const FolderTensor& stored = *planned_tensor.parts[0];
  if (IsEdited(name)) {
    NIBBLE_ASSIGN_OR_RETURN(const Buffer changed, Read(name));
    NIBBLE_ASSIGN_OR_RETURN(Tensor result,
                            Tensor::Allocate(DType::kF32, tensor.rows(), tensor.cols()));
    const auto count = static_cast<size_t>(tensor.rows() * tensor.cols());
    UndoChange(planned_tensor, {reinterpret_cast<const float*>(changed.data()), count},
               {static_cast<float*>(result.mutable_view().data), count});
    return result;
  }
  NIBBLE_ASSIGN_OR_RETURN(Buffer bytes, BytesOf(stored));
  if (reinterpret_cast<uintptr_t>(bytes.data()) % DTypeBytes(stored.dtype) != 0) {
    NIBBLE_ASSIGN_OR_RETURN(Buffer aligned, Buffer::Allocate(bytes.size()));
    std::ranges::copy(bytes.bytes(), aligned.data());
    bytes = std::move(aligned);
  }
  return Tensor::FromBuffer(std::move(bytes), stored.dtype, tensor.rows(), tensor.cols());
}

Container ModelSource::container() const { return impl_->container; }

const GgufMetadata& ModelSource::metadata() const { return impl_->Metadata(); }
std::shared_ptr<const GgufMetadata> ModelSource::shared_metadata() const {
  return {impl_, &impl_->Metadata()};
}

std::span<const ModelTensor> ModelSource::tensors() const { return impl_->tensors; }

const ModelTensor* ModelSource::Find(std::string_view name) const {
  const auto it = impl_->index.find(name);
  return it == impl_->index.end() ? nullptr : &impl_->tensors[it->second];
}

std::span<const std::string> ModelSource::paths() const { return impl_->paths; }

uint64_t ModelSource::file_bytes() const { return impl_->FileBytes(); }

std::span<const std::string> ModelSource::notices() const { return impl_->notices; }

Result<Buffer> ModelSource::Read(const ModelTensor& tensor) const {
  return impl_->Read(tensor.name);
}

Result<ModelSource> ModelSource::Edited(ModelEdits edits) const {
  auto impl = std::make_shared<Impl>();
  NIBBLE_RETURN_IF_ERROR(impl->Edit(impl_, std::move(edits)));
  ModelSource source;
  source.impl_ = std::move(impl);
  return source;
}

Result<Tensor> ModelSource::ReadStored(const ModelTensor& tensor) const {
  return impl_->ReadStored(tensor.name);
}

bool ModelSource::IsEdited(const ModelTensor& tensor) const { return impl_->IsEdited(tensor.name); }

void ModelSource::Release(const ModelTensor& tensor) const { impl_->Release(tensor.name); }

}  // namespace nibble
