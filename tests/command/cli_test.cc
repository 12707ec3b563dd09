// Drives the nibble command as a user's shell does.
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli_fixture.h"
#include "tests/synthetic_model.h"

namespace nibble {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

const std::string kReferenceModel = std::string(NIBBLE_EXAMPLES) + "/reference-model";

TEST_F(CliTest, HelpAndVersion) {
  EXPECT_EQ(Nibble("--version").status, 0);
  const Outcome help = Nibble("--help");
  EXPECT_EQ(help.status, 0);
  for (const std::string command :
       {"quantize", "convert", "dequantize", "inspect", "compare", "verify"}) {
    EXPECT_NE(help.out.find(command), std::string::npos);
    EXPECT_EQ(Nibble(command + " --help").status, 0);
    EXPECT_EQ(Nibble(command).status, 2);
    const Outcome misspelt = Nibble(command + " --no-such-option");
    EXPECT_EQ(misspelt.status, 2);
    ExpectOneLine(misspelt, "'--no-such-option'");
  }
  EXPECT_EQ(Nibble("").status, 2);
  EXPECT_EQ(Nibble("nonsense").status, 2);
  ExpectOneLine(Nibble("nonsense"), "'nonsense'");
}

TEST_F(CliTest, FromAHuggingFaceFolderToAQuantizedFile) {
  const std::string out = folder_ / "q.gguf";
  const Outcome dry =
      Nibble("quantize " + kReferenceModel + " -o " + out + " --type Q8_0 --dry-run --json");
  ASSERT_EQ(dry.status, 0) << dry.err;
  EXPECT_TRUE(folder_.List().empty());
  const json planned = json::parse(dry.out);
  EXPECT_TRUE(planned["dry_run"]);

  const Outcome made = Nibble("quantize " + kReferenceModel + " -o " + out + " --type q8_0 --json");
  ASSERT_EQ(made.status, 0) << made.err;
  const json report = json::parse(made.out);
  EXPECT_EQ(report["bytes"], fs::file_size(out));
  EXPECT_EQ(planned["bytes"], report["bytes"]);
  EXPECT_EQ(planned["tensors"], report["tensors"]);
  EXPECT_EQ(report["type"], "Q8_0");
  EXPECT_EQ(folder_.List(), std::vector<std::string>({"q.gguf"}));

  const Outcome compared = Nibble("compare " + kReferenceModel + " " + out + " --json");
  ASSERT_EQ(compared.status, 0) << compared.err;
  const json errors = json::parse(compared.out);
  EXPECT_EQ(errors["total"]["weights"], report["weights"]);
  EXPECT_GT(errors["matrices"]["snr_db"], 40);
  EXPECT_GT(errors["matrices"]["rmse"], 0);
  EXPECT_GT(errors["matrices"]["cosine"], 0.9999);

  const Outcome inspected = Nibble("inspect " + out + " --json");
  ASSERT_EQ(inspected.status, 0) << inspected.err;
  const json shown = json::parse(inspected.out);
  EXPECT_EQ(shown["metadata"]["general.file_type"], 7);
  EXPECT_EQ(shown["metadata"]["nibble.type"], "Q8_0");
  EXPECT_EQ(shown["weights"], report["weights"]);
  EXPECT_EQ(shown["file_bytes"], report["bytes"]);
  EXPECT_NE(Nibble("inspect " + out).out.find("blk.7.ffn_down.weight"), std::string::npos);

  EXPECT_EQ(Nibble("verify " + out + " --rederive " + kReferenceModel).status, 0);
}

TEST_F(CliTest, TheSameBytesForAnyThreads) {
  for (const std::string type : {"q4_0", "iq4_nl --pure", "Q8_0"}) {
    for (const std::string threads : {"1", "2"}) {
      const Outcome made =
          Nibble("quantize " + Small() + " --overwrite -o " + (folder_ / (threads + ".gguf")) +
                 " --threads " + threads + " --type " + type);
      ASSERT_EQ(made.status, 0) << made.err;
    }
    EXPECT_EQ(ReadWholeFile(folder_ / "1.gguf"), ReadWholeFile(folder_ / "2.gguf")) << type;
  }
}

TEST_F(CliTest, ConvertsThereAndBack) {
  const auto nibble = [&](const std::string& arguments) {
    const Outcome outcome = Nibble(arguments);
    EXPECT_EQ(outcome.status, 0) << arguments << "\n" << outcome.err;
  };
  const std::string whole = folder_ / "whole.gguf", joined = folder_ / "joined.gguf";
  nibble("quantize " + Small() + " -o " + whole + " --type q4_1 --pure");
  nibble("convert " + whole + " -o " + (folder_ / "s.gguf") + " --max-shard-size 100kB");
  std::string second;  // any shard stands for all
  for (const std::string& name : folder_.List()) {
    if (name.starts_with("s-00002-of-")) second = folder_ / name;
  }
  nibble("convert " + second + " -o " + joined);
  const Outcome same = Nibble("compare " + whole + " " + joined + " --json");
  EXPECT_EQ(json::parse(same.out)["total"]["rmse"], 0);
  EXPECT_EQ(json::parse(same.out)["total"]["snr_db"], nullptr);
  EXPECT_EQ(Nibble("verify " + joined).status, 0);

  nibble("dequantize " + whole + " -o " + (folder_ / "f32.gguf"));
  EXPECT_EQ(json::parse(Nibble("compare " + whole + " " + (folder_ / "f32.gguf") + " --json")
                            .out)["total"]["rmse"],
            0);
  nibble("dequantize " + whole + " -o " + (folder_ / "x.safetensors"));
  EXPECT_EQ(json::parse(Nibble("compare " + whole + " " + (folder_ / "x.safetensors") + " --json")
                            .out)["total"]["rmse"],
            0);
  nibble("convert " + (folder_ / "x.safetensors") + " -o " + (folder_ / "y.gguf") + " --type f16");
}

TEST_F(CliTest, RefusesTheInputAsOutput) {
  const std::string model = Small();
  const std::string before = ReadWholeFile(model);
  fs::create_symlink(model, folder_ / "symbolic.gguf");
  fs::create_hard_link(model, folder_ / "hard.gguf");
  fs::create_directory_symlink(folder_.path(), folder_ / "folder");
  for (const std::string& target : {model, folder_ / "symbolic.gguf", folder_ / "hard.gguf",
                                    folder_ / "folder/small.gguf", folder_ / "./small.gguf"}) {
    const Outcome outcome =
        Nibble("quantize " + model + " -o " + target + " --type q4_0 --overwrite");
    EXPECT_EQ(outcome.status, 2) << target;
    ExpectOneLine(outcome, "is the input itself");
  }
  EXPECT_EQ(ReadWholeFile(model), before);
  EXPECT_TRUE(fs::is_symlink(folder_ / "symbolic.gguf"));
}

TEST_F(CliTest, RefusesWhatWasNotAskedFor) {
  const std::string quantize = "quantize " + Small() + " -o " + (folder_ / "out.gguf") + " ";
  const struct {
    std::string arguments;
    int status;
    std::string part;
  } cases[] = {
      {quantize + "--type q9_K", 2, "q9_K"},
      {quantize + "--type iq2_xs", 2, "not written"},
      {quantize + "--type q4_0 --tensor-type 'ffn(=q8_0'", 2, "regular expression"},
      {quantize + "--type q4_0 --tensor-type ffn_down", 2, "REGEX=TYPE"},
      {quantize + "--type q4_0 --tensor-type ffn_dwon=q8_0", 2, "ffn_dwon"},
      {quantize + "--type q4_0 --threads 0", 2, "threads"},
      {quantize + "--type q4_0 --imatrix none.dat", 1, "none.dat"},
      {"quantize none.gguf -o x.gguf --type q4_0", 1, "none.gguf"},
      {"quantize " + Small() + " -o " + (folder_ / "no/out.gguf") + " --type q4_0", 1, "folder"},
      {"quantize " + Small() + " -o " + folder_.path() + " --type q4_0 --overwrite", 2, "folder"},
      {"quantize " + Small() + " -o /proc/out.gguf --type q4_0", 1, "/proc/out.gguf"},
      {"quantize " + Small() + " -o " + (folder_ / "out.safetensors") + " --type q4_0", 2, "q6_K"},
      {"compare " + Small() + " " + kReferenceModel + "/tokenizer.model", 1, "tokenizer.model"},
      {"verify " + kReferenceModel + "/model.safetensors", 1, "model.safetensors"},
  };
  for (const auto& [arguments, status, part] : cases) {
    const Outcome outcome = Nibble(arguments);
    EXPECT_EQ(outcome.status, status) << arguments;
    ExpectOneLine(outcome, part);
  }
  EXPECT_EQ(folder_.List(), std::vector<std::string>({"small.gguf"}));

  WriteWholeFile(folder_ / "out.gguf", "old");
  ExpectOneLine(Nibble(quantize + "--type q4_0"), "exists");
  EXPECT_EQ(Nibble(quantize + "--type q4_0").status, 2);
  EXPECT_EQ(ReadWholeFile(folder_ / "out.gguf"), "old");
  EXPECT_EQ(Nibble(quantize + "--type q8_0 --overwrite").status, 0);
  const std::string again =
      "quantize " + (folder_ / "out.gguf") + " -o " + (folder_ / "again.gguf") + " --type q4_0";
  EXPECT_EQ(Nibble(again).status, 2);
  EXPECT_EQ(Nibble(again + " --allow-requantize").status, 0);
}

TEST_F(CliTest, FallbacksAreSaidBeforeTheWork) {
  WriteSyntheticModel(folder_ / "odd.gguf", {{"blk.0.ffn_up.weight", {96, 8}}});
  const std::string quantize =
      "quantize " + (folder_ / "odd.gguf") + " -o " + (folder_ / "out.gguf") + " --type iq4_xs ";
  const Outcome refused = Nibble(quantize + "--no-fallback");
  EXPECT_EQ(refused.status, 2);
  ExpectOneLine(refused, "iq4_nl instead of iq4_xs");
  const Outcome dry = Nibble(quantize + "--dry-run --json");
  EXPECT_EQ(dry.status, 0) << dry.err;
  EXPECT_NE(dry.err.find("note: 1 tensor (100.0% of the weights) gets iq4_nl"), std::string::npos)
      << dry.err;
  EXPECT_EQ(json::parse(dry.out)["notices"].size(), 1u);
  EXPECT_EQ(Nibble(quantize + "--dry-run --quiet").err, "");
}

TEST_F(CliTest, WeightsThatAreNotFinite) {
  WriteSyntheticModel(folder_ / "nan.gguf", SmallLlama(),
                      [](const std::string& name, std::vector<float>& weights) {
                        if (name == "blk.1.attn_v.weight") weights[5 * 256 + 9] = NAN;
                      });
  const std::string quantize =
      "quantize " + (folder_ / "nan.gguf") + " -o " + (folder_ / "out.gguf") + " --type q4_0";
  const Outcome outcome = Nibble(quantize + " --quiet");
  EXPECT_EQ(outcome.status, 1);
  ExpectOneLine(outcome, "blk.1.attn_v.weight");
  ExpectOneLine(outcome, "row 5, column 9");
  EXPECT_EQ(folder_.List(), std::vector<std::string>({"nan.gguf"}));
  EXPECT_EQ(Nibble(quantize + " --clamp").status, 0);
}

TEST_F(CliTest, TruncatedModels) {
  const std::string whole = ReadWholeFile(Small());
  for (const size_t size : {size_t{0}, size_t{3}, size_t{4}, size_t{8}, size_t{20}, size_t{60},
                            size_t{200}, whole.size() / 2, whole.size() - 1}) {
    WriteWholeFile(folder_ / "cut.gguf", whole.substr(0, size));
    for (const std::string& command :
         {"quantize " + (folder_ / "cut.gguf") + " -o " + (folder_ / "out.gguf") + " --type q4_0",
          "inspect " + (folder_ / "cut.gguf"), "verify " + (folder_ / "cut.gguf")}) {
      const Outcome outcome = Nibble(command);
      EXPECT_EQ(outcome.status, 1) << command << " at " << size;
      ExpectOneLine(outcome, "cut.gguf");
    }
  }
  EXPECT_FALSE(fs::exists(folder_ / "out.gguf"));
}

TEST_F(CliTest, AFileSizeLimitIsAnErrorNotASignal) {
  const Outcome outcome = Shell("ulimit -f 100; " + std::string(NIBBLE_COMMAND) + " quantize " +
                                Small() + " -o " + (folder_ / "out.gguf") + " --type q8_0 --quiet");
  EXPECT_EQ(outcome.status, 1);
  ExpectOneLine(outcome, "out.gguf");
  EXPECT_EQ(folder_.List(), std::vector<std::string>({"small.gguf"}));
}

TEST_F(CliTest, VerifyFindsDamage) {
  ASSERT_EQ(Nibble("quantize " + Small() + " -o " + (folder_ / "q.gguf") + " --type q4_0").status,
            0);
  EXPECT_EQ(Nibble("verify " + (folder_ / "q.gguf")).status, 0);
  std::string bytes = ReadWholeFile(folder_ / "q.gguf");
  bytes[bytes.size() - 40] ^= 4;
  WriteWholeFile(folder_ / "q.gguf", bytes);
  const Outcome outcome = Nibble("verify " + (folder_ / "q.gguf") + " --quiet");
  EXPECT_EQ(outcome.status, 1);
  ExpectOneLine(outcome, "hash");
}

// Starts a quantization that takes a while and sends a signal when a part of it is done.
class InterruptTest : public CliTest {
 protected:
  void SetUp() override {
    WriteHollowModel(folder_ / "hollow.gguf", 96, 2048, 2048);
    WriteWholeFile(folder_ / "out.gguf", "old");
  }

  // How the command ended, as waitpid tells it.
  int Interrupt(int signal) const {
    const std::string in = folder_ / "hollow.gguf", out = folder_ / "out.gguf";
    int progress[2];
    EXPECT_EQ(pipe(progress), 0);
    const pid_t child = fork();
    if (child == 0) {
      dup2(progress[1], STDERR_FILENO);
      close(progress[0]);
      close(progress[1]);
      execl(NIBBLE_COMMAND, "nibble", "quantize", in.c_str(), "-o", out.c_str(), "--type", "mxfp4",
            "--pure", "--overwrite", "--threads", "1", static_cast<char*>(nullptr));
      _exit(127);
    }
    close(progress[1]);
    char byte;
    EXPECT_EQ(read(progress[0], &byte, 1), 1);  // the first tenth is done
    kill(child, signal);
    int status = 0;
    waitpid(child, &status, 0);
    close(progress[0]);
    return status;
  }
};

TEST_F(InterruptTest, CtrlCLeavesTheOldFileAndNothingElse) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const int status = Interrupt(signal);
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), signal);
    EXPECT_EQ(ReadWholeFile(folder_ / "out.gguf"), "old");
    EXPECT_EQ(folder_.List(), std::vector<std::string>({"hollow.gguf", "out.gguf"}));
  }
}

TEST_F(InterruptTest, AKilledProcessLeavesTheOldFile) {
  const int status = Interrupt(SIGKILL);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(ReadWholeFile(folder_ / "out.gguf"), "old");
}

}  // namespace
}  // namespace nibble
