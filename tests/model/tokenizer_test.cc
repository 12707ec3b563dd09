// Text to ids and back: the reference model's SentencePiece vocabulary, and small ones made here.
#include "nibble/tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nibble/model_source.h"

namespace nibble {
namespace {

using Ids = std::vector<int32_t>;

const Tokenizer& ReferenceTokenizer() {
  static const Tokenizer* tokenizer = [] {
    const auto source = ModelSource::Open(std::string(NIBBLE_EXAMPLES) + "/reference-model");
    if (!source.ok()) std::abort();
    auto made = Tokenizer::FromMetadata(source->metadata());
    if (!made.ok()) std::abort();
    return new Tokenizer(*std::move(made));
  }();
  return *tokenizer;
}

Ids Encode(const Tokenizer& tokenizer, std::string_view text, bool special = false) {
  TokenizeOptions options;
  options.add_special = false;
  options.parse_special = special;
  const auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok());
  return ids.ok() ? *ids : Ids{};
}

// Every byte as itself or moved up, as GPT-2's vocabulary begins, then merges.
GgufMetadata ByteLevelMetadata(const std::string& pre) {
  std::vector<std::string> tokens;
  int next = 256;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    const int code = printable ? b : next++;
    if (code < 0x80)
      tokens.emplace_back(1, static_cast<char>(code));
    else
      tokens.push_back(
          {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))});
  }
  std::vector<std::string> merges = {"a b", "b c", "ab c", "\xC4\xA0 a", "1 2", "12 3"};
  for (const std::string& merge : merges) {
    std::string joined = merge;
    joined.erase(joined.find(' '), 1);
    tokens.push_back(joined);
  }
  std::vector<int32_t> types(tokens.size(), 1);
  tokens.push_back("<|end|>");
  types.push_back(3);
  tokens.push_back("[plain]");
  types.push_back(4);
  GgufMetadata metadata;
  metadata.Set("tokenizer.ggml.model", std::string("gpt2"));
  metadata.Set("tokenizer.ggml.pre", pre);
  metadata.Set("tokenizer.ggml.tokens", tokens);
  metadata.Set("tokenizer.ggml.token_type", types);
  metadata.Set("tokenizer.ggml.merges", merges);
  metadata.Set("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(262));
  return metadata;
}

TEST(SentencePiece, DecodeGivesTheTextBack) {
  for (const std::string text : {"The command prints", "  two  spaces ", "tab\tnew\nline",
                                 "caf\xC3\xA9 \xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x8E\x89",
                                 "1234567890", "", " ", "\xFF\xFE broken \x80"}) {
    EXPECT_EQ(ReferenceTokenizer().Decode(Encode(ReferenceTokenizer(), text)), text);
  }
}

TEST(SentencePiece, UnknownCharactersFallBackToBytes) {
  // U+1F389 is not in the vocabulary: a space and four byte tokens, <0x00> being token 3.
  const Ids ids = Encode(ReferenceTokenizer(), "\xF0\x9F\x8E\x89");
  ASSERT_EQ(ids.size(), 5u);
  EXPECT_EQ(Ids(ids.begin() + 1, ids.end()), (Ids{3 + 0xF0, 3 + 0x9F, 3 + 0x8E, 3 + 0x89}));
}

TEST(SentencePiece, ControlTokensAreTextUnlessAsked) {
  const Ids plain = Encode(ReferenceTokenizer(), "a</s>b"),
            parsed = Encode(ReferenceTokenizer(), "a</s>b", true);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), 2), 0);
  EXPECT_EQ(std::count(parsed.begin(), parsed.end(), 2), 1);
  EXPECT_TRUE(ReferenceTokenizer().IsEnd(2));
  EXPECT_EQ(ReferenceTokenizer().Piece(2), "");
  EXPECT_EQ(ReferenceTokenizer().Piece(-1), "");
  EXPECT_EQ(ReferenceTokenizer().Piece(1 << 30), "");
}

TEST(ByteLevel, MergesByRankLeftmostFirst) {
  const auto tokenizer = Tokenizer::FromMetadata(ByteLevelMetadata("gpt-2"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ(Encode(*tokenizer, "abc"), (Ids{258}));  // a b, then ab c
  EXPECT_EQ(Encode(*tokenizer, "bc"), (Ids{257}));
  EXPECT_EQ(Encode(*tokenizer, "abab"), (Ids{256, 256}));
  // "a b" ranks before the space and a, so the space stays alone.
  const Ids spaced = Encode(*tokenizer, " ab");
  ASSERT_EQ(spaced.size(), 2u);
  EXPECT_EQ(spaced[1], 256);
  EXPECT_EQ(tokenizer->Decode(spaced), " ab");
  for (int b = 1; b < 256; ++b) {
    const std::string text(1, static_cast<char>(b));
    EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, text)), text) << b;
  }
}

TEST(ByteLevel, WordsAreCutAsThePreTokenizerSays) {
  const auto gpt2 = Tokenizer::FromMetadata(ByteLevelMetadata("gpt-2"));
  const auto digits = Tokenizer::FromMetadata(ByteLevelMetadata("smollm"));
  ASSERT_TRUE(gpt2.ok() && digits.ok());
  EXPECT_EQ(Encode(*gpt2, "123"), (Ids{261}));
  EXPECT_EQ(Encode(*digits, "123").size(), 3u);  // each digit is a word
  for (const char* one_by_one : {"tekken", "qwen2", "starcoder", "refact", "command-r"}) {
    const auto tokenizer = Tokenizer::FromMetadata(ByteLevelMetadata(one_by_one));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    EXPECT_EQ(Encode(*tokenizer, "123").size(), 3u) << one_by_one;
  }
  for (const char* by_three : {"llama-bpe", "smaug-bpe", "gpt-4o", "llama3", "default"}) {
    const auto tokenizer = Tokenizer::FromMetadata(ByteLevelMetadata(by_three));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    EXPECT_EQ(Encode(*tokenizer, "123123"), (Ids{261, 261})) << by_three;
  }
  // A merge never crosses from one word into the next.
  EXPECT_EQ(Encode(*gpt2, "ab1").size(), 2u);
}

TEST(ByteLevel, SpecialTokensAreCutOutFirst) {
  const auto tokenizer = Tokenizer::FromMetadata(ByteLevelMetadata("gpt-2"));
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ(Encode(*tokenizer, "abc<|end|>abc", true), (Ids{258, 262, 258}));
  EXPECT_GT(Encode(*tokenizer, "abc<|end|>abc").size(), 3u);
  EXPECT_EQ(Encode(*tokenizer, "abc[plain]abc"), (Ids{258, 263, 258}));  // user-defined: always
  EXPECT_TRUE(tokenizer->IsEnd(262));
  EXPECT_EQ(tokenizer->Decode({258, 262, 263}), "abc[plain]");
}

TEST(Tokenizer, RefusesWhatItCannotRead) {
  const auto message = [](const GgufMetadata& metadata) {
    const auto tokenizer = Tokenizer::FromMetadata(metadata);
    return tokenizer.ok() ? std::string("fine") : tokenizer.status().message();
  };
  EXPECT_NE(message({}).find("tokenizer.ggml.model"), std::string::npos);
  GgufMetadata metadata = ByteLevelMetadata("no-such-cut");
  EXPECT_NE(message(metadata).find("no-such-cut"), std::string::npos);
  metadata = ByteLevelMetadata("gpt-2");
  metadata.Set("tokenizer.ggml.token_type", std::vector<int32_t>(3, 1));
  EXPECT_NE(message(metadata).find("token_type"), std::string::npos);
  metadata = ByteLevelMetadata("gpt-2");
  metadata.Set("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(264));
  EXPECT_NE(message(metadata).find("token 264"), std::string::npos);
  metadata = ByteLevelMetadata("gpt-2");
  metadata.Set("tokenizer.ggml.model", std::string("rwkv"));
  EXPECT_NE(message(metadata).find("rwkv"), std::string::npos);
  metadata = ByteLevelMetadata("gpt-2");
  metadata.Set("tokenizer.ggml.model", std::string("llama"));  // has no scores
  EXPECT_NE(message(metadata).find("scores"), std::string::npos);
}

}  // namespace
}  // namespace nibble
