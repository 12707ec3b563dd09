// Any text as an index of safetensors files: an error or names of files in the same folder.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "lib/io/safetensors_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto parsed = nibble::ParseSafetensorsIndex(text, "fuzz.json");
  if (!parsed.ok()) {
    if (parsed.status().message().find('\n') != std::string::npos) abort();
    return 0;
  }
  for (const auto& [tensor, file] : *parsed) {
    if (file.empty() || file == ".." || file.find('/') != std::string::npos) abort();
  }
  return 0;
}
