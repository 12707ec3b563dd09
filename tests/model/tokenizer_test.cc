// Text to ids and back: the reference model's SentencePiece vocabulary, and small ones made here.
#include "nibble/tokenizer.h"

#include <gtest/gtest.h>

#include <cstring>
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
    auto made = Tokenizer::FromMetadata(source->shared_metadata());
    if (!made.ok()) std::abort();
    return new Tokenizer(*std::move(made));
  }();
  return *tokenizer;
}

Result<Tokenizer> Make(GgufMetadata metadata) {
  return Tokenizer::FromMetadata(std::make_shared<GgufMetadata>(std::move(metadata)));
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

// Without keys a text begins with token 1, as llama.cpp reads such files.
TEST(SentencePiece, FilesThatNameNoSpecialTokensMeanLlamas) {
  GgufMetadata metadata;
  metadata.Set("tokenizer.ggml.model", std::string("llama"));
  metadata.Set("tokenizer.ggml.tokens", std::vector<std::string>{"<unk>", "<s>", "</s>", "a"});
  metadata.Set("tokenizer.ggml.scores", std::vector<float>(4));
  metadata.Set("tokenizer.ggml.add_space_prefix", false);
  const auto tokenizer = Make(metadata);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  const auto ids = tokenizer->Encode("a");
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(*ids, (Ids{1, 3}));
  EXPECT_TRUE(tokenizer->IsEnd(2));
  metadata.Set("tokenizer.ggml.bos_token_id", uint32_t{0xFFFFFFFFu});  // there is none
  EXPECT_FALSE(Make(metadata)->adds_bos());
}

TEST(ByteLevel, MergesByRankLeftmostFirst) {
  const auto tokenizer = Make(ByteLevelMetadata("gpt-2"));
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
  const auto gpt2 = Make(ByteLevelMetadata("gpt-2"));
  const auto digits = Make(ByteLevelMetadata("smollm"));
  ASSERT_TRUE(gpt2.ok() && digits.ok());
  EXPECT_EQ(Encode(*gpt2, "123"), (Ids{261}));
  EXPECT_EQ(Encode(*digits, "123").size(), 3u);  // each digit is a word
  for (const char* one_by_one : {"tekken", "qwen2", "starcoder", "refact", "command-r"}) {
    const auto tokenizer = Make(ByteLevelMetadata(one_by_one));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    EXPECT_EQ(Encode(*tokenizer, "123").size(), 3u) << one_by_one;
  }
  for (const char* by_three : {"llama-bpe", "smaug-bpe", "gpt-4o", "llama3", "default"}) {
    const auto tokenizer = Make(ByteLevelMetadata(by_three));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    EXPECT_EQ(Encode(*tokenizer, "123123"), (Ids{261, 261})) << by_three;
  }
  // A merge never crosses from one word into the next.
  EXPECT_EQ(Encode(*gpt2, "ab1").size(), 2u);
}

TEST(ByteLevel, SpecialTokensAreCutOutFirst) {
  const auto tokenizer = Make(ByteLevelMetadata("gpt-2"));
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ(Encode(*tokenizer, "abc<|end|>abc", true), (Ids{258, 262, 258}));
  EXPECT_GT(Encode(*tokenizer, "abc<|end|>abc").size(), 3u);
  EXPECT_EQ(Encode(*tokenizer, "abc[plain]abc"), (Ids{258, 263, 258}));  // user-defined: always
  EXPECT_TRUE(tokenizer->IsEnd(262));
  EXPECT_EQ(tokenizer->Decode({258, 262, 263}), "abc[plain]");
}

// A unigram vocabulary: <unk>, and tokens whose scores say which way of cutting is best.
GgufMetadata UnigramMetadata() {
  const std::vector<std::pair<std::string, float>> pieces = {{"<unk>", 0},
                                                             {"</s>", 0},
                                                             {"\xE2\x96\x81", -3},
                                                             {"a", -2},
                                                             {"b", -2},
                                                             {"c", -4},
                                                             {"ab", -3},
                                                             {"bc", -3.5},
                                                             {"abc", -9},
                                                             {"\xE2\x96\x81"
                                                              "a",
                                                              -2.5f},
                                                             {"[x]", 0}};
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types(pieces.size(), 1);
  for (const auto& [text, score] : pieces) {
    tokens.push_back(text);
    scores.push_back(score);
  }
  types[0] = 2;
  types[1] = 3;
  types[10] = 4;
  GgufMetadata metadata;
  metadata.Set("tokenizer.ggml.model", std::string("t5"));
  metadata.Set("tokenizer.ggml.tokens", tokens);
  metadata.Set("tokenizer.ggml.scores", scores);
  metadata.Set("tokenizer.ggml.token_type", types);
  metadata.Set("tokenizer.ggml.unknown_token_id", uint32_t{0});
  metadata.Set("tokenizer.ggml.eos_token_id", uint32_t{1});
  return metadata;
}

TEST(Unigram, CutsWhereTheScoresAddUpToMost) {
  const auto tokenizer = Make(UnigramMetadata());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ(Encode(*tokenizer, "abc"), (Ids{3, 7}));  // -5.5; ab c -7, a b c -8, abc -9
  EXPECT_EQ(Encode(*tokenizer, "ab"), (Ids{6}));
  EXPECT_EQ(Encode(*tokenizer, "b a"), (Ids{4, 9}));      // the space goes with the a
  EXPECT_EQ(Encode(*tokenizer, "azzb"), (Ids{3, 0, 4}));  // unknown ones side by side are one
  EXPECT_EQ(Encode(*tokenizer, "a[x]b"), (Ids{3, 10, 4}));
  EXPECT_EQ(Encode(*tokenizer, ""), Ids{});
  EXPECT_EQ(tokenizer->Decode({9, 4}), " ab");
  const auto with_end = tokenizer->Encode("a");
  ASSERT_TRUE(with_end.ok());
  EXPECT_EQ(*with_end, (Ids{3, 1}));
}

TEST(Unigram, NormalizesByTheCompiledRules) {
  // A trie of two rules, "X" to "ab" and "Y" to nothing, unit by unit: the root's offset is 256, so
  // that its children lie at 256 ^ letter; a leaf's offset leads to the unit with its text's place.
  std::vector<uint32_t> units(1024, 0);
  const auto unit = [](uint32_t offset, bool leaf, uint32_t label) {
    return offset << 10 | (leaf ? 1u << 8 : 0u) | label;
  };
  units[0] = unit(256, false, 0);
  units[256 ^ 'X'] = unit((256 ^ 'X') ^ 900, true, 'X');
  units[900] = 0x80000000u | 0;
  units[256 ^ 'Y'] = unit((256 ^ 'Y') ^ 901, true, 'Y');
  units[901] = 0x80000000u | 3;
  std::vector<uint8_t> charsmap(4 + 4 * units.size());
  const uint32_t bytes = static_cast<uint32_t>(4 * units.size());
  std::memcpy(charsmap.data(), &bytes, 4);
  std::memcpy(charsmap.data() + 4, units.data(), bytes);
  for (const char c : {'a', 'b', '\0', '\0'}) charsmap.push_back(static_cast<uint8_t>(c));
  GgufMetadata metadata = UnigramMetadata();
  metadata.Set("tokenizer.ggml.precompiled_charsmap", charsmap);
  metadata.Set("tokenizer.ggml.add_space_prefix", true);
  metadata.Set("tokenizer.ggml.remove_extra_whitespaces", true);
  const auto tokenizer = Make(metadata);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ(Encode(*tokenizer, "X"), (Ids{9, 4}));  // a space, a, b
  EXPECT_EQ(Encode(*tokenizer, "aY  b  "), (Ids{9, 2, 4}));
  EXPECT_EQ(Encode(*tokenizer, "Y"), Ids{});
  EXPECT_EQ(Encode(*tokenizer, "b\xFF"), (Ids{2, 4, 0}));  // no UTF-8: an unknown character
  for (const size_t size : {size_t{1}, size_t{4}, size_t{4 + 4 * 1024}}) {
    metadata.Set("tokenizer.ggml.precompiled_charsmap",
                 std::vector<uint8_t>(charsmap.begin(), charsmap.begin() + static_cast<int>(size)));
    EXPECT_FALSE(Make(metadata).ok()) << size;
  }
  for (size_t i = 4; i < charsmap.size() - 4; i += 4) charsmap[i] = 0xFF, charsmap[i + 3] = 0x7F;
  metadata.Set("tokenizer.ggml.precompiled_charsmap", charsmap);  // offsets that lead nowhere
  const auto wild = Make(metadata);
  ASSERT_TRUE(wild.ok());
  Encode(*wild, "XYab \xFF\xFF");
}

TEST(Tokenizer, RefusesWhatItCannotRead) {
  const auto message = [](const GgufMetadata& metadata) {
    const auto tokenizer = Make(metadata);
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
