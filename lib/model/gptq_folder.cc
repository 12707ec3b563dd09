#include "nibble/gptq_folder.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <utility>

#include "lib/io/output_file.h"
#include "lib/model/json_file.h"
#include "nibble/model_source.h"
#include "nibble/quantize.h"
#include "nibble/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Larger files of a model's folder are weights in other containers.
constexpr uint64_t kMostCopied = uint64_t{256} << 20;

// Matrices of a layer that see the same inputs.
const std::vector<std::vector<std::string>> kSameInputs = {
    {"attn_q.weight", "attn_k.weight", "attn_v.weight"},
    {"attn_output.weight"},
    {"ffn_gate.weight", "ffn_up.weight"},
    {"ffn_down.weight"}};

struct FolderMatrix {
  std::string name;                 // GGUF's
  const SafetensorsTensor* tensor;  // in its own order of rows: columns, as inputs, are the same

  int64_t rows() const { return tensor->shape[0]; }
  int64_t cols() const { return tensor->shape[1]; }
  std::string Name(const char* part) const {
    return tensor->name.substr(0, tensor->name.size() - std::string_view("weight").size()) + part;
  }
};

class FolderWriter {
 public:
  FolderWriter(const ModelSource& source, const SafetensorsFile& file, const std::string& folder,
               const Scheme& scheme, const GptqFolderOptions& options)
      : source_(source), file_(file), folder_(folder), scheme_(scheme), options_(options) {}

  // Finds the matrices and lays out the file: first what stays, then matrix after matrix.
  Status Plan() {
    for (int64_t layer = 0;; ++layer) {
      const std::string prefix = "blk." + std::to_string(layer) + ".";
      if (source_.Find(prefix + kSameInputs[0][0]) == nullptr) break;
      for (const std::vector<std::string>& names : kSameInputs) {
        groups_.emplace_back();
        for (const std::string& name : names) NIBBLE_RETURN_IF_ERROR(AddMatrix(prefix + name));
      }
    }
    if (groups_.empty()) {
      return Unsupported(folder_ + ": not the folder of a model whose layers are known");
    }
    std::map<std::string, bool> replaced;
    for (const auto& group : groups_) {
      for (const FolderMatrix& matrix : group) replaced[matrix.tensor->name] = true;
    }
    for (const SafetensorsTensor& tensor : file_.tensors()) {
      if (replaced.contains(tensor.name)) continue;
      kept_.push_back(&tensor);
      layout_.push_back(tensor);
    }
    const int64_t in_word = 32 / scheme_.bits;
    for (const auto& group : groups_) {
      for (const FolderMatrix& m : group) {
        const int64_t n = GroupsPerRow(scheme_, m.cols());
        layout_.push_back({m.Name("qweight"), DType::kI32, {m.cols() / in_word, m.rows()}});
        layout_.push_back({m.Name("qzeros"), DType::kI32, {n, m.rows() / in_word}});
        layout_.push_back({m.Name("scales"), DType::kF16, {n, m.rows()}});
        layout_.push_back({m.Name("g_idx"), DType::kI32, {m.cols()}});
        ++report_.matrices;
      }
    }
    NIBBLE_ASSIGN_OR_RETURN(
        report_.bytes, SafetensorsWriter::TotalBytes("model.safetensors", layout_, WriteOptions()));
    return OkStatus();
  }

  Status Write(const std::string& target) {
    NIBBLE_RETURN_IF_ERROR(CopyFiles(target));
    NIBBLE_RETURN_IF_ERROR(WriteConfig(target));
    NIBBLE_ASSIGN_OR_RETURN(
        SafetensorsWriter writer,
        SafetensorsWriter::Create(target + "/model.safetensors", layout_, WriteOptions()));
    for (const SafetensorsTensor* tensor : kept_) {
      NIBBLE_RETURN_IF_ERROR(writer.Append(tensor->data));
    }
    if (options_.text == nullptr) {
      for (const auto& group : groups_) {
        for (const FolderMatrix& matrix : group) {
          NIBBLE_RETURN_IF_ERROR(Append(matrix, nullptr, writer));
        }
      }
      return writer.Finish();
    }
    std::vector<std::string> firsts;
    for (const auto& group : groups_) firsts.push_back(group[0].name);
    size_t at = 0;  // the names come in order
    NIBBLE_RETURN_IF_ERROR(
        VisitLayerInputs(*options_.model, *options_.text, firsts, options_.inputs,
                         [&](std::string_view, const LayerInputs& inputs) -> Status {
                           for (const FolderMatrix& matrix : groups_[at]) {
                             NIBBLE_RETURN_IF_ERROR(Append(matrix, &inputs.hessian, writer));
                           }
                           ++at;
                           return OkStatus();
                         }));
    return writer.Finish();
  }

  GptqFolderReport TakeReport() { return std::move(report_); }

 private:
  SafetensorsWriteOptions WriteOptions() const {
    return {.metadata = {{"format", "pt"}}, .max_shard_bytes = options_.max_shard_bytes};
  }

  Status AddMatrix(const std::string& name) {
    const ModelTensor* known = source_.Find(name);
    if (known == nullptr) return Unsupported(folder_ + ": has no " + name);
    const SafetensorsTensor* tensor = file_.Find(known->source_name);
    if (tensor == nullptr || tensor->shape.size() != 2 || tensor->shape[0] != known->rows() ||
        tensor->shape[1] != known->cols() || !tensor->name.ends_with(".weight")) {
      return Unsupported(folder_ + ": " + name + " is no matrix of its own");
    }
    const int64_t in_word = 32 / scheme_.bits;
    if (tensor->shape[0] % in_word != 0 || tensor->shape[1] % in_word != 0) {
      return Unsupported(tensor->name + ": " + std::to_string(tensor->shape[0]) + " x " +
                         std::to_string(tensor->shape[1]) +
                         " weights, where GPTQ checkpoints need multiples of " +
                         std::to_string(in_word));
    }
    groups_.back().push_back({name, tensor});
    return OkStatus();
  }

  Status Append(const FolderMatrix& matrix, const Hessian* hessian, SafetensorsWriter& writer) {
    NIBBLE_ASSIGN_OR_RETURN(Buffer aligned, Buffer::Allocate(matrix.tensor->data.size()));
    std::ranges::copy(matrix.tensor->data, aligned.mutable_bytes().begin());
    const TensorView weights = {aligned.data(), matrix.tensor->dtype, matrix.rows(), matrix.cols(),
                                matrix.cols()};
    MatrixReport report{matrix.name, Format::kF32, hessian != nullptr, {}};
    Result<QuantizedTensor> made = Quantized(weights, hessian, &report.gptq);
    if (!made.ok()) return std::move(made).status().WithContext(matrix.tensor->name);
    if (hessian != nullptr) report_.reports.push_back(std::move(report));
    NIBBLE_ASSIGN_OR_RETURN(const GptqTensors tensors, ToGptqTensors(*made));
    NIBBLE_RETURN_IF_ERROR(writer.Append(std::as_bytes(std::span(tensors.qweight))));
    NIBBLE_RETURN_IF_ERROR(writer.Append(std::as_bytes(std::span(tensors.qzeros))));
    NIBBLE_RETURN_IF_ERROR(writer.Append(std::as_bytes(std::span(tensors.scales))));
    return writer.Append(std::as_bytes(std::span(tensors.g_idx)));
  }

  Result<QuantizedTensor> Quantized(TensorView weights, const Hessian* hessian,
                                    GptqReport* report) const {
    if (hessian != nullptr) {
      GptqOptions gptq = options_.gptq;
      gptq.act_order = scheme_.has_group_index;
      return QuantizeGptq(weights, scheme_, *hessian, gptq, report);
    }
    QuantizeOptions options;
    options.parallel = options_.gptq.parallel;
    return Quantize(weights, scheme_, options);
  }

  Status WriteConfig(const std::string& target) const {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject config,
                            JsonObject::Load(folder_ + "/config.json", kMostCopied));
    nlohmann::json json = config.json();
    json["quantization_config"] = {
        {"quant_method", "gptq"},
        {"bits", scheme_.bits},
        {"group_size",
         scheme_.granularity == Granularity::kGroup ? scheme_.group_size : int32_t{-1}},
        {"sym", scheme_.symmetric},
        {"desc_act", scheme_.has_group_index},
        {"static_groups", false},
        {"true_sequential", false},
        {"damp_percent", options_.gptq.damping},
        {"lm_head", false},
        {"checkpoint_format", scheme_.symmetric ? "gptq" : "gptq_v2"},
        {"meta", {{"quantizer", {"nibble:" NIBBLE_VERSION}}}}};
    NIBBLE_ASSIGN_OR_RETURN(OutputFile out, OutputFile::Create(target + "/config.json"));
    NIBBLE_RETURN_IF_ERROR(out.Append(json.dump(2) + "\n"));
    NIBBLE_RETURN_IF_ERROR(out.Close());
    return out.Commit();
  }

  // Everything but weights and what describes them: tokenizers, licences, notes.
  Status CopyFiles(const std::string& target) const {
    std::error_code error;
    for (fs::directory_iterator it(folder_, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename().string();
      std::error_code ignored;
      const bool weights = name.ends_with(".safetensors") || name.ends_with(".bin") ||
                           name.ends_with(".gguf") || name.ends_with(".index.json");
      if (weights || name == "config.json" || !it->is_regular_file(ignored) ||
          it->file_size(ignored) > kMostCopied) {
        continue;
      }
      std::error_code failed;
      fs::copy_file(it->path(), fs::path(target) / name, failed);
      if (failed) return IoError(target + "/" + name + ": " + failed.message());
    }
    return error ? IoError(folder_ + ": " + error.message()) : OkStatus();
  }

  const ModelSource& source_;
  const SafetensorsFile& file_;
  const std::string& folder_;
  const Scheme& scheme_;
  const GptqFolderOptions& options_;
  std::vector<std::vector<FolderMatrix>> groups_;
  std::vector<const SafetensorsTensor*> kept_;
  std::vector<SafetensorsInfo> layout_;
  GptqFolderReport report_;
};

// Gives the finished folder its name; one that was there before gives way at the last moment.
Status Install(const std::string& unfinished, const std::string& target) {
  std::error_code error;
  const std::string old = target + ".replaced";
  const bool replaces = fs::exists(target, error);
  if (replaces) {
    fs::rename(target, old, error);
    if (error) return IoError(target + ": " + error.message());
  }
  fs::rename(unfinished, target, error);
  if (error) {
    const std::string reason = error.message();
    if (replaces) fs::rename(old, target, error);
    return IoError(target + ": " + reason);
  }
  if (replaces) fs::remove_all(old, error);
  return OkStatus();
}

}  // namespace

Result<GptqFolderReport> WriteGptqFolder(const std::string& folder, const std::string& target,
                                         const Scheme& scheme, const GptqFolderOptions& options,
                                         bool dry_run) {
  NIBBLE_RETURN_IF_ERROR(CheckGptqScheme(scheme));
  if ((options.model == nullptr) != (options.text == nullptr)) {
    return InvalidArgument("error feedback needs both a model and a text");
  }
  if (scheme.has_group_index && options.text == nullptr) {
    return InvalidArgument("act-order is the order of the inputs, which only a text tells");
  }
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    return InvalidArgument(folder + ": not a Hugging Face folder, which this layout is made from");
  }
  const bool exists = fs::exists(target, error);
  if (exists && !options.overwrite) return InvalidArgument(target + ": exists already");
  if (exists && (!fs::is_directory(target, error) || fs::equivalent(folder, target, error))) {
    return InvalidArgument(target + ": cannot give way to a folder");
  }
  NIBBLE_ASSIGN_OR_RETURN(const ModelSource source, ModelSource::Open(folder));
  NIBBLE_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(folder));
  FolderWriter writer(source, file, folder, scheme, options);
  NIBBLE_RETURN_IF_ERROR(writer.Plan());
  if (dry_run) return writer.TakeReport();

  std::string unfinished = target;
  while (unfinished.size() > 1 && unfinished.ends_with('/')) unfinished.pop_back();
  const std::string finished = unfinished;
  unfinished += ".unfinished";
  fs::remove_all(unfinished, error);
  if (!fs::create_directory(unfinished, error)) {
    return IoError(unfinished + ": " + (error ? error.message() : "exists already"));
  }
  Status done = writer.Write(unfinished);
  if (done.ok()) done = Install(unfinished, finished);
  if (!done.ok()) {
    fs::remove_all(unfinished, error);
    return done;
  }
  return writer.TakeReport();
}

}  // namespace nibble
