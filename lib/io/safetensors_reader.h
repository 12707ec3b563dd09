// The safetensors parsers: hostile bytes in, a checked description out.
#ifndef NIBBLE_LIB_IO_SAFETENSORS_READER_H_
#define NIBBLE_LIB_IO_SAFETENSORS_READER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/safetensors.h"
#include "nibble/status.h"

namespace nibble {

inline constexpr std::string_view kSafetensorsExtension = ".safetensors";
inline constexpr std::string_view kSafetensorsIndexExtension = ".safetensors.index.json";
inline constexpr std::string_view kSafetensorsMetadataKey = "__metadata__";
inline constexpr uint64_t kSafetensorsLargestHeader = 100'000'000;

// The file's name of a type, such as "F32" or "F8_E4M3".
const char* SafetensorsTypeName(DType dtype);

// Bytes of a tensor's data. Checks that no dimension is negative and that nothing overflows; the
// message names no tensor.
Result<uint64_t> SafetensorsTensorBytes(const SafetensorsInfo& tensor);

struct ParsedSafetensors {
  std::map<std::string, std::string> metadata;
  std::vector<SafetensorsTensor> tensors;  // in the order of their data, which is in the bytes
};

// Parses one file. Messages begin with `path` and name the tensor or the byte offset.
Result<ParsedSafetensors> ParseSafetensors(std::span<const std::byte> file,
                                           const std::string& path);

// Parses an index file: pairs of tensor and file name, as they stand there. File names are plain:
// no folders.
Result<std::vector<std::pair<std::string, std::string>>> ParseSafetensorsIndex(
    std::string_view text, const std::string& path);

}  // namespace nibble

#endif  // NIBBLE_LIB_IO_SAFETENSORS_READER_H_
