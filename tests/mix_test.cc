#include "nibble/mix.h"

#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

using nlohmann::json;

struct Model {
  GgufMetadata metadata;
  std::vector<GgufTensorInfo> tensors;
};

GgufTensorInfo Tensor(std::string name, std::vector<int64_t> dims, Format format = Format::kF16) {
  GgufTensorInfo info;
  info.name = std::move(name);
  info.format = format;
  info.dims = std::move(dims);
  return info;
}

// A model of mix_types.json: its vectors and routers are f32, its matrices f16.
Model ReadModel(const json& spec) {
  Model model;
  for (const auto& [key, value] : spec["metadata"].items()) {
    if (value.is_string()) {
      model.metadata.Set(key, value.get<std::string>());
    } else {
      model.metadata.Set(key, value.get<uint32_t>());
    }
  }
  for (const json& entry : spec["tensors"]) {
    const std::string name = entry[0];
    const auto dims = entry[1].get<std::vector<int64_t>>();
    const bool small = dims.size() == 1 || name.find("gate_inp") != std::string::npos;
    const size_t hole = name.find("{}");
    const int count = hole == std::string::npos ? 1 : spec["layers"].get<int>();
    for (int layer = 0; layer < count; ++layer) {
      std::string full = name;
      if (hole != std::string::npos) full.replace(hole, 2, std::to_string(layer));
      model.tensors.push_back(Tensor(full, dims, small ? Format::kF32 : Format::kF16));
    }
  }
  return model;
}

// "C80D2" -> 80 times the format of letter C, twice that of D.
std::vector<Format> ReadRuns(const std::string& runs, const json& letters) {
  std::vector<Format> formats;
  for (size_t i = 0; i < runs.size();) {
    const std::string name = letters.at(std::string(1, runs[i]));
    size_t digits = 0;
    const int count = std::stoi(runs.substr(i + 1), &digits);
    formats.insert(formats.end(), static_cast<size_t>(count), FindFormat(name)->format);
    i += 1 + digits;
  }
  return formats;
}

TEST(Mix, ChoosesAsLlamaQuantizeDoes) {
  std::ifstream file(std::string(NIBBLE_TEST_DATA) + "/mix_types.json");
  const json data = json::parse(file);
  int compared = 0;
  for (const json& spec : data["models"]) {
    const Model model = ReadModel(spec);
    for (const auto& [run, runs] : spec["types"].items()) {
      const size_t plus = run.find('+');
      const auto type = ParseType(run.substr(0, plus));
      ASSERT_TRUE(type.ok()) << type.status().message();
      const auto choices =
          ChooseFormats(model.metadata, model.tensors, *type, {}, plus != std::string::npos);
      ASSERT_TRUE(choices.ok());
      const std::vector<Format> expected = ReadRuns(runs, data["letters"]);
      ASSERT_EQ(expected.size(), model.tensors.size());
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_STREQ(GetFormatInfo((*choices)[i].format).name, GetFormatInfo(expected[i]).name)
            << spec["name"] << ", " << run << ", " << model.tensors[i].name;
        ++compared;
      }
    }
  }
  EXPECT_GT(compared, 50000);
}

TEST(Mix, NamesAreMixesFormatsOrNothing) {
  const auto mix = ParseType("q4_k_m");
  ASSERT_TRUE(mix.ok());
  EXPECT_STREQ(mix->mix->name, "Q4_K_M");
  EXPECT_EQ(mix->file_type, 15u);

  const auto format = ParseType("Q4_k");
  ASSERT_TRUE(format.ok());
  EXPECT_EQ(format->mix, nullptr);
  EXPECT_EQ(format->format, Format::kQ4_K);

  EXPECT_NE(ParseType("Q6_K")->mix, nullptr);
  EXPECT_EQ(ParseType("Q6_K", /*pure=*/true)->mix, nullptr);
  EXPECT_EQ(ParseType("Q4_K_M", /*pure=*/true)->format, Format::kQ4_K);

  EXPECT_EQ(ParseType("q4_x").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ParseType("iq2_xs").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ParseType("q8_K").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ParseType("").status().code(), StatusCode::kInvalidArgument);
}

TEST(Mix, AFormatIsForEveryMatrix) {
  const std::vector<GgufTensorInfo> tensors = {
      Tensor("token_embd.weight", {512, 8}),
      Tensor("output.weight", {512, 8}),
      Tensor("blk.0.attn_v.weight", {512, 8}),
      Tensor("blk.0.attn_norm.weight", {512}),
      Tensor("blk.0.ffn_gate_inp.weight", {512, 4}, Format::kF32),
      Tensor("blk.0.attn_v.bias", {512}, Format::kF32)};
  const auto choices = ChooseFormats({}, tensors, *ParseType("q4_K"));
  ASSERT_TRUE(choices.ok());
  for (int i = 0; i < 3; ++i) EXPECT_EQ((*choices)[i].format, Format::kQ4_K);
  for (int i = 3; i < 6; ++i) {
    EXPECT_EQ((*choices)[i].format, tensors[i].format);
    EXPECT_FALSE((*choices)[i].quantizable);
  }
}

TEST(Mix, RulesDecideFirst) {
  const std::vector<GgufTensorInfo> tensors = {
      Tensor("blk.0.ffn_down.weight", {512, 8}), Tensor("blk.1.ffn_down.weight", {512, 8}),
      Tensor("blk.1.ffn_up.weight", {96, 8}), Tensor("blk.1.odd.weight", {7, 8})};
  const std::vector<TensorTypeRule> rules = {*ParseTensorTypeRule("blk\\.1\\.ffn_=q5_k"),
                                             *ParseTensorTypeRule("ffn_down=q8_0")};
  const auto choices = ChooseFormats({}, tensors, *ParseType("Q4_K_M"), rules);
  ASSERT_TRUE(choices.ok());
  EXPECT_EQ((*choices)[0].format, Format::kQ8_0);
  EXPECT_EQ((*choices)[0].rule, 1);
  EXPECT_EQ((*choices)[1].format, Format::kQ5_K);
  EXPECT_EQ((*choices)[1].rule, 0);
  EXPECT_EQ((*choices)[2].format, Format::kQ5_1);  // 96 is no multiple of 256
  EXPECT_TRUE((*choices)[2].fell_back());
  EXPECT_EQ((*choices)[3].format, Format::kF16);  // nor 7 of 32
  EXPECT_EQ((*choices)[3].rule, -1);
}

TEST(Mix, RulesAreRefusedWhenMalformed) {
  for (const char* text : {"ffn_down", "=q8_0", "ffn(=q8_0", "ffn=q9", "ffn=iq1_s"}) {
    EXPECT_EQ(ParseTensorTypeRule(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
  EXPECT_EQ(ParseTensorTypeRule("a=b=Q8_0")->pattern, "a=b");
}

}  // namespace
}  // namespace nibble
