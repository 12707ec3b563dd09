// The JSON Lines that tasks are written in.
#include "nibble/tasks.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "lib/model/json_file.h"

namespace nibble {
namespace {

constexpr uint64_t kLargestFile = uint64_t{1} << 28;
constexpr int64_t kMostTokens = 4096;

// A text, or a list of at least one.
Result<std::vector<std::string>> Texts(const JsonObject& object, const char* key) {
  const nlohmann::json* value = object.Find(key);
  std::vector<std::string> texts;
  const auto add = [&texts](const nlohmann::json& json) {
    if (!json.is_string() || json.get_ref<const std::string&>().empty()) return false;
    texts.push_back(json.get<std::string>());
    return true;
  };
  if (value != nullptr && value->is_array()) {
    if (std::all_of(value->begin(), value->end(), add) && !texts.empty()) return texts;
  } else if (value != nullptr && add(*value)) {
    return texts;
  }
  return Corrupt(object.name() + ": \"" + key + "\" must be texts that are not empty");
}

Result<std::string> Text(const JsonObject& object, const char* key) {
  NIBBLE_ASSIGN_OR_RETURN(std::string text, object.StringOr(key, ""));
  if (text.empty()) return Corrupt(object.name() + ": no \"" + key + "\"");
  return text;
}

Result<TaskItem> ParseItem(const JsonObject& object) {
  constexpr const char* kKeys[] = {"task", "prompt", "options", "answer", "max_tokens", "stop"};
  for (const auto& [key, value] : object.json().items()) {
    if (std::find(std::begin(kKeys), std::end(kKeys), key) == std::end(kKeys)) {
      return Corrupt(object.name() + ": unknown key \"" + Printable(key) + "\"");
    }
  }
  TaskItem item;
  item.place = object.name();
  NIBBLE_ASSIGN_OR_RETURN(item.prompt, Text(object, "prompt"));
  if (!object.Has("options")) {
    NIBBLE_ASSIGN_OR_RETURN(item.answers, Texts(object, "answer"));
    NIBBLE_ASSIGN_OR_RETURN(item.max_tokens,
                            object.IntegerOr("max_tokens", 1, kMostTokens, item.max_tokens));
    if (object.Has("stop")) {
      NIBBLE_ASSIGN_OR_RETURN(item.stop, Texts(object, "stop"));
    }
    return item;
  }
  NIBBLE_ASSIGN_OR_RETURN(item.options, Texts(object, "options"));
  if (item.options.size() < 2) return Corrupt(item.place + ": \"options\" has only one");
  for (const char* key : {"max_tokens", "stop"}) {
    if (object.Has(key)) {
      return Corrupt(item.place + ": \"" + key + "\" does not go with \"options\"");
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(
      const int64_t answer,
      object.Integer("answer", 0, static_cast<int64_t>(item.options.size()) - 1));
  item.answer = static_cast<size_t>(answer);
  return item;
}

}  // namespace

Result<std::vector<Task>> ParseTasks(std::string_view text, const std::string& name) {
  std::vector<Task> tasks;
  size_t line_number = 0;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    const std::string place = name + ":" + std::to_string(++line_number);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Parse(line, place));
    NIBBLE_ASSIGN_OR_RETURN(std::string task_name, Text(object, "task"));
    NIBBLE_ASSIGN_OR_RETURN(TaskItem item, ParseItem(object));
    const TaskKind kind = item.options.empty() ? TaskKind::kExactMatch : TaskKind::kMultipleChoice;
    auto task = std::find_if(tasks.begin(), tasks.end(),
                             [&](const Task& t) { return t.name == task_name; });
    if (task == tasks.end()) {
      task = tasks.insert(tasks.end(), Task{std::move(task_name), kind, {}});
    } else if (task->kind != kind) {
      return Corrupt(place + ": task \"" + Printable(task_name) +
                     "\" has items with and without \"options\"");
    }
    task->items.push_back(std::move(item));
  }
  if (tasks.empty()) return Corrupt(name + ": no items");
  return tasks;
}

Result<std::vector<Task>> LoadTasks(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kLargestFile));
  return ParseTasks(text, path);
}

Estimate AccuracyDrop(const TaskResult& reference, const TaskResult& model) {
  const size_t items = std::min(reference.correct.size(), model.correct.size());
  int64_t sum = 0, squares = 0;  // of differences that are -1, 0 or 1: exact, unlike running means
  for (size_t i = 0; i < items; ++i) {
    const int difference =
        static_cast<int>(reference.correct[i]) - static_cast<int>(model.correct[i]);
    sum += difference;
    squares += difference * difference;
  }
  if (items == 0) return {};
  const double n = static_cast<double>(items), s = static_cast<double>(sum);
  const double variance = items < 2 ? 0 : (static_cast<double>(squares) - s * s / n) / (n - 1);
  return {s / n, std::sqrt(variance / n)};
}

}  // namespace nibble
