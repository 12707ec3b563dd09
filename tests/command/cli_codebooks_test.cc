// Folders in AQLM's layout, through the real binary: made, opened by every command that reads
// models, refused where they are damaged.
#include <filesystem>
#include <functional>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli_fixture.h"

namespace nibble {
namespace {

using nlohmann::json;

const std::string kReferenceModel = std::string(NIBBLE_EXAMPLES) + "/reference-model";

class CodebooksTest : public CliTest {
 protected:
  std::string Made(const std::string& method) {
    const std::string out = folder_ / "codebooks";
    const Outcome made = Nibble("quantize " + kReferenceModel + " -o " + out +
                                " --scheme '1x8g8 f16' --json --quiet " + method);
    EXPECT_EQ(made.status, 0) << made.err;
    const json document = json::parse(made.out);
    EXPECT_EQ(document["layout"], "aqlm");
    EXPECT_EQ(document["matrices"], 56);
    return out;
  }

  double Perplexity(const std::string& model) {
    const Outcome run = Nibble("perplexity " + model + " --text " + kReferenceModel +
                               "/evaluation.txt --context 128 --windows 2 --json --quiet");
    EXPECT_EQ(run.status, 0) << run.err;
    return json::parse(run.out)["perplexity"]["value"];
  }
};

TEST_F(CodebooksTest, EveryCommandOpensTheFolder) {
  const std::string made = Made("--method gptq --calibration-windows 2 --calibration " +
                                kReferenceModel + "/calibration.txt");
  const json config = json::parse(ReadWholeFile(made + "/config.json"))["quantization_config"];
  EXPECT_EQ(config["quant_method"], "aqlm");
  EXPECT_EQ(config["num_codebooks"], 1);
  EXPECT_EQ(config["nbits_per_codebook"], 8);
  EXPECT_EQ(config["in_group_size"], 8);
  EXPECT_EQ(config["out_group_size"], 1);

  const Outcome inspected = Nibble("inspect " + made + " --json");
  ASSERT_EQ(inspected.status, 0) << inspected.err;
  size_t matrices = 0;
  const json listed = json::parse(inspected.out);
  for (const json& tensor : listed["tensors"]) {
    matrices += tensor["source_name"].get<std::string>().find("_proj.") != std::string::npos;
  }
  EXPECT_EQ(matrices, 56u);

  // As floats in GGUF it is the same model.
  const std::string gguf = folder_ / "codebooks.gguf";
  const Outcome converted = Nibble("convert " + made + " -o " + gguf + " --quiet");
  ASSERT_EQ(converted.status, 0) << converted.err;
  const double folder = Perplexity(made);
  EXPECT_NEAR(Perplexity(gguf), folder, 1e-3 * folder);
  // One bit a weight costs much, but the model still predicts far better than chance.
  EXPECT_GT(folder, 1.02 * Perplexity(kReferenceModel));
  EXPECT_LT(folder, 10 * Perplexity(kReferenceModel));

  const Outcome evaluated =
      Nibble("evaluate " + kReferenceModel + " " + made + " --text " + kReferenceModel +
             "/evaluation.txt --context 128 --windows 2 --prompt-tokens 16 --decode-tokens 4 "
             "--runs 1 --json --quiet");
  ASSERT_EQ(evaluated.status, 0) << evaluated.err;
  EXPECT_NE(evaluated.out.find("codebooks"), std::string::npos);

  const Outcome again =
      Nibble("quantize " + made + " --type q4_0 --quiet -o " + (folder_ / "x.gguf"));
  EXPECT_EQ(again.status, 2);
  ExpectOneLine(again, "quantized already");
}

TEST_F(CodebooksTest, DamagedFoldersAreRefused) {
  const std::string made = Made("");
  const std::string config_path = made + "/config.json", weights = made + "/model.safetensors";
  const std::string config = ReadWholeFile(config_path);
  const auto expect = [&](const std::string& part) {
    const std::string out = folder_ / "x.gguf";
    const Outcome outcome = Nibble("convert " + made + " --quiet -o " + out);
    EXPECT_NE(outcome.status, 0) << part;
    ExpectOneLine(outcome, part);
    EXPECT_FALSE(std::filesystem::exists(out)) << part;
  };
  const auto configured = [&](const char* key, const json& value, const std::string& part) {
    json changed = json::parse(config);
    changed["quantization_config"][key] = value;
    WriteWholeFile(config_path, changed.dump());
    expect(part);
  };
  configured("num_codebooks", 2, "codes");
  configured("num_codebooks", 0, "num_codebooks");
  configured("num_codebooks", 9, "codebooks");
  configured("nbits_per_codebook", 16, "codes");
  configured("nbits_per_codebook", 5, "bits");
  configured("in_group_size", 16, "[256, 512], config.json asks for [256, 256]");
  configured("out_group_size", 2, "out_group_size");
  WriteWholeFile(config_path, config);

  const std::string bytes = ReadWholeFile(weights);
  // A tensor that is missing, by another name of the same length.
  std::string renamed = bytes;
  const std::string name = "layers.3.mlp.down_proj.codebooks";
  renamed.replace(renamed.find(name), name.size(), "layers.3.mlp.down_proj.codebookz");
  WriteWholeFile(weights, renamed);
  expect("codebook");
  WriteWholeFile(weights, bytes.substr(0, bytes.size() / 2));
  expect("model.safetensors");
}

TEST_F(CodebooksTest, WhatCannotBeMadeIsSaidBeforeTheWork) {
  const std::string command =
      "quantize " + kReferenceModel + " -o " + (folder_ / "x") + " --quiet --scheme ";
  const auto expect = [&](const std::string& arguments, int status, const std::string& part) {
    const Outcome outcome = Nibble(command + arguments);
    EXPECT_EQ(outcome.status, status) << arguments;
    ExpectOneLine(outcome, part);
  };
  expect("'1x16g8 f16' --dry-run", 1, "2x8g8 channel f16 can be");
  expect("'9x8g8 f16'", 2, "9x8g8");
  expect("'1x8g12 f16'", 2, "1x8g12");
  expect("'2x8g8 f16' --layout gptq", 1, "gptq");
  expect("'2x8g8 f16' --method hqq", 2, "hqq");
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

}  // namespace
}  // namespace nibble
