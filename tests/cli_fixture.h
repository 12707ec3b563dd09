// The nibble command as a user's shell runs it.
#ifndef NIBBLE_TESTS_CLI_FIXTURE_H_
#define NIBBLE_TESTS_CLI_FIXTURE_H_

#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "gtest/gtest.h"
#include "tests/synthetic_model.h"
#include "tests/temporary_folder.h"

namespace nibble {

struct Outcome {
  int status = -1;  // the exit status; 128 + the signal that ended it
  std::string out;
  std::string err;
};

class CliTest : public testing::Test {
 protected:
  // Runs `nibble` with a shell's words.
  Outcome Nibble(const std::string& arguments) const {
    return Shell(std::string(NIBBLE_COMMAND) + " " + arguments);
  }
  Outcome Shell(const std::string& command) const {
    const int status = std::system(
        ("{ " + command + " ; } >" + (logs_ / "out") + " 2>" + (logs_ / "err")).c_str());
    Outcome outcome;
    outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.out = ReadWholeFile(logs_ / "out");
    outcome.err = ReadWholeFile(logs_ / "err");
    return outcome;
  }

  std::string Small() const {
    const std::string path = folder_ / "small.gguf";
    if (!std::filesystem::exists(path)) WriteSyntheticModel(path, SmallLlama());
    return path;
  }

  TemporaryFolder folder_;  // what a user sees
  TemporaryFolder logs_;
};

// One line for a person that says what is wrong.
inline void ExpectOneLine(const Outcome& outcome, const std::string& part) {
  EXPECT_TRUE(outcome.err.starts_with("nibble: ")) << outcome.err;
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.out, "");
}

}  // namespace nibble

#endif  // NIBBLE_TESTS_CLI_FIXTURE_H_
