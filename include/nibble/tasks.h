// Questions with known answers: what a model still knows after quantization.
#ifndef NIBBLE_TASKS_H_
#define NIBBLE_TASKS_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/evaluate.h"
#include "nibble/model.h"
#include "nibble/status.h"

namespace nibble {

enum class TaskKind : uint8_t { kMultipleChoice, kExactMatch };

struct TaskItem {
  std::string place;  // "FILE:LINE", for messages
  std::string prompt;
  std::vector<std::string> options;        // multiple choice: continuations of the prompt
  size_t answer = 0;                       // the index of the right one
  std::vector<std::string> answers;        // exact match: any of them is right
  int64_t max_tokens = 16;                 // exact match: the most that is generated,
  std::vector<std::string> stop = {"\n"};  // and the texts that end it
};

struct Task {
  std::string name;
  TaskKind kind = TaskKind::kMultipleChoice;
  std::vector<TaskItem> items;  // at least one
};

// Items from JSON Lines, grouped by their "task" in the order of first appearance. docs/evaluate.md
// describes the format. Errors begin with "NAME:LINE: ".
Result<std::vector<Task>> ParseTasks(std::string_view text, const std::string& name);
Result<std::vector<Task>> LoadTasks(const std::string& path);

struct TaskOptions {
  int64_t batch_tokens = 2048;  // of the multiple-choice items that run at once
  RunnerOptions runner;
  KvCacheOptions cache;
  // After each batch or item: items done, items in all. False stops (kCancelled).
  std::function<bool(int64_t done, int64_t items)> progress;
};

struct TaskResult {
  std::string name;
  TaskKind kind = TaskKind::kMultipleChoice;
  std::vector<bool> correct;  // of each item
  Estimate accuracy;          // share of correct items
};

// Fails, with the item's place, where an item does not fit the model's context.
Status CheckTasks(const Model& model, std::span<const Task> tasks);

// Multiple choice: the option with the highest log-likelihood after the prompt, divided by the
// option's bytes, is the model's; the first of equals. Exact match: what the model generates
// greedily, up to one of the item's stops and without white space around, equals one of the
// answers.
Result<std::vector<TaskResult>> RunTasks(const Model& model, std::span<const Task> tasks,
                                         const TaskOptions& options = {});

// What the accuracy lost against the reference's on the same items; the error is that of the
// differences item by item, so it is small where both fail alike.
Estimate AccuracyDrop(const TaskResult& reference, const TaskResult& model);

}  // namespace nibble

#endif  // NIBBLE_TASKS_H_
