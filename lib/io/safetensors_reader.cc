#include "lib/io/safetensors_reader.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include <nlohmann/json.hpp>

#include "lib/io/errors.h"
#include "lib/io/name_index.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

struct TypeName {
  DType dtype;
  const char* name;
};
constexpr TypeName kTypeNames[] = {
    {DType::kF64, "F64"},   {DType::kF32, "F32"},        {DType::kF16, "F16"},
    {DType::kBF16, "BF16"}, {DType::kF8E4M3, "F8_E4M3"}, {DType::kF8E5M2, "F8_E5M2"},
    {DType::kI64, "I64"},   {DType::kI32, "I32"},        {DType::kI16, "I16"},
    {DType::kI8, "I8"},     {DType::kU64, "U64"},        {DType::kU32, "U32"},
    {DType::kU16, "U16"},   {DType::kU8, "U8"},          {DType::kBool, "BOOL"},
};

// Events of nlohmann's parser, which keeps its nesting on the heap: deep nesting cannot overflow
// the stack, and the handlers below stop it long before. The first error is the one that is kept.
class JsonHandler : public nlohmann::json_sax<Json> {
 public:
  const std::string& error() const { return error_; }

  bool null() override { return Scalar("null"); }
  bool boolean(bool) override { return Scalar("a boolean"); }
  bool number_integer(number_integer_t) override { return Scalar("a negative number"); }
  bool number_unsigned(number_unsigned_t) override { return Scalar("a number"); }
  bool number_float(number_float_t, const string_t&) override { return Scalar("a fraction"); }
  bool string(string_t&) override { return Scalar("a string"); }
  bool binary(binary_t&) override { return Scalar("binary data"); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail("not valid JSON near byte " + std::to_string(position));
  }

 protected:
  bool Fail(std::string error) {
    if (error_.empty()) error_ = std::move(error);
    return false;
  }
  // A value that the handler did not expect where it stands.
  virtual bool Scalar(const char* what) = 0;

 private:
  std::string error_;
};

// Runs the parser over `text`; the error, empty when there is none.
std::string ParseJson(std::string_view text, JsonHandler* handler) {
  if (text.empty() || text.front() != '{') return "not a JSON object";
  // The parser would take a zero byte for the end of the text.
  if (text.find('\0') != std::string_view::npos) return "not valid JSON: a zero byte";
  const bool ok = Json::sax_parse(text.begin(), text.end(), handler);
  return ok || !handler->error().empty() ? handler->error() : "not valid JSON";
}

struct HeaderEntry {
  std::string name;
  std::optional<std::string> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::vector<uint64_t>> offsets;
};

// {"__metadata__": {"key": "value"}, "name": {"dtype": "F32", "shape": [2], "data_offsets": [0,
// 8]}}
class HeaderHandler : public JsonHandler {
 public:
  std::vector<HeaderEntry> entries;
  std::vector<std::pair<std::string, std::string>> metadata;
  bool has_metadata = false;

  bool start_object(size_t) override {
    if (depth_ > 1 || in_array_) return Unexpected("an object");
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    in_metadata_ = false;
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || in_array_) return Unexpected("an array");
    HeaderEntry& entry = entries.back();
    if (key_ == "shape" && !entry.shape) {
      entry.shape.emplace();
    } else if (key_ == "data_offsets" && !entry.offsets) {
      entry.offsets.emplace();
    } else {
      return Unexpected("an array");
    }
    in_array_ = true;
    return true;
  }
  bool end_array() override {
    in_array_ = false;
    return true;
  }
  bool key(string_t& key) override {
    if (depth_ == 1) {
      in_metadata_ = key == kSafetensorsMetadataKey;
      if (in_metadata_ && has_metadata) return Fail("two entries __metadata__");
      if (in_metadata_) {
        has_metadata = true;
      } else {
        entries.emplace_back().name = key;
      }
    }
    key_ = std::move(key);
    return true;
  }
  bool string(string_t& value) override {
    if (in_metadata_ && depth_ == 2) {
      metadata.emplace_back(key_, std::move(value));
      return true;
    }
    if (depth_ != 2 || in_array_ || key_ != "dtype" || entries.back().dtype) {
      return Unexpected("a string");
    }
    entries.back().dtype = std::move(value);
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) return Unexpected("a number");
    HeaderEntry& entry = entries.back();
    if (key_ == "data_offsets") {
      entry.offsets->push_back(value);
    } else {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return Fail("tensor " + Quoted(entry.name) + ": a dimension of " + std::to_string(value));
      }
      entry.shape->push_back(static_cast<int64_t>(value));
    }
    return true;
  }

 protected:
  bool Scalar(const char* what) override { return Unexpected(what); }

 private:
  bool Unexpected(const std::string& what) {
    std::string where = "in its header";
    if (depth_ > 0) where = Quoted(key_);
    if (depth_ == 2 && !in_metadata_)
      where = "tensor " + Quoted(entries.back().name) + ": " + where;
    return Fail(where + ": " + what + ", unknown or twice, stands here");
  }

  int depth_ = 0;  // of objects
  bool in_metadata_ = false;
  bool in_array_ = false;
  std::string key_;
};

// {"metadata": {...}, "weight_map": {"tensor": "file"}}; other members are passed over.
class IndexHandler : public JsonHandler {
 public:
  std::vector<std::pair<std::string, std::string>> weight_map;
  bool has_weight_map = false;

  bool start_object(size_t) override {
    if (in_weight_map_) return Unexpected();
    in_weight_map_ = depth_ == 1 && top_key_ == "weight_map";
    if (in_weight_map_ && has_weight_map) return Fail("two entries weight_map");
    has_weight_map |= in_weight_map_;
    return Enter();
  }
  bool end_object() override {
    in_weight_map_ = false;
    --depth_;
    return true;
  }
  bool start_array(size_t) override {
    if (in_weight_map_ || AtWeightMap()) return Unexpected();
    return Enter();
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& key) override {
    if (depth_ == 1) top_key_ = key;
    key_ = std::move(key);
    return true;
  }
  bool string(string_t& value) override {
    if (!in_weight_map_) return Scalar("a string");
    weight_map.emplace_back(key_, std::move(value));
    return true;
  }

 protected:
  bool Scalar(const char*) override {
    return in_weight_map_ || AtWeightMap() ? Unexpected() : true;
  }

 private:
  static constexpr int kDeepest = 64;

  bool AtWeightMap() const { return depth_ == 1 && top_key_ == "weight_map"; }
  bool Enter() {
    if (++depth_ > kDeepest) return Fail("nested too deeply");
    return true;
  }
  bool Unexpected() { return Fail("weight_map does not map names to files at " + Quoted(key_)); }

  int depth_ = 0;  // of objects and arrays
  bool in_weight_map_ = false;
  std::string top_key_;
  std::string key_;
};

// One entry, as far as it can be checked by itself.
Status ReadEntry(HeaderEntry& entry, SafetensorsTensor* tensor) {
  if (!entry.dtype) return Corrupt("has no dtype");
  if (!entry.shape) return Corrupt("has no shape");
  if (!entry.offsets) return Corrupt("has no data_offsets");
  const auto* type = std::find_if(std::begin(kTypeNames), std::end(kTypeNames),
                                  [&](const TypeName& t) { return *entry.dtype == t.name; });
  if (type == std::end(kTypeNames)) return Unsupported("unknown dtype " + Quoted(*entry.dtype));
  tensor->name = std::move(entry.name);
  tensor->dtype = type->dtype;
  tensor->shape = *std::move(entry.shape);
  if (entry.offsets->size() != 2) {
    return Corrupt("data_offsets has " + std::to_string(entry.offsets->size()) + " numbers, not 2");
  }
  return OkStatus();
}

Result<ParsedSafetensors> Parse(std::span<const std::byte> file, const std::string& path) {
  const auto error = [&path](const std::string& reason) { return Corrupt(path + ": " + reason); };
  uint64_t header_bytes = 0;
  if (file.size() < sizeof(header_bytes)) return error("not a safetensors file: under 8 bytes");
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  if (header_bytes > kSafetensorsLargestHeader) {
    return error("not a safetensors file: a header of " + std::to_string(header_bytes) +
                 " bytes, more than " + std::to_string(kSafetensorsLargestHeader));
  }
  if (header_bytes > file.size() - sizeof(header_bytes)) {
    return error("a header of " + std::to_string(header_bytes) + " bytes in a file of " +
                 std::to_string(file.size()));
  }
  const auto* text = reinterpret_cast<const char*>(file.data()) + sizeof(header_bytes);
  HeaderHandler header;
  if (std::string reason = ParseJson({text, header_bytes}, &header); !reason.empty()) {
    return error("header: " + reason);
  }

  ParsedSafetensors parsed;
  for (auto& [key, value] : header.metadata) {
    if (!parsed.metadata.emplace(key, std::move(value)).second) {
      return error("header: two metadata entries " + Quoted(key));
    }
  }
  const NameIndex names =
      IndexNames(header.entries, [](const auto& entry) { return std::string_view(entry.name); });
  if (const size_t i = names.FindDuplicate(); i != NameIndex::kNone) {
    return error("header: two tensors " + Quoted(header.entries[i].name));
  }

  std::stable_sort(header.entries.begin(), header.entries.end(),
                   [](const auto& a, const auto& b) { return a.offsets < b.offsets; });
  const std::span<const std::byte> data = file.subspan(sizeof(header_bytes) + header_bytes);
  uint64_t end = 0;  // of the tensors so far
  parsed.tensors.reserve(header.entries.size());
  for (HeaderEntry& entry : header.entries) {
    const std::string context = path + ": tensor " + Quoted(entry.name);
    SafetensorsTensor& tensor = parsed.tensors.emplace_back();
    NIBBLE_RETURN_IF_ERROR(ReadEntry(entry, &tensor).WithContext(context));
    Result<uint64_t> bytes = SafetensorsTensorBytes(tensor);
    if (!bytes.ok()) return Corrupt(context + ": " + bytes.status().message());
    const uint64_t from = entry.offsets->front();
    const uint64_t to = entry.offsets->back();
    const std::string range =
        "data_offsets [" + std::to_string(from) + ", " + std::to_string(to) + "]";
    if (to < from || to - from != *bytes) {
      return Corrupt(context + ": " + range + " do not hold the " + std::to_string(*bytes) +
                     " bytes of its dtype and shape");
    }
    if (from != end) {
      return Corrupt(context + ": " + range +
                     (from > end ? " leave a hole after " : " overlap before ") +
                     std::to_string(end));
    }
    if (to > data.size()) {
      return Corrupt(context + ": " + range + " lie beyond the end of the file, which has " +
                     std::to_string(data.size()) + " bytes of data");
    }
    tensor.data = data.subspan(from, to - from);
    end = to;
  }
  if (end != data.size()) {
    return error(std::to_string(data.size() - end) +
                 " bytes after the data of the last tensor (byte " +
                 std::to_string(file.size() - data.size() + end) + ")");
  }
  return parsed;
}

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

}  // namespace

const char* SafetensorsTypeName(DType dtype) {
  const auto* type = std::find_if(std::begin(kTypeNames), std::end(kTypeNames),
                                  [dtype](const TypeName& t) { return t.dtype == dtype; });
  return type->name;
}

Result<uint64_t> SafetensorsTensorBytes(const SafetensorsInfo& tensor) {
  uint64_t bytes = DTypeBytes(tensor.dtype);
  for (const int64_t dim : tensor.shape) {
    if (dim < 0) return InvalidArgument("a dimension of " + std::to_string(dim));
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes) || bytes > INT64_MAX) {
      return InvalidArgument("the product of its dimensions overflows");
    }
  }
  return bytes;
}

Result<ParsedSafetensors> ParseSafetensors(std::span<const std::byte> file,
                                           const std::string& path) {
  return CatchAllocationFailure(path, [&] { return Parse(file, path); });
}

Result<std::vector<std::pair<std::string, std::string>>> ParseSafetensorsIndex(
    std::string_view text, const std::string& path) {
  using Map = std::vector<std::pair<std::string, std::string>>;
  return CatchAllocationFailure(path, [&]() -> Result<Map> {
    if (text.size() > kSafetensorsLargestHeader) {
      return Corrupt(path + ": an index of " + std::to_string(text.size()) + " bytes");
    }
    IndexHandler index;
    if (std::string reason = ParseJson(text, &index); !reason.empty()) {
      return Corrupt(path + ": " + reason);
    }
    if (!index.has_weight_map) return Corrupt(path + ": has no weight_map");
    const NameIndex names =
        IndexNames(index.weight_map, [](const auto& pair) { return std::string_view(pair.first); });
    if (const size_t i = names.FindDuplicate(); i != NameIndex::kNone) {
      return Corrupt(path + ": two entries " + Quoted(index.weight_map[i].first));
    }
    for (const auto& [tensor, file] : index.weight_map) {
      if (!IsPlainFileName(file)) {
        return Corrupt(path + ": tensor " + Quoted(tensor) + " is in " + Quoted(file) +
                       ", which is not the name of a file in the same folder");
      }
    }
    return std::move(index.weight_map);
  });
}

}  // namespace nibble
