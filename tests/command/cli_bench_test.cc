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
