// quantize --scheme, through the real binary.
#include <filesystem>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli_fixture.h"

namespace nibble {
namespace {

using nlohmann::json;

const std::string kReferenceModel = std::string(NIBBLE_EXAMPLES) + "/reference-model";

TEST_F(CliTest, ASchemeMakesAHuggingFaceFolder) {
  const std::string out = folder_ / "out";
  const std::string command = "quantize " + kReferenceModel + " -o " + out +
                              " --scheme 'int4 sym g128 f16' --json --quiet ";
  const Outcome dry = Nibble(command + "--dry-run");
  ASSERT_EQ(dry.status, 0) << dry.err;
  EXPECT_FALSE(std::filesystem::exists(out));
  const Outcome made = Nibble(command + "--method gptq --calibration-windows 2 --calibration " +
                              kReferenceModel + "/calibration.txt");
  ASSERT_EQ(made.status, 0) << made.err;
  const json document = json::parse(made.out);
  EXPECT_EQ(document["bytes"], json::parse(dry.out)["bytes"]);
  EXPECT_EQ(document["bytes"], std::filesystem::file_size(out + "/model.safetensors"));
  EXPECT_GT(document["relative_error"], 0);
  EXPECT_LT(document["relative_error"], 0.02);
  const Outcome again = Nibble(command);
  EXPECT_EQ(again.status, 2);
  ExpectOneLine(again, "exists already");
}

// Every way of the command to such a folder; what it writes, it reads.
TEST_F(CliTest, LayoutsMethodsAndPreparations) {
  const std::string text = " --calibration-windows 2 --calibration-context 64 --calibration " +
                           kReferenceModel + "/calibration.txt";
  struct Case {
    std::string arguments;
    const char* layout;
  };
  int i = 0;
  for (const Case& c :
       {Case{"--scheme 'int4 asym g64 f16' --layout awq --prepare awq" + text, "awq"},
        Case{"--scheme 'int8 sym channel' --layout compressed-tensors --prepare smoothquant" + text,
             "compressed-tensors"},
        Case{"--scheme 'int8 sym channel'", "bitsandbytes"},
        Case{"--scheme 'nf4 g64 double'", "bitsandbytes"},
        Case{"--scheme 'int4 asym g64 f16' --method hqq", "gptq"},
        Case{"--scheme 'int3 sym g64 f16' --prepare rotate --method gptq" + text, "gptq"},
        Case{"--scheme 'int3 sym g64 f16' --static-groups --method gptq" + text, "gptq"},
        Case{"--scheme '1x8g8 f16' --sequential --method gptq" + text, "aqlm"}}) {
    const std::string out = folder_ / std::to_string(i++);
    const Outcome made =
        Nibble("quantize " + kReferenceModel + " -o " + out + " --json " + c.arguments);
    ASSERT_EQ(made.status, 0) << c.arguments << made.err;
    EXPECT_EQ(json::parse(made.out)["layout"], c.layout);
    const Outcome run = Nibble("perplexity " + out + " --text " + kReferenceModel +
                               "/evaluation.txt --context 128 --windows 1 --json --quiet");
    ASSERT_EQ(run.status, 0) << run.err;
  }
  const Outcome again =
      Nibble("quantize " + (folder_ / "0") + " --type q4_0 --quiet -o " + (folder_ / "x.gguf"));
  EXPECT_EQ(again.status, 2);
  ExpectOneLine(again, "quantized already");
}

TEST_F(CliTest, SchemesThatMakeNoSenseAreMisuse) {
  const std::string command =
      "quantize " + kReferenceModel + " -o " + (folder_ / "x") + " --quiet ";
  const auto expect = [&](const std::string& arguments, int status, const std::string& part) {
    const Outcome outcome = Nibble(command + arguments);
    EXPECT_EQ(outcome.status, status) << arguments;
    ExpectOneLine(outcome, part);
  };
  expect("--scheme 'int4 sym g128 f16' --type q4_K", 2, "--scheme");
  expect("--scheme 'int4 sym g128 f16' --pure", 2, "--scheme");
  expect("--scheme nothing", 2, "nothing");
  expect("--scheme 'int5 sym g128 f16'", 1, "2, 3, 4 or 8 bits");
  expect("--scheme 'int4 sym g128 f16 act-order'", 2, "act-order");
  expect("--scheme 'int4 sym g128 f16' --layout awk", 2, "awk");
  expect("--scheme 'int3 asym g128 f16' --layout awq", 1, "integers of 4 bits");
  expect("--type q4_K --layout awq", 2, "--layout");
  expect("--type q4_K --method hqq", 2, "hqq");
  expect("--scheme 'int4 sym g128 f16' --method hqq", 2, "asym");
  expect("--scheme 'int4 sym g128 f16' --method gptq", 2, "--calibration FILE");
  expect("--scheme 'int4 sym g128 f16' --prepare awq", 2, "awq needs a text");
  expect("--scheme 'int4 sym g128 f16' --static-groups", 2, "--static-groups");
  expect("--type q4_K --method gptq --static-groups", 2, "--static-groups");
  expect("--scheme 'int4 sym g128 f16' --method gptq --sequential --hessians x", 2, "--sequential");
  expect("--scheme 'int4 sym g128 f16' --hessians x", 2, "uses no Hessians");
  expect("--scheme 'int4 sym g128 f16' --method gptq --hessians x --prepare rotate", 2,
         "--prepare");
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

}  // namespace
}  // namespace nibble
