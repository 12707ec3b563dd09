// The commands that run models, and disks that are full or read-only, through the real binary.
#include <cmath>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "nibble/gguf.h"
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

// Says what is missing: the backend, a driver or a device; where nothing is, it runs there.
TEST_F(CliTest, ADeviceThatIsNotThereIsNamed) {
  const std::string text = kReferenceModel + "/evaluation.txt --windows 1 --context 16";
  for (const std::string& command :
       {"generate " + kReferenceModel + " -p x -n 1", "bench model " + kReferenceModel,
        "perplexity " + kReferenceModel + " --text " + text}) {
    const Outcome outcome = Nibble(command + " --device cuda");
    if (outcome.status == 0) GTEST_SKIP() << "there is a GPU here";
    EXPECT_EQ(outcome.status, 1) << command;
    ExpectOneLine(outcome, "--device cuda: ");
  }
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
  expect("generate " + kReferenceModel + " -p x --device tpu", 2, "--device");
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

TEST_F(CliTest, ALongPromptIsTruncatedIfAsked) {
  const Outcome outcome =
      Nibble("generate " + kReferenceModel + " -n 4 --truncate-prompt --json -f " +
             kReferenceModel + "/evaluation.txt");
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json document = json::parse(outcome.out);
  EXPECT_EQ(document["prompt_ids"].size() - document["prompt_left_out"].get<size_t>(), 252u);
  EXPECT_NE(outcome.err.find("tokens were left out"), std::string::npos);
}

// Every command that runs a model names the file and what is wrong with it, and exits with 1.
TEST_F(CliTest, DamagedModelsAreNamed) {
  const std::string good = folder_ / "good.gguf", bad = folder_ / "bad.gguf";
  ASSERT_EQ(Nibble("quantize " + kReferenceModel + " --type Q4_0 -o " + good + " --quiet").status,
            0);
  const Result<GgufFile> file = GgufFile::Open(good);
  ASSERT_TRUE(file.ok());
  // Writes the model without what `drop` names, and with `key` changed if there is a value.
  const auto write = [&](const std::string& drop, const GgufValue* value = nullptr) {
    GgufMetadata metadata = file->metadata();
    if (value != nullptr)
      metadata.Set(drop, *value);
    else
      metadata.Erase(drop);
    std::vector<GgufTensorInfo> infos;
    for (const GgufTensor& tensor : file->tensors()) {
      if (tensor.name != drop) infos.push_back(tensor);
    }
    Result<GgufWriter> writer = GgufWriter::Create(bad, metadata, infos);
    ASSERT_TRUE(writer.ok()) << writer.status().message();
    for (const GgufTensorInfo& info : infos) {
      ASSERT_TRUE(writer->Append(file->Find(info.name)->data).ok());
    }
    ASSERT_TRUE(writer->Finish().ok());
  };
  const auto expect = [&](const std::string& part) {
    const std::string evaluation = " --text " + kReferenceModel + "/evaluation.txt";
    for (const std::string& command :
         {"generate " + bad + " -p x", "perplexity " + bad + evaluation + " --context 64",
          "bench model " + bad, "evaluate " + kReferenceModel + " " + bad + evaluation}) {
      const Outcome outcome = Nibble(command);
      EXPECT_EQ(outcome.status, 1) << command;
      ExpectOneLine(outcome, part);
      EXPECT_NE(outcome.err.find("bad.gguf"), std::string::npos) << outcome.err;
    }
  };
  write("blk.3.ffn_up.weight");
  expect("tensor blk.3.ffn_up.weight is missing");
  write("llama.attention.head_count");
  expect("llama.attention.head_count is missing");
  write("tokenizer.ggml.scores");
  expect("tokenizer.ggml.scores is missing");
  const GgufValue layers = uint32_t{9}, heads = uint32_t{5}, other = std::string("mamba");
  write("llama.block_count", &layers);
  expect("tensor blk.8.attn_norm.weight is missing");
  write("llama.attention.head_count", &heads);
  expect("5 heads cannot share 4");
  write("general.architecture", &other);
  expect("architecture 'mamba' cannot be run");
  const std::string bytes = ReadWholeFile(good);
  WriteWholeFile(bad, bytes.substr(0, bytes.size() / 2));
  expect("bad.gguf");
  WriteWholeFile(bad, bytes.substr(0, 100));
  expect("bad.gguf");
  WriteWholeFile(bad, "");
  expect("bad.gguf");
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
