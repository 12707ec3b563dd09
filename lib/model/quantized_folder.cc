#include "nibble/quantized_folder.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string_view>
#include <utility>

#include "lib/io/output_file.h"
#include "lib/model/hf_layout.h"
#include "lib/model/json_file.h"
#include "lib/model/layerwise.h"
#include "lib/quantize/additive.h"
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
  std::string name;  // GGUF's
  const ModelTensor* known;
  const SafetensorsTensor* tensor;  // in its own order of rows: columns, as inputs, are the same

  int64_t rows() const { return tensor->shape[0]; }
  int64_t cols() const { return tensor->shape[1]; }
  std::string Name(const std::string& part) const {
    return tensor->name.substr(0, tensor->name.size() - std::string_view("weight").size()) + part;
  }
};

// A tensor that is not quantized.
struct KeptTensor {
  const SafetensorsTensor* stored = nullptr;  // null: a copy of another one, made by edits
  const ModelTensor* edited = nullptr;        // null: as it is
};

class FolderWriter {
 public:
  FolderWriter(const ModelSource& source, const SafetensorsFile& file, const std::string& folder,
               const Scheme& scheme, const QuantizedFolderOptions& options)
      : source_(source),
        file_(file),
        folder_(folder),
        scheme_(scheme),
        options_(options),
        quantization_(HfQuantizationOf(options.layout, scheme)) {}

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
    NIBBLE_RETURN_IF_ERROR(PlanKept());
    for (const auto& group : groups_) {
      for (const FolderMatrix& matrix : group) {
        Result<std::vector<HfTensor>> parts =
            HfTensorsOf(quantization_, matrix.rows(), matrix.cols());
        if (!parts.ok()) return std::move(parts).status().WithContext(matrix.tensor->name);
        for (const HfTensor& part : *parts) {
          layout_.push_back({matrix.Name(part.suffix), part.dtype, part.shape});
        }
        ++report_.matrices;
      }
    }
    NIBBLE_RETURN_IF_ERROR(CheckStatistics());
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
    for (const KeptTensor& tensor : kept_) NIBBLE_RETURN_IF_ERROR(AppendKept(tensor, writer));
    if (options_.text == nullptr) {
      NIBBLE_RETURN_IF_ERROR(AppendAll(writer));
    } else if (options_.sequential) {
      NIBBLE_RETURN_IF_ERROR(AppendLayerwise(writer));
    } else {
      NIBBLE_RETURN_IF_ERROR(AppendOverText(writer));
    }
    return writer.Finish();
  }

  QuantizedFolderReport TakeReport() { return std::move(report_); }

 private:
  SafetensorsWriteOptions WriteOptions() const {
    return {.metadata = {{"format", "pt"}}, .max_shard_bytes = options_.max_shard_bytes};
  }

  Status AddMatrix(const std::string& name) {
    const ModelTensor* known = source_.Find(name);
    if (known == nullptr) return Unsupported(folder_ + ": has no " + name);
    if (known->was_quantized) {
      return InvalidArgument(folder_ + ": " + known->source_name + " is quantized already");
    }
    const SafetensorsTensor* tensor = file_.Find(known->source_name);
    if (tensor == nullptr || tensor->shape.size() != 2 || tensor->shape[0] != known->rows() ||
        tensor->shape[1] != known->cols() || !tensor->name.ends_with(".weight")) {
      return Unsupported(folder_ + ": " + name + " is no matrix of its own");
    }
    groups_.back().push_back({name, known, tensor});
    return OkStatus();
  }

  Status PlanKept() {
    std::map<std::string_view, const ModelTensor*> by_source;
    for (const ModelTensor& tensor : source_.tensors()) by_source[tensor.source_name] = &tensor;
    std::set<std::string_view> replaced;
    for (const auto& group : groups_) {
      for (const FolderMatrix& matrix : group) replaced.insert(matrix.tensor->name);
    }
    for (const SafetensorsTensor& tensor : file_.tensors()) {
      if (replaced.contains(tensor.name)) continue;
      const auto known = by_source.find(tensor.name);
      const bool edited = known != by_source.end() && source_.IsEdited(*known->second);
      kept_.push_back({&tensor, edited ? known->second : nullptr});
      layout_.push_back(tensor);
    }
    for (const ModelTensor& tensor : source_.tensors()) {
      if (!source_.IsEdited(tensor) || file_.Find(tensor.source_name) != nullptr) continue;
      // Preparations that part the output from the embeddings make it a tensor of its own.
      const ModelTensor* embedding = source_.Find("token_embd.weight");
      if (tensor.name != "output.weight" || embedding == nullptr ||
          file_.Find("lm_head.weight") != nullptr) {
        return Unsupported(folder_ + ": no place for the new tensor " + tensor.name);
      }
      untied_ = true;
      kept_.push_back({nullptr, &tensor});
      layout_.push_back({"lm_head.weight",
                         file_.Find(embedding->source_name)->dtype,
                         {tensor.rows(), tensor.cols()}});
    }
    return OkStatus();
  }

  // That what a method asks for is there for every matrix.
  Status CheckStatistics() const {
    if (options_.hessians == nullptr && options_.importance == nullptr) return OkStatus();
    for (const auto& group : groups_) {
      for (const FolderMatrix& matrix : group) {
        const SharedInputs* inputs =
            options_.hessians != nullptr ? options_.hessians->Find(matrix.name) : nullptr;
        const LayerStatistics* layer =
            options_.importance != nullptr ? options_.importance->Find(matrix.name) : nullptr;
        if (inputs == nullptr && layer == nullptr) {
          if (options_.allow_missing) continue;
          return InvalidArgument("no statistics of the inputs of " + matrix.name);
        }
        const int64_t cols = inputs != nullptr ? inputs->cols : layer->cols;
        if (cols != matrix.cols()) {
          return InvalidArgument("statistics of " + std::to_string(cols) + " inputs for " +
                                 matrix.name + ", which has " + std::to_string(matrix.cols()));
        }
      }
    }
    return OkStatus();
  }

  Status AppendKept(const KeptTensor& tensor, SafetensorsWriter& writer) const {
    if (tensor.edited == nullptr) return writer.Append(tensor.stored->data);
    NIBBLE_ASSIGN_OR_RETURN(const Tensor floats, source_.ReadStored(*tensor.edited));
    const SafetensorsInfo& info = layout_[static_cast<size_t>(&tensor - kept_.data())];
    const Format format = info.dtype == DType::kF16    ? Format::kF16
                          : info.dtype == DType::kBF16 ? Format::kBF16
                                                       : Format::kF32;
    QuantizeOptions options;
    options.parallel = options_.gptq.parallel;
    Result<QuantizedTensor> rounded = Quantize(floats.view(), format, options);
    if (!rounded.ok()) return std::move(rounded).status().WithContext(info.name);
    return writer.Append(rounded->plane(Plane::kCodes).bytes());
  }

  Status AppendOverText(SafetensorsWriter& writer) {
    std::vector<std::string> firsts;
    for (const auto& group : groups_) firsts.push_back(group[0].name);
    size_t at = 0;  // the names come in order
    return VisitLayerInputs(*options_.model, *options_.text, firsts, options_.inputs,
                            [&](std::string_view, const LayerInputs& inputs) -> Status {
                              for (const FolderMatrix& matrix : groups_[at]) {
                                NIBBLE_RETURN_IF_ERROR(Append(matrix, &inputs.hessian, writer));
                              }
                              ++at;
                              return OkStatus();
                            });
  }

  // For each row of a matrix in the file, its place in the model.
  Result<std::vector<size_t>> RowOrder(const FolderMatrix& matrix) const {
    ModelEdits edits;
    edits.edits[matrix.name] = {[](MutableTensorView weights) -> Status {
      for (int64_t r = 0; r < weights.rows; ++r) {
        std::fill_n(static_cast<float*>(weights.Row(r)), weights.cols, static_cast<float>(r));
      }
      return OkStatus();
    }};
    NIBBLE_ASSIGN_OR_RETURN(const ModelSource numbered, source_.Edited(std::move(edits)));
    NIBBLE_ASSIGN_OR_RETURN(const Tensor rows, numbered.ReadStored(*numbered.Find(matrix.name)));
    std::vector<size_t> order;
    for (int64_t r = 0; r < matrix.rows(); ++r) {
      order.push_back(static_cast<size_t>(*static_cast<const float*>(rows.view().Row(r))));
    }
    return order;
  }

  Status AppendLayerwise(SafetensorsWriter& writer) {
    std::vector<const FolderMatrix*> matrices;
    for (const auto& group : groups_) {
      for (const FolderMatrix& matrix : group) matrices.push_back(&matrix);
    }
    LayerwiseOptions layerwise;
    layerwise.batch_tokens = options_.inputs.batch_tokens;
    layerwise.gptq = options_.gptq;
    layerwise.activations = options_.activations;
    layerwise.progress = [&](const ModelProgress& progress) {
      return !options_.progress || options_.progress(progress.index, report_.matrices);
    };
    size_t next = 0;  // they come in this order
    return ReplaceLayerwise(
        *options_.model, *options_.text, layerwise,
        [&](const std::string& name, const RowMatrix& weights,
            const Hessian& inputs) -> Result<QuantizedTensor> {
          const FolderMatrix& matrix = *matrices[next++];
          if (matrix.name != name) return InternalError("another matrix than " + matrix.name);
          NIBBLE_ASSIGN_OR_RETURN(const std::vector<size_t> order, RowOrder(matrix));
          RowMatrix stored(weights.rows(), weights.cols());
          for (size_t r = 0; r < order.size(); ++r) {
            stored.row(static_cast<int64_t>(r)) = weights.row(static_cast<int64_t>(order[r]));
          }
          QuantizedTensor made;
          NIBBLE_RETURN_IF_ERROR(
              Append(matrix, ViewOf(std::as_const(stored).data(), stored.rows(), stored.cols()),
                     &inputs, writer, &made));
          NIBBLE_RETURN_IF_ERROR(Dequantize(
              made, ViewOf(stored.data(), stored.rows(), stored.cols()), options_.gptq.parallel));
          NIBBLE_ASSIGN_OR_RETURN(
              QuantizedTensor decoded,
              QuantizedTensor::Allocate(Format::kF32, stored.rows(), stored.cols()));
          auto* to = reinterpret_cast<float*>(decoded.plane(Plane::kCodes).data());
          for (size_t r = 0; r < order.size(); ++r) {
            std::copy_n(stored.row(static_cast<int64_t>(r)).data(), stored.cols(),
                        to + order[r] * static_cast<size_t>(stored.cols()));
          }
          return decoded;
        });
  }

  Status AppendAll(SafetensorsWriter& writer) {
    size_t done = 0;
    for (const auto& group : groups_) {
      const SharedInputs* read = nullptr;
      Hessian hessian;
      for (const FolderMatrix& matrix : group) {
        const SharedInputs* inputs =
            options_.hessians != nullptr ? options_.hessians->Find(matrix.name) : nullptr;
        if (inputs != nullptr && inputs != read) {
          NIBBLE_ASSIGN_OR_RETURN(hessian, options_.hessians->Read(*inputs));
          read = inputs;
        }
        const bool seen = inputs != nullptr && (hessian.tokens() > 0 || !options_.allow_missing);
        NIBBLE_RETURN_IF_ERROR(Append(matrix, seen ? &hessian : nullptr, writer));
        if (options_.progress && !options_.progress(++done, report_.matrices)) {
          return Cancelled("cancelled");
        }
      }
    }
    return OkStatus();
  }

  // The matrix as it is.
  Status Append(const FolderMatrix& matrix, const Hessian* hessian, SafetensorsWriter& writer) {
    NIBBLE_ASSIGN_OR_RETURN(const Tensor weights, source_.ReadStored(*matrix.known));
    QuantizedTensor made;
    return Append(matrix, weights.view(), hessian, writer, &made);
  }

  // Other weights in its place, in the file's order of rows.
  Status Append(const FolderMatrix& matrix, TensorView weights, const Hessian* hessian,
                SafetensorsWriter& writer, QuantizedTensor* made) {
    MatrixReport report{matrix.name, Format::kF32, hessian != nullptr, {}, hessian == nullptr};
    const auto make = [&]() -> Result<std::vector<HfTensor>> {
      NIBBLE_ASSIGN_OR_RETURN(*made, Quantized(matrix, weights, hessian, &report.gptq));
      return ToHfTensors(quantization_, *made, matrix.tensor->dtype);
    };
    const Result<std::vector<HfTensor>> parts = make();
    if (!parts.ok()) return Status(parts.status()).WithContext(matrix.tensor->name);
    if (options_.method == Method::kGptq) report_.reports.push_back(std::move(report));
    for (const HfTensor& part : *parts) NIBBLE_RETURN_IF_ERROR(writer.Append(part.data.bytes()));
    return OkStatus();
  }

  Result<QuantizedTensor> Quantized(const FolderMatrix& matrix, TensorView weights,
                                    const Hessian* hessian, GptqReport* report) const {
    if (hessian != nullptr) {
      GptqOptions gptq = options_.gptq;
      gptq.act_order |= scheme_.has_group_index;
      gptq.static_groups |= scheme_.double_quant;
      return QuantizeGptq(weights, scheme_, *hessian, gptq, report);
    }
    QuantizeOptions options;
    std::vector<float> importance;
    if (options_.importance != nullptr) {
      const LayerStatistics* layer = options_.importance->Find(matrix.name);
      if (layer != nullptr) importance = layer->MeanSquares();
      options.importance = importance;
    }
    if (options_.method == Method::kHqq) options.scales = ScaleChoice::kHalfQuadratic;
    options.parallel = options_.gptq.parallel;
    return Quantize(weights, scheme_, options);
  }

  Status WriteConfig(const std::string& target) const {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject config,
                            JsonObject::Load(folder_ + "/config.json", kMostCopied));
    nlohmann::json json = config.json();
    json["quantization_config"] = WriteHfQuantization(
        quantization_,
        {.damping = options_.gptq.damping, .static_groups = options_.gptq.static_groups});
    if (untied_) json["tie_word_embeddings"] = false;
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
  const QuantizedFolderOptions& options_;
  const HfQuantization quantization_;
  std::vector<std::vector<FolderMatrix>> groups_;
  std::vector<KeptTensor> kept_;
  std::vector<SafetensorsInfo> layout_;  // `kept_`, then what stands for each matrix
  bool untied_ = false;                  // the output from the embeddings
  QuantizedFolderReport report_;
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

Status CheckMethod(const Scheme& scheme, const QuantizedFolderOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckCodebooks(scheme));
  const bool text = options.text != nullptr, hessians = options.hessians != nullptr;
  if ((options.model != nullptr) != text || (text && hessians)) {
    return InvalidArgument("error feedback needs a model and a text, or Hessians");
  }
  switch (options.method) {
    case Method::kGptq:
      if (options.importance != nullptr) {
        return InvalidArgument("error feedback knows the importance of the inputs itself");
      }
      if (!text && !hessians) {
        return InvalidArgument("error feedback needs a model and a text, or Hessians");
      }
      if (scheme.has_group_index && options.gptq.static_groups) {
        return InvalidArgument(SchemeName(scheme) +
                               ": static groups take the place of act-order's group index");
      }
      return OkStatus();
    case Method::kRtn:
    case Method::kHqq:
      if (text || hessians) return InvalidArgument("the method uses neither text nor Hessians");
      if (scheme.has_group_index) {
        return InvalidArgument(
            "act-order is the order of the inputs, which only the method gptq looks at");
      }
      break;
  }
  if (options.method != Method::kHqq) return OkStatus();
  if (scheme.code != Code::kUniform || scheme.symmetric ||
      scheme.granularity == Granularity::kTensor || options.importance != nullptr) {
    return InvalidArgument(SchemeName(scheme) +
                           ": hqq chooses the zeros of 'asym' integers, by channel or group and "
                           "without importance");
  }
  return OkStatus();
}

}  // namespace

Result<QuantizedFolderReport> WriteQuantizedFolder(const ModelSource& source,
                                                   const std::string& folder,
                                                   const std::string& target, const Scheme& scheme,
                                                   const QuantizedFolderOptions& options,
                                                   bool dry_run) {
  NIBBLE_RETURN_IF_ERROR(CheckHfLayout(options.layout, scheme));
  NIBBLE_RETURN_IF_ERROR(CheckMethod(scheme, options));
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    return InvalidArgument(folder + ": not a Hugging Face folder, which this layout is made from");
  }
  const bool exists = fs::exists(target, error);
  if (exists && !options.overwrite) return InvalidArgument(target + ": exists already");
  if (exists && (!fs::is_directory(target, error) || fs::equivalent(folder, target, error))) {
    return InvalidArgument(target + ": cannot give way to a folder");
  }
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
