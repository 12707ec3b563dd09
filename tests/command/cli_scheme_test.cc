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

TEST_F(CliTest, SchemesThatMakeNoSenseAreMisuse) {
  const std::string command =
      "quantize " + kReferenceModel + " -o " + (folder_ / "x") + " --quiet ";
  const auto expect = [&](const std::string& arguments, int status, const std::string& part) {
    const Outcome outcome = Nibble(command + arguments);
    EXPECT_EQ(outcome.status, status) << arguments;
    ExpectOneLine(outcome, part);
  };
  expect("--scheme 'int4 sym g128 f16' --type q4_K", 2, "--scheme");
  expect("--scheme 'int4 sym g128 f16' --prepare rotate", 2, "--scheme");
  expect("--scheme nothing", 2, "nothing");
  expect("--scheme 'int3 sym g128 f16'", 1, "2, 4 or 8 bits");
  expect("--scheme 'int4 sym g128 f16 act-order'", 2, "act-order");
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

}  // namespace
}  // namespace nibble
