#include <map>
#include <memory>

#include "fmt/core.h"
#include "lib/io/output_file.h"
#include "nibble/evaluation.h"
#include "nibble/target.h"
#include "tools/nibble/command.h"
#include "tools/nibble/report.h"
#include "tools/nibble/run_options.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

struct EvaluateCommand {
  std::string reference;
  std::vector<std::string> models;
  std::string text;
  std::vector<std::string> tasks;
  std::string html, markdown;  // files, or empty
  bool gate = false;
  double perplexity_percent = 0, task_points = 5;
  EvaluateOptions evaluate;
  RunOptions run;
  CommonOptions common;
};

Status WriteReport(const std::string& path, const std::string& content) {
  NIBBLE_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Create(path, content.size()));
  NIBBLE_RETURN_IF_ERROR(file.Append(content));
  NIBBLE_RETURN_IF_ERROR(file.Close());
  NIBBLE_RETURN_IF_ERROR(file.Commit());
  return SyncFolderOf(path);
}

Status ReadInputs(EvaluateCommand& options) {
  for (const std::string* path : {&options.html, &options.markdown}) {
    if (!path->empty()) NIBBLE_RETURN_IF_ERROR(CheckOutputPath(*path));
  }
  if (!options.text.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(options.evaluate.text, ReadTextFile(options.text));
    if (options.evaluate.text.empty()) return Corrupt(options.text + ": is empty");
  }
  for (const std::string& path : options.tasks) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<Task> tasks, LoadTasks(path));
    for (const Task& task : tasks) {
      for (const Task& known : options.evaluate.tasks) {
        if (known.name == task.name) {
          return InvalidArgument(path + ": task \"" + task.name + "\" is in an earlier file too");
        }
      }
    }
    options.evaluate.tasks.insert(options.evaluate.tasks.end(), tasks.begin(), tasks.end());
  }
  return OkStatus();
}

void PrintTables(const Evaluation& evaluation, const ReportSettings& settings) {
  for (const ReportTable& table : ReportTables(evaluation)) {
    Table text(table.heading, table.numbers);
    for (const auto& row : table.rows) text.Add(row);
    fmt::print("{}\n{}\n", table.title, text.Text());
  }
  const std::vector<std::string> names = ModelNames(evaluation);
  for (size_t i = 0; i < evaluation.models.size(); ++i) {
    fmt::print("{:6}  {}", VerdictName(evaluation.models[i]), names[i + 1]);
    const char* separator = ": ";
    for (const std::string& reason : Reasons(evaluation.models[i])) {
      fmt::print("{}{}", separator, reason);
      separator = "; ";
    }
    fmt::print("\n");
  }
  fmt::print("\n{}\n", Conditions(evaluation, settings));
}

int Run(EvaluateCommand options) {
  if (options.text.empty() && options.tasks.empty()) {
    return Fail(
        InvalidArgument("evaluate: there is nothing to judge by without --text or --tasks"));
  }
  const Status inputs = ReadInputs(options);
  if (!inputs.ok()) return FailAtWork(inputs);
  ThreadPool pool(options.common.threads);
  ProgressDisplay display(options.common.quiet);
  EvaluateOptions& evaluate = options.evaluate;
  evaluate.runner.parallel = pool.parallel_for();
  evaluate.runner.precision = options.run.precision;
  evaluate.cache = options.run.cache;
  evaluate.thresholds.perplexity_share = options.perplexity_percent / 100;
  evaluate.thresholds.task_drop = options.task_points / 100;
  evaluate.progress = [&](const EvaluateProgress& progress) {
    display.Update(progress.fraction, std::string(progress.step), std::string(progress.model));
    return true;
  };
  const Result<Evaluation> evaluation = Evaluate(options.reference, options.models, evaluate);
  display.Clear();
  if (!evaluation.ok()) return FailAtWork(evaluation.status());

  ReportSettings settings;
  settings.text_name = options.text;
  settings.version = NIBBLE_VERSION;
  settings.target = CurrentTarget();
  settings.precision = PrecisionName(options.run.precision);
  settings.threads = pool.threads();
  settings.speed = evaluate.speed;
  if (options.common.json) {
    fmt::print("{}\n", ReportJson(*evaluation, settings)
                           .dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    PrintTables(*evaluation, settings);
  }
  if (!options.markdown.empty()) {
    const Status written = WriteReport(options.markdown, ReportMarkdown(*evaluation, settings));
    if (!written.ok()) return FailAtWork(written);
  }
  if (!options.html.empty()) {
    const Status written = WriteReport(options.html, ReportHtml(*evaluation, settings));
    if (!written.ok()) return FailAtWork(written);
  }
  bool passed = true;
  for (const ModelEvaluation& model : evaluation->models) passed = passed && model.passed();
  return passed || !options.gate ? kSuccess : kReview;
}

}  // namespace

void AddEvaluate(CLI::App& app, Action& action) {
  static const std::map<std::string, Scoring> scorings = {{"half", Scoring::kSecondHalf},
                                                          {"all", Scoring::kAll}};
  CLI::App* command = app.add_subcommand(
      "evaluate", "Judge quantized models against their reference: PASS or REVIEW, with reasons");
  auto options = std::make_shared<EvaluateCommand>();
  EvaluateOptions& e = options->evaluate;
  e.perplexity.context = 0;
  command->add_option("reference", options->reference, "The model as it was: GGUF file or folder")
      ->required();
  command->add_option("models", options->models, "What was made of it")->required();
  command->add_option("--text", options->text,
                      "A text file: perplexity, KL divergence, top-1 agreement");
  command
      ->add_option("--tasks", options->tasks,
                   "A JSON Lines file of questions with known answers; may be given again")
      ->take_all()
      ->expected(1);
  command
      ->add_option("--context", e.perplexity.context,
                   "Tokens in a window of the text; default 512, or all that the models take")
      ->check(CLI::Range(int64_t{4}, int64_t{1} << 24));
  command
      ->add_option("--score", e.perplexity.scoring,
                   "half (default): each window's second half, as llama.cpp; all: every token")
      ->transform(CLI::CheckedTransformer(scorings, CLI::ignore_case).description(""));
  command->add_option("--windows", e.perplexity.max_windows, "Stop after so many windows")
      ->check(CLI::PositiveNumber);
  command->add_flag("!--no-speed", e.measure_speed, "Time nothing");
  command->add_flag("!--no-tensors", e.compare_tensors, "Leave out the error of each tensor");
  command->add_option("--prompt-tokens", e.speed.prompt_tokens, "To time prefill; default 128")
      ->check(CLI::PositiveNumber);
  command->add_option("--decode-tokens", e.speed.decode_tokens, "To time decode; default 32")
      ->check(CLI::PositiveNumber);
  command->add_option("--runs", e.speed.runs, "Timed runs, of which the median counts; default 3")
      ->check(CLI::Range(1, 1000));
  command
      ->add_option("--max-perplexity-increase", e.thresholds.perplexity_increase,
                   "Over the reference's, for PASS; default 1")
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--max-perplexity-percent", options->perplexity_percent,
                   "The same in percent of the reference's; not judged unless given")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--max-task-drop", options->task_points,
                   "Percentage points of accuracy that a task may lose, for PASS; default 5")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--gate", options->gate, "Exit status 3 where a verdict is REVIEW");
  command->add_option("--markdown", options->markdown, "Also write the report to this file");
  command->add_option("--html", options->html, "The same with plots, as one file");
  AddRunOptions(*command, options->run);
  AddCommonOptions(*command, options->common);
  command->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace nibble::tools
