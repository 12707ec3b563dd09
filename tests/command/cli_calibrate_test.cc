// Methods that run the model over calibration text, through the real binary.
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli_fixture.h"

namespace nibble {
namespace {

using nlohmann::json;

const std::string kReferenceModel = std::string(NIBBLE_EXAMPLES) + "/reference-model";
const std::string kText = " --calibration " + kReferenceModel + "/calibration.txt";

TEST_F(CliTest, GptqCalibratesAndTellsHow) {
  const std::string out = folder_ / "out.gguf";
  const Outcome made =
      Nibble("quantize " + kReferenceModel + " -o " + out +
             " --type Q3_K_M --method gptq --calibration-windows 4 --json" + kText);
  ASSERT_EQ(made.status, 0) << made.err;
  const json document = json::parse(made.out);
  EXPECT_EQ(document["method"], "gptq");
  EXPECT_EQ(document["calibration"]["windows"], 4);
  EXPECT_EQ(document["calibration"]["context"], 256);
  // Seven matrices a layer, and the embedding, which is the output too.
  EXPECT_EQ(document["calibrated"].size(), 57u);
  int fed = 0;
  for (const json& matrix : document["calibrated"]) {
    if (!matrix["feedback"]) continue;
    ++fed;
    EXPECT_LT(matrix["relative_error"], 0.1) << matrix["name"];
  }
  EXPECT_EQ(fed, 56);
  EXPECT_NE(made.err.find("token_embd.weight: without error feedback"), std::string::npos);

  const Outcome plain = Nibble("quantize " + kReferenceModel + " -o " + (folder_ / "plain.gguf") +
                               " --type Q3_K_M --json --quiet");
  ASSERT_EQ(plain.status, 0) << plain.err;
  for (size_t i = 0; i < document["tensors"].size(); ++i) {
    EXPECT_EQ(document["tensors"][i], json::parse(plain.out)["tensors"][i]);
  }
  EXPECT_EQ(Nibble("verify " + out + " --quiet").status, 0);
  const json inspected = json::parse(Nibble("inspect " + out + " --json").out);
  EXPECT_EQ(inspected["metadata"]["nibble.method"], "gptq");
  EXPECT_EQ(inspected["metadata"]["nibble.calibration.text"], "calibration.txt");
  const Outcome again = Nibble("verify " + out + " --quiet --rederive " + kReferenceModel);
  EXPECT_EQ(again.status, 1);
  ExpectOneLine(again, "calibration.txt");
}

TEST_F(CliTest, CalibrateWritesMergesAndServesAsImportance) {
  const std::string text = " " + kReferenceModel + "/calibration.txt --quiet";
  const std::string command = "calibrate " + kReferenceModel + text + " -o ";
  const std::string a = folder_ / "a.gguf", b = folder_ / "b.dat";
  ASSERT_EQ(Nibble(command + a + " --calibration-windows 2").status, 0);
  EXPECT_EQ(Nibble(command + a + " --calibration-windows 2").status, 2);  // exists
  ASSERT_EQ(Nibble(command + b + " --calibration-windows 4 --calibration-context 128").status, 0);
  const Outcome both =
      Nibble("calibrate --merge " + a + " --merge " + b + " --json -o " + (folder_ / "both.gguf"));
  ASSERT_EQ(both.status, 0) << both.err;
  const json document = json::parse(both.out);
  EXPECT_EQ(document["windows"], 6);
  EXPECT_EQ(document["matrices"].size(), 56u);
  EXPECT_EQ(document["matrices"][0]["name"], "blk.0.attn_k.weight");
  EXPECT_EQ(document["matrices"][0]["inputs"], 256);
  const Outcome made = Nibble("quantize " + kReferenceModel + " --type Q3_K_M --quiet -o " +
                              (folder_ / "out.gguf") + " --imatrix " + (folder_ / "both.gguf"));
  EXPECT_EQ(made.status, 0) << made.err;

  ExpectOneLine(Nibble("calibrate -o x"), "--merge");
  ExpectOneLine(Nibble("calibrate --merge " + (folder_ / "none.gguf") + " -o x"), "none.gguf");
}

TEST_F(CliTest, HessiansAreGatheredMergedAndUsed) {
  const std::string run = "calibrate " + kReferenceModel + " " + kReferenceModel +
                          "/calibration.txt --hessians --quiet --calibration-windows ";
  const std::string a = folder_ / "a.safetensors", b = folder_ / "b.safetensors",
                    both = folder_ / "both.safetensors";
  Outcome made = Nibble(run + "2 -o " + a);
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(Nibble(run + "2 -o " + a).status, 2);  // exists
  made = Nibble(run + "3 --json --calibration-memory 1MB -o " + b + " --merge " + a);
  ASSERT_EQ(made.status, 0) << made.err;
  const json document = json::parse(made.out);
  EXPECT_EQ(document["windows"], 5);
  EXPECT_EQ(document["inputs"].size(), 33u);
  EXPECT_EQ(document["inputs"][0]["matrices"].size(), 3u);
  made = Nibble("calibrate --hessians --json -o " + both + " --merge " + a + " --merge " + b);
  ASSERT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(json::parse(made.out)["windows"], 7);

  const std::string quantize = "quantize " + kReferenceModel + " --quiet --method gptq -o ";
  const std::string out = folder_ / "out.gguf";
  made = Nibble(quantize + out + " --type Q3_K_M --json --hessians " + both);
  ASSERT_EQ(made.status, 0) << made.err;
  const json calibrated = json::parse(made.out);
  EXPECT_EQ(calibrated["calibration"]["windows"], 7);
  EXPECT_EQ(calibrated["calibrated"].size(), 57u);
  EXPECT_EQ(Nibble("verify --quiet " + out).status, 0);
  made = Nibble(quantize + (folder_ / "out") + " --scheme 'int4 sym g128 f16 act-order' " +
                "--hessians " + both);
  EXPECT_EQ(made.status, 0) << made.err;

  const auto expect = [&](const std::string& command, int status, const std::string& part) {
    const Outcome outcome = Nibble(command);
    EXPECT_EQ(outcome.status, status) << command;
    ExpectOneLine(outcome, part);
  };
  const std::string x = folder_ / "x";
  expect(quantize + x + " --type q4_K --imatrix y --hessians " + a, 2, "--imatrix");
  expect(quantize + x + " --type q4_K --hessians " + a + kText, 2, "--calibration");
  expect(quantize + x + " --type q4_K --hessians " + out, 1, "out.gguf");
  expect("quantize " + kReferenceModel + " -o " + x + " --type q4_K --hessians " + a, 2,
         "uses no Hessians");
  expect("calibrate --hessians -o " + x + " --merge " + out, 1, "out.gguf");
  expect("calibrate --hessians --process-output -o " + x + " --merge " + a, 2, "--process-output");
  EXPECT_FALSE(std::filesystem::exists(x));
}

TEST_F(CliTest, CalibrationRefusesMisuse) {
  const std::string command =
      "quantize " + kReferenceModel + " -o " + (folder_ / "x.gguf") + " --type Q4_K_M ";
  const auto expect = [&](const std::string& arguments, int status, const std::string& part) {
    const Outcome outcome = Nibble(command + arguments);
    EXPECT_EQ(outcome.status, status) << arguments;
    ExpectOneLine(outcome, part);
  };
  expect("--method gptq", 2, "--calibration FILE");
  expect("--method nothing", 2, "rtn gptq");
  expect(kText, 2, "uses no calibration text");
  expect("--method gptq --imatrix x" + kText, 2, "imatrix");
  expect("--method gptq --calibration " + kReferenceModel + "/none.txt", 1, "none.txt");
  expect("--method gptq --calibration-context 100000" + kText, 2, "100000");
  std::ofstream(folder_ / "short.txt") << "Too short.";
  expect("--method gptq --calibration " + (folder_ / "short.txt"), 2,
         "short.txt: the calibration text has");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x.gguf"));
}

}  // namespace
}  // namespace nibble
