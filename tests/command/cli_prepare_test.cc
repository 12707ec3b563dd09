// What changes weights so that quantization loses less: nibble quantize --prepare beforehand,
// nibble refit afterwards; through the real binary.
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

TEST_F(CliTest, NormsAreRefittedToWhatWasQuantized) {
  const std::string quantized = folder_ / "q2.gguf", refitted = folder_ / "refitted.gguf";
  const Outcome made = Nibble("quantize " + kReferenceModel + " -o " + quantized +
                              " --type q2_K --tensor-type 'token_embd.weight=f16' --quiet");
  ASSERT_EQ(made.status, 0) << made.err;
  const std::string rest = " --reference " + kReferenceModel + kText +
                           " --calibration-windows 4 --calibration-context 64 -o ";
  const Outcome refit = Nibble("refit " + quantized + rest + refitted + " --json");
  ASSERT_EQ(refit.status, 0) << refit.err;
  const json report = json::parse(refit.out);
  EXPECT_LT(report["error_after"], report["error_before"]);
  EXPECT_EQ(report["norms"].size(), 16u);
  EXPECT_EQ(Nibble("verify " + refitted).status, 0);
  const Outcome inspected = Nibble("inspect --json " + refitted);
  EXPECT_EQ(json::parse(inspected.out)["metadata"]["edits.applied"], json({"refit_norms"}));
  // The matrices are the same, the norms are not.
  const Outcome compared = Nibble("compare --json " + quantized + " " + refitted);
  ASSERT_EQ(compared.status, 0) << compared.err;
  const json document = json::parse(compared.out);
  int changed = 0;
  for (const json& tensor : document["tensors"]) {
    const bool is_norm = tensor["name"].get<std::string>().ends_with("_norm.weight");
    EXPECT_TRUE(is_norm || tensor["rmse"] == 0) << tensor;
    changed += tensor["rmse"] != 0;
  }
  EXPECT_GE(changed, 12);
  const auto refuse = [&](const std::string& model, const std::string& part) {
    const Outcome outcome = Nibble("refit " + model + rest + (folder_ / "x.gguf"));
    EXPECT_EQ(outcome.status, 2) << model;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  };
  refuse(refitted, "is not the reference's");
  refuse(kReferenceModel, "no matrix behind a norm is in blocks");
  EXPECT_NE(Nibble("refit " + quantized + rest + refitted).err.find("exists"), std::string::npos);
  const std::string f16 = folder_ / "f16.gguf";
  ASSERT_EQ(Nibble("convert " + kReferenceModel + " -o " + f16 + " --type f16").status, 0);
  for (const std::string& input : {quantized, f16}) {
    const Outcome outcome =
        Nibble("refit " + quantized + " --overwrite --reference " + f16 + kText + " -o " + input);
    EXPECT_EQ(outcome.status, 2);
    EXPECT_NE(outcome.err.find("is the input itself"), std::string::npos) << outcome.err;
  }
  EXPECT_EQ(Nibble("refit " + quantized + rest + (folder_ / "x.safetensors")).status, 2);
}

}  // namespace
}  // namespace nibble
