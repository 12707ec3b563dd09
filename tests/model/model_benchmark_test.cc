#include "nibble/model_benchmark.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/parallel.h"

namespace nibble {
namespace {

const std::string kReferenceModel = std::string(NIBBLE_EXAMPLES) + "/reference-model";

ModelBenchmarkOptions Few() {
  ModelBenchmarkOptions options;
  options.prompts = {4, 20};
  options.batches = {1, 9};
  options.sequences = {3};
  options.decode_tokens = 5;
  options.runs = 2;
  return options;
}

void ExpectRising(const Latency& latency) {
  EXPECT_GT(latency.p50, 0);
  EXPECT_LE(latency.p50, latency.p95);
  EXPECT_LE(latency.p95, latency.p99);
}

TEST(ModelBenchmark, MeasuresEachPointOfEachModel) {
  ThreadPool pool(2);
  ModelBenchmarkOptions options = Few();
  options.runner.parallel = pool.parallel_for();
  double last = 0;
  std::vector<std::string> steps;
  options.progress = [&](double fraction, std::string_view model, std::string_view step) {
    EXPECT_EQ(model, kReferenceModel);
    EXPECT_GT(fraction, last);
    last = fraction;
    if (steps.empty() || steps.back() != step) steps.emplace_back(step);
    return true;
  };
  const std::string paths[] = {kReferenceModel, kReferenceModel};
  const auto results = BenchmarkModels(paths, options);
  ASSERT_TRUE(results.ok()) << results.status().message();
  EXPECT_NEAR(last, 1, 1e-9);
  EXPECT_EQ(steps.size(), 2 * 6u);
  ASSERT_EQ(results->size(), 2u);
  for (const ModelBenchmark& b : *results) {
    EXPECT_EQ(b.file_bytes, 14696720u);
    EXPECT_GT(b.load_seconds, 0);
    EXPECT_GT(b.first_product_seconds, b.load_seconds);
    ASSERT_EQ(b.prompts.size(), 2u);
    ASSERT_EQ(b.batches.size(), 2u);
    ASSERT_EQ(b.sequences.size(), 1u);
    EXPECT_EQ(b.prompts[1].prompt_tokens, 20);
    EXPECT_EQ(b.batches[1].prompt_tokens, 9);
    EXPECT_EQ(b.sequences[0].sequences, 3);
    EXPECT_EQ(b.sequences[0].prompt_tokens, 4);
    for (const auto* points : {&b.prompts, &b.sequences}) {
      for (const BenchmarkPoint& point : *points) {
        ExpectRising(point.first_token);
        ExpectRising(point.next_token);
        EXPECT_GT(point.decode_tokens_per_second, 0);
      }
    }
    EXPECT_EQ(b.batches[0].decode_tokens_per_second, 0);
    // A page of 32 tokens for each of three sequences: keys and values in f16.
    EXPECT_EQ(b.peak_cache_bytes, 3u * 32 * 8 * 4 * 2 * 32 * 2);
    EXPECT_GT(b.peak_memory_bytes, b.peak_cache_bytes);
    EXPECT_TRUE(b.same_tokens_in_runs);
    EXPECT_TRUE(b.same_tokens_in_threads);
  }
}

TEST(ModelBenchmark, CutsPromptsToTheContext) {
  ModelBenchmarkOptions options = Few();
  options.prompts = {4, 300, 400};
  options.batches = {300};
  options.sequences = {};
  const auto results = BenchmarkModels({&kReferenceModel, 1}, options);
  ASSERT_TRUE(results.ok()) << results.status().message();
  const ModelBenchmark& b = results->front();
  ASSERT_EQ(b.prompts.size(), 2u);
  EXPECT_EQ(b.prompts[1].prompt_tokens, 251);
  EXPECT_EQ(b.batches[0].prompt_tokens, 256);
  EXPECT_TRUE(b.sequences.empty());
}

TEST(ModelBenchmark, TellsWhenThreadsChangeTheTokens) {
  ModelBenchmarkOptions options = Few();
  options.other_parallel.workers = 2;
  options.other_parallel.run = [](void*, int64_t count, ParallelFor::Task task, void* argument) {
    for (int64_t i = 0; i + 1 < count; ++i) task(argument, i, 0);  // loses the last task
  };
  const auto results = BenchmarkModels({&kReferenceModel, 1}, options);
  ASSERT_TRUE(results.ok()) << results.status().message();
  EXPECT_TRUE(results->front().same_tokens_in_runs);
  EXPECT_FALSE(results->front().same_tokens_in_threads);
}

TEST(ModelBenchmark, RefusesWhatTellsNothing) {
  const auto message = [](const ModelBenchmarkOptions& options, const std::string& path) {
    const auto results = BenchmarkModels({&path, 1}, options);
    return results.ok() ? std::string() : results.status().message();
  };
  ModelBenchmarkOptions options = Few();
  options.runs = 1;
  EXPECT_NE(message(options, kReferenceModel).find("two runs"), std::string::npos);
  options = Few();
  options.batches = {0};
  EXPECT_NE(message(options, kReferenceModel).find("positive"), std::string::npos);
  options = Few();
  options.decode_tokens = 256;
  EXPECT_NE(message(options, kReferenceModel).find("context of 256"), std::string::npos);
  EXPECT_NE(message(Few(), "none.gguf").find("none.gguf"), std::string::npos);
  options = Few();
  options.progress = [](double, std::string_view, std::string_view) { return false; };
  const auto stopped = BenchmarkModels({&kReferenceModel, 1}, options);
  EXPECT_EQ(stopped.status().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace nibble
