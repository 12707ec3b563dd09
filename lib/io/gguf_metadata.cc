#include <algorithm>
#include <limits>
#include <type_traits>

#include "lib/io/errors.h"
#include "lib/io/gguf_layout.h"
#include "nibble/gguf.h"

namespace nibble {
namespace {

template <class Entries>
auto FindEntry(Entries& entries, std::string_view key) {
  return std::find_if(entries.begin(), entries.end(),
                      [key](const auto& entry) { return entry.first == key; });
}

Status WrongType(std::string_view key, const char* wanted) {
  return InvalidArgument("metadata " + Quoted(key) + " is not " + wanted);
}

Status Missing(std::string_view key) { return NotFound("there is no metadata " + Quoted(key)); }

}  // namespace

const GgufValue* GgufMetadata::Find(std::string_view key) const {
  const auto entry = FindEntry(entries_, key);
  return entry == entries_.end() ? nullptr : &entry->second;
}

void GgufMetadata::Set(std::string key, GgufValue value) {
  const auto entry = FindEntry(entries_, key);
  if (entry == entries_.end()) {
    entries_.emplace_back(std::move(key), std::move(value));
  } else {
    entry->second = std::move(value);
  }
}

void GgufMetadata::Erase(std::string_view key) {
  const auto entry = FindEntry(entries_, key);
  if (entry != entries_.end()) entries_.erase(entry);
}

Result<std::string> GgufMetadata::GetString(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Missing(key);
  if (const auto* text = std::get_if<std::string>(value)) return *text;
  return WrongType(key, "a string");
}

Result<uint64_t> GgufMetadata::GetUint(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Missing(key);
  return std::visit(
      [key](const auto& v) -> Result<uint64_t> {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
          if (v >= T{0}) return static_cast<uint64_t>(v);
        }
        return WrongType(key, "a non-negative integer");
      },
      *value);
}

Result<double> GgufMetadata::GetFloat(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Missing(key);
  return std::visit(
      [key](const auto& v) -> Result<double> {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
          return static_cast<double>(v);
        }
        return WrongType(key, "a number");
      },
      *value);
}

Result<bool> GgufMetadata::GetBool(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return Missing(key);
  if (const auto* flag = std::get_if<bool>(value)) return *flag;
  return WrongType(key, "a bool");
}

int64_t GgufTensorInfo::rows() const {
  int64_t rows = 1;
  for (size_t i = 1; i < dims.size(); ++i) rows *= dims[i];
  return rows;
}

Result<uint64_t> GgufTensorBytes(const GgufTensorInfo& tensor) {
  if (tensor.dims.empty() || tensor.dims.size() > kGgufMaxDims) {
    return InvalidArgument(std::to_string(tensor.dims.size()) + " dimensions, not 1 to " +
                           std::to_string(kGgufMaxDims));
  }
  int64_t elements = 1;
  for (const int64_t dim : tensor.dims) {
    if (dim <= 0) return InvalidArgument("a dimension of " + std::to_string(dim));
    if (__builtin_mul_overflow(elements, dim, &elements)) {
      return InvalidArgument("the product of its dimensions overflows");
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(const size_t bytes,
                          FormatBytes(tensor.format, tensor.rows(), tensor.cols()));
  // Room for padding and offsets without overflow, far beyond any file.
  if (bytes > std::numeric_limits<int64_t>::max() / 2) return InvalidArgument("its size overflows");
  return uint64_t{bytes};
}

}  // namespace nibble
