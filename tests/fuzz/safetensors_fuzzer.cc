// Any bytes as a safetensors file: an error or tensors that fill the data without gap or overlap.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "lib/io/safetensors_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> input = std::as_bytes(std::span(data, size));
  const auto parsed = nibble::ParseSafetensors(input, "fuzz.safetensors");
  if (!parsed.ok()) {
    if (parsed.status().message().find('\n') != std::string::npos) abort();
    return 0;
  }
  const std::byte* end = nullptr;
  for (const nibble::SafetensorsTensor& tensor : parsed->tensors) {
    if (end != nullptr && tensor.data.data() != end) abort();
    end = tensor.data.data() + tensor.data.size();
    if (nibble::DTypeBytes(tensor.dtype) * static_cast<uint64_t>(tensor.elements()) !=
        tensor.data.size()) {
      abort();
    }
  }
  if (end != nullptr && end != input.data() + input.size()) abort();
  return 0;
}
