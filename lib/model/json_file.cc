#include "lib/model/json_file.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>

namespace nibble {
namespace {

constexpr int kMaxDepth = 64;

// The deepest nesting of brackets outside strings: bounded before parsing, since a parser allocates
// for each level.
int NestingDepth(std::string_view text) {
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
      if (deepest > kMaxDepth) return deepest;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

Result<std::string> ReadWholeFile(const std::string& path, uint64_t limit) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    return NotFound(path + ": no such file");
  }
  if (error) return IoError(path + ": " + error.message());
  if (!std::filesystem::is_regular_file(status)) return IoError(path + ": not a regular file");
  const uint64_t size = std::filesystem::file_size(path, error);
  if (error) return IoError(path + ": " + error.message());
  if (size > limit) {
    return Unsupported(path + ": " + std::to_string(size) + " bytes, more than the " +
                       std::to_string(limit) + " that such a file may have");
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(static_cast<size_t>(size), '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file) return IoError(path + ": cannot be read");
  return text;
}

std::string Printable(std::string_view text) {
  constexpr size_t kLongest = 80;
  std::string result;
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    result += byte < 0x20 || byte == 0x7F ? '?' : c;
  }
  if (text.size() > kLongest) result += "...";
  return result;
}

Result<JsonObject> JsonObject::Parse(std::string_view text, const std::string& name) {
  if (NestingDepth(text) > kMaxDepth) {
    return Corrupt(name + ": nested deeper than " + std::to_string(kMaxDepth) + " levels");
  }
  nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return Corrupt(name + ": not valid JSON");
  if (!json.is_object()) return Corrupt(name + ": not a JSON object");
  return JsonObject(std::move(json), name);
}

Result<JsonObject> JsonObject::Load(const std::string& path, uint64_t limit) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, limit));
  return Parse(text, path);
}

Result<JsonObject> JsonObject::LoadIfPresent(const std::string& path, uint64_t limit) {
  Result<JsonObject> object = Load(path, limit);
  if (!object.ok() && object.status().code() == StatusCode::kNotFound) {
    return JsonObject(nlohmann::json::object(), path);
  }
  return object;
}

const nlohmann::json* JsonObject::Find(const char* key) const {
  const auto it = json_.find(key);
  return it == json_.end() || it->is_null() ? nullptr : &*it;
}

Status JsonObject::Wrong(const char* key, const char* expected) const {
  const std::string value =
      Printable(Find(key)->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  return Corrupt(name_ + ": \"" + key + "\" is " + value + ", not " + expected);
}

Status JsonObject::Missing(const char* key) const {
  return NotFound(name_ + ": no \"" + std::string(key) + "\"");
}

Result<int64_t> JsonObject::Integer(const char* key, int64_t low, int64_t high) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return Missing(key);
  const bool fits_i64 =
      value->is_number_integer() &&
      (!value->is_number_unsigned() ||
       value->get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  const int64_t number = fits_i64 ? value->get<int64_t>() : 0;
  if (!fits_i64 || number < low || number > high) {
    const std::string expected =
        "a whole number from " + std::to_string(low) + " to " + std::to_string(high);
    return Wrong(key, expected.c_str());
  }
  return number;
}

Result<int64_t> JsonObject::IntegerOr(const char* key, int64_t low, int64_t high,
                                      int64_t otherwise) const {
  if (!Has(key)) return otherwise;
  return Integer(key, low, high);
}

Result<double> JsonObject::Positive(const char* key) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return Missing(key);
  const double number = value->is_number() ? value->get<double>() : 0;
  // GGUF stores it as a float.
  if (!(number >= std::numeric_limits<float>::min()) ||
      number > std::numeric_limits<float>::max()) {
    return Wrong(key, "a positive number");
  }
  return number;
}

Result<double> JsonObject::PositiveOr(const char* key, double otherwise) const {
  if (!Has(key)) return otherwise;
  return Positive(key);
}

Result<bool> JsonObject::BoolOr(const char* key, bool otherwise) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) return Wrong(key, "true or false");
  return value->get<bool>();
}

Result<std::string> JsonObject::StringOr(const char* key, std::string otherwise) const {
  const nlohmann::json* value = Find(key);
  if (value == nullptr) return otherwise;
  if (!value->is_string()) return Wrong(key, "a string");
  return value->get<std::string>();
}

Result<JsonObject> JsonObject::ObjectOr(const char* key) const {
  const nlohmann::json* value = Find(key);
  const std::string name = name_ + ": \"" + key + "\"";
  if (value == nullptr) return JsonObject(nlohmann::json::object(), name);
  if (!value->is_object()) return Wrong(key, "an object");
  return JsonObject(*value, name);
}

}  // namespace nibble
