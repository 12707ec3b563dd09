// How fast a model runs and how much memory the process needs for it.
#ifndef NIBBLE_SPEED_H_
#define NIBBLE_SPEED_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "nibble/model.h"
#include "nibble/status.h"

namespace nibble {

struct SpeedOptions {
  int64_t prompt_tokens = 128;  // of each sequence
  int64_t decode_tokens = 32;   // that follow, one at a time
  int64_t sequences = 1;        // run side by side
  int warmups = 1;              // runs that do not count
  int runs = 3;
  RunnerOptions runner;
  KvCacheOptions cache;
  // After each run: runs done, runs in all (warm-ups included). False stops (kCancelled).
  std::function<bool(int done, int runs)> progress;
};

struct SpeedRun {
  double prefill_seconds = 0;        // from the prompts to their first tokens
  std::vector<double> step_seconds;  // of each further step: one token of each sequence
  std::vector<int32_t> tokens;       // chosen greedily, step by step, the sequences side by side
};

struct SpeedResult {
  std::vector<SpeedRun> runs;  // without the warm-ups
  size_t cache_bytes = 0;      // of all sequences at the end of a run
  // Medians over runs, of all sequences together; 0 where there was nothing to time.
  double prefill_tokens_per_second = 0;
  double decode_tokens_per_second = 0;
};

// Times the same made-up prompts in each run. Fails where prompt and decoded tokens exceed the
// model's context.
Result<SpeedResult> MeasureSpeed(const Model& model, const SpeedOptions& options = {});

// The value below which share `q` (0 to 1) of the values lie, interpolated; 0 where there are none.
double Quantile(std::vector<double> values, double q);

// The most memory that the process has held since its start or the last reset: resident pages,
// those of mapped files included. 0 where the system does not tell.
uint64_t PeakMemoryBytes();

// Begins to count anew; false where the system cannot (it takes Linux).
bool ResetPeakMemory();

}  // namespace nibble

#endif  // NIBBLE_SPEED_H_
