// JSON files of a model folder, read under limits, and typed look-ups that name the file and key.
#ifndef NIBBLE_LIB_MODEL_JSON_FILE_H_
#define NIBBLE_LIB_MODEL_JSON_FILE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "nibble/status.h"
#include "nlohmann/json.hpp"

namespace nibble {

// The whole file. kNotFound where there is none, kIo where it cannot be read, kUnsupported where it
// is larger than `limit` bytes.
Result<std::string> ReadWholeFile(const std::string& path, uint64_t limit);

// A text field as it may stand in an error message: one line, cut to a readable length.
std::string Printable(std::string_view text);

// An object read from a file, with the name that messages use.
class JsonObject {
 public:
  JsonObject() : json_(nlohmann::json::object()) {}
  JsonObject(nlohmann::json json, std::string name)
      : json_(std::move(json)), name_(std::move(name)) {}

  // Valid UTF-8 JSON, at most 64 levels deep, an object at the top. Errors begin with `name`.
  static Result<JsonObject> Parse(std::string_view text, const std::string& name);
  // Parses the file at `path`.
  static Result<JsonObject> Load(const std::string& path, uint64_t limit);
  // The same; an empty object where the file does not exist.
  static Result<JsonObject> LoadIfPresent(const std::string& path, uint64_t limit);

  const nlohmann::json& json() const { return json_; }
  const std::string& name() const { return name_; }
  bool empty() const { return json_.empty(); }
  bool Has(const char* key) const { return Find(key) != nullptr; }
  // nullptr where the key is missing or null.
  const nlohmann::json* Find(const char* key) const;

  // A whole number in [low, high]. Errors name file, key and value.
  Result<int64_t> Integer(const char* key, int64_t low, int64_t high) const;
  Result<int64_t> IntegerOr(const char* key, int64_t low, int64_t high, int64_t otherwise) const;
  // A finite number greater than zero.
  Result<double> Positive(const char* key) const;
  Result<double> PositiveOr(const char* key, double otherwise) const;
  Result<bool> BoolOr(const char* key, bool otherwise) const;
  Result<std::string> StringOr(const char* key, std::string otherwise) const;
  // The object under `key`; an empty one where there is none.
  Result<JsonObject> ObjectOr(const char* key) const;

 private:
  Status Wrong(const char* key, const char* expected) const;
  Status Missing(const char* key) const;

  nlohmann::json json_;
  std::string name_;
};

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_JSON_FILE_H_
