// `nibble bench` through the real binary: its table, its JSON, what it refuses.
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli_fixture.h"

namespace nibble {
namespace {

using nlohmann::json;

const std::string kReferenceModel = std::string(NIBBLE_EXAMPLES) + "/reference-model";
const std::string kFew = " --prompts 4,12 --decode-tokens 3 --runs 2";
const std::string kMore = " --batches 8 --sequences 2";

TEST_F(CliTest, BenchModelPutsTwoModelsSideBySide) {
  const std::string q8 = folder_ / "q8.gguf";
  ASSERT_EQ(Nibble("quantize " + kReferenceModel + " --type Q8_0 -o " + q8 + " --quiet").status, 0);
  const Outcome outcome =
      Nibble("bench model " + kReferenceModel + " " + q8 + kFew + kMore + " --json");
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json document = json::parse(outcome.out);
  ASSERT_EQ(document["models"].size(), 2u);
  for (const json& model : document["models"]) {
    EXPECT_EQ(model["prompts"].size(), 2u);
    EXPECT_EQ(model["prompts"][1]["prompt_tokens"], 12);
    EXPECT_TRUE(model["prompts"][0].contains("decode_tokens_per_second"));
    EXPECT_FALSE(model["batches"][0].contains("decode_tokens_per_second"));
    EXPECT_EQ(model["sequences"][0]["sequences"], 2);
    EXPECT_TRUE(model["device_memory_bytes"].is_null());
    EXPECT_TRUE(model["same_tokens_in_runs"].get<bool>());
    EXPECT_TRUE(model["same_tokens_in_threads"].get<bool>());
  }
  const double ratio = document["ratios"]["file_bytes"];
  EXPECT_DOUBLE_EQ(ratio, document["models"][1]["file_bytes"].get<double>() /
                              document["models"][0]["file_bytes"].get<double>());
  EXPECT_LT(ratio, 0.6);
  for (const char* key :
       {"prompt_12_prefill", "prompt_4_next_token", "batch_8_prefill", "sequences_2_decode"}) {
    EXPECT_TRUE(document["ratios"].contains(key)) << key;
  }
}

TEST_F(CliTest, BenchModelPrintsATable) {
  const Outcome outcome = Nibble("bench model " + kReferenceModel + kFew +
                                 " --batches 0 --sequences 0 --threads 2 --quiet");
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  for (const char* part : {"reference-model", "size on disk", "14.7 MB", "device memory", "n/a",
                           "prompt of 12: decode, tokens/s", "same tokens with other threads"}) {
    EXPECT_NE(outcome.out.find(part), std::string::npos) << part << '\n' << outcome.out;
  }
  EXPECT_EQ(outcome.out.find("sequences:"), std::string::npos);
  EXPECT_EQ(outcome.out.find("second / first"), std::string::npos);
}

TEST_F(CliTest, BenchTargetsTellsWhatCanRun) {
  const Outcome text = Nibble("bench --targets");
  ASSERT_EQ(text.status, 0) << text.err;
  EXPECT_NE(text.out.find("(in use)"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("AMX tiles: "), std::string::npos) << text.out;
  const json document = json::parse(Nibble("bench --targets --json").out);
  ASSERT_FALSE(document["targets"].empty());
  for (const json& target : document["targets"]) {
    const std::string name = target;
    EXPECT_NE(text.out.find(name), std::string::npos);
    const Outcome forced =
        Shell("NIBBLE_TARGET=" + name + " " + NIBBLE_COMMAND + " bench --targets --json");
    EXPECT_EQ(json::parse(forced.out)["current"], name);
  }
}

TEST_F(CliTest, BenchKernelsTimesFormatsAndSchemes) {
  const Outcome outcome = Nibble(
      "bench kernels --types 'q4_K,iq2_xxs,int4 sym g64 f16' --rows 1,20 --shape 48x512 --runs 1 "
      "--threads 2 --json --quiet");
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json kernels = json::parse(outcome.out)["kernels"];
  // Two products of each kind and both conversions; iq2_xxs has no encoder.
  ASSERT_EQ(kernels.size(), 6u + 5u + 6u);
  for (const json& kernel : kernels) {
    EXPECT_GT(kernel["seconds"].get<double>(), 0);
    EXPECT_EQ(kernel["weights"], 48 * 512);
    EXPECT_FALSE(kernel["type"] == "iq2_xxs" && kernel["operation"] == "quantize");
    if (kernel["operation"] == "product") {
      EXPECT_EQ(kernel["operations"], 2 * 48 * 512 * kernel["activation_rows"].get<int>());
    }
  }
  EXPECT_EQ(kernels[0]["weight_bytes"], 48 * 2 * 144);
  EXPECT_EQ(kernels[0]["limit"], "memory read");
  EXPECT_EQ(kernels[0]["kernel"], "int8 dots with blocks");
}

TEST_F(CliTest, BenchKernelsRefusesMisuse) {
  const auto expect = [&](const std::string& arguments, const std::string& part) {
    const Outcome outcome = Nibble("bench kernels " + arguments);
    EXPECT_EQ(outcome.status, 2) << arguments;
    ExpectOneLine(outcome, part);
  };
  expect("--types q4_X", "q4_X");
  expect("--types q8_K", "q8_K");
  expect("--shape 64", "64");
  expect("--shape 64x100 --types q4_K", "100");
  expect("--rows 0", "rows");
  expect("--operations divide", "divide");
}

TEST_F(CliTest, BenchModelRefusesMisuse) {
  const auto expect = [&](const std::string& arguments, int status, const std::string& part) {
    const Outcome outcome = Nibble(arguments);
    EXPECT_EQ(outcome.status, status) << arguments;
    ExpectOneLine(outcome, part);
  };
  expect("bench", 2, "subcommand");
  expect("bench model", 2, "models");
  expect("bench model a b c", 2, "c");
  expect("bench model " + kReferenceModel + " --prompts 0", 2, "prompt");
  expect("bench model " + kReferenceModel + " --runs 1", 2, "runs");
  expect("bench model " + kReferenceModel + " --prompts 4,x", 2, "4,x");
  expect("bench model " + kReferenceModel + " --decode-tokens 256", 2, "context of 256");
  expect("bench model " + (folder_ / "none.gguf"), 1, "none.gguf");
}

}  // namespace
}  // namespace nibble
