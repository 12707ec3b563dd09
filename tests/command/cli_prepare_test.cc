// nibble quantize --prepare, through the real binary.
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli_fixture.h"

namespace nibble {
namespace {

using nlohmann::json;

const std::string kReferenceModel = std::string(NIBBLE_EXAMPLES) + "/reference-model";
const std::string kText = " --calibration " + kReferenceModel + "/calibration.txt";

TEST_F(CliTest, PreparedModelsAreQuantizedAsAnyOther) {
  const std::string out = folder_ / "prepared.gguf";
  const Outcome made =
      Nibble("quantize " + kReferenceModel + " -o " + out +
             " --type q4_0 --pure --prepare rotate --prepare awq --calibration-windows 1 "
             "--calibration-context 64 --json" +
             kText);
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_NE(json::parse(made.out)["notices"].dump().find("awq: mean relative error"),
            std::string::npos)
      << made.out;
  const Outcome verified = Nibble("verify " + out);
  EXPECT_EQ(verified.status, 0) << verified.err;
  const Outcome inspected = Nibble("inspect --json " + out);
  ASSERT_EQ(inspected.status, 0) << inspected.err;
  const json document = json::parse(inspected.out);
  EXPECT_EQ(document["metadata"]["edits.applied"], json({"rotate", "awq"}));
  EXPECT_NE(inspected.out.find("output.weight"), std::string::npos);
  // Not what the recipe makes of the model as it came.
  EXPECT_EQ(Nibble("verify " + out + " --rederive " + kReferenceModel).status, 1);
}

TEST_F(CliTest, PreparationsAreChecked) {
  const std::string command =
      "quantize " + kReferenceModel + " -o " + (folder_ / "x.gguf") + " --type q4_0 ";
  const auto expect = [&](const std::string& arguments, const std::string& part) {
    const Outcome outcome = Nibble(command + arguments);
    EXPECT_EQ(outcome.status, 2) << arguments;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  };
  expect("--prepare nothing", "'nothing'");
  expect("--prepare awq", "awq needs a text");
  expect("--prepare rotate" + kText, "uses no calibration text");
}

}  // namespace
}  // namespace nibble
