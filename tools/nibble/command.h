// The commands of the command line, and what they share.
#ifndef NIBBLE_TOOLS_COMMAND_H_
#define NIBBLE_TOOLS_COMMAND_H_

#include <functional>
#include <string>

#include "CLI/CLI.hpp"
#include "nibble/status.h"

namespace nibble::tools {

// Exit statuses.
inline constexpr int kSuccess = 0;
inline constexpr int kFailure = 1;
inline constexpr int kMisuse = 2;
inline constexpr int kReview = 3;  // of evaluate --gate: a model did not pass

// What every command takes.
struct CommonOptions {
  int threads = 0;     // 0: one for each core that may be used
  bool quiet = false;  // errors alone on stderr
  bool json = false;   // stdout holds one JSON document and nothing else
};

// Set by the command that was chosen; called once all arguments are read.
using Action = std::function<int()>;

void AddCommonOptions(CLI::App& command, CommonOptions& options);

void AddQuantize(CLI::App& app, Action& action);
void AddCalibrate(CLI::App& app, Action& action);
void AddRefit(CLI::App& app, Action& action);
void AddConvert(CLI::App& app, Action& action);
void AddDequantize(CLI::App& app, Action& action);
void AddInspect(CLI::App& app, Action& action);
void AddCompare(CLI::App& app, Action& action);
void AddVerify(CLI::App& app, Action& action);
void AddBench(CLI::App& app, Action& action);
void AddGenerate(CLI::App& app, Action& action);
void AddPerplexity(CLI::App& app, Action& action);
void AddEvaluate(CLI::App& app, Action& action);
void AddEstimate(CLI::App& app, Action& action);
void AddAdvise(CLI::App& app, Action& action);

// Prints the reason on stderr. A contradiction in what was asked is misuse, all else a failure.
int Fail(const Status& status);
// The same for what went wrong while working, when nothing can be blamed on the arguments.
int FailAtWork(const Status& status);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_COMMAND_H_
