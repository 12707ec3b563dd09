// Any bytes as a GGUF file: an error, or tensors that lie within the bytes and that the writer
// takes.
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "lib/io/gguf_reader.h"
#include "nibble/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> input(data, size);
  const auto parsed = nibble::ParseGguf(std::as_bytes(input), "fuzz.gguf");
  if (!parsed.ok()) {
    if (parsed.status().message().find('\n') != std::string::npos) abort();
    return 0;
  }
  uint64_t sum = 0;
  std::vector<nibble::GgufTensorInfo> infos;
  for (const nibble::GgufTensor& tensor : parsed->tensors) {
    for (const std::byte byte : tensor.data) sum += static_cast<uint8_t>(byte);
    infos.push_back(tensor);
  }
  const nibble::GgufWriteOptions options{.alignment = parsed->alignment};
  // A large alignment alone makes a large header: that memory is the writer's caller's choice.
  if (parsed->alignment <= 4096) {
    const auto bytes = nibble::GgufWriter::TotalBytes(parsed->metadata, infos, options);
    if (!bytes.ok() || (sum > 0 && *bytes == 0)) abort();
  }
  return 0;
}
