// An evaluation for people and for programs: tables, JSON, Markdown, HTML.
#ifndef NIBBLE_TOOLS_REPORT_H_
#define NIBBLE_TOOLS_REPORT_H_

#include <string>
#include <vector>

#include "nibble/evaluation.h"
#include "nlohmann/json.hpp"

namespace nibble::tools {

// How an evaluation was made.
struct ReportSettings {
  std::string text_name;  // empty: none
  std::string version;
  std::string target;  // the instruction set
  std::string precision;
  int threads = 1;
  SpeedOptions speed;
};

struct ReportTable {
  std::string title;
  std::vector<std::string> heading;
  std::vector<bool> numbers;  // columns that align right
  std::vector<std::vector<std::string>> rows;
};

// A short name for each model, the reference first: the last part of its path where that is enough.
std::vector<std::string> ModelNames(const Evaluation& evaluation);

// "perplexity up 0.12 ± 0.01 (limit 1)"
std::string Words(const Criterion& criterion);

// "PASS" or "REVIEW".
const char* VerdictName(const ModelEvaluation& model);

// What decided: the criteria that failed; where none did, all of them, but of the tasks the worst.
std::vector<std::string> Reasons(const ModelEvaluation& model);

// What was measured, in the order of importance; all but the errors of single tensors.
std::vector<ReportTable> ReportTables(const Evaluation& evaluation);

// One line that tells what the figures rest on.
std::string Conditions(const Evaluation& evaluation, const ReportSettings& settings);

nlohmann::ordered_json ReportJson(const Evaluation& evaluation, const ReportSettings& settings);
std::string ReportMarkdown(const Evaluation& evaluation, const ReportSettings& settings);
// One file that needs no other, with plots.
std::string ReportHtml(const Evaluation& evaluation, const ReportSettings& settings);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_REPORT_H_
