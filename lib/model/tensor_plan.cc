#include "lib/model/tensor_plan.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <string_view>

#include "nibble/dtype.h"

namespace nibble {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

// `pattern` with '#' replaced by the layer and '@' by the expert.
std::string Expand(std::string_view pattern, int64_t layer, int64_t expert) {
  std::string name;
  for (const char c : pattern) {
    if (c == '#') {
      name += std::to_string(layer);
    } else if (c == '@') {
      name += std::to_string(expert);
    } else {
      name += c;
    }
  }
  return name;
}

std::optional<Format> FormatOf(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return Format::kF64;
    case DType::kF32:
      return Format::kF32;
    case DType::kF16:
      return Format::kF16;
    case DType::kBF16:
      return Format::kBF16;
    case DType::kI64:
      return Format::kI64;
    case DType::kI32:
      return Format::kI32;
    case DType::kI16:
      return Format::kI16;
    case DType::kI8:
      return Format::kI8;
    default:
      return std::nullopt;
  }
}

// Tables that frameworks save beside the weights and that follow from the config.
bool IsBuffer(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".rotary_emb.cos_cached") ||
         name.ends_with(".rotary_emb.sin_cached") || name.ends_with(".masked_bias");
}

class ArchitecturePlanner {
 public:
  ArchitecturePlanner(const HfConfig& config, const FolderTensors& file, const std::string& where)
      : config_(config), file_(file), where_(where) {}

  Result<TensorPlan> Plan() {
    for (const TensorRule& rule : config_.architecture->rules) {
      if (!InLayer(rule)) NIBBLE_RETURN_IF_ERROR(Add(rule, 0));
    }
    for (int64_t layer = 0; layer < config_.layers; ++layer) {
      for (const TensorRule& rule : config_.architecture->rules) {
        if (InLayer(rule)) NIBBLE_RETURN_IF_ERROR(Add(rule, layer));
      }
    }
    if (config_.rope_scaling == RopeScaling::kLlama3) {
      ConvertedTensor factors;
      factors.name = "rope_freqs.weight";
      NIBBLE_ASSIGN_OR_RETURN(factors.computed, Llama3RopeFactors(config_));
      factors.dims = {static_cast<int64_t>(factors.computed.size())};
      plan_.tensors.push_back(std::move(factors));
    }
    NIBBLE_RETURN_IF_ERROR(CheckNothingIsLeft());
    return std::move(plan_);
  }

 private:
  static bool InLayer(const TensorRule& rule) {
    return std::string_view(rule.source).find('#') != std::string_view::npos;
  }

  Status Add(const TensorRule& rule, int64_t layer) {
    if (rule.presence == Presence::kUntied && config_.tied) return OkStatus();
    const bool experts = std::string_view(rule.source).find('@') != std::string_view::npos;
    ConvertedTensor tensor;
    tensor.name = Expand(rule.target, layer, 0);
    for (int64_t expert = 0; expert < (experts ? config_.experts : 1); ++expert) {
      const std::string source = Expand(rule.source, layer, expert);
      const FolderTensor* part = file_.Find(source);
      if (part == nullptr) {
        if (rule.presence == Presence::kOptional) return OkStatus();
        return NotFound(where_ + ": no tensor " + source + ", which a " +
                        config_.architecture->class_name + " with this config.json has");
      }
      NIBBLE_RETURN_IF_ERROR(CheckPart(rule, *part));
      if (expert > 0 && part->dtype != tensor.parts[0]->dtype) {
        return Unsupported(where_ + ": tensor " + source + " is " + DTypeName(part->dtype) +
                           ", that of another expert " + DTypeName(tensor.parts[0]->dtype));
      }
      used_.insert(part);
      tensor.parts.push_back(part);
    }
    tensor.source_name = tensor.parts[0]->name;
    const bool vector = rule.rows == Dim::kNone;
    tensor.dims.push_back(config_.Size(rule.cols));
    if (!vector) tensor.dims.push_back(config_.Size(rule.rows));
    if (experts) tensor.dims.push_back(config_.experts);
    tensor.was_quantized = tensor.parts[0]->packed != nullptr;
    tensor.format = vector || rule.as_f32 ? Format::kF32 : *FormatOf(tensor.parts[0]->dtype);
    SetChange(rule.change, tensor);
    plan_.tensors.push_back(std::move(tensor));
    return OkStatus();
  }

  void SetChange(Change change, ConvertedTensor& tensor) const {
    const bool norm = change == Change::kAddOne;
    if (norm ? config_.architecture->norms_add_one : config_.architecture->interleaved_rope) {
      tensor.change = change;
      tensor.heads = change == Change::kInterleaveKey ? config_.key_value_heads : config_.heads;
    }
  }

  Status CheckPart(const TensorRule& rule, const FolderTensor& part) const {
    std::vector<int64_t> wanted;
    if (rule.rows != Dim::kNone) wanted.push_back(config_.Size(rule.rows));
    wanted.push_back(config_.Size(rule.cols));
    if (part.shape != wanted) {
      return Corrupt(where_ + ": tensor " + part.name + " has shape " + ShapeText(part.shape) +
                     ", config.json asks for " + ShapeText(wanted));
    }
    if (part.dtype != DType::kF32 && part.dtype != DType::kF16 && part.dtype != DType::kBF16) {
      return Unsupported(where_ + ": tensor " + part.name + " is stored as " +
                         DTypeName(part.dtype) + ", not f32, f16 or bf16");
    }
    return OkStatus();
  }

  // A tensor that no rule takes means a model that differs from what its config claims.
  Status CheckNothingIsLeft() {
    for (const FolderTensor& tensor : file_.tensors()) {
      if (used_.contains(&tensor) || IsBuffer(tensor.name)) continue;
      if (config_.tied && tensor.name == "lm_head.weight") {
        plan_.notices.push_back(
            "lm_head.weight is left out: config.json ties the output to the embedding");
        continue;
      }
      return Unsupported(where_ + ": tensor " + Printable(tensor.name) + " is none of a " +
                         config_.architecture->class_name);
    }
    return OkStatus();
  }

  const HfConfig& config_;
  const FolderTensors& file_;
  const std::string& where_;
  TensorPlan plan_;
  std::set<const FolderTensor*> used_;
};

// Within each head, row i and row i + half of the file are GGUF's rows 2i and 2i + 1: the file's of
// one of GGUF's.
int64_t RowInFile(int64_t row, int64_t rows, int64_t heads) {
  const int64_t head_rows = rows / heads, half = head_rows / 2;
  const int64_t head = row / head_rows, place = row % head_rows;
  return head * head_rows + place % 2 * half + place / 2;
}

void InterleaveHeads(std::span<const std::byte> in, int64_t rows, int64_t heads,
                     std::span<std::byte> out) {
  const size_t row_bytes = in.size() / static_cast<size_t>(rows);
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(out.data() + static_cast<size_t>(row) * row_bytes,
                in.data() + static_cast<size_t>(RowInFile(row, rows, heads)) * row_bytes,
                row_bytes);
  }
}

bool IsInterleaved(Change change) {
  return change == Change::kInterleaveQuery || change == Change::kInterleaveKey;
}

// `in` holds f32, f16 or bf16, at any address.
void ToFloats(std::span<const std::byte> in, DType dtype, float addend, std::span<std::byte> out) {
  const size_t width = DTypeBytes(dtype);
  for (size_t i = 0; i < in.size() / width; ++i) {
    float value;
    if (dtype == DType::kF32) {
      std::memcpy(&value, in.data() + i * width, sizeof(value));
    } else {
      uint16_t bits;
      std::memcpy(&bits, in.data() + i * width, sizeof(bits));
      value = dtype == DType::kF16 ? ToFloat(F16{bits}) : ToFloat(BF16{bits});
    }
    if (addend != 0) value += addend;  // adding 0 would lose the sign of -0
    std::memcpy(out.data() + i * sizeof(value), &value, sizeof(value));
  }
}

}  // namespace

Result<TensorPlan> PlanArchitecture(const HfConfig& config, const FolderTensors& file,
                                    const std::string& where) {
  return ArchitecturePlanner(config, file, where).Plan();
}

Result<TensorPlan> PlanByName(const FolderTensors& file, const std::string& where) {
  TensorPlan plan;
  for (const FolderTensor& tensor : file.tensors()) {
    const std::string name = where + ": tensor " + Printable(tensor.name);
    if (tensor.dtype == DType::kBool) {  // masks, never weights
      plan.notices.push_back("tensor " + Printable(tensor.name) +
                             " is left out: GGUF has no booleans");
      continue;
    }
    const std::optional<Format> format = FormatOf(tensor.dtype);
    if (!format) {
      return Unsupported(name + " is stored as " + DTypeName(tensor.dtype) +
                         ", which GGUF cannot hold");
    }
    if (tensor.shape.size() > kGgufMaxDims) {
      return Unsupported(name + " has shape " + ShapeText(tensor.shape) + "; GGUF has at most " +
                         std::to_string(kGgufMaxDims) + " dimensions");
    }
    if (std::ranges::find(tensor.shape, 0) != tensor.shape.end()) {
      return Unsupported(name + " has shape " + ShapeText(tensor.shape) + ": it is empty");
    }
    ConvertedTensor planned;
    planned.name = planned.source_name = tensor.name;
    planned.format = *format;
    planned.dims.assign(tensor.shape.rbegin(), tensor.shape.rend());
    if (planned.dims.empty()) planned.dims = {1};
    planned.was_quantized = tensor.packed != nullptr;
    planned.parts = {&tensor};
    plan.tensors.push_back(std::move(planned));
  }
  return plan;
}

Result<Buffer> MakeTensor(const ConvertedTensor& tensor) {
  if (tensor.parts.empty()) return Buffer::Borrow(std::as_bytes(std::span(tensor.computed)));
  const FolderTensor& first = *tensor.parts[0];
  const bool converted = FormatOf(first.dtype) != tensor.format || tensor.change == Change::kAddOne;
  const bool interleaved = IsInterleaved(tensor.change);
  if (tensor.parts.size() == 1 && !converted && !interleaved) {
    NIBBLE_ASSIGN_OR_RETURN(const Buffer bytes, BytesOf(first));
    if (reinterpret_cast<uintptr_t>(bytes.data()) % DTypeBytes(first.dtype) == 0) return bytes;
  }
  NIBBLE_ASSIGN_OR_RETURN(const size_t bytes,
                          FormatBytes(tensor.format, tensor.rows(), tensor.cols()));
  NIBBLE_ASSIGN_OR_RETURN(Buffer result, Buffer::Allocate(bytes));
  const size_t part_bytes = bytes / tensor.parts.size();
  for (size_t i = 0; i < tensor.parts.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const Buffer part, BytesOf(*tensor.parts[i]));
    std::span<const std::byte> in = part.bytes();
    const std::span<std::byte> out = result.mutable_bytes().subspan(i * part_bytes, part_bytes);
    Buffer ordered;
    if (interleaved) {
      NIBBLE_ASSIGN_OR_RETURN(ordered, Buffer::Allocate(in.size()));
      InterleaveHeads(in, tensor.parts[i]->shape[0], tensor.heads, ordered.mutable_bytes());
      in = ordered.bytes();
      if (!converted && tensor.parts.size() == 1) return ordered;
    }
    if (converted) {
      ToFloats(in, first.dtype, tensor.change == Change::kAddOne ? 1.0f : 0.0f, out);
    } else {
      std::memcpy(out.data(), in.data(), in.size());
    }
  }
  return result;
}

void UndoChange(const ConvertedTensor& tensor, std::span<const float> in, std::span<float> out) {
  std::ranges::copy(in, out.begin());
  if (tensor.change == Change::kAddOne) {
    for (float& value : out) value -= 1.0f;
  } else if (IsInterleaved(tensor.change)) {
    const int64_t rows = tensor.parts[0]->shape[0];
    const size_t width = in.size() / static_cast<size_t>(rows);
    for (int64_t row = 0; row < rows; ++row) {
      const auto from = in.subspan(static_cast<size_t>(row) * width, width);
      const auto to = static_cast<size_t>(RowInFile(row, rows, tensor.heads)) * width;
      std::ranges::copy(from, out.begin() + static_cast<ptrdiff_t>(to));
    }
  }
}

}  // namespace nibble
