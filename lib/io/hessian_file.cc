#include "nibble/hessian_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "lib/io/errors.h"
#include "nibble/safetensors.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

constexpr const char* kVersionKey = "nibble.hessians";
constexpr const char* kVersion = "1";
constexpr const char* kTextsKey = "texts";
constexpr const char* kSharedKey = "shared";
constexpr std::string_view kSums = ".hessian";
constexpr std::string_view kTokens = ".tokens";

constexpr int64_t kMostCols = int64_t{1} << 24;

int64_t TriangleSize(int64_t cols) { return cols * (cols + 1) / 2; }

// The columns whose triangle has so many elements.
std::optional<int64_t> TriangleCols(int64_t elements) {
  const auto cols =
      static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(elements) + 1) - 1) / 2);
  for (int64_t n = std::max<int64_t>(1, cols - 1); n <= std::min(cols + 1, kMostCols); ++n) {
    if (TriangleSize(n) == elements) return n;
  }
  return std::nullopt;
}

Json ToJson(std::span<const CalibrationNote> texts) {
  Json list = Json::array();
  for (const CalibrationNote& note : texts) {
    list.push_back({{"text", note.text},
                    {"hash", note.hash},
                    {"context", note.context},
                    {"windows", note.windows}});
  }
  return list;
}

// Under a key of the metadata; null where it is missing or no JSON.
Json MetadataJson(const SafetensorsFile& file, const char* key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) return {};
  Json json = Json::parse(found->second, nullptr, /*allow_exceptions=*/false);
  return json.is_discarded() ? Json() : json;
}

Result<std::vector<CalibrationNote>> ReadTexts(const SafetensorsFile& file,
                                               const std::string& path) {
  const Json list = MetadataJson(file, kTextsKey);
  const auto wrong = [&] { return Corrupt(path + ": its metadata does not tell its texts"); };
  if (!list.is_array()) return wrong();
  std::vector<CalibrationNote> texts;
  for (const Json& item : list) {
    if (!item.is_object()) return wrong();
    const auto text = item.find("text"), hash = item.find("hash");
    const auto context = item.find("context"), windows = item.find("windows");
    if (text == item.end() || hash == item.end() || context == item.end() ||
        windows == item.end() || !text->is_string() || !hash->is_string() ||
        !context->is_number_unsigned() || !windows->is_number_unsigned() ||
        *context > std::numeric_limits<uint32_t>::max() ||
        *windows > std::numeric_limits<uint32_t>::max()) {
      return wrong();
    }
    texts.push_back({text->get<std::string>(), hash->get<std::string>(), context->get<int64_t>(),
                     windows->get<int64_t>()});
  }
  return texts;
}

std::vector<SafetensorsInfo> LayoutOf(std::span<const SharedInputs> inputs) {
  std::vector<SafetensorsInfo> layout;
  for (const SharedInputs& shared : inputs) {
    const std::string& name = shared.matrices.front();
    layout.push_back({name + std::string(kSums), DType::kF32, {TriangleSize(shared.cols)}});
    layout.push_back({name + std::string(kTokens), DType::kI64, {1}});
  }
  return layout;
}

SafetensorsWriteOptions MetadataOf(std::span<const SharedInputs> inputs,
                                   std::span<const CalibrationNote> texts) {
  Json others = Json::object();
  for (const SharedInputs& shared : inputs) {
    for (size_t i = 1; i < shared.matrices.size(); ++i) {
      others[shared.matrices[i]] = shared.matrices.front();
    }
  }
  const auto text = [](const Json& json) {
    return json.dump(-1, ' ', false, Json::error_handler_t::replace);
  };
  return {.metadata = {{kVersionKey, kVersion},
                       {kTextsKey, text(ToJson(texts))},
                       {kSharedKey, text(others)}}};
}

Status CheckInputs(std::span<const SharedInputs> inputs) {
  if (inputs.empty()) return InvalidArgument("Hessians of no matrix");
  std::set<std::string_view> names;
  for (const SharedInputs& shared : inputs) {
    if (shared.matrices.empty()) return InvalidArgument("a Hessian of no matrix");
    if (shared.cols < 1 || shared.cols > kMostCols) {
      return InvalidArgument(shared.matrices.front() + ": a Hessian of " +
                             std::to_string(shared.cols) + " columns");
    }
    for (const std::string& name : shared.matrices) {
      if (name.empty() || !names.insert(name).second) {
        return InvalidArgument("two Hessians for a matrix called '" + name + "'");
      }
    }
  }
  return OkStatus();
}

}  // namespace

std::string ExpertName(std::string_view tensor, int64_t expert) {
  return std::string(tensor) + "#" + std::to_string(expert);
}

struct HessianFile::Impl {
  std::string path;
  SafetensorsFile file;
  std::vector<SharedInputs> inputs;
  std::vector<CalibrationNote> texts;
  std::map<std::string, size_t, std::less<>> by_matrix;  // into `inputs`

  Status TakeInputs() {
    size_t pairs = 0;
    for (const SafetensorsTensor& tensor : file.tensors()) {
      if (!tensor.name.ends_with(kSums)) continue;
      const std::string name = tensor.name.substr(0, tensor.name.size() - kSums.size());
      const std::optional<int64_t> cols = TriangleCols(tensor.elements());
      const SafetensorsTensor* tokens = file.Find(name + std::string(kTokens));
      if (name.empty() || tensor.dtype != DType::kF32 || tensor.shape.size() != 1 || !cols) {
        return Corrupt(path + ": " + Quoted(tensor.name) + " is no triangle of f32");
      }
      if (tokens == nullptr || tokens->dtype != DType::kI64 ||
          tokens->shape != std::vector<int64_t>{1}) {
        return Corrupt(path + ": the number of tokens of " + Quoted(name) + " is missing");
      }
      by_matrix.emplace(name, inputs.size());
      inputs.push_back({{name}, *cols});
      pairs += 2;
    }
    if (pairs != file.tensors().size() || pairs == 0) {
      return Corrupt(path + ": holds something else than Hessians and their numbers of tokens");
    }
    return OkStatus();
  }

  Status TakeShared() {
    const Json shared = MetadataJson(file, kSharedKey);
    if (!shared.is_object()) {
      return Corrupt(path + ": its metadata does not tell which matrices share inputs");
    }
    for (const auto& [name, first] : shared.items()) {
      const auto known =
          first.is_string() ? by_matrix.find(first.get_ref<const std::string&>()) : by_matrix.end();
      if (known == by_matrix.end() || inputs[known->second].matrices.front() != known->first ||
          !by_matrix.emplace(name, known->second).second) {
        return Corrupt(path + ": the inputs that " + Quoted(name) + " shares are not there");
      }
      inputs[known->second].matrices.push_back(name);
    }
    return OkStatus();
  }
};

Result<HessianFile> HessianFile::Open(const std::string& path) {
  return CatchAllocationFailure(path, [&]() -> Result<HessianFile> {
    auto impl = std::make_shared<Impl>();
    impl->path = path;
    NIBBLE_ASSIGN_OR_RETURN(impl->file, SafetensorsFile::Open(path));
    const auto version = impl->file.metadata().find(kVersionKey);
    if (version == impl->file.metadata().end()) {
      return InvalidArgument(path + ": not a file of Hessians");
    }
    if (version->second != kVersion) {
      return Unsupported(path + ": Hessians of version " + Quoted(version->second));
    }
    NIBBLE_ASSIGN_OR_RETURN(impl->texts, ReadTexts(impl->file, path));
    NIBBLE_RETURN_IF_ERROR(impl->TakeInputs());
    NIBBLE_RETURN_IF_ERROR(impl->TakeShared());
    HessianFile file;
    file.impl_ = std::move(impl);
    return file;
  });
}

const std::string& HessianFile::path() const { return impl_->path; }
std::span<const SharedInputs> HessianFile::inputs() const { return impl_->inputs; }
std::span<const CalibrationNote> HessianFile::texts() const { return impl_->texts; }

const SharedInputs* HessianFile::Find(std::string_view matrix) const {
  const auto found = impl_->by_matrix.find(matrix);
  return found == impl_->by_matrix.end() ? nullptr : &impl_->inputs[found->second];
}

Result<Hessian> HessianFile::Read(const SharedInputs& inputs) const {
  const std::string& name = inputs.matrices.front();
  const SafetensorsTensor* stored = impl_->file.Find(name + std::string(kSums));
  const SafetensorsTensor* counted = impl_->file.Find(name + std::string(kTokens));
  if (stored == nullptr || counted == nullptr) return NotFound(path() + ": no " + name);
  return CatchAllocationFailure(path(), [&]() -> Result<Hessian> {
    int64_t tokens = 0;
    std::memcpy(&tokens, counted->data.data(), sizeof(tokens));
    std::vector<float> sums(static_cast<size_t>(stored->elements()));  // the file aligns nothing
    std::memcpy(sums.data(), stored->data.data(), stored->data.size());
    Result<Hessian> hessian = Hessian::FromTriangle(inputs.cols, tokens, sums);
    if (!hessian.ok()) return Corrupt(path() + ": " + name + ": " + hessian.status().message());
    return hessian;
  });
}

struct HessianWriter::Impl {
  std::vector<SharedInputs> inputs;
  SafetensorsWriter file;
  size_t next = 0;
};

HessianWriter::HessianWriter() = default;
HessianWriter::HessianWriter(HessianWriter&&) noexcept = default;
HessianWriter& HessianWriter::operator=(HessianWriter&&) noexcept = default;
HessianWriter::~HessianWriter() = default;

Result<HessianWriter> HessianWriter::Create(const std::string& path,
                                            std::vector<SharedInputs> inputs,
                                            std::span<const CalibrationNote> texts) {
  NIBBLE_RETURN_IF_ERROR(CheckInputs(inputs));
  for (SharedInputs& shared : inputs) {  // as the metadata will give them back
    std::sort(shared.matrices.begin() + 1, shared.matrices.end());
  }
  NIBBLE_ASSIGN_OR_RETURN(
      SafetensorsWriter file,
      SafetensorsWriter::Create(path, LayoutOf(inputs), MetadataOf(inputs, texts)));
  HessianWriter writer;
  writer.impl_ = std::make_unique<Impl>(Impl{std::move(inputs), std::move(file), 0});
  return writer;
}

Result<uint64_t> HessianWriter::FileBytes(std::span<const SharedInputs> inputs,
                                          std::span<const CalibrationNote> texts) {
  NIBBLE_RETURN_IF_ERROR(CheckInputs(inputs));
  return SafetensorsWriter::TotalBytes("hessians", LayoutOf(inputs), MetadataOf(inputs, texts));
}

Status HessianWriter::Append(const Hessian& hessian) {
  if (impl_->next == impl_->inputs.size()) return InvalidArgument("more Hessians than planned");
  const SharedInputs& inputs = impl_->inputs[impl_->next];
  if (hessian.cols() != inputs.cols) {
    return InvalidArgument(inputs.matrices.front() + ": a Hessian of " +
                           std::to_string(hessian.cols()) + " columns, not " +
                           std::to_string(inputs.cols));
  }
  const auto n = static_cast<size_t>(inputs.cols);
  for (size_t i = 0; i < n; ++i) {
    const std::span<const float> row = std::span(hessian.sums()).subspan(i * n + i, n - i);
    NIBBLE_RETURN_IF_ERROR(impl_->file.Append(std::as_bytes(row)));
  }
  const int64_t tokens = hessian.tokens();
  NIBBLE_RETURN_IF_ERROR(impl_->file.Append(std::as_bytes(std::span(&tokens, 1))));
  ++impl_->next;
  return OkStatus();
}

Status HessianWriter::Finish() { return impl_->file.Finish(); }

Result<std::vector<SharedInputs>> MergedInputs(std::span<const HessianFile> files) {
  std::vector<SharedInputs> merged;
  std::map<std::string, size_t, std::less<>> by_matrix;
  for (const HessianFile& file : files) {
    for (const SharedInputs& inputs : file.inputs()) {
      const auto known = by_matrix.find(inputs.matrices.front());
      if (known == by_matrix.end()) {
        for (const std::string& name : inputs.matrices) {
          if (by_matrix.emplace(name, merged.size()).second) continue;
          return InvalidArgument(file.path() + ": " + name +
                                 " shares its inputs with other matrices than in another file");
        }
        merged.push_back(inputs);
      } else if (const SharedInputs& other = merged[known->second];
                 other.cols != inputs.cols || other.matrices != inputs.matrices) {
        return InvalidArgument(file.path() + ": the inputs of " + inputs.matrices.front() +
                               " are not those of another file");
      }
    }
  }
  return merged;
}

Result<Hessian> MergedHessian(std::span<const HessianFile> files, const SharedInputs& inputs) {
  Hessian sum(inputs.cols);
  for (const HessianFile& file : files) {
    const SharedInputs* known = file.Find(inputs.matrices.front());
    if (known == nullptr) continue;
    NIBBLE_ASSIGN_OR_RETURN(const Hessian hessian, file.Read(*known));
    NIBBLE_RETURN_IF_ERROR(sum.Merge(hessian).WithContext(file.path()));
  }
  return sum;
}

}  // namespace nibble
