#include "nibble/speed.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace nibble {
namespace {

// Ids spread over the vocabulary, other ones for each sequence; the same on every machine.
std::vector<int32_t> MadeUpPrompt(const Model& model, int64_t tokens, int64_t sequence) {
  std::vector<int32_t> prompt;
  uint64_t state = static_cast<uint64_t>(sequence) + 1;
  for (int64_t i = 0; i < tokens; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth, MMIX
    prompt.push_back(
        static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(model.config().vocab_size)));
  }
  if (model.tokenizer().adds_bos()) prompt[0] = model.tokenizer().bos();
  return prompt;
}

class Timer {
 public:
  double Lap() {  // seconds since the last call
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

Status RunOnce(const Model& model, Runner& runner, const std::vector<std::vector<int32_t>>& prompts,
               const SpeedOptions& options, SpeedRun* run, size_t* cache_bytes) {
  NIBBLE_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(model.config(), options.cache));
  std::vector<SequenceInput> inputs;
  for (const auto& prompt : prompts) inputs.push_back({cache.AddSequence(), prompt, false});
  std::vector<int32_t> tokens, next;
  Timer timer;
  NIBBLE_RETURN_IF_ERROR(runner.NextTokens(cache, inputs, &tokens));
  run->prefill_seconds = timer.Lap();
  run->tokens = tokens;
  for (int64_t step = 0; step < options.decode_tokens; ++step) {
    for (size_t s = 0; s < inputs.size(); ++s) inputs[s].tokens = std::span(tokens).subspan(s, 1);
    NIBBLE_RETURN_IF_ERROR(runner.NextTokens(cache, inputs, &next));
    tokens = next;
    run->step_seconds.push_back(timer.Lap());
    run->tokens.insert(run->tokens.end(), tokens.begin(), tokens.end());
  }
  *cache_bytes = cache.used_bytes();
  return OkStatus();
}

}  // namespace

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = std::clamp(q, 0.0, 1.0) * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - std::floor(at)) * (values[above] - values[below]);
}

Result<SpeedResult> MeasureSpeed(const Model& model, const SpeedOptions& options) {
  if (options.prompt_tokens < 1 || options.decode_tokens < 0 || options.sequences < 1 ||
      options.runs < 1 || options.warmups < 0) {
    return InvalidArgument("timing needs a prompt, a sequence and a run");
  }
  const int64_t total = options.prompt_tokens + options.decode_tokens;
  if (total > model.config().context) {
    return InvalidArgument("timing " + std::to_string(options.prompt_tokens) + " and " +
                           std::to_string(options.decode_tokens) +
                           " tokens: more than the model's context of " +
                           std::to_string(model.config().context));
  }
  std::vector<std::vector<int32_t>> prompts;
  for (int64_t s = 0; s < options.sequences; ++s) {
    prompts.push_back(MadeUpPrompt(model, options.prompt_tokens, s));
  }
  Runner runner(model, options.runner);
  SpeedResult result;
  std::vector<double> prefill, decode;
  const int runs = options.warmups + options.runs;
  for (int i = 0; i < runs; ++i) {
    SpeedRun run;
    NIBBLE_RETURN_IF_ERROR(RunOnce(model, runner, prompts, options, &run, &result.cache_bytes));
    if (i >= options.warmups) {
      double seconds = 0;
      for (const double step : run.step_seconds) seconds += step;
      const double sequences = static_cast<double>(options.sequences);
      prefill.push_back(sequences * static_cast<double>(options.prompt_tokens) /
                        std::max(run.prefill_seconds, 1e-9));
      if (!run.step_seconds.empty()) {
        decode.push_back(sequences * static_cast<double>(run.step_seconds.size()) /
                         std::max(seconds, 1e-9));
      }
      result.runs.push_back(std::move(run));
    }
    if (options.progress && !options.progress(i + 1, runs)) {
      return Cancelled("stopped after " + std::to_string(i + 1) + " runs");
    }
  }
  result.prefill_tokens_per_second = Quantile(prefill, 0.5);
  result.decode_tokens_per_second = Quantile(decode, 0.5);
  return result;
}

uint64_t PeakMemoryBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    unsigned long long kilobytes = 0;
    if (std::sscanf(line.c_str(), "VmHWM: %llu kB", &kilobytes) == 1) return kilobytes * 1024;
  }
  rusage usage = {};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#ifdef __APPLE__
  return static_cast<uint64_t>(usage.ru_maxrss);
#else
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
#endif
}

bool ResetPeakMemory() {
#ifdef __GLIBC__
  malloc_trim(0);  // what was freed is not what the next step needs
#endif
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;  // resets VmHWM: Linux, Documentation/filesystems/proc.rst
  return file.good();
}

}  // namespace nibble
