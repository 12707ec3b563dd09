#include "lib/io/errors.h"

#include <cerrno>
#include <system_error>

namespace nibble {

std::string Quoted(std::string_view text) {
  constexpr size_t kLongest = 96;
  constexpr char kHex[] = "0123456789abcdef";
  std::string quoted = "'";
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F && c != '\'' && c != '\\') {
      quoted += c;
    } else {
      quoted += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return quoted + (text.size() > kLongest ? "...'" : "'");
}

Status ErrnoStatus(const std::string& path, const std::string& action, int error) {
  return {error == ENOENT ? StatusCode::kNotFound : StatusCode::kIo,
          path + ": " + action + ": " + std::generic_category().message(error)};
}

}  // namespace nibble
