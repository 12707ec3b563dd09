#include "nibble/tokenizer.h"

#include <algorithm>
#include <set>
#include <utility>

#include "lib/model/tokenizer_impl.h"

namespace nibble {

struct Tokenizer::Impl {
  std::shared_ptr<const GgufMetadata> metadata;  // holds what the vocabulary points to
  TokenTable vocabulary;
  std::unique_ptr<TextEncoder> encoder;
  bool sentencepiece = false;  // its BPE or its unigram model
  bool unigram = false;
  bool add_space_prefix = false;
  bool add_bos = false;
  bool add_eos = false;
  int32_t bos = -1;
  int32_t eos = -1;
  std::set<int32_t> ends;
  std::vector<int32_t> specials;  // tokens that are cut out of the text first, longest first
};

namespace {

// Text that ends a turn in the chat formats in use: models often name only one of theirs as EOS.
constexpr std::string_view kEndTexts[] = {"<|eot_id|>",    "<|im_end|>", "<|end|>", "<end_of_turn>",
                                          "<|endoftext|>", "<|eom_id|>", "<EOT>",   "</s>"};

template <class T>
const T* Get(const GgufMetadata& metadata, std::string_view key) {
  const GgufValue* value = metadata.Find(key);
  return value == nullptr ? nullptr : std::get_if<T>(value);
}

// A token id, -1 where the key is -1; an error where it is outside the vocabulary. Where the key is
// absent, `otherwise`, if the vocabulary reaches so far.
Result<int32_t> GetToken(const GgufMetadata& metadata, std::string_view key, size_t vocab_size,
                         int32_t otherwise) {
  if (metadata.Find(key) == nullptr) {
    return otherwise < static_cast<int32_t>(vocab_size) ? otherwise : -1;
  }
  NIBBLE_ASSIGN_OR_RETURN(const uint64_t id, metadata.GetUint(key));
  if (id == 0xFFFFFFFFu) return -1;
  if (id >= vocab_size) {
    return Corrupt(std::string(key) + ": token " + std::to_string(id) + " of a vocabulary of " +
                   std::to_string(vocab_size));
  }
  return static_cast<int32_t>(id);
}

Result<bool> GetFlag(const GgufMetadata& metadata, std::string_view key, bool otherwise) {
  if (metadata.Find(key) == nullptr) return otherwise;
  return metadata.GetBool(key);
}

}  // namespace

Result<Tokenizer> Tokenizer::FromMetadata(std::shared_ptr<const GgufMetadata> shared) {
  auto impl = std::make_shared<Impl>();
  impl->metadata = std::move(shared);
  const GgufMetadata& metadata = *impl->metadata;
  TokenTable& vocabulary = impl->vocabulary;
  NIBBLE_ASSIGN_OR_RETURN(const std::string model, metadata.GetString("tokenizer.ggml.model"));
  const auto* tokens = Get<std::vector<std::string>>(metadata, "tokenizer.ggml.tokens");
  if (tokens == nullptr || tokens->empty())
    return Corrupt("tokenizer.ggml.tokens is missing or empty");
  vocabulary.tokens = *tokens;
  vocabulary.ids = StringIndex(vocabulary.tokens);
  const size_t count = vocabulary.tokens.size();
  vocabulary.types.assign(count, TokenType::kNormal);
  if (const auto* types = Get<std::vector<int32_t>>(metadata, "tokenizer.ggml.token_type")) {
    if (types->size() != count) {
      return Corrupt("tokenizer.ggml.token_type has " + std::to_string(types->size()) +
                     " entries for " + std::to_string(count) + " tokens");
    }
    for (size_t i = 0; i < count; ++i) vocabulary.types[i] = static_cast<TokenType>((*types)[i]);
  }
  impl->unigram = model == "t5";
  impl->sentencepiece = model == "llama" || impl->unigram;
  // What a file leaves out means Llama's and T5's own.
  struct Ids {
    int32_t bos = -1, eos = -1, unknown = -1;
  };
  const Ids usual = impl->unigram ? Ids{-1, 1, 2} : impl->sentencepiece ? Ids{1, 2, 0} : Ids{};
  const auto get = [&](const char* name, int32_t otherwise) {
    return GetToken(metadata, std::string("tokenizer.ggml.") + name + "_token_id", count,
                    otherwise);
  };
  NIBBLE_ASSIGN_OR_RETURN(impl->bos, get("bos", usual.bos));
  NIBBLE_ASSIGN_OR_RETURN(impl->eos, get("eos", usual.eos));
  NIBBLE_ASSIGN_OR_RETURN(vocabulary.unknown, get("unknown", usual.unknown));
  NIBBLE_ASSIGN_OR_RETURN(impl->add_space_prefix,
                          GetFlag(metadata, "tokenizer.ggml.add_space_prefix", model == "llama"));
  if (impl->sentencepiece) {
    const auto* scores = Get<std::vector<float>>(metadata, "tokenizer.ggml.scores");
    if (scores == nullptr || scores->size() != count) {
      return Corrupt("tokenizer.ggml.scores is missing or has not one score a token");
    }
    vocabulary.scores = *scores;
    vocabulary.unknown = std::max(vocabulary.unknown, 0);
  }
  if (impl->unigram) {
    UnigramOptions options;
    options.add_space_prefix = impl->add_space_prefix;
    NIBBLE_ASSIGN_OR_RETURN(options.remove_extra_whitespaces,
                            GetFlag(metadata, "tokenizer.ggml.remove_extra_whitespaces", false));
    // Written as bytes or as chars.
    constexpr const char kCharsmap[] = "tokenizer.ggml.precompiled_charsmap";
    if (const auto* bytes = Get<std::vector<uint8_t>>(metadata, kCharsmap)) {
      options.charsmap = *bytes;
    } else if (const auto* chars = Get<std::vector<int8_t>>(metadata, kCharsmap)) {
      options.charsmap = {reinterpret_cast<const uint8_t*>(chars->data()), chars->size()};
    }
    NIBBLE_ASSIGN_OR_RETURN(impl->encoder, MakeUnigramEncoder(vocabulary, options));
  } else if (model == "llama") {
    impl->encoder = MakeSentencePieceEncoder(vocabulary);
  } else if (model == "gpt2") {
    const auto* merges = Get<std::vector<std::string>>(metadata, "tokenizer.ggml.merges");
    if (merges == nullptr) return Corrupt("tokenizer.ggml.merges is missing");
    vocabulary.merges = *merges;
    std::string pre = "default";
    if (metadata.Find("tokenizer.ggml.pre") != nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(pre, metadata.GetString("tokenizer.ggml.pre"));
    }
    NIBBLE_ASSIGN_OR_RETURN(impl->encoder, MakeByteLevelEncoder(vocabulary, pre));
  } else {
    return Unsupported("tokenizer.ggml.model '" + model + "': llama, t5 and gpt2 are known");
  }
  // Without the key llama-style vocabularies begin with BOS and unigram ones end with EOS;
  // byte-level ones do neither, except Llama 3's.
  bool bos_by_default = impl->sentencepiece && !impl->unigram;
  if (const auto* pre = Get<std::string>(metadata, "tokenizer.ggml.pre")) {
    bos_by_default |= *pre == "llama-bpe" || *pre == "llama3" || *pre == "llama-v3";
  }
  NIBBLE_ASSIGN_OR_RETURN(impl->add_bos,
                          GetFlag(metadata, "tokenizer.ggml.add_bos_token", bos_by_default));
  NIBBLE_ASSIGN_OR_RETURN(impl->add_eos,
                          GetFlag(metadata, "tokenizer.ggml.add_eos_token", impl->unigram));

  if (impl->eos >= 0) impl->ends.insert(impl->eos);
  for (const std::string_view text : kEndTexts) {
    const int32_t id = vocabulary.Find(text);
    if (id >= 0 && vocabulary.types[id] == TokenType::kControl) impl->ends.insert(id);
  }
  for (size_t i = 0; i < count; ++i) {
    const TokenType type = vocabulary.types[i];
    if (vocabulary.tokens[i].empty()) continue;
    if (type == TokenType::kControl || type == TokenType::kUserDefined ||
        type == TokenType::kUnknown) {
      impl->specials.push_back(static_cast<int32_t>(i));
    }
  }
  std::stable_sort(impl->specials.begin(), impl->specials.end(), [&](int32_t a, int32_t b) {
    return vocabulary.tokens[a].size() > vocabulary.tokens[b].size();
  });
  Tokenizer tokenizer;
  tokenizer.impl_ = std::move(impl);
  return tokenizer;
}

namespace {

// A stretch of the text, or a special token in its place.
struct Fragment {
  std::string_view text;
  int32_t token = -1;
};

// Replaces every occurrence of `special` in the text fragments.
void CutOut(std::string_view special, int32_t token, std::vector<Fragment>* fragments) {
  std::vector<Fragment> result;
  for (const Fragment& fragment : *fragments) {
    std::string_view rest = fragment.text;
    if (fragment.token >= 0) {
      result.push_back(fragment);
      continue;
    }
    for (size_t at; (at = rest.find(special)) != std::string_view::npos;) {
      if (at > 0) result.push_back({rest.substr(0, at), -1});
      result.push_back({{}, token});
      rest.remove_prefix(at + special.size());
    }
    if (!rest.empty()) result.push_back({rest, -1});
  }
  *fragments = std::move(result);
}

}  // namespace

Result<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                               const TokenizeOptions& options) const {
  const Impl& impl = *impl_;
  std::vector<Fragment> fragments;
  if (!text.empty()) fragments.push_back({text, -1});
  for (const int32_t id : impl.specials) {
    if (impl.vocabulary.types[id] != TokenType::kUserDefined && !options.parse_special) continue;
    const std::string& special = impl.vocabulary.tokens[id];
    if (text.find(special) != std::string_view::npos) CutOut(special, id, &fragments);
  }
  std::vector<int32_t> tokens;
  if (options.add_special && impl.add_bos && impl.bos >= 0) tokens.push_back(impl.bos);
  bool after_special = true;  // SentencePiece puts a space before the text and after special tokens
  std::string spaced;
  for (const Fragment& fragment : fragments) {
    if (fragment.token >= 0) {
      tokens.push_back(fragment.token);
      after_special = true;
      continue;
    }
    std::string_view piece = fragment.text;
    // The unigram encoder does so itself, after it has normalized the text.
    if (impl.sentencepiece && !impl.unigram && impl.add_space_prefix && after_special) {
      spaced.assign(1, ' ').append(piece);
      piece = spaced;
    }
    NIBBLE_RETURN_IF_ERROR(impl.encoder->Encode(piece, &tokens));
    after_special = false;
  }
  if (options.add_special && impl.add_eos && impl.eos >= 0) tokens.push_back(impl.eos);
  return tokens;
}

std::string Tokenizer::Piece(int32_t token) const {
  const TokenTable& vocabulary = impl_->vocabulary;
  if (token < 0 || token >= vocab_size()) return {};
  const std::string& text = vocabulary.tokens[token];
  switch (vocabulary.types[token]) {
    case TokenType::kControl:
    case TokenType::kUnknown:
      return {};
    case TokenType::kUserDefined:
      return text;
    case TokenType::kByte:  // "<0xAB>"
      if (text.size() == 6)
        return std::string(1, static_cast<char>(std::stoi(text.substr(3, 2), nullptr, 16)));
      return {};
    default:
      return impl_->encoder->Piece(text);
  }
}

std::string Tokenizer::Decode(const std::vector<int32_t>& tokens) const {
  std::string text;
  for (const int32_t token : tokens) text += Piece(token);
  const bool prefixed = impl_->sentencepiece && impl_->add_space_prefix;
  return prefixed && !text.empty() && text[0] == ' ' ? text.substr(1) : text;
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(impl_->vocabulary.tokens.size());
}
int32_t Tokenizer::bos() const { return impl_->bos; }
bool Tokenizer::adds_bos() const { return impl_->add_bos && impl_->bos >= 0; }
int32_t Tokenizer::eos() const { return impl_->eos; }
bool Tokenizer::IsEnd(int32_t token) const { return impl_->ends.count(token) > 0; }

}  // namespace nibble
