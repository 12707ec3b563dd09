// Questions with known answers: how they are read, and that the model's own choice is what counts.
#include "nibble/tasks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/model/reference_model.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

TaskOptions Exact() {
  TaskOptions options;
  options.runner.precision = Precision::kF32;
  return options;
}

TEST(ParseTasks, GroupsItemsByTaskInOrder) {
  const auto tasks = ParseTasks(
      "{\"task\":\"b\",\"prompt\":\"1 + 1 =\",\"answer\":[\"2\",\"two\"],\"max_tokens\":3}\r\n"
      "\n"
      "{\"task\":\"a\",\"prompt\":\"x\",\"options\":[\"1\",\"2\"],\"answer\":1}\n"
      "{\"task\":\"b\",\"prompt\":\"2 + 1 =\",\"answer\":\"3\",\"stop\":[\",\",\".\"]}",
      "f.jsonl");
  ASSERT_TRUE(tasks.ok()) << tasks.status().message();
  ASSERT_EQ(tasks->size(), 2u);
  const Task &b = (*tasks)[0], &a = (*tasks)[1];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.kind, TaskKind::kExactMatch);
  ASSERT_EQ(b.items.size(), 2u);
  EXPECT_EQ(b.items[0].answers, (std::vector<std::string>{"2", "two"}));
  EXPECT_EQ(b.items[0].max_tokens, 3);
  EXPECT_EQ(b.items[0].stop, std::vector<std::string>{"\n"});
  EXPECT_EQ(b.items[1].stop, (std::vector<std::string>{",", "."}));
  EXPECT_EQ(b.items[1].place, "f.jsonl:4");
  EXPECT_EQ(a.kind, TaskKind::kMultipleChoice);
  EXPECT_EQ(a.items[0].answer, 1u);
}

TEST(ParseTasks, NamesTheLineAndTheReason) {
  const std::string good =
      "{\"task\":\"a\",\"prompt\":\"x\",\"options\":[\"1\",\"2\"],\"answer\":1}\n";
  const std::pair<std::string, std::string> cases[] = {
      {"", "f: no items"},
      {"\n \n", "f: no items"},
      {good + "{\"task\":", "f:2: not valid JSON"},
      {good + good + "[1]", "f:3: not a JSON object"},
      {std::string(100, '['), "f:1: nested deeper"},
      {"{\"prompt\":\"x\",\"answer\":\"y\"}", "f:1: no \"task\""},
      {"{\"task\":\"a\",\"answer\":\"y\"}", "f:1: no \"prompt\""},
      {"{\"task\":\"a\",\"prompt\":\"x\"}", "f:1: \"answer\" must be texts"},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"answer\":\"\"}", "f:1: \"answer\" must be texts"},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"answer\":[]}", "f:1: \"answer\" must be texts"},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"answer\":3}", "f:1: \"answer\" must be texts"},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"options\":[],\"answer\":0}", "f:1: \"options\" must be"},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"options\":[\"1\"],\"answer\":0}", "has only one"},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"options\":[\"1\",2],\"answer\":0}", "must be texts"},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"options\":[\"1\",\"2\"],\"answer\":2}",
       "f:1: \"answer\" is 2, not a whole number from 0 to 1"},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"options\":[\"1\",\"2\"]}", "f:1: no \"answer\""},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"options\":[\"1\",\"2\"],\"answer\":0,\"stop\":\"x\"}",
       "\"stop\" does not go with \"options\""},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"answer\":\"y\",\"max_tokens\":0}",
       "\"max_tokens\" is 0"},
      {"{\"task\":\"a\",\"prompt\":\"x\",\"answer\":\"y\",\"awnser\":1}", "unknown key \"awnser\""},
      {good + "{\"task\":\"a\",\"prompt\":\"x\",\"answer\":\"y\"}",
       "f:2: task \"a\" has items with and without \"options\""},
  };
  for (const auto& [text, reason] : cases) {
    const auto tasks = ParseTasks(text, "f");
    ASSERT_FALSE(tasks.ok()) << text;
    EXPECT_EQ(tasks.status().message().find(reason) != std::string::npos, true)
        << tasks.status().message() << " instead of " << reason;
    EXPECT_EQ(tasks.status().message().find('\n'), std::string::npos);
  }
  EXPECT_EQ(LoadTasks("/none/tasks.jsonl").status().code(), StatusCode::kNotFound);
}

TEST(ParseTasks, TheItemsThatComeWithNibbleAreSound) {
  const auto tasks = LoadTasks(std::string(NIBBLE_EXAMPLES) + "/tasks/basics.jsonl");
  ASSERT_TRUE(tasks.ok()) << tasks.status().message();
  size_t items = 0;
  for (const Task& task : *tasks) {
    items += task.items.size();
    if (task.kind != TaskKind::kMultipleChoice) continue;
    // Nobody gets further than chance by always naming one place.
    std::vector<size_t> places(4);
    for (const TaskItem& item : task.items) {
      ASSERT_EQ(item.options.size(), 4u) << item.place;
      ++places[item.answer];
    }
    EXPECT_LE(*std::max_element(places.begin(), places.end()), task.items.size() / 4 + 1)
        << task.name;
  }
  EXPECT_GE(items, 100u);
  EXPECT_TRUE(CheckTasks(ReferenceModel(), *tasks).ok());
}

// ln p of the tokens of `text` from number `first` on, the whole sequence run at once.
double LogProbability(const std::vector<int32_t>& tokens, size_t first) {
  const Model& model = ReferenceModel();
  Result<KvCache> cache = KvCache::Create(model.config());
  RunnerOptions options;
  options.precision = Precision::kF32;
  Runner runner(model, options);
  const SequenceInput input{cache->AddSequence(), tokens, true};
  std::vector<float> hidden;
  EXPECT_TRUE(runner.Forward(*cache, {&input, 1}, &hidden).ok());
  const int64_t rows = static_cast<int64_t>(tokens.size()), vocab = model.config().vocab_size;
  std::vector<float> logits(static_cast<size_t>(rows * vocab));
  EXPECT_TRUE(runner
                  .Logits(ViewOf(std::as_const(hidden).data(), rows, model.config().width),
                          ViewOf(logits.data(), rows, vocab))
                  .ok());
  double sum = 0;
  for (size_t t = first; t < tokens.size(); ++t) {
    const float* row = logits.data() + static_cast<int64_t>(t - 1) * vocab;
    double total = 0;
    for (int64_t v = 0; v < vocab; ++v) total += std::exp(static_cast<double>(row[v]));
    sum += row[tokens[t]] - std::log(total);
  }
  return sum;
}

// The option that is likeliest by its bytes, computed without sharing or batching anything.
size_t LikeliestOption(const TaskItem& item) {
  const Tokenizer& tokenizer = ReferenceModel().tokenizer();
  std::vector<std::vector<int32_t>> all;
  for (const std::string& option : item.options)
    all.push_back(*tokenizer.Encode(item.prompt + option));
  size_t shared = 0;
  const auto prompt = *tokenizer.Encode(item.prompt);
  while (shared < prompt.size() && std::all_of(all.begin(), all.end(), [&](const auto& tokens) {
           return shared + 1 < tokens.size() && tokens[shared] == prompt[shared];
         })) {
    ++shared;
  }
  size_t best = 0;
  double best_score = -1e300;
  for (size_t o = 0; o < all.size(); ++o) {
    const double score =
        LogProbability(all[o], shared) / static_cast<double>(item.options[o].size());
    if (score > best_score) {
      best_score = score;
      best = o;
    }
  }
  return best;
}

TEST(RunTasks, ChoosesTheOptionThatIsLikeliestByItsBytes) {
  Task task{"t", TaskKind::kMultipleChoice, {}};
  const std::pair<std::string, std::vector<std::string>> items[] = {
      {"The function returns", {" a pointer to the new object", " zero", " -1 if it fails"}},
      {"The func", {"tion", "tional test", "y music"}},  // the prompt's last token merges
      {"a", {"b", "bc", "d"}},
      {"The value of the variable is", {" 0", " the name of a file", " green"}},
      {"To list the files in a directory,", {" use", " eat", " the ls command is used"}},
  };
  for (const auto& [prompt, options] : items) {
    TaskItem item;
    item.place = prompt;
    item.prompt = prompt;
    item.options = options;
    item.answer = LikeliestOption(item);
    task.items.push_back(item);
  }
  for (const int64_t batch : {int64_t{1}, int64_t{40}, int64_t{2048}}) {
    TaskOptions options = Exact();
    options.batch_tokens = batch;
    int64_t last = 0;
    options.progress = [&](int64_t done, int64_t all) {
      EXPECT_GT(done, std::exchange(last, done));
      EXPECT_EQ(all, 5);
      return true;
    };
    const auto right = RunTasks(ReferenceModel(), {&task, 1}, options);
    ASSERT_TRUE(right.ok()) << right.status().message();
    EXPECT_EQ((*right)[0].correct, std::vector<bool>(5, true));
    EXPECT_EQ((*right)[0].accuracy.value, 1);
    EXPECT_EQ(last, 5);
  }
  for (TaskItem& item : task.items) item.answer = (item.answer + 1) % item.options.size();
  const auto wrong = RunTasks(ReferenceModel(), {&task, 1}, Exact());
  ASSERT_TRUE(wrong.ok());
  EXPECT_EQ((*wrong)[0].correct, std::vector<bool>(5, false));
}

TEST(RunTasks, ComparesWhatIsGeneratedUpToTheStop) {
  std::ifstream file(kReferenceFolder + "/expected.json");
  const auto expected = nlohmann::json::parse(file)["greedy"];
  Task task{"t", TaskKind::kExactMatch, {}};
  for (const auto& sample : expected) {
    const std::string text = sample["text"];
    TaskItem item;
    item.place = item.prompt = sample["prompt"];
    item.stop = {"@none@", text.substr(text.size() / 2, 12)};
    const size_t end = text.find(item.stop[1]);  // it may come before the middle too
    ASSERT_GT(end, 0u);
    item.answers = {"no", "  " + text.substr(0, end) + "\n"};
    item.max_tokens = 64;
    task.items.push_back(item);
  }
  ASSERT_EQ(task.items.size(), 8u);
  const auto right = RunTasks(ReferenceModel(), {&task, 1}, Exact());
  ASSERT_TRUE(right.ok()) << right.status().message();
  EXPECT_EQ((*right)[0].accuracy.value, 1);
  for (TaskItem& item : task.items) item.stop = {"@none@"};
  const auto wrong = RunTasks(ReferenceModel(), {&task, 1}, Exact());
  ASSERT_TRUE(wrong.ok());
  EXPECT_EQ((*wrong)[0].accuracy.value, 0);
}

TEST(RunTasks, RefusesWhatDoesNotFitAndStopsWhenAsked) {
  std::string words;
  for (int i = 0; i < 300; ++i) words += " word";
  Task task{"t", TaskKind::kMultipleChoice, {}};
  TaskItem item;
  item.place = "f.jsonl:7";
  item.prompt = "A";
  item.options = {" b", words};
  task.items.push_back(item);
  const Status option = CheckTasks(ReferenceModel(), {&task, 1});
  EXPECT_TRUE(option.message().starts_with("f.jsonl:7: the prompt and option 1 take"))
      << option.message();
  EXPECT_NE(option.message().find("context of 256"), std::string::npos);
  EXPECT_EQ(RunTasks(ReferenceModel(), {&task, 1}, Exact()).status().message(), option.message());
  task.items[0].options.clear();
  task.items[0].answers = {"b"};
  task.items[0].max_tokens = 255;
  task.kind = TaskKind::kExactMatch;
  EXPECT_FALSE(CheckTasks(ReferenceModel(), {&task, 1}).ok());
  task.items[0].max_tokens = 1;
  TaskOptions options = Exact();
  options.progress = [](int64_t, int64_t) { return false; };
  EXPECT_EQ(RunTasks(ReferenceModel(), {&task, 1}, options).status().code(),
            StatusCode::kCancelled);
}

TEST(AccuracyDrop, IsOfTheDifferencesItemByItem) {
  TaskResult reference, model;
  reference.correct = {true, true, false, true};
  model.correct = {true, false, false, true};
  const Estimate drop = AccuracyDrop(reference, model);
  EXPECT_DOUBLE_EQ(drop.value, 0.25);
  // Differences 0 1 0 0: their variance is 3/4 * 1/3 = 1/4, over 4 items.
  EXPECT_DOUBLE_EQ(drop.error, 0.25);
  EXPECT_EQ(AccuracyDrop(reference, reference).error, 0);
}

}  // namespace
}  // namespace nibble
