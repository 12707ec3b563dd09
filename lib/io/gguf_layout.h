// What the GGUF reader and writer agree on. All numbers in a file are little-endian.
//
//   "GGUF", u32 version, u64 tensors, u64 key-value pairs
//   pairs:    string key, u32 type, value
//   tensors:  string name, u32 dimensions, u64 of each, u32 format, u64 offset in the data
//   zeros up to a multiple of the alignment, then the data, each tensor aligned
//
// A string is a u64 length and its bytes; an array is a u32 element type, a u64 count, its
// elements.
#ifndef NIBBLE_LIB_IO_GGUF_LAYOUT_H_
#define NIBBLE_LIB_IO_GGUF_LAYOUT_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <variant>

#include "nibble/gguf.h"

namespace nibble {

static_assert(std::endian::native == std::endian::little,
              "files are copied from memory as they are");

inline constexpr std::string_view kGgufMagic = "GGUF";
inline constexpr uint32_t kGgufVersion = 3;  // as written; 2 and 3 are read
inline constexpr uint64_t kGgufDefaultAlignment = 32;
inline constexpr size_t kGgufLongestName = 65535;  // of keys and tensors
inline constexpr std::string_view kGgufExtension = ".gguf";

inline constexpr std::string_view kAlignmentKey = "general.alignment";  // u32
inline constexpr std::string_view kSplitPrefix = "split.";
inline constexpr std::string_view kSplitNumberKey = "split.no";              // u16, from 0
inline constexpr std::string_view kSplitCountKey = "split.count";            // u16
inline constexpr std::string_view kSplitTensorsKey = "split.tensors.count";  // i32, of all shards

// GgufValue holds the scalars in the order of their type numbers without kArray, then the arrays of
// the same types in the same order.
inline constexpr size_t kGgufScalarTypes = 12;
static_assert(std::variant_size_v<GgufValue> == 2 * kGgufScalarTypes);

constexpr uint32_t GgufScalarType(size_t variant_index) {
  const auto index = static_cast<uint32_t>(variant_index % kGgufScalarTypes);
  return index < static_cast<uint32_t>(GgufType::kArray) ? index : index + 1;
}

constexpr bool IsValidGgufAlignment(uint64_t alignment) {
  return std::has_single_bit(alignment) && alignment >= 8 && alignment <= UINT32_MAX;
}

// The next multiple of `alignment`, a power of two. The sum must not overflow.
constexpr uint64_t AlignUp(uint64_t offset, uint64_t alignment) {
  return (offset + alignment - 1) & ~(alignment - 1);
}

// Bytes of a tensor's data. Checks the number of dimensions, that each is positive, that rows hold
// whole blocks and that nothing overflows; the message says what is wrong and names no tensor.
Result<uint64_t> GgufTensorBytes(const GgufTensorInfo& tensor);

}  // namespace nibble

#endif  // NIBBLE_LIB_IO_GGUF_LAYOUT_H_
