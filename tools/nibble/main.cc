#include <csignal>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "fmt/core.h"
#include "lib/io/output_file.h"
#include "tools/nibble/command.h"

namespace nibble::tools {
namespace {

// Leaves no half-written file behind, then ends as the signal asks.
extern "C" void RemoveFilesAndEnd(int signal) {
  RemoveTemporaryFiles();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

int Run(int argc, char** argv) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {
    std::signal(signal, RemoveFilesAndEnd);
  }
  std::signal(SIGXFSZ, SIG_IGN);  // a write beyond a limit is an error like others

  CLI::App app("Quantizes neural-network weights, runs the result and tells what it cost.",
               "nibble");
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION);
  app.require_subcommand(1);
  app.footer("'nibble COMMAND --help' tells more. Exit status: 0 success, 1 failure, 2 misuse.");
  Action action;
  AddQuantize(app, action);
  AddCalibrate(app, action);
  AddRefit(app, action);
  AddConvert(app, action);
  AddDequantize(app, action);
  AddInspect(app, action);
  AddCompare(app, action);
  AddVerify(app, action);
  AddGenerate(app, action);
  AddPerplexity(app, action);
  AddBench(app, action);
  AddEvaluate(app, action);
  AddEstimate(app, action);
  AddAdvise(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    // A mistyped word says more than the option or command that is missing for it.
    const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
    if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr && !unknown.empty()) {
      fmt::print(stderr, "nibble: unknown argument '{}'\n", unknown.front());
    } else {
      fmt::print(stderr, "nibble: {}\n", error.what());
    }
    return kMisuse;
  }
  const int result = action();
  // A full disk behind a redirection is a failure too.
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
    fmt::print(stderr, "nibble: cannot write to standard output\n");
    return kFailure;
  }
  return result;
}

}  // namespace

void AddCommonOptions(CLI::App& command, CommonOptions& options) {
  command.add_option("--threads", options.threads, "Threads; default: one for each usable core")
      ->check(CLI::Range(1, 1024));
  command.add_flag("--quiet", options.quiet, "Print errors only");
  command.add_flag("--json", options.json, "Print one JSON document on standard output");
}

int Fail(const Status& status) {
  fmt::print(stderr, "nibble: {}\n", status.message());
  return status.code() == StatusCode::kInvalidArgument ? kMisuse : kFailure;
}

int FailAtWork(const Status& status) {
  Fail(status);
  return kFailure;
}

}  // namespace nibble::tools

int main(int argc, char** argv) {
  try {
    return nibble::tools::Run(argc, argv);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "nibble: out of memory\n");
  } catch (const std::exception& error) {
    fmt::print(stderr, "nibble: {}\n", error.what());
  }
  return nibble::tools::kFailure;
}
