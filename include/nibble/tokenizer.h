// Text to token ids and back, from a GGUF file's tokenizer.* metadata (which a Hugging Face folder
// is given as well, see nibble/model_source.h).
#ifndef NIBBLE_TOKENIZER_H_
#define NIBBLE_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/gguf.h"
#include "nibble/status.h"

namespace nibble {

struct TokenizeOptions {
  bool add_special = true;     // BOS and EOS where the model's metadata asks for them
  bool parse_special = false;  // "<|im_start|>" in the text becomes that control token
};

// Immutable after creation: safe to use from many threads.
class Tokenizer {
 public:
  // SentencePiece's BPE ("llama") and unigram ("t5") vocabularies and byte-level BPE ("gpt2"). The
  // vocabulary stays in the metadata, which the tokenizer shares.
  static Result<Tokenizer> FromMetadata(std::shared_ptr<const GgufMetadata> metadata);

  Result<std::vector<int32_t>> Encode(std::string_view text,
                                      const TokenizeOptions& options = {}) const;

  // The bytes that a token adds to the text; empty for control tokens. May be a part of a
  // character.
  std::string Piece(int32_t token) const;
  // The text of all tokens, without the space that SentencePiece puts before a text.
  std::string Decode(const std::vector<int32_t>& tokens) const;

  int32_t vocab_size() const;
  int32_t bos() const;              // -1 where there is none
  bool adds_bos() const;            // Encode begins with it
  int32_t eos() const;              // -1 where there is none
  bool IsEnd(int32_t token) const;  // end of text, of turn or of message

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_H_
