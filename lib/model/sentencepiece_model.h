// The parts of a SentencePiece model (tokenizer.model) that a vocabulary is made of. The file is a
// protocol buffer, ModelProto of sentencepiece_model.proto, read here field by field because the
// library's own accessors give no normalizer settings and no user-defined type.
#ifndef NIBBLE_LIB_MODEL_SENTENCEPIECE_MODEL_H_
#define NIBBLE_LIB_MODEL_SENTENCEPIECE_MODEL_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/status.h"

namespace nibble {

// The numbers are those of SentencePiece and of GGUF's tokenizer.ggml.token_type alike.
enum class TokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct SentencePieceModel {
  struct Piece {
    std::string text;
    float score = 0;
    TokenType type = TokenType::kNormal;
  };
  enum class Algorithm : uint32_t { kUnigram = 1, kBpe = 2, kWord = 3, kChar = 4 };

  std::vector<Piece> pieces;
  Algorithm algorithm = Algorithm::kUnigram;
  int64_t unknown = 0, bos = 1, eos = 2, pad = -1;  // negative: there is none
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  std::string charsmap;  // the normalizer's compiled rules
};

// Parses the bytes of a tokenizer.model; errors begin with `name`.
Result<SentencePieceModel> ParseSentencePiece(std::string_view bytes, const std::string& name);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_SENTENCEPIECE_MODEL_H_
