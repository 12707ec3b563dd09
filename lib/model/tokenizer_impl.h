// The parts of a tokenizer: the vocabulary, and the two ways of cutting plain text into its tokens.
#ifndef NIBBLE_LIB_MODEL_TOKENIZER_IMPL_H_
#define NIBBLE_LIB_MODEL_TOKENIZER_IMPL_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/model/sentencepiece_model.h"
#include "lib/model/string_index.h"
#include "nibble/status.h"

namespace nibble {

// The tokens of a model, by id and by text. Texts, scores and merges are the metadata's own.
struct TokenTable {
  std::span<const std::string> tokens;
  std::span<const float> scores;        // SentencePiece; else empty
  std::span<const std::string> merges;  // byte-level BPE, "left right"; else empty
  std::vector<TokenType> types;         // as many as tokens
  StringIndex ids;
  int32_t unknown = -1;

  int32_t Find(std::string_view token) const { return ids.Find(token); }
};

// Cuts text that holds no special token.
class TextEncoder {
 public:
  virtual ~TextEncoder() = default;
  virtual Status Encode(std::string_view text, std::vector<int32_t>* out) const = 0;
  // The bytes of a normal token.
  virtual std::string Piece(std::string_view token) const = 0;
};

inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, SentencePiece's space

// A SentencePiece token with spaces for its marks.
std::string WithPlainSpaces(std::string_view token);

// SentencePiece's BPE: adjacent symbols merge in the order of the merged token's score, highest
// first, leftmost among equals; what stays unknown falls back to bytes (arXiv 1808.06226).
std::unique_ptr<TextEncoder> MakeSentencePieceEncoder(const TokenTable& vocabulary);

// SentencePiece's unigram model: the text is normalized by the compiled rules of `charsmap`, then
// cut where the sum of the tokens' scores is largest (arXiv 1804.10959).
struct UnigramOptions {
  std::span<const uint8_t> charsmap;  // tokenizer.ggml.precompiled_charsmap; empty: no rules
  bool add_space_prefix = true;
  bool remove_extra_whitespaces = false;
};
Result<std::unique_ptr<TextEncoder>> MakeUnigramEncoder(const TokenTable& vocabulary,
                                                        const UnigramOptions& options);

// Byte-level BPE: a regular expression cuts words, adjacent symbols merge in the order of the
// vocabulary's merges. `pre` names the expression as tokenizer.ggml.pre does.
Result<std::unique_ptr<TextEncoder>> MakeByteLevelEncoder(const TokenTable& vocabulary,
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
