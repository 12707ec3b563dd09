// A tokenizer's vocabulary on its way into GGUF metadata.
#ifndef NIBBLE_LIB_MODEL_VOCABULARY_H_
#define NIBBLE_LIB_MODEL_VOCABULARY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lib/model/json_file.h"
#include "lib/model/sentencepiece_model.h"
#include "nibble/gguf.h"
#include "nibble/status.h"

namespace nibble {

struct Vocabulary {
  std::string model;  // tokenizer.ggml.model: "llama" (SentencePiece BPE), "t5" (unigram), "gpt2"
  std::string pre = "default";
  std::vector<std::string> tokens;  // one an id, up to the model's vocabulary
  std::vector<TokenType> types;
  std::vector<float> scores;        // of SentencePiece
  std::vector<std::string> merges;  // of byte-level BPE: "left right"
  std::optional<bool> space_prefix;
  std::optional<bool> remove_extra_whitespaces;
  std::vector<uint8_t> charsmap;
  bool adds_bos = false;                               // where nothing in the folder says
  int64_t unknown = -1, bos = -1, eos = -1, pad = -1;  // the tokenizer's own; negative: none
};

// `size` is the model's vocabulary: ids beyond it are left out, missing ones become unused tokens;
// both are said in `notices`.
Result<Vocabulary> VocabularyOfSentencePiece(const SentencePieceModel& model, int64_t size,
                                             const std::string& name,
                                             std::vector<std::string>& notices);
// Of a tokenizer.json with a BPE model, byte-level or SentencePiece's. kUnsupported for other
// kinds.
Result<Vocabulary> VocabularyOfJson(const JsonObject& tokenizer, int64_t size,
                                    std::vector<std::string>& notices);

// Tokens added after training: those of added_tokens.json ({text: id}), of tokenizer.json's
// "added_tokens" list and of tokenizer_config.json's "added_tokens_decoder", in that order.
Status AddTokens(const JsonObject& added_tokens, const JsonObject& tokenizer,
                 const JsonObject& tokenizer_config, Vocabulary& vocabulary,
                 std::vector<std::string>& notices);

// The files of a folder that say which tokens are special.
struct SpecialTokenFiles {
  JsonObject config;             // config.json
  JsonObject generation_config;  // the others may be empty
  JsonObject tokenizer;
  JsonObject tokenizer_config;
  JsonObject special_tokens_map;
};

// Adds bos, eos, ... ids and whether a text begins and ends with them.
Status AddSpecialTokens(const SpecialTokenFiles& files, const Vocabulary& vocabulary,
                        GgufMetadata& metadata, std::vector<std::string>& notices);

// Adds the chat template, or several under their names, of tokenizer_config.json, else of
// chat_template.jinja or chat_template.json in `folder`.
Status AddChatTemplate(const std::string& folder, const JsonObject& tokenizer_config,
                       GgufMetadata& metadata, std::vector<std::string>& paths);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_VOCABULARY_H_
