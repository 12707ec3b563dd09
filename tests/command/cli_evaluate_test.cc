// `nibble evaluate`, `estimate` and `advise` through the real binary: reports, verdicts, advice,
// what they refuse.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli_fixture.h"

namespace nibble {
namespace {

using nlohmann::json;

const std::string kReferenceModel = std::string(NIBBLE_EXAMPLES) + "/reference-model";

class EvaluateTest : public CliTest {
 protected:
  void SetUp() override {
    ASSERT_EQ(Quantize("Q8_0").status, 0);
    ASSERT_EQ(Quantize("Q2_K").status, 0);
    WriteWholeFile(Tasks(),
                   "{\"task\":\"a\",\"prompt\":\"The value\",\"options\":[\" is\",\" cat\"],"
                   "\"answer\":0}\n"
                   "{\"task\":\"a & b\",\"prompt\":\"1 +\",\"answer\":\"2\",\"max_tokens\":2}\n");
  }
  Outcome Quantize(const std::string& type) {
    return Nibble("quantize " + kReferenceModel + " --type " + type + " -o " + Path(type) +
                  " --quiet");
  }
  std::string Path(const std::string& type) { return folder_ / (type + ".gguf"); }
  std::string Tasks() { return folder_ / "tasks.jsonl"; }
  Outcome Evaluate(const std::string& arguments) {
    return Nibble("evaluate " + kReferenceModel + " " + arguments);
  }
  std::string Text() {
    return " --text " + kReferenceModel + "/evaluation.txt --context 128 --windows 12";
  }
};

// Every tag is closed by its own name, in order: what a browser would have to guess at is an error.
void ExpectBalanced(const std::string& html) {
  std::vector<std::string> open;
  const size_t style = html.find("<style>"), end_of_style = html.find("</style>");
  for (size_t at = html.find('<'); at != std::string::npos; at = html.find('<', at + 1)) {
    if ((at > style && at < end_of_style) || html[at + 1] == '!') continue;
    const size_t end = html.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const std::string tag = html.substr(at + 1, end - at - 1);
    const std::string name =
        tag.substr(tag[0] == '/', tag.find_first_of(" /", 1) - (tag[0] == '/'));
    if (tag.back() == '/') continue;
    if (tag[0] != '/') {
      open.push_back(name);
      continue;
    }
    ASSERT_FALSE(open.empty()) << tag;
    ASSERT_EQ(open.back(), name);
    open.pop_back();
  }
  EXPECT_TRUE(open.empty());
}

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST_F(EvaluateTest, ReportsInEveryForm) {
  const Outcome outcome =
      Evaluate(Path("Q8_0") + " " + Path("Q2_K") + Text() + " --tasks " + Tasks() +
               " --json --quiet --prompt-tokens 16 --decode-tokens 4 --runs 1 --html " +
               (folder_ / "r.html") + " --markdown " + (folder_ / "r.md"));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  const json report = json::parse(outcome.out);
  EXPECT_EQ(report["text"]["windows"], 12);
  EXPECT_FALSE(report["reference"].contains("verdict"));
  ASSERT_EQ(report["models"].size(), 2u);
  const json &q8 = report["models"][0], &q2 = report["models"][1];
  EXPECT_EQ(q8["verdict"], "PASS");
  EXPECT_EQ(q2["verdict"], "REVIEW") << q2["criteria"];
  EXPECT_EQ(q8["file_bytes"], std::filesystem::file_size(Path("Q8_0")));
  EXPECT_LT(q8["divergence"]["kl"]["value"], 0.002);
  EXPECT_GT(q2["divergence"]["kl"]["value"], 0.02);
  EXPECT_GT(q2["decode_tokens_per_second"], 0);
  EXPECT_EQ(q2["tensors"].size(), 57u);
  ASSERT_EQ(q2["tasks"].size(), 2u);
  EXPECT_EQ(q2["tasks"][0]["correct"], json::array({true}));
  EXPECT_EQ(q2["tasks"][1]["kind"], "exact_match");
  EXPECT_EQ(q2["criteria"][0]["kind"], "perplexity_increase");
  EXPECT_GT(q2["criteria"][0]["value"]["value"], q2["criteria"][0]["limit"]);

  const std::string html = ReadWholeFile(folder_ / "r.html");
  ExpectBalanced(html);
  EXPECT_EQ(Count(html, "<svg "), 6u);  // KL, perplexity, tasks, decode, prefill; tensors
  EXPECT_EQ(Count(html, "<circle "), 2 + 4 * 3 + 2 * 57u);
  EXPECT_NE(html.find("a &amp; b (1)"), std::string::npos);
  for (const char* fetched : {"http", "<script", "@import", "url("}) {
    EXPECT_EQ(html.find(fetched), std::string::npos) << fetched;
  }
  EXPECT_EQ(html.find("nan"), std::string::npos);
  const std::string markdown = ReadWholeFile(folder_ / "r.md");
  EXPECT_NE(markdown.find("- **REVIEW** Q2\\_K.gguf: perplexity up"), std::string::npos)
      << markdown;
  EXPECT_NE(markdown.find("| Q8\\_0.gguf |"), std::string::npos);
}

TEST_F(EvaluateTest, VerdictsFollowTheLimitsAndTheGate) {
  const auto with = [&](const std::string& limits) {
    return Evaluate(Path("Q2_K") + Text() + " --no-speed --no-tensors --quiet " + limits);
  };
  const Outcome plain = with("");
  EXPECT_EQ(plain.status, 0);
  EXPECT_NE(plain.out.find("\nREVIEW  Q2_K.gguf: perplexity up"), std::string::npos) << plain.out;
  EXPECT_EQ(plain.out.find("Speed"), std::string::npos);
  EXPECT_EQ(with("--gate").status, 3);
  const Outcome lenient = with("--gate --max-perplexity-increase 50");
  EXPECT_EQ(lenient.status, 0);
  EXPECT_NE(lenient.out.find("\nPASS    Q2_K.gguf: perplexity up"), std::string::npos);
  EXPECT_EQ(with("--gate --max-perplexity-increase 50 --max-perplexity-percent 1").status, 3);
}

// A task that a model does worse at is "down" in words and negative in the tables, in every form.
TEST_F(EvaluateTest, ChangesOfTasksHaveTheirSign) {
  std::string items;  // those that take no text to be written: enough for two bits to change some
  std::ifstream basics(std::string(NIBBLE_EXAMPLES) + "/tasks/basics.jsonl");
  for (std::string line; std::getline(basics, line);) {
    if (line.find("\"options\"") != std::string::npos) items += line + "\n";
  }
  WriteWholeFile(Tasks(), items);
  const Outcome outcome = Evaluate(Path("Q8_0") + " " + Path("Q2_K") + " --tasks " + Tasks() +
                                   " --no-speed --no-tensors --json --quiet --max-task-drop 2 "
                                   "--html " +
                                   (folder_ / "r.html") + " --markdown " + (folder_ / "r.md"));
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json report = json::parse(outcome.out);
  const std::string html = ReadWholeFile(folder_ / "r.html");
  const std::string markdown = ReadWholeFile(folder_ / "r.md");
  int down = 0, up = 0;
  for (const json& model : report["models"]) {
    bool passed = true;
    for (size_t t = 0; t < model["tasks"].size(); ++t) {
      const json &task = model["tasks"][t], &criterion = model["criteria"][t];
      const double drop = task["drop"]["value"], accuracy = task["accuracy"]["value"];
      EXPECT_NEAR(drop,
                  report["reference"]["tasks"][t]["accuracy"]["value"].get<double>() - accuracy,
                  1e-12);
      EXPECT_EQ(criterion["value"], task["drop"]);
      EXPECT_EQ(criterion["passed"], drop <= 0.02);
      passed = passed && drop <= 0.02;
      down += drop > 0;
      up += drop < 0;
      char cell[64], words[128];
      std::snprintf(cell, sizeof(cell), "%.1f (%+.1f", 100 * accuracy, drop == 0 ? 0 : -100 * drop);
      std::snprintf(words, sizeof(words), "%s %s %.1f", task["name"].get<std::string>().c_str(),
                    drop < 0 ? "up" : "down", std::abs(100 * drop));
      EXPECT_NE(html.find(cell), std::string::npos) << cell;
      EXPECT_NE(markdown.find(cell), std::string::npos) << cell;
      EXPECT_TRUE(criterion["words"].get<std::string>().starts_with(words)) << criterion["words"];
      if (drop > 0.02) {
        EXPECT_NE(markdown.find(words), std::string::npos) << words;
        EXPECT_NE(html.find(words), std::string::npos) << words;
      }
    }
    EXPECT_EQ(model["verdict"], passed ? "PASS" : "REVIEW");
  }
  EXPECT_GT(down, 0);
  EXPECT_GT(up, 0);
}

TEST_F(EvaluateTest, RefusesInOneLine) {
  const auto expect = [&](const std::string& arguments, int status, const std::string& part) {
    const Outcome outcome = Evaluate(arguments);
    EXPECT_EQ(outcome.status, status) << arguments;
    ExpectOneLine(outcome, part);
  };
  const std::string q8 = Path("Q8_0"), tasks = " --tasks " + Tasks();
  expect(q8, 2, "--text or --tasks");
  expect("", 2, "models");
  expect(q8 + " --text " + (folder_ / "none.txt"), 1, "none.txt");
  expect((folder_ / "none.gguf") + tasks, 1, "none.gguf");
  WriteWholeFile(folder_ / "text.gguf", "no model at all");
  expect(q8 + " " + (folder_ / "text.gguf") + tasks, 1, "text.gguf");
  WriteSyntheticModel(folder_ / "other.gguf", SmallLlama());
  expect((folder_ / "other.gguf") + tasks, 1, "other.gguf");
  expect(q8 + tasks + " --max-task-drop -1", 2, "max-task-drop");
  expect(q8 + tasks + " --max-perplexity-increase x", 2, "max-perplexity-increase");
  expect(q8 + tasks + " --html " + (folder_ / "none/r.html"), 1, "none");
  expect(q8 + tasks + tasks, 1, "task \"a\" is in an earlier file too");
  expect(q8 + tasks + " --prompt-tokens 300", 1, "context of 256");
  WriteWholeFile(folder_ / "bad.jsonl", "\n{\"task\": \"a\", \"prompt\"\n");
  expect(q8 + " --tasks " + (folder_ / "bad.jsonl"), 1, "bad.jsonl:2: not valid JSON");
  WriteWholeFile(folder_ / "empty.jsonl", "");
  expect(q8 + " --tasks " + (folder_ / "empty.jsonl"), 1, "empty.jsonl: no items");
  std::string words;
  for (int i = 0; i < 300; ++i) words += " word";
  WriteWholeFile(folder_ / "long.jsonl", "{\"task\":\"a\",\"prompt\":\"x\",\"options\":[\" a\",\"" +
                                             words + "\"],\"answer\":0}\n");
  expect(q8 + " --tasks " + (folder_ / "long.jsonl"), 1,
         "long.jsonl:1: the prompt and option 1 take");
}

TEST_F(CliTest, EstimatesComeTrueAndAdviceKeepsTheLimits) {
  const Outcome estimate =
      Nibble("estimate " + kReferenceModel + " --json --quiet --type Q4_K_M --type Q2_K");
  ASSERT_EQ(estimate.status, 0) << estimate.err;
  const json types = json::parse(estimate.out)["types"];
  ASSERT_EQ(types.size(), 2u);
  const std::string made = folder_ / "q4.gguf";
  ASSERT_EQ(Nibble("quantize " + kReferenceModel + " --type Q4_K_M --quiet -o " + made).status, 0);
  EXPECT_EQ(types[0]["file_bytes"], std::filesystem::file_size(made));
  EXPECT_GT(types[0]["snr_db"], types[1]["snr_db"]);
  EXPECT_GT(types[0]["decode_limit"], 0);
  EXPECT_EQ(types[0]["tensors"].size(), 57u);

  const Outcome advice =
      Nibble("advise " + kReferenceModel + " --json --quiet --max-size 5M --context 64");
  ASSERT_EQ(advice.status, 0) << advice.err;
  const json document = json::parse(advice.out);
  const json& best = document["ranking"][0];
  EXPECT_EQ(document["type"], best["type"]);
  EXPECT_TRUE(best["fits"]);
  EXPECT_LE(best["file_bytes"], 5000000);
  EXPECT_EQ(best["memory"]["cache"], 64 * 8 * 2 * 4 * 32 * 2);  // layers, k and v, heads, f16
  for (const json& other : document["ranking"]) {
    if (other["fits"]) {
      EXPECT_GE(best["snr_db"], other["snr_db"]);
    } else {
      EXPECT_GT(other["file_bytes"], 5000000);
      EXPECT_FALSE(other["reasons"].empty());
    }
  }
  const Outcome words = Nibble("advise --params 7B --max-memory 6G --context 2048 --no-sample");
  EXPECT_EQ(words.status, 0) << words.err;
  EXPECT_NE(words.out.find("Take Q"), std::string::npos) << words.out;
  EXPECT_NE(words.err.find("note: a usual shape: 38 layers"), std::string::npos) << words.err;
}

TEST_F(CliTest, EstimateAndAdviseRefuseInOneLine) {
  const auto expect = [&](const std::string& arguments, int status, const std::string& part) {
    const Outcome outcome = Nibble(arguments);
    EXPECT_EQ(outcome.status, status) << arguments;
    ExpectOneLine(outcome, part);
  };
  expect("estimate", 2, "model");
  expect("estimate " + kReferenceModel + " --params 7B", 2, "");
  expect("estimate --params many", 2, "'many' is no number of weights");
  expect("estimate --params 5", 2, "usual shape");
  expect("estimate " + kReferenceModel + " --type Q9_Z", 2, "Q9_Z");
  expect("estimate " + (folder_ / "none.gguf"), 1, "none.gguf");
  const Outcome nothing =
      Nibble("advise " + kReferenceModel + " --quiet --max-size 1k --type Q8_0 --type Q2_K");
  EXPECT_EQ(nothing.status, 1);
  EXPECT_NE(nothing.out.find("times the limit"), std::string::npos);
  EXPECT_EQ(nothing.err, "nibble: no type keeps within these limits\n");
}

}  // namespace
}  // namespace nibble
