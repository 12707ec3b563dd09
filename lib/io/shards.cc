#include "lib/io/shards.h"

#include <charconv>
#include <cstdio>

namespace nibble {
namespace {

constexpr size_t kDigits = 5;
constexpr std::string_view kOf = "-of-";

std::optional<uint32_t> ParseNumber(std::string_view digits) {
  uint32_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return number;
}

}  // namespace

std::optional<ShardName> ParseShardName(std::string_view path, std::string_view extension) {
  if (!path.ends_with(extension)) return std::nullopt;
  const std::string_view name = path.substr(0, path.size() - extension.size());
  constexpr size_t kTail = 1 + kDigits + kOf.size() + kDigits;  // "-00001-of-00003"
  if (name.size() < kTail) return std::nullopt;
  const std::string_view tail = name.substr(name.size() - kTail);
  if (tail[0] != '-' || tail.substr(1 + kDigits, kOf.size()) != kOf) return std::nullopt;
  const auto number = ParseNumber(tail.substr(1, kDigits));
  const auto count = ParseNumber(tail.substr(kTail - kDigits));
  if (!number || !count || *number == 0 || *number > *count) return std::nullopt;
  return ShardName{std::string(name.substr(0, name.size() - kTail)), *number - 1, *count,
                   std::string(extension)};
}

std::string MakeShardName(std::string_view stem, uint32_t index, uint32_t count,
                          std::string_view extension) {
  char tail[32];
  std::snprintf(tail, sizeof(tail), "-%05u-of-%05u", index + 1, count);
  return std::string(stem) + tail + std::string(extension);
}

std::string_view WithoutExtension(std::string_view path, std::string_view extension) {
  return path.ends_with(extension) ? path.substr(0, path.size() - extension.size()) : path;
}

}  // namespace nibble
