// The block formats: fixed layouts in which GGUF files store matrices, one struct a block.
#ifndef NIBBLE_FORMAT_H_
#define NIBBLE_FORMAT_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "nibble/blocks.h"
#include "nibble/status.h"

namespace nibble {

// The numbers are those of GGUF.
enum class Format : uint32_t {
#define NIBBLE_FORMAT(id, Enum, name, Block, weights, use) k##Enum = id,
#include "nibble/formats.def"
};

enum class FormatUse : uint8_t { kScalar, kWeight, kDecodeOnly, kActivation, kInteger };

struct FormatInfo {
  Format format;
  const char* name;  // as in "q4_K"
  uint32_t block_weights;
  uint32_t block_bytes;
  FormatUse use;

  double bits_per_weight() const { return 8.0 * block_bytes / block_weights; }
  bool can_decode() const { return use != FormatUse::kActivation && use != FormatUse::kInteger; }
  bool can_encode() const { return use == FormatUse::kWeight || use == FormatUse::kScalar; }
};

#define NIBBLE_FORMAT(id, Enum, name, Block, weights, use) \
  static_assert(sizeof(Block) * 8 <= weights * 64, "block of " name);
#include "nibble/formats.def"

// All formats, in the order of formats.def.
std::span<const FormatInfo> AllFormats();

// The row of `format`; nullptr for a number that is not in the table.
const FormatInfo* FindFormat(Format format);

// By name, in any letter case; nullptr where there is none.
const FormatInfo* FindFormat(std::string_view name);

// The row of a value of the enumeration.
inline const FormatInfo& GetFormatInfo(Format format) { return *FindFormat(format); }

// Bytes of `rows` rows of `cols` weights. Fails where the format's block does not divide `cols`, or
// where the product overflows.
Result<size_t> FormatBytes(Format format, int64_t rows, int64_t cols);

}  // namespace nibble

#endif  // NIBBLE_FORMAT_H_
