// Look-up by text in a list of strings that somebody else keeps.
#ifndef NIBBLE_LIB_MODEL_STRING_INDEX_H_
#define NIBBLE_LIB_MODEL_STRING_INDEX_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// A hash table of positions alone, at most half full: vocabularies and merges of a hundred thousand
// strings are not held twice. The strings may not move or change while the index is used.
class StringIndex {
 public:
  StringIndex() = default;
  explicit StringIndex(std::span<const std::string> strings)
      : strings_(strings), slots_(std::bit_ceil(2 * strings.size() + 1), -1) {
    for (size_t i = 0; i < strings.size(); ++i) {
      int32_t& slot = slots_[SlotOf(strings[i])];
      if (slot < 0) slot = static_cast<int32_t>(i);
    }
  }

  // The position of the first string that equals `text`; -1: there is none.
  int32_t Find(std::string_view text) const { return slots_.empty() ? -1 : slots_[SlotOf(text)]; }

 private:
  // Where `text` is, or the free slot where it would be.
  size_t SlotOf(std::string_view text) const {
    const size_t mask = slots_.size() - 1;
    size_t at = std::hash<std::string_view>{}(text)&mask;
    while (slots_[at] >= 0 && strings_[static_cast<size_t>(slots_[at])] != text) {
      at = (at + 1) & mask;
    }
    return at;
  }

  std::span<const std::string> strings_;
  std::vector<int32_t> slots_;
};

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_STRING_INDEX_H_
