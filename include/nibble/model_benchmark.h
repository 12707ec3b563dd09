// How fast a model loads, answers and goes on, over prompts of several lengths, batches and numbers
// of sequences; and whether it says the same each time.
#ifndef NIBBLE_MODEL_BENCHMARK_H_
#define NIBBLE_MODEL_BENCHMARK_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/parallel.h"
#include "nibble/speed.h"
#include "nibble/status.h"

namespace nibble {

struct ModelBenchmarkOptions {
  // What is timed; prompts and batches are cut to what the smallest of the models' contexts holds.
  std::vector<int64_t> prompts = {32, 128, 512};   // tokens, one sequence each; at least one
  std::vector<int64_t> batches = {1, 8, 64, 256};  // prompt tokens at once, nothing decoded
  std::vector<int64_t> sequences = {2, 4, 8};      // at once, each with the first prompt's tokens
  int64_t decode_tokens = 32;                      // after each prompt
  int warmups = 1;                                 // runs of each that do not count
  int runs = 5;
  RunnerOptions runner;
  KvCacheOptions cache;  // and where the models run: cache.device
  // Other threads that must choose the same tokens; the default is the calling thread alone.
  ParallelFor other_parallel;
  // `fraction` of the work is done, as foreseen. False stops (kCancelled).
  std::function<bool(double fraction, std::string_view model, std::string_view step)> progress;
};

// Seconds that half, 95 % and 99 % of the measurements stay below.
struct Latency {
  double p50 = 0, p95 = 0, p99 = 0;
};

struct BenchmarkPoint {
  int64_t prompt_tokens = 0;  // of each sequence
  int64_t sequences = 1;
  Latency first_token;  // from the prompts to the first token of each, over the runs
  Latency next_token;   // each further step, over the steps of all runs; zeros without steps
  double prefill_tokens_per_second = 0;  // medians, all sequences together
  double decode_tokens_per_second = 0;
  size_t cache_bytes = 0;
};

struct ModelBenchmark {
  std::string path;
  uint64_t file_bytes = 0;
  double load_seconds = 0;           // until the model is ready
  double first_product_seconds = 0;  // from the same start until its first product is done
  std::vector<BenchmarkPoint> prompts, batches, sequences;
  size_t peak_cache_bytes = 0;
  uint64_t peak_memory_bytes = 0;       // as PeakMemoryBytes, of this model alone; 0: not known
  uint64_t device_memory_bytes = 0;     // of weights and cache on a device; 0: there is none
  bool same_tokens_in_runs = false;     // all runs of every point chose the same tokens
  bool same_tokens_in_threads = false;  // so did the other threads after the first prompt
};

// Loads the models, GGUF files or Hugging Face folders, and times each alone, one after the other:
// with one thing in memory its peak is the model's. Errors name the model.
Result<std::vector<ModelBenchmark>> BenchmarkModels(std::span<const std::string> paths,
                                                    const ModelBenchmarkOptions& options = {});

}  // namespace nibble

#endif  // NIBBLE_MODEL_BENCHMARK_H_
