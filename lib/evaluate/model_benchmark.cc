#include "nibble/model_benchmark.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <string>
#include <utility>

#include "nibble/matmul.h"
#include "nibble/model_source.h"

namespace nibble {
namespace {

// Of a decoded token, where one of a prompt costs 1; roughly.
constexpr double kDecodeCost = 8;

class Stopwatch {
 public:
  double Seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// A prompt's token through the first matrix that it meets; on a device, through all.
Status FirstProduct(const Model& model, const ModelBenchmarkOptions& benchmark) {
  const RunnerOptions& runner = benchmark.runner;
  if (model.device() != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(model.config(), benchmark.cache));
    const int32_t first = 0;
    const SequenceInput input = {cache.AddSequence(), {&first, 1}, false};
    std::vector<int32_t> next;
    return Runner(model, runner).NextTokens(cache, {&input, 1}, &next);
  }
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor weight, model.Matrix("blk.0.attn_q.weight"));
  const std::vector<float> input(static_cast<size_t>(weight.cols()), 1.0f);
  std::vector<float> output(static_cast<size_t>(weight.rows()));
  MatmulOptions options;
  options.precision = runner.precision;
  options.parallel = runner.parallel;
  return Matmul(ViewOf(input.data(), 1, weight.cols()), weight,
                ViewOf(output.data(), 1, weight.rows()), options);
}

Latency Summarize(const std::vector<double>& seconds) {
  return {Quantile(seconds, 0.5), Quantile(seconds, 0.95), Quantile(seconds, 0.99)};
}

// The same numbers, none above `most`, each once.
std::vector<int64_t> CutTo(int64_t most, const std::vector<int64_t>& numbers) {
  std::vector<int64_t> cut;
  for (const int64_t n : numbers) {
    if (std::find(cut.begin(), cut.end(), std::min(n, most)) == cut.end()) {
      cut.push_back(std::min(n, most));
    }
  }
  return cut;
}

// What MeasureSpeed is to do for one point.
struct Step {
  std::string name;
  int64_t prompt_tokens, sequences, decode_tokens;
  std::vector<BenchmarkPoint>* points;  // null: the other threads

  double Cost(int runs) const {
    return static_cast<double>(runs * sequences) *
           (static_cast<double>(prompt_tokens) + kDecodeCost * static_cast<double>(decode_tokens));
  }
};

class Benchmark {
 public:
  using Progress = std::function<bool(double fraction, std::string_view step)>;

  Benchmark(const Model& model, int64_t context, const ModelBenchmarkOptions& options,
            Progress progress, ModelBenchmark* result)
      : model_(model),
        context_(context),
        options_(options),
        progress_(std::move(progress)),
        result_(result) {}

  Status Run() {
    for (const Step& step : Plan()) total_ += step.Cost(Runs(step));
    for (const Step& step : Plan()) {
      NIBBLE_RETURN_IF_ERROR(Measure(step).WithContext(step.name));
      done_ += step.Cost(Runs(step));
    }
    return OkStatus();
  }

 private:
  std::vector<Step> Plan() const {
    const int64_t decode = options_.decode_tokens;
    const std::vector<int64_t> prompts = CutTo(context_ - decode, options_.prompts);
    std::vector<Step> steps;
    for (const int64_t n : prompts) {
      steps.push_back({"prompt of " + std::to_string(n), n, 1, decode, &result_->prompts});
    }
    for (const int64_t n : CutTo(context_, options_.batches)) {
      steps.push_back({"batch of " + std::to_string(n), n, 1, 0, &result_->batches});
    }
    for (const int64_t n : options_.sequences) {
      steps.push_back(
          {std::to_string(n) + " sequences", prompts[0], n, decode, &result_->sequences});
    }
    steps.push_back({"other threads", prompts[0], 1, decode, nullptr});
    return steps;
  }

  int Runs(const Step& step) const {
    return step.points != nullptr ? options_.warmups + options_.runs : 1;
  }

  Status Measure(const Step& step) {
    SpeedOptions speed;
    speed.prompt_tokens = step.prompt_tokens;
    speed.decode_tokens = step.decode_tokens;
    speed.sequences = step.sequences;
    speed.warmups = options_.warmups;
    speed.runs = options_.runs;
    speed.runner = options_.runner;
    speed.cache = options_.cache;
    if (step.points == nullptr) {
      speed.warmups = 0;
      speed.runs = 1;
      speed.runner.parallel = options_.other_parallel;
    }
    speed.progress = [&](int done, int runs) {
      const double share = static_cast<double>(done) / runs;
      return progress_((done_ + share * step.Cost(Runs(step))) / total_, step.name);
    };
    NIBBLE_ASSIGN_OR_RETURN(const SpeedResult measured, MeasureSpeed(model_, speed));
    const std::vector<int32_t>& tokens = measured.runs[0].tokens;
    if (step.points == nullptr) {
      result_->same_tokens_in_threads = tokens == first_tokens_;
      return OkStatus();
    }
    if (first_tokens_.empty()) first_tokens_ = tokens;
    BenchmarkPoint point;
    point.prompt_tokens = step.prompt_tokens;
    point.sequences = step.sequences;
    point.prefill_tokens_per_second = measured.prefill_tokens_per_second;
    point.decode_tokens_per_second = measured.decode_tokens_per_second;
    point.cache_bytes = measured.cache_bytes;
    std::vector<double> first, next;
    for (const SpeedRun& run : measured.runs) {
      first.push_back(run.prefill_seconds);
      next.insert(next.end(), run.step_seconds.begin(), run.step_seconds.end());
      if (run.tokens != tokens) result_->same_tokens_in_runs = false;
    }
    point.first_token = Summarize(first);
    point.next_token = Summarize(next);
    result_->peak_cache_bytes = std::max(result_->peak_cache_bytes, point.cache_bytes);
    step.points->push_back(point);
    return OkStatus();
  }

  const Model& model_;
  int64_t context_;
  const ModelBenchmarkOptions& options_;
  Progress progress_;
  ModelBenchmark* result_;
  std::vector<int32_t> first_tokens_;  // after the first prompt
  double total_ = 0, done_ = 0;        // cost
};

Result<ModelBenchmark> BenchmarkOne(const std::string& path, int64_t context,
                                    const ModelBenchmarkOptions& options,
                                    Benchmark::Progress progress) {
  const bool counts = ResetPeakMemory();
  const Stopwatch watch;
  NIBBLE_ASSIGN_OR_RETURN(Model model, Model::Load(path));
  if (options.cache.device != Device::kCpu) {
    Result<Model> there = model.OnDevice(options.cache.device, options.runner.precision);
    if (!there.ok()) return std::move(there).status().WithContext(path);
    model = *std::move(there);
  }
  ModelBenchmark result;
  result.path = path;
  result.load_seconds = watch.Seconds();
  NIBBLE_RETURN_IF_ERROR(FirstProduct(model, options).WithContext(path));
  result.first_product_seconds = watch.Seconds();
  result.file_bytes = model.file_bytes();
  result.same_tokens_in_runs = true;
  Benchmark benchmark(model, context, options, std::move(progress), &result);
  NIBBLE_RETURN_IF_ERROR(benchmark.Run().WithContext(path));
  if (counts) result.peak_memory_bytes = PeakMemoryBytes();
  if (model.device() != Device::kCpu) {
    result.device_memory_bytes = model.device_bytes() + result.peak_cache_bytes;
  }
  return result;
}

// The smallest of the models' contexts, by their metadata alone.
Result<int64_t> SmallestContext(std::span<const std::string> paths) {
  int64_t smallest = std::numeric_limits<int64_t>::max();
  for (const std::string& path : paths) {
    NIBBLE_ASSIGN_OR_RETURN(const ModelSource source, ModelSource::Open(path));
    const Result<ModelConfig> config = ModelConfig::FromMetadata(source.metadata());
    if (!config.ok()) return Status(config.status()).WithContext(path);
    smallest = std::min(smallest, config->context);
  }
  return smallest;
}

}  // namespace

Result<std::vector<ModelBenchmark>> BenchmarkModels(std::span<const std::string> paths,
                                                    const ModelBenchmarkOptions& options) {
  const auto positive = [](int64_t n) { return n > 0; };
  for (const auto* numbers : {&options.prompts, &options.batches, &options.sequences}) {
    if (!std::all_of(numbers->begin(), numbers->end(), positive)) {
      return InvalidArgument("benchmark: prompts, batches and sequences must be positive");
    }
  }
  if (options.prompts.empty() || options.runs < 2 || options.decode_tokens < 0) {
    return InvalidArgument("benchmark: it takes a prompt and two runs, to compare what they say");
  }
  NIBBLE_ASSIGN_OR_RETURN(const int64_t context, SmallestContext(paths));
  if (context <= options.decode_tokens) {
    return InvalidArgument("benchmark: " + std::to_string(options.decode_tokens) +
                           " decoded tokens leave no room for a prompt in a context of " +
                           std::to_string(context));
  }
  std::vector<ModelBenchmark> results;
  for (const std::string& path : paths) {
    const auto progress = [&](double fraction, std::string_view step) {
      const double done = static_cast<double>(results.size()) + fraction;
      return !options.progress ||
             options.progress(done / static_cast<double>(paths.size()), path, step);
    };
    NIBBLE_ASSIGN_OR_RETURN(ModelBenchmark result, BenchmarkOne(path, context, options, progress));
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace nibble
