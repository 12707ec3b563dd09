#include "lib/model/hf_tokenizer.h"

#include <filesystem>

#include "lib/model/sentencepiece_model.h"
#include "lib/model/vocabulary.h"

namespace nibble {
namespace {

constexpr uint64_t kMaxConfigBytes = 16 << 20;
constexpr uint64_t kMaxTokenizerBytes = 512 << 20;

Result<JsonObject> LoadBeside(const std::string& folder, const char* file, uint64_t limit,
                              std::vector<std::string>& paths) {
  const std::string path = (std::filesystem::path(folder) / file).string();
  NIBBLE_ASSIGN_OR_RETURN(JsonObject object, JsonObject::LoadIfPresent(path, limit));
  if (!object.empty()) paths.push_back(path);
  return object;
}

void AddVocabulary(Vocabulary&& vocabulary, GgufMetadata& metadata) {
  std::vector<int32_t> types;
  types.reserve(vocabulary.types.size());
  for (const TokenType type : vocabulary.types) types.push_back(static_cast<int32_t>(type));
  metadata.Set("tokenizer.ggml.model", vocabulary.model);
  metadata.Set("tokenizer.ggml.pre", vocabulary.pre);
  metadata.Set("tokenizer.ggml.tokens", std::move(vocabulary.tokens));
  if (!vocabulary.scores.empty()) {
    metadata.Set("tokenizer.ggml.scores", std::move(vocabulary.scores));
  }
  metadata.Set("tokenizer.ggml.token_type", std::move(types));
  if (vocabulary.model == "gpt2") {
    metadata.Set("tokenizer.ggml.merges", std::move(vocabulary.merges));
  }
  if (vocabulary.remove_extra_whitespaces) {
    metadata.Set("tokenizer.ggml.remove_extra_whitespaces", *vocabulary.remove_extra_whitespaces);
  }
  if (!vocabulary.charsmap.empty()) {
    metadata.Set("tokenizer.ggml.precompiled_charsmap", std::move(vocabulary.charsmap));
  }
}

}  // namespace

Status AddTokenizer(const std::string& folder, const HfConfig& config, const JsonObject& json,
                    GgufMetadata& metadata, std::vector<std::string>& paths,
                    std::vector<std::string>& notices) {
  SpecialTokenFiles files;
  files.config = json;
  NIBBLE_ASSIGN_OR_RETURN(files.tokenizer,
                          LoadBeside(folder, "tokenizer.json", kMaxTokenizerBytes, paths));
  NIBBLE_ASSIGN_OR_RETURN(files.tokenizer_config,
                          LoadBeside(folder, "tokenizer_config.json", kMaxConfigBytes, paths));
  NIBBLE_ASSIGN_OR_RETURN(files.special_tokens_map,
                          LoadBeside(folder, "special_tokens_map.json", kMaxConfigBytes, paths));
  NIBBLE_ASSIGN_OR_RETURN(files.generation_config,
                          LoadBeside(folder, "generation_config.json", kMaxConfigBytes, paths));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject added_tokens,
                          LoadBeside(folder, "added_tokens.json", kMaxConfigBytes, paths));

  const std::string model_path = (std::filesystem::path(folder) / "tokenizer.model").string();
  const Result<std::string> model_bytes = ReadWholeFile(model_path, kMaxTokenizerBytes);
  Vocabulary vocabulary;
  if (model_bytes.ok()) {
    paths.push_back(model_path);
    NIBBLE_ASSIGN_OR_RETURN(const SentencePieceModel model,
                            ParseSentencePiece(*model_bytes, model_path));
    NIBBLE_ASSIGN_OR_RETURN(vocabulary,
                            VocabularyOfSentencePiece(model, config.vocab, model_path, notices));
  } else if (model_bytes.status().code() != StatusCode::kNotFound) {
    return model_bytes.status();
  } else if (files.tokenizer.empty()) {
    notices.push_back(folder +
                      ": neither tokenizer.model nor tokenizer.json: the result has no "
                      "tokenizer and will not generate text");
    return OkStatus();
  } else {
    NIBBLE_ASSIGN_OR_RETURN(vocabulary, VocabularyOfJson(files.tokenizer, config.vocab, notices));
  }
  NIBBLE_RETURN_IF_ERROR(
      AddTokens(added_tokens, files.tokenizer, files.tokenizer_config, vocabulary, notices));

  GgufMetadata special;
  NIBBLE_RETURN_IF_ERROR(AddSpecialTokens(files, vocabulary, special, notices));
  NIBBLE_RETURN_IF_ERROR(AddChatTemplate(folder, files.tokenizer_config, special, paths));
  // What tokenizer_config.json says outranks the tokenizer's own settings; Gemma's model claims a
  // prefix that the Gemma tokenizer does not add.
  NIBBLE_ASSIGN_OR_RETURN(
      const bool prefix,
      files.tokenizer_config.BoolOr("add_prefix_space", vocabulary.space_prefix.value_or(true)));
  const bool said = vocabulary.space_prefix || files.tokenizer_config.Has("add_prefix_space");
  if (said || !config.architecture->dummy_prefix) {
    special.Set("tokenizer.ggml.add_space_prefix", prefix && config.architecture->dummy_prefix);
  }
  AddVocabulary(std::move(vocabulary), metadata);
  for (const auto& [key, value] : special.entries()) metadata.Set(key, value);
  return OkStatus();
}

}  // namespace nibble
