// config.json: what of it becomes metadata, and what is refused.
#include <gtest/gtest.h>

#include "nibble/model_source.h"
#include "tests/hf_folder.h"

namespace nibble {
namespace {

using testing::HfFolder;
using testing::Json;
using testing::MakeTinyModel;

std::string Error(const HfFolder& folder) {
  const Result<ModelSource> source = ModelSource::Open(folder.path());
  return source.ok() ? "opened" : source.status().message();
}

void ExpectOneLine(const std::string& message, std::initializer_list<std::string> parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  EXPECT_LT(message.size(), 500u) << message;
}

// Every key but the tokenizer's, as text.
std::map<std::string, std::string> Keys(const GgufMetadata& metadata) {
  std::map<std::string, std::string> keys;
  for (const auto& [key, value] : metadata.entries()) {
    if (const auto* text = std::get_if<std::string>(&value)) keys[key] = *text;
    if (const auto* number = std::get_if<uint32_t>(&value)) keys[key] = std::to_string(*number);
    if (const auto* real = std::get_if<float>(&value)) keys[key] = "f" + std::to_string(*real);
  }
  return keys;
}

TEST(HfConfig, WritesTheKeysOfALlama) {
  HfFolder folder;
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  folder.config["_name_or_path"] = "someone/Tiny-Model";
  folder.config["rms_norm_eps"] = 0.25;
  folder.config["rope_scaling"] = {{"type", "linear"}, {"factor", 2}};
  folder.Write();
  const Result<ModelSource> source = ModelSource::Open(folder.path());
  ASSERT_TRUE(source.ok()) << source.status().message();
  const std::map<std::string, std::string> expected = {
      {"general.architecture", "llama"},
      {"general.type", "model"},
      {"general.name", "Tiny-Model"},
      {"general.size_label", "4.3K"},
      {"general.file_type", "1"},
      {"general.quantization_version", "2"},
      {"llama.block_count", "2"},
      {"llama.context_length", "64"},
      {"llama.embedding_length", "16"},
      {"llama.feed_forward_length", "24"},
      {"llama.attention.head_count", "4"},
      {"llama.attention.head_count_kv", "2"},
      {"llama.attention.layer_norm_rms_epsilon", "f0.250000"},
      {"llama.rope.freq_base", "f10000.000000"},
      {"llama.rope.scaling.type", "linear"},
      {"llama.rope.scaling.factor", "f2.000000"},
      {"llama.rope.dimension_count", "4"},
      {"llama.vocab_size", "12"}};
  EXPECT_EQ(Keys(source->metadata()), expected);
  ASSERT_EQ(source->notices().size(), 1u);
  EXPECT_NE(source->notices()[0].find("tokenizer"), std::string::npos);
}

TEST(HfConfig, ReadsTheNewerRopeParameters) {
  HfFolder folder;
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  folder.config.erase("rope_theta");
  folder.config["rope_parameters"] = {{"rope_type", "yarn"},
                                      {"rope_theta", 5000.0},
                                      {"factor", 4.0},
                                      {"beta_fast", 32},
                                      {"original_max_position_embeddings", 16}};
  folder.Write();
  const Result<ModelSource> source = ModelSource::Open(folder.path());
  ASSERT_TRUE(source.ok()) << source.status().message();
  const GgufMetadata& metadata = source->metadata();
  EXPECT_EQ(*metadata.GetFloat("llama.rope.freq_base"), 5000.0);
  EXPECT_EQ(*metadata.GetString("llama.rope.scaling.type"), "yarn");
  EXPECT_EQ(*metadata.GetUint("llama.rope.scaling.original_context_length"), 16u);
  EXPECT_EQ(*metadata.GetFloat("llama.rope.scaling.yarn_beta_fast"), 32.0);
}

TEST(HfConfig, FindsTheArchitectureByModelTypeWhereNoClassIsGiven) {
  HfFolder folder;
  MakeTinyModel(folder, "", "mistral");
  folder.config.erase("architectures");
  folder.config["num_key_value_heads"] = nullptr;  // then there are as many as heads
  for (int layer = 0; layer < 2; ++layer) {
    const std::string p = "model.layers." + std::to_string(layer) + ".self_attn.";
    folder.Add(p + "k_proj.weight", {16, 16});
    folder.Add(p + "v_proj.weight", {16, 16});
  }
  folder.Write();
  const Result<ModelSource> source = ModelSource::Open(folder.path());
  ASSERT_TRUE(source.ok()) << source.status().message();
  EXPECT_EQ(*source->metadata().GetString("general.architecture"), "llama");
  EXPECT_EQ(*source->metadata().GetUint("llama.attention.head_count_kv"), 4u);
}

TEST(HfConfig, SaysWhatMostWeightsAreStoredAs) {
  for (const auto& [dtype, number] :
       {std::pair{"F32", 0u}, std::pair{"F16", 1u}, std::pair{"BF16", 32u}}) {
    HfFolder folder;
    MakeTinyModel(folder, "LlamaForCausalLM", "llama");
    for (auto& [name, tensor] : std::map(folder.tensors)) folder.Add(name, tensor.shape, dtype);
    folder.Write();
    const Result<ModelSource> source = ModelSource::Open(folder.path());
    ASSERT_TRUE(source.ok()) << source.status().message();
    EXPECT_EQ(*source->metadata().GetUint("general.file_type"), number);
  }
}

TEST(HfConfig, NamesTheKeyThatIsMissing) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size",
                          "num_attention_heads", "max_position_embeddings", "rms_norm_eps"}) {
    HfFolder folder;
    MakeTinyModel(folder, "LlamaForCausalLM", "llama");
    folder.config.erase(key);
    folder.Write();
    ExpectOneLine(Error(folder), {folder.File("config.json"), std::string("no \"") + key + "\""});
  }
}

TEST(HfConfig, NamesTheValueThatIsWrong) {
  const Json nonsense = {-1,
                         0,
                         1.5,
                         "16",
                         true,
                         Json::array({1}),
                         Json::object({{"a", 1}}),
                         1000000000000,
                         9223372036854775807,
                         18446744073709551615u,
                         1e300};
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"}) {
    for (const Json& value : nonsense) {
      HfFolder folder;
      MakeTinyModel(folder, "LlamaForCausalLM", "llama");
      folder.config[key] = value;
      folder.Write();
      ExpectOneLine(Error(folder), {"config.json", std::string("\"") + key + "\" is ", "whole"});
    }
  }
  for (const auto& [key, value] :
       std::vector<std::pair<const char*, Json>>{{"rms_norm_eps", -1e-5},
                                                 {"rms_norm_eps", "1e-5"},
                                                 {"rms_norm_eps", 1e300},
                                                 {"rope_theta", 0},
                                                 {"rope_theta", false},
                                                 {"rope_scaling", 4},
                                                 {"tie_word_embeddings", "no"},
                                                 {"hidden_act", 3},
                                                 {"quantization_config", "int8"}}) {
    HfFolder folder;
    MakeTinyModel(folder, "LlamaForCausalLM", "llama");
    folder.config[key] = value;
    folder.Write();
    ExpectOneLine(Error(folder), {"config.json", std::string("\"") + key + "\" is "});
  }
}

TEST(HfConfig, RefusesWhatWouldComputeSomethingElse) {
  for (const auto& [key, value, reason] : std::vector<std::tuple<const char*, Json, const char*>>{
           {"hidden_act", "relu", "silu"},
           {"head_dim", 3, "rotary pairs"},
           {"num_attention_heads", 5, "not a multiple"},
           {"rope_scaling", {{"type", "magic"}}, "magic"},
           {"rope_scaling", {{"type", "yarn"}}, "factor"},
           {"partial_rotary_factor", 0.5, "partial_rotary_factor"}}) {
    HfFolder folder;
    MakeTinyModel(folder, "LlamaForCausalLM", "llama");
    folder.config[key] = value;
    folder.Write();
    ExpectOneLine(Error(folder), {"config.json", reason});
  }
  HfFolder folder;
  MakeTinyModel(folder, "GemmaForCausalLM", "gemma");
  folder.config["hidden_act"] = "silu";
  folder.Write();
  ExpectOneLine(Error(folder), {"gelu"});
}

// Sizes that multiply to more than any file holds are compared with the file, never allocated.
TEST(HfConfig, TakesNoMemoryForSizesThatTheFileDoesNotHave) {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size"}) {
    HfFolder folder;
    MakeTinyModel(folder, "LlamaForCausalLM", "llama");
    folder.config[key] = 1 << 30;
    folder.Write();
    ExpectOneLine(Error(folder), {"has shape", "1073741824"});
  }
}

TEST(HfConfig, RefusesWhatIsNoJsonObject) {
  HfFolder folder;
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  folder.Write();
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[1]"), std::string("null"),
        std::string("{\"a\": \"\xFF\"}"), std::string("{\"a\": 1} {}"), std::string(100000, '['),
        "{\"a\": " + std::string(65, '[') + std::string(65, ']') + "}",
        std::string("{\"vocab_size\": 1e999}")}) {
    folder.Text("config.json", text);
    ExpectOneLine(Error(folder), {folder.File("config.json")});
  }
  // Brackets inside strings are no nesting.
  folder.Text("config.json", "{\"model_type\": \"" + std::string(1000, '[') + "\\\"[\"}");
  EXPECT_EQ(Error(folder), "opened");
  // Values of any type where a name is looked for make an unknown architecture or an error.
  for (const char* text : {"{\"architectures\": 3}", "{\"architectures\": []}",
                           "{\"architectures\": [7], \"model_type\": \"x\"}"}) {
    folder.Text("config.json", text);
    EXPECT_EQ(Error(folder), "opened");
  }
  folder.Text("config.json", "{\"model_type\": {\"a\": 1}}");
  ExpectOneLine(Error(folder), {"model_type"});
}

TEST(HfConfig, MessagesHoldNoControlCharacters) {
  HfFolder folder;
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  folder.config["hidden_act"] = "re\nlu\x1b[31m" + std::string(10000, 'x');
  folder.Write();
  const std::string message = Error(folder);
  ExpectOneLine(message, {"re?lu?[31m"});
}

}  // namespace
}  // namespace nibble
