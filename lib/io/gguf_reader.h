// The GGUF parser: hostile bytes in, a checked description out.
#ifndef NIBBLE_LIB_IO_GGUF_READER_H_
#define NIBBLE_LIB_IO_GGUF_READER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/gguf.h"
#include "nibble/status.h"

namespace nibble {

struct ParsedGguf {
  uint32_t version = 0;
  uint64_t alignment = 0;
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;  // their data lies in the parsed bytes
};

// Parses one file. Memory is taken only for what the bytes that are left can hold. Messages begin
// with `path` and name the tensor or key and the byte offset.
Result<ParsedGguf> ParseGguf(std::span<const std::byte> file, const std::string& path);

}  // namespace nibble

#endif  // NIBBLE_LIB_IO_GGUF_READER_H_
