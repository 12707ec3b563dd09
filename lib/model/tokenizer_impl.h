// The parts of a tokenizer: the vocabulary, and the two ways of cutting plain text into its tokens.
#ifndef NIBBLE_LIB_MODEL_TOKENIZER_IMPL_H_
#define NIBBLE_LIB_MODEL_TOKENIZER_IMPL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lib/model/sentencepiece_model.h"
#include "nibble/status.h"

namespace nibble {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
};

using TokenMap = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

// The tokens of a model, by id and by text.
struct TokenTable {
  std::vector<std::string> tokens;
  std::vector<float> scores;     // SentencePiece; else empty
  std::vector<TokenType> types;  // as many as tokens
  TokenMap ids;
  int32_t unknown = -1;

  int32_t Find(std::string_view token) const {
    const auto it = ids.find(token);
    return it == ids.end() ? -1 : it->second;
  }
};

// Cuts text that holds no special token.
class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  virtual Status Encode(std::string_view text, std::vector<int32_t>* out) const = 0;
  // The bytes of a normal token.
  virtual std::string Piece(std::string_view token) const = 0;
};

// SentencePiece's BPE: adjacent symbols merge in the order of the merged token's score, highest
// first, leftmost among equals; what stays unknown falls back to bytes (arXiv 1808.06226).
std::unique_ptr<TextEncoder> MakeSentencePieceEncoder(const TokenTable& vocabulary);

// Byte-level BPE: a regular expression cuts words, adjacent symbols merge in the order of `merges`
// ("left right"). `pre` names the expression as tokenizer.ggml.pre does.
Result<std::unique_ptr<TextEncoder>> MakeByteLevelEncoder(const TokenTable& vocabulary,
                                                          const std::vector<std::string>& merges,
                                                          const std::string& pre);

// Bytes of the UTF-8 character that begins with `lead`; 1 for a byte that begins none.
inline size_t Utf8Length(unsigned char lead) {
  if (lead >= 0xF0 && lead < 0xF8) return 4;
  if (lead >= 0xE0) return lead < 0xF0 ? 3 : 1;
  return lead >= 0xC0 ? 2 : 1;
}

// Merges neighbours of a text cut into symbols until no pair ranks. `rank(left, right, &priority)`
// tells whether two adjacent pieces merge and with what priority: the lowest goes first, the
// leftmost among equals. Calls `emit(piece)` for each remaining symbol in order.
template <class Priority, class Rank, class Emit>
void MergeSymbols(std::string_view text, const std::vector<size_t>& starts, const Rank& rank,
                  const Emit& emit);

}  // namespace nibble

#include "lib/model/merge_symbols-inl.h"

#endif  // NIBBLE_LIB_MODEL_TOKENIZER_IMPL_H_
