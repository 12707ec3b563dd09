// The commands that run models, and disks that are full or read-only, through the real binary.
#include <cmath>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli_fixture.h"

namespace nibble {
namespace {

using nlohmann::json;

const std::string kReferenceModel = std::string(NIBBLE_EXAMPLES) + "/reference-model";

TEST_F(CliTest, GenerateGivesTheExpectedTextWithAndWithoutADraft) {
  std::ifstream file(kReferenceModel + "/expected.json");
  const json expected = json::parse(file)["greedy"][3];
  const std::string command = "generate " + kReferenceModel + " -n 64 --precision f32 -p '" +
                              expected["prompt"].get<std::string>() + "'";
  const Outcome plain = Nibble(command + " --quiet");
  ASSERT_EQ(plain.status, 0) << plain.err;
  // As it goes on after the prompt, with the space between.
  EXPECT_EQ(plain.out, " " + expected["text"].get<std::string>() + "\n");
  EXPECT_EQ(plain.err, "");
  const Outcome drafted = Nibble(command + " --json --draft " + kReferenceModel);
  ASSERT_EQ(drafted.status, 0) << drafted.err;
  const json document = json::parse(drafted.out);
  EXPECT_EQ(document["ids"], expected["greedy_ids"]);
  EXPECT_GT(document["accepted"].get<int>(), 40);
  EXPECT_NE(drafted.err.find("tokens/s"), std::string::npos);
}

TEST_F(CliTest, PerplexityAgainstAReferenceAndFromSavedLogits) {
  const std::string q2 = folder_ / "q2.gguf", logits = folder_ / "f16.logits";
  ASSERT_EQ(Nibble("quantize " + kReferenceModel + " --type Q2_K -o " + q2 + " --quiet").status, 0);
  const std::string text =
      " --text " + kReferenceModel + "/evaluation.txt --context 128 --windows 12";
  const Outcome beside =
      Nibble("perplexity " + q2 + text + " --json --reference " + kReferenceModel);
  ASSERT_EQ(beside.status, 0) << beside.err;
  ASSERT_EQ(Nibble("perplexity " + kReferenceModel + text + " --save-logits " + logits).status, 0);
  const Outcome saved = Nibble("perplexity " + q2 + text + " --json --reference-logits " + logits);
  ASSERT_EQ(saved.status, 0) << saved.err;
  const json a = json::parse(beside.out), b = json::parse(saved.out);
  EXPECT_EQ(a["perplexity"], b["perplexity"]);
  const double kl = a["divergence"]["kl"]["value"];
  EXPECT_GT(kl, 0.02);  // two bits are felt
  EXPECT_NEAR(b["divergence"]["kl"]["value"].get<double>() / kl, 1, 0.01);
  const Outcome words = Nibble("perplexity " + q2 + text + " --quiet");
  EXPECT_TRUE(words.out.starts_with("perplexity ")) << words.out;
}

TEST_F(CliTest, RunningRefusesMisuse) {
  const auto expect = [&](const std::string& arguments, int status, const std::string& part) {
    const Outcome outcome = Nibble(arguments);
    EXPECT_EQ(outcome.status, status) << arguments;
    ExpectOneLine(outcome, part);
    EXPECT_EQ(outcome.out, "");
  };
  expect("generate " + kReferenceModel, 2, "--prompt");
  expect("generate " + kReferenceModel + " -p x --precision f64", 2, "precision");
  expect("generate " + (folder_ / "none.gguf") + " -p x", 1, "none.gguf");
  expect("generate " + kReferenceModel + " -p x -n 2 --temperature 1 --draft " + kReferenceModel, 2,
         "temperature");
  expect("generate " + kReferenceModel + " -f " + kReferenceModel + "/evaluation.txt", 2,
         "context of 256");
  expect("perplexity " + kReferenceModel + " --text " + (folder_ / "none.txt"), 1, "none.txt");
  expect("perplexity " + kReferenceModel + " --text " + kReferenceModel + "/evaluation.txt", 2,
         "512");
  expect("perplexity " + kReferenceModel + " --context 64 --text " + kReferenceModel +
             "/config.json --reference-logits " + (folder_ / "none.logits"),
         1, "none.logits");
  // A model whose tensors are not those of its architecture.
  WriteSyntheticModel(folder_ / "odd.gguf", SmallLlama());
  const Outcome odd = Nibble("generate " + (folder_ / "odd.gguf") + " -p x");
  EXPECT_EQ(odd.status, 1);
  ExpectOneLine(odd, "odd.gguf");
}

// In a mount namespace of its own, so that nothing stays behind; needs root.
class MountTest : public CliTest {
 protected:
  // Runs the command with a fresh file system of 1 MB at `at`.
  Outcome Mounted(const std::string& at, const std::string& options, const std::string& arguments) {
    return Shell("unshare -m sh -c 'mount -t tmpfs -o " + options + " tmpfs " + at + " && " +
                 NIBBLE_COMMAND + " " + arguments + "; status=$?; ls -A " + at + "; exit $status'");
  }
  void SetUp() override {
    std::filesystem::create_directory(folder_ / "disk");
    if (Shell("unshare -m mount -t tmpfs tmpfs " + (folder_ / "disk")).status != 0) {
      GTEST_SKIP() << "mounting is not allowed here";
    }
  }
};

TEST_F(MountTest, AFullDiskIsSaidBeforeTheWorkAndLeavesNothing) {
  const Outcome outcome =
      Mounted(folder_ / "disk", "size=1m",
              "quantize " + kReferenceModel + " --type Q8_0 -o " + (folder_ / "disk/out.gguf"));
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.out, "");  // the folder's list: nothing
  ExpectOneLine(outcome, "out.gguf");
}

TEST_F(MountTest, AReadOnlyDiskIsAnError) {
  const Outcome outcome =
      Mounted(folder_ / "disk", "ro",
              "quantize " + kReferenceModel + " --type Q8_0 -o " + (folder_ / "disk/out.gguf"));
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.out, "");
  ExpectOneLine(outcome, "out.gguf");
}

}  // namespace
}  // namespace nibble
