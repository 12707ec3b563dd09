// The tokenizer of a Hugging Face folder as GGUF metadata.
#include <gtest/gtest.h>

#include <bit>

#include "lib/model/hf_tokenizer.h"
#include "lib/model/pre_tokenizer.h"
#include "nibble/model_source.h"
#include "tests/hf_folder.h"

namespace nibble {
namespace {

using testing::HfFolder;
using testing::Json;
using testing::MakeTinyModel;

constexpr int kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;

Result<ModelSource> Open(const HfFolder& folder) {
  folder.Write();
  return ModelSource::Open(folder.path());
}

// One line that holds `part`.
void ExpectError(const HfFolder& folder, const std::string& part) {
  const Result<ModelSource> source = Open(folder);
  ASSERT_FALSE(source.ok()) << "opened, wanted: " << part;
  const std::string message = source.status().message();
  EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

template <class T>
T Value(const ModelSource& source, const std::string& key) {
  const GgufValue* value = source.metadata().Find("tokenizer." + key);
  if (value == nullptr || !std::holds_alternative<T>(*value)) {
    ADD_FAILURE() << key << (value == nullptr ? " is missing" : " has another type");
    return T();
  }
  return std::get<T>(*value);
}

using Strings = std::vector<std::string>;
using Ints = std::vector<int32_t>;
using Floats = std::vector<float>;

// --- A SentencePiece model, byte by byte as a protocol buffer. ---

std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}
std::string NumberField(uint32_t field, uint64_t value) {
  return Varint(field << 3) + Varint(value);
}
std::string BytesField(uint32_t field, const std::string& bytes) {
  return Varint(field << 3 | 2) + Varint(bytes.size()) + bytes;
}
std::string FloatField(uint32_t field, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  std::string bytes = Varint(field << 3 | 5);
  for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(bits >> shift);
  return bytes;
}
std::string Piece(const std::string& text, float score, int type) {
  return BytesField(1, BytesField(1, text) + FloatField(2, score) +
                           (type == kNormal ? "" : NumberField(3, static_cast<uint64_t>(type))));
}

const std::string kMark = "\xE2\x96\x81";

std::string TinyPieces() {
  return Piece("<unk>", 0, kUnknown) + Piece("<s>", 0, kControl) + Piece("</s>", 0, kControl) +
         Piece("<0x0A>", 0, kByte) + Piece(kMark + "a", -1.5f, kNormal) +
         Piece(kMark + kMark, 0, kUserDefined) + Piece("b", -2, kNormal) +
         Piece("old", -3, kUnused);
}
const std::string kBpe = BytesField(2, NumberField(3, 2));

TEST(SentencePieceTokenizer, GivesTokensScoresAndTypes) {
  HfFolder folder;
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  folder.Text("tokenizer.model", TinyPieces() + kBpe);
  const Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_TRUE(source->notices().empty());
  EXPECT_EQ(Value<std::string>(*source, "ggml.model"), "llama");
  EXPECT_EQ(Value<std::string>(*source, "ggml.pre"), "default");
  EXPECT_EQ(Value<Strings>(*source, "ggml.tokens"),
            (Strings{"<unk>", "<s>", "</s>", "<0x0A>", kMark + "a", "  ", "b", "old", "[PAD8]",
                     "[PAD9]", "[PAD10]", "[PAD11]"}));
  EXPECT_EQ(Value<Floats>(*source, "ggml.scores"),
            (Floats{0, 0, 0, 0, -1.5f, 0, -2, -3, -10000, -10000, -10000, -10000}));
  EXPECT_EQ(Value<Ints>(*source, "ggml.token_type"),
            (Ints{kUnknown, kControl, kControl, kByte, kNormal, kUserDefined, kNormal, kUnused,
                  kUnused, kUnused, kUnused, kUnused}));
  EXPECT_EQ(Value<uint32_t>(*source, "ggml.bos_token_id"), 1u);
  EXPECT_EQ(Value<uint32_t>(*source, "ggml.eos_token_id"), 2u);
  EXPECT_EQ(Value<uint32_t>(*source, "ggml.unknown_token_id"), 0u);
  EXPECT_TRUE(Value<bool>(*source, "ggml.add_bos_token"));
  EXPECT_FALSE(Value<bool>(*source, "ggml.add_eos_token"));
  EXPECT_EQ(source->metadata().Find("tokenizer.ggml.padding_token_id"), nullptr);
  EXPECT_EQ(source->metadata().Find("tokenizer.ggml.add_space_prefix"), nullptr);
  EXPECT_EQ(source->metadata().Find("tokenizer.ggml.merges"), nullptr);
  EXPECT_EQ(source->metadata().Find("tokenizer.chat_template"), nullptr);
  EXPECT_EQ(source->paths().back(), folder.File("tokenizer.model"));
}

TEST(SentencePieceTokenizer, TakesItsSettings) {
  HfFolder folder;
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  const std::string trainer = BytesField(
      2, NumberField(3, 2) + NumberField(40, 3) + NumberField(41, UINT64_MAX) + NumberField(43, 6));
  folder.Text("tokenizer.model", TinyPieces() + trainer + BytesField(3, NumberField(3, 0)));
  Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(Value<uint32_t>(*source, "ggml.unknown_token_id"), 3u);
  EXPECT_EQ(Value<uint32_t>(*source, "ggml.padding_token_id"), 6u);
  EXPECT_EQ(source->metadata().Find("tokenizer.ggml.bos_token_id"), nullptr) << "-1 is none";
  EXPECT_FALSE(Value<bool>(*source, "ggml.add_space_prefix"));

  // A unigram model is llama.cpp's "t5", whose normalizer is described too.
  folder.Text("tokenizer.model",
              TinyPieces() +
                  BytesField(3, BytesField(2, std::string("\x01\x00\xFF", 3)) + NumberField(4, 0)));
  source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(Value<std::string>(*source, "ggml.model"), "t5");
  EXPECT_TRUE(Value<bool>(*source, "ggml.add_space_prefix"));
  EXPECT_FALSE(Value<bool>(*source, "ggml.remove_extra_whitespaces"));
  EXPECT_EQ(Value<std::vector<uint8_t>>(*source, "ggml.precompiled_charsmap"),
            (std::vector<uint8_t>{1, 0, 255}));
  ASSERT_EQ(source->notices().size(), 1u);
  EXPECT_NE(source->notices()[0].find("byte tokens"), std::string::npos);
}

TEST(SentencePieceTokenizer, AddsTheTokensOfTheFilesBeside) {
  HfFolder folder;
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  folder.Text("tokenizer.model", TinyPieces() + kBpe);
  folder.Text("added_tokens.json", R"({"<word>": 8, "<|im|>": 9, "beyond": 12})");
  folder.Text("tokenizer_config.json",
              Json{{"added_tokens_decoder",
                    {{"0", {{"content", "<unk>"}, {"special", true}}},
                     {"10", {{"content", "[X]"}, {"special", true}}},
                     {"11", {{"content", kMark + "y"}, {"special", false}}}}},
                   {"eos_token", {{"content", "[X]"}}},
                   {"pad_token", "<|im|>"},
                   {"add_bos_token", false},
                   {"add_prefix_space", false},
                   {"chat_template", "{{ x }}"}}
                  .dump());
  const Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  const Strings tokens = Value<Strings>(*source, "ggml.tokens");
  EXPECT_EQ(Strings(tokens.begin() + 8, tokens.end()), (Strings{"<word>", "<|im|>", "[X]", " y"}));
  const Ints types = Value<Ints>(*source, "ggml.token_type");
  EXPECT_EQ(Ints(types.begin() + 8, types.end()),
            (Ints{kUserDefined, kControl, kControl, kUserDefined}));
  EXPECT_EQ(types[0], kUnknown) << "what the model says of <unk> stands";
  EXPECT_EQ(Value<uint32_t>(*source, "ggml.eos_token_id"), 10u);
  EXPECT_EQ(Value<uint32_t>(*source, "ggml.padding_token_id"), 9u);
  EXPECT_FALSE(Value<bool>(*source, "ggml.add_bos_token"));
  EXPECT_FALSE(Value<bool>(*source, "ggml.add_space_prefix"));
  EXPECT_EQ(Value<std::string>(*source, "chat_template"), "{{ x }}");
  ASSERT_EQ(source->notices().size(), 1u);
  EXPECT_NE(source->notices()[0].find("beyond"), std::string::npos);
}

TEST(SentencePieceTokenizer, LeavesOutPiecesBeyondTheVocabulary) {
  HfFolder folder;
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  std::string pieces = TinyPieces();
  for (int i = 0; i < 6; ++i)
    pieces += Piece(std::string(1, static_cast<char>('p' + i)), -5, kNormal);
  folder.Text("tokenizer.model", pieces + kBpe);
  const Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(Value<Strings>(*source, "ggml.tokens").size(), 12u);
  ASSERT_EQ(source->notices().size(), 1u);
  EXPECT_NE(source->notices()[0].find("2 tokens beyond"), std::string::npos);
}

TEST(SentencePieceTokenizer, GemmaPutsNoSpaceBeforeTheText) {
  HfFolder folder;
  MakeTinyModel(folder, "GemmaForCausalLM", "gemma");
  folder.config["hidden_act"] = "gelu";
  folder.Text("tokenizer.model", TinyPieces() + kBpe);
  const Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_FALSE(Value<bool>(*source, "ggml.add_space_prefix"));
}

TEST(SentencePieceTokenizer, RefusesMalformedModels) {
  HfFolder folder;
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  const std::string good = TinyPieces() + kBpe;
  for (const std::string& bytes :
       {std::string(), std::string("text, no model"), std::string("\x0A\xFF\xFF\xFF\xFF\x0F", 6),
        std::string(20, '\xFF'), std::string(1, '\0'), Piece("a", 0, 7), Piece("a", 0, 0),
        Piece("a", std::bit_cast<float>(0x7FC00000u), kNormal), kBpe,
        good + BytesField(2, NumberField(3, 9)), good + BytesField(3, "\xFF"),
        TinyPieces() + BytesField(2, NumberField(3, 3))}) {
    folder.Text("tokenizer.model", bytes);
    ExpectError(folder, folder.File("tokenizer.model"));
  }
  // Cut anywhere, it is refused or is a shorter model: never a crash.
  int refused = 0;
  for (size_t size = 0; size < good.size(); ++size) {
    folder.Text("tokenizer.model", good.substr(0, size));
    refused += !Open(folder).ok();
  }
  EXPECT_GT(refused, static_cast<int>(good.size()) * 3 / 4);
}

// --- Byte-level BPE. ---

Json ByteLevelTokenizer() {
  return {{"added_tokens",
           {{{"id", 8}, {"content", "<|begin|>"}, {"special", true}},
            {{"id", 9}, {"content", "<|end|>"}, {"special", false}},
            {{"id", 10}, {"content", "<tool>"}, {"special", false}}}},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"vocab",
             {{"a", 0},
              {"b", 1},
              {"c", 2},
              {"ab", 3},
              {"abc", 4},
              {"\xC4\xA0", 5},
              {"\xC4\xA0"
               "a",
               6}}},
            {"merges", {"a b", "ab c", "\xC4\xA0 a"}}}}};
}

void MakeQwen(HfFolder& folder, const Json& tokenizer) {
  MakeTinyModel(folder, "Qwen3ForCausalLM", "qwen3");
  folder.config["eos_token_id"] = Json::array({9, 8});
  for (int layer = 0; layer < 2; ++layer) {
    const std::string p = "model.layers." + std::to_string(layer) + ".self_attn.";
    folder.Add(p + "q_norm.weight", {4});
    folder.Add(p + "k_norm.weight", {4});
  }
  folder.Text("tokenizer.json", tokenizer.dump());
}

TEST(BytePairTokenizer, GivesTokensTypesAndMerges) {
  HfFolder folder;
  MakeQwen(folder, ByteLevelTokenizer());
  const Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_TRUE(source->notices().empty());
  EXPECT_EQ(Value<std::string>(*source, "ggml.model"), "gpt2");
  EXPECT_EQ(Value<std::string>(*source, "ggml.pre"), "gpt-2");
  EXPECT_EQ(Value<Strings>(*source, "ggml.tokens"),
            (Strings{"a", "b", "c", "ab", "abc", "\xC4\xA0",
                     "\xC4\xA0"
                     "a",
                     "[PAD7]", "<|begin|>", "<|end|>", "<tool>", "[PAD11]"}));
  EXPECT_EQ(Value<Ints>(*source, "ggml.token_type"),
            (Ints{1, 1, 1, 1, 1, 1, 1, kUnused, kControl, kControl, kUserDefined, kUnused}));
  EXPECT_EQ(Value<Strings>(*source, "ggml.merges"), (Strings{"a b", "ab c", "\xC4\xA0 a"}));
  EXPECT_EQ(Value<uint32_t>(*source, "ggml.eos_token_id"), 9u) << "the first of the list";
  EXPECT_EQ(source->metadata().Find("tokenizer.ggml.bos_token_id"), nullptr);
  EXPECT_EQ(source->metadata().Find("tokenizer.ggml.scores"), nullptr);
  EXPECT_FALSE(Value<bool>(*source, "ggml.add_bos_token"));
}

TEST(BytePairTokenizer, ReadsMergesAsPairs) {
  HfFolder folder;
  Json tokenizer = ByteLevelTokenizer();
  tokenizer["model"]["vocab"]["a b"] = 7;
  tokenizer["model"]["vocab"]["a bc"] = 11;
  tokenizer["model"]["merges"] = Json::array({Json::array({"a", "b"}), Json::array({"a b", "c"})});
  MakeQwen(folder, tokenizer);
  const Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(Value<Strings>(*source, "ggml.merges"), (Strings{"a b",
                                                             "a\xC4\xA0"
                                                             "b c"}));
}

TEST(BytePairTokenizer, TakesBosFromTheTemplate) {
  HfFolder folder;
  Json tokenizer = ByteLevelTokenizer();
  const Json begin = {{"SpecialToken", {{"id", "<|begin|>"}, {"type_id", 0}}}};
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const Json end = {{"SpecialToken", {{"id", "<|end|>"}, {"type_id", 0}}}};
  tokenizer["post_processor"] = {
      {"type", "Sequence"},
      {"processors",
       {{{"type", "ByteLevel"}},
        {{"type", "TemplateProcessing"}, {"single", Json::array({begin, text})}}}}};
  MakeQwen(folder, tokenizer);
  folder.Text("special_tokens_map.json", R"({"bos_token": {"content": "<|begin|>"}})");
  Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(Value<uint32_t>(*source, "ggml.bos_token_id"), 8u);
  EXPECT_TRUE(Value<bool>(*source, "ggml.add_bos_token"));
  EXPECT_FALSE(Value<bool>(*source, "ggml.add_eos_token"));
  tokenizer["post_processor"] = {{"type", "TemplateProcessing"},
                                 {"single", Json::array({text, end})}};
  folder.Text("tokenizer.json", tokenizer.dump());
  source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_FALSE(Value<bool>(*source, "ggml.add_bos_token"));
  EXPECT_TRUE(Value<bool>(*source, "ggml.add_eos_token"));
}

TEST(BytePairTokenizer, ScoresSentencePieceBpeByItsMerges) {
  HfFolder folder;
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  const Json tokenizer = {
      {"added_tokens",
       {{{"id", 0}, {"content", "<unk>"}, {"special", true}},
        {{"id", 1}, {"content", "<s>"}, {"special", true}}}},
      {"normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "Prepend"}}}}}},
      {"model",
       {{"type", "BPE"},
        {"byte_fallback", true},
        {"unk_token", "<unk>"},
        {"vocab",
         {{"<unk>", 0}, {"<s>", 1}, {"<0x41>", 2}, {"a", 3}, {"b", 4}, {"aa", 5}, {"ab", 6}}},
        {"merges", {"a b", "a a"}}}}};
  folder.Text("tokenizer.json", tokenizer.dump());
  folder.Text("generation_config.json", R"({"bos_token_id": 1, "eos_token_id": 99})");
  const Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(Value<std::string>(*source, "ggml.model"), "llama");
  const Floats scores = Value<Floats>(*source, "ggml.scores");
  EXPECT_EQ(scores[6], 0);
  EXPECT_EQ(scores[5], -1);
  EXPECT_LT(scores[3], -1);
  const Ints types = Value<Ints>(*source, "ggml.token_type");
  EXPECT_EQ(Ints(types.begin(), types.begin() + 4), (Ints{kUnknown, kControl, kByte, kNormal}));
  EXPECT_EQ(Value<uint32_t>(*source, "ggml.bos_token_id"), 1u);
  ASSERT_EQ(source->notices().size(), 1u);
  EXPECT_NE(source->notices()[0].find("99"), std::string::npos);
}

TEST(BytePairTokenizer, KnowsHowTextIsCutIntoWords) {
  const auto cut = [](const std::string& regex) {
    return Json{{"type", "Sequence"},
                {"pretokenizers",
                 {{{"type", "Split"},
                   {"pattern", {{"Regex", regex}}},
                   {"behavior", "Isolated"},
                   {"invert", false}},
                  {{"type", "ByteLevel"}, {"use_regex", false}}}}};
  };
  const auto detect = [](const Json& steps, bool whole_words = false) {
    return DetectPreTokenizer(nlohmann::json(
        Json{{"pre_tokenizer", steps}, {"model", {{"ignore_merges", whole_words}}}}));
  };
  const std::string llama3 =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const std::string qwen2 =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  EXPECT_EQ(detect(cut(llama3), true), "llama-bpe");
  EXPECT_EQ(detect(cut(llama3)), "smaug-bpe");
  EXPECT_EQ(detect(cut(qwen2)), "qwen2");
  EXPECT_EQ(detect(cut("\\w+")), "");
  EXPECT_EQ(detect({{"type", "ByteLevel"}, {"use_regex", true}}), "gpt-2");
  EXPECT_EQ(detect({{"type", "ByteLevel"}, {"use_regex", false}}), "");
  EXPECT_EQ(
      detect({{"type", "Sequence"},
              {"pretokenizers",
               {{{"type", "Digits"}, {"individual_digits", true}}, {{"type", "ByteLevel"}}}}}),
      "smollm");
  EXPECT_EQ(detect({{"type", "Whitespace"}}), "");
  for (const Json& nonsense : {Json(), Json(3), Json::array({1}), Json{{"type", "Sequence"}},
                               Json{{"type", "Sequence"}, {"pretokenizers", Json::array()}},
                               Json{{"type", "Sequence"}, {"pretokenizers", {1, 2}}}}) {
    EXPECT_EQ(detect(nonsense), "") << nonsense;
  }
  Json odd = cut(qwen2);
  odd["pretokenizers"][0]["invert"] = true;
  EXPECT_EQ(detect(odd), "");

  HfFolder folder;
  Json tokenizer = ByteLevelTokenizer();
  tokenizer["pre_tokenizer"] = cut("\\w+");
  MakeQwen(folder, tokenizer);
  const Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(Value<std::string>(*source, "ggml.pre"), "default");
  ASSERT_EQ(source->notices().size(), 1u);
  EXPECT_NE(source->notices()[0].find("pre-tokenizer"), std::string::npos);
}

TEST(BytePairTokenizer, RefusesMalformedFiles) {
  HfFolder folder;
  const auto with = [](const char* path, Json value) {
    Json tokenizer = ByteLevelTokenizer();
    tokenizer[Json::json_pointer(path)] = std::move(value);
    return tokenizer;
  };
  for (const auto& [tokenizer, reason] : std::vector<std::pair<Json, const char*>>{
           {with("/model", nullptr), "no \"model\""},
           {with("/model", 3), "neither"},
           {with("/model/type", "WordPiece"), "WordPiece"},
           {with("/model/vocab", Json::array()), "vocab"},
           {with("/model/vocab/x", -1), "\"x\" has no valid id"},
           {with("/model/vocab/x", 1.5), "\"x\" has no valid id"},
           {with("/model/vocab/x", 1000000000000), "\"x\" has no valid id"},
           {with("/model/vocab/x", "7"), "\"x\" has no valid id"},
           {with("/model/vocab/x", 0), "both have id 0"},
           {with("/model/merges", 3), "merges"},
           {with("/model/merges/1", "abc"), "merge 1"},
           {with("/model/merges/1", "a b c"), "merge 1"},
           {with("/model/merges/1", " b"), "merge 1"},
           {with("/model/merges/1", Json::array({"a"})), "merge 1"},
           {with("/model/merges/1", Json::array({"a", 4})), "merge 1"},
           {with("/model/merges/1", "a x"), "\"x\", which is no token"},
           {with("/model/merges/1", "b c"), "\"bc\", which is no token"},
           {with("/added_tokens", 5), "added_tokens"},
           {with("/added_tokens/0/id", -4), "added token"},
           {with("/added_tokens/0/content", 4), "added token"},
           {with("/added_tokens/0", 4), "added token"}}) {
    MakeQwen(folder, tokenizer);
    ExpectError(folder, reason);
    ExpectError(folder, folder.File("tokenizer.json"));
  }
  for (const char* text : {"", "[]", "{\"model\": ", "{\"model\": {\"vocab\": {\"\xC0\": 1}}}"}) {
    MakeQwen(folder, ByteLevelTokenizer());
    folder.Text("tokenizer.json", text);
    ExpectError(folder, folder.File("tokenizer.json"));
  }
  MakeQwen(folder, ByteLevelTokenizer());
  folder.Text("tokenizer.json", "{\"model\": " + std::string(1 << 20, '['));
  ExpectError(folder, "nested deeper");
}

TEST(BytePairTokenizer, RefusesMalformedFilesBeside) {
  for (const auto& [file, text, reason] :
       std::vector<std::tuple<const char*, const char*, const char*>>{
           {"added_tokens.json", R"({"a": "b"})", "\"a\" has no valid id"},
           {"tokenizer_config.json", R"({"added_tokens_decoder": 4})", "added_tokens_decoder"},
           {"tokenizer_config.json", R"({"added_tokens_decoder": {"1x": {"content": "a"}}})", "1x"},
           {"tokenizer_config.json", R"({"added_tokens_decoder": {"-1": {"content": "a"}}})", "-1"},
           {"tokenizer_config.json", R"({"added_tokens_decoder": {"99999999999": {}}})", "9999"},
           {"tokenizer_config.json", R"({"added_tokens_decoder": {"7": {"content": 1}}})", "\"7\""},
           {"tokenizer_config.json", R"({"add_bos_token": "yes"})", "add_bos_token"},
           {"tokenizer_config.json", R"({"chat_template": 3})", "chat_template"},
           {"tokenizer_config.json", R"({"chat_template": [{"name": "a"}]})", "chat template"},
           {"tokenizer_config.json", R"({"chat_template": [{"name": "a/b", "template": "x"}]})",
            "a/b"},
           {"generation_config.json", R"({"bos_token_id": -5})", "bos_token_id"},
           {"generation_config.json", R"({"bos_token_id": ["x"]})", "bos_token_id"},
           {"special_tokens_map.json", "[", "special_tokens_map.json"}}) {
    HfFolder folder;
    MakeQwen(folder, ByteLevelTokenizer());
    folder.Text(file, text);
    ExpectError(folder, reason);
    ExpectError(folder, file);
  }
}

TEST(ChatTemplate, ComesFromAnyOfItsPlaces) {
  HfFolder folder;
  MakeQwen(folder, ByteLevelTokenizer());
  folder.Text("chat_template.json", R"({"chat_template": "from json"})");
  EXPECT_EQ(Value<std::string>(*Open(folder), "chat_template"), "from json");
  folder.Text("chat_template.jinja", "from jinja");
  EXPECT_EQ(Value<std::string>(*Open(folder), "chat_template"), "from jinja");
  folder.Text("tokenizer_config.json",
              R"({"chat_template": [{"name": "default", "template": "x"},
                                    {"name": "tool_use", "template": "y"}]})");
  const Result<ModelSource> source = Open(folder);
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(Value<std::string>(*source, "chat_template"), "x");
  EXPECT_EQ(Value<std::string>(*source, "chat_template.tool_use"), "y");
  EXPECT_EQ(Value<Strings>(*source, "chat_templates"), Strings{"tool_use"});
}

}  // namespace
}  // namespace nibble
