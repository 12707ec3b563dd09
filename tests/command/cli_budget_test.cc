// quantize --target-bpw and --target-size, through the real binary.
#include <filesystem>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli_fixture.h"

namespace nibble {
namespace {

using nlohmann::json;

const std::string kReferenceModel = std::string(NIBBLE_EXAMPLES) + "/reference-model";

TEST_F(CliTest, ABudgetIsKeptAndExplained) {
  const std::string out = folder_ / "out.gguf";
  const Outcome made =
      Nibble("quantize " + kReferenceModel + " -o " + out + " --target-size 4200K --quiet --json");
  ASSERT_EQ(made.status, 0) << made.err;
  const json document = json::parse(made.out);
  EXPECT_LE(document["bytes"], 4200000);
  EXPECT_GT(document["bytes"], 4150000);
  EXPECT_EQ(document["bytes"], std::filesystem::file_size(out));
  EXPECT_EQ(document["budget"]["matrices"].size(), 57u);
  EXPECT_GE(document["formats"].size(), 3u);  // f32 for the norms, and a mix
  // The recipe in the file makes it again.
  EXPECT_EQ(Nibble("verify " + out + " --quiet --rederive " + kReferenceModel).status, 0);
  EXPECT_FALSE(std::filesystem::exists(out + ".sensitivity.json"));

  const Outcome told = Nibble("quantize " + kReferenceModel + " -o " + (folder_ / "x.gguf") +
                              " --target-bpw 4 --budget-types q3_K,q5_K --dry-run");
  ASSERT_EQ(told.status, 0) << told.err;
  EXPECT_NE(told.out.find("blk.7.ffn_down.weight"), std::string::npos) << told.out;
  EXPECT_NE(told.out.find("sum of the matrices' relative errors"), std::string::npos) << told.out;
  EXPECT_EQ(told.out.find("q4_K"), std::string::npos) << told.out;
}

TEST_F(CliTest, ABudgetMeasuresOnTextOnceAndCalibrates) {
  const std::string common =
      "quantize " + kReferenceModel + " --target-bpw 4 --quiet --json --calibration " +
      kReferenceModel +
      "/calibration.txt --calibration-windows 2 --calibration-context 64 --sensitivity-windows 1 ";
  const std::string file = folder_ / "what.json";
  const Outcome first = Nibble(common + "--sensitivity " + file + " -o " + (folder_ / "a.gguf"));
  ASSERT_EQ(first.status, 0) << first.err;
  ASSERT_TRUE(std::filesystem::exists(file));
  const auto written = std::filesystem::last_write_time(file);
  const Outcome second =
      Nibble(common + "--sensitivity " + file + " --method gptq -o " + (folder_ / "b.gguf"));
  ASSERT_EQ(second.status, 0) << second.err;
  EXPECT_GE(std::filesystem::last_write_time(file), written);
  const json a = json::parse(first.out), b = json::parse(second.out);
  EXPECT_EQ(a["budget"], b["budget"]);  // taken from the file
  EXPECT_EQ(b["method"], "gptq");
  EXPECT_EQ(b["bytes"], std::filesystem::file_size(folder_ / "b.gguf"));
  // Another text is not what the file was measured on.
  const Outcome other = Nibble("quantize " + kReferenceModel + " --target-bpw 4 --calibration " +
                               kReferenceModel + "/evaluation.txt --calibration-windows 2 " +
                               "--calibration-context 64 --sensitivity-windows 1 --quiet " +
                               "--sensitivity " + file + " -o " + (folder_ / "c.gguf"));
  EXPECT_EQ(other.status, 2);
  ExpectOneLine(other, "another");
}

TEST_F(CliTest, BudgetsThatMakeNoSenseAreMisuse) {
  const std::string command =
      "quantize " + kReferenceModel + " -o " + (folder_ / "x.gguf") + " --quiet ";
  const auto expect = [&](const std::string& arguments, const std::string& part) {
    const Outcome outcome = Nibble(command + arguments);
    EXPECT_EQ(outcome.status, 2) << arguments;
    ExpectOneLine(outcome, part);
  };
  expect("", "--type");
  expect("--type q4_K --target-bpw 4", "--type");
  expect("--target-bpw 4 --pure", "--pure");
  expect("--target-bpw 0", "--target-bpw");
  expect("--target-bpw 2", "the budget is too small");
  expect("--target-bpw 4 --budget-types q9", "q9 is none of");
  expect("--type q4_K --budget-types q4_K", "--target-bpw");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x.gguf"));
}

}  // namespace
}  // namespace nibble
