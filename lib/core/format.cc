#include "nibble/format.h"

#include <algorithm>
#include <cctype>
#include <string>

namespace nibble {
namespace {

constexpr FormatInfo kFormats[] = {
#define NIBBLE_FORMAT(id, Enum, name, Block, weights, use) \
  {Format::k##Enum, name, weights, sizeof(Block), FormatUse::use},
#include "nibble/formats.def"
};

bool EqualIgnoringCase(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::tolower(x) == std::tolower(y);
  });
}

}  // namespace

std::span<const FormatInfo> AllFormats() { return kFormats; }

const FormatInfo* FindFormat(Format format) {
  for (const FormatInfo& info : kFormats) {
    if (info.format == format) return &info;
  }
  return nullptr;
}

const FormatInfo* FindFormat(std::string_view name) {
  for (const FormatInfo& info : kFormats) {
    if (EqualIgnoringCase(info.name, name)) return &info;
  }
  return nullptr;
}

Result<size_t> FormatBytes(Format format, int64_t rows, int64_t cols) {
  const FormatInfo* info = FindFormat(format);
  if (info == nullptr) {
    return InvalidArgument("no format has number " + std::to_string(static_cast<uint32_t>(format)));
  }
  if (rows < 0 || cols < 0) return InvalidArgument("negative shape");
  if (cols % info->block_weights != 0) {
    return InvalidArgument(std::string(info->name) + " needs rows of a multiple of " +
                           std::to_string(info->block_weights) + " weights, not " +
                           std::to_string(cols));
  }
  size_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<size_t>(cols / info->block_weights),
                             static_cast<size_t>(info->block_bytes), &bytes) ||
      __builtin_mul_overflow(bytes, static_cast<size_t>(rows), &bytes)) {
    return InvalidArgument("a matrix of " + std::to_string(rows) + " x " + std::to_string(cols) +
                           " is too large");
  }
  return bytes;
}

}  // namespace nibble
