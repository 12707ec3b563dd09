// Names of the files of a model that was split: "stem-00002-of-00003.gguf".
#ifndef NIBBLE_LIB_IO_SHARDS_H_
#define NIBBLE_LIB_IO_SHARDS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

// The most shards that five digits, and GGUF's 16-bit count, can number.
inline constexpr uint32_t kMaxShards = 65535;

struct ShardName {
  std::string stem;    // folder and name up to the numbers
  uint32_t index = 0;  // from 0; the file name counts from 1
  uint32_t count = 0;
  std::string extension;  // ".gguf"
};

// Takes a path apart; nothing when it is not the name of a shard.
std::optional<ShardName> ParseShardName(std::string_view path, std::string_view extension);

// The path of shard `index` (from 0) of `count`.
std::string MakeShardName(std::string_view stem, uint32_t index, uint32_t count,
                          std::string_view extension);

// `path` without `extension` where it ends in it.
std::string_view WithoutExtension(std::string_view path, std::string_view extension);

}  // namespace nibble

#endif  // NIBBLE_LIB_IO_SHARDS_H_
