// A model on the device says what it says on the CPU.
#include <cmath>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "nibble/evaluate.h"
#include "nibble/generate.h"
#include "nibble/quantize.h"
#include "nlohmann/json.hpp"
#include "tests/cuda/gpu.h"
#include "tests/model/reference_model.h"

namespace nibble {
namespace {

class RunnerGpuTest : public GpuTest {
 protected:
  static RunnerOptions With(Precision precision) {
    RunnerOptions options;
    options.precision = precision;
    return options;
  }
  static KvCacheOptions OnDevice() {
    KvCacheOptions options;
    options.device = Device::kCuda;
    return options;
  }
};

TEST_F(RunnerGpuTest, SaysTheExpectedText) {
  const Model model = MustHave(ReferenceModel().OnDevice(Device::kCuda, Precision::kF32));
  std::ifstream file(kReferenceFolder + "/expected.json");
  const auto expected = nlohmann::json::parse(file);
  for (const auto& sample : expected["greedy"]) {
    GenerateOptions options;
    options.max_tokens = 64;
    options.runner = With(Precision::kF32);
    options.cache = OnDevice();
    const auto prompt = sample["prompt_ids"].get<std::vector<int32_t>>();
    const Result<Generation> generation = Generate(model, prompt, options);
    ASSERT_TRUE(generation.ok()) << generation.status().message();
    EXPECT_EQ(generation->tokens, sample["greedy_ids"].get<std::vector<int32_t>>());
  }
}

// Packed weights: their rounding costs a model little, whatever the number of tokens at once.
TEST_F(RunnerGpuTest, PackedModelsPredictAsOnTheCpu) {
  std::map<std::string, QuantizedTensor, std::less<>> matrices;
  for (int64_t l = 0; l < ReferenceModel().config().layers; ++l) {
    for (const char* part :
         {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) {
      const std::string name = "blk." + std::to_string(l) + "." + part + ".weight";
      const QuantizedTensor matrix = MustHave(ReferenceModel().Matrix(name));
      std::vector<float> w(static_cast<size_t>(matrix.rows() * matrix.cols()));
      ASSERT_TRUE(Dequantize(matrix, ViewOf(w.data(), matrix.rows(), matrix.cols())).ok());
      matrices[name] = MustHave(
          Quantize(ViewOf(std::as_const(w).data(), matrix.rows(), matrix.cols()), Format::kQ4_0));
    }
  }
  const Model quantized = MustHave(ReferenceModel().With(matrices));
  std::vector<int32_t> tokens = {1};
  for (int i = 1; i < 520; ++i) tokens.push_back(300 + i * 7919 % 3700);
  PerplexityOptions options;
  options.context = 128;
  options.runner = With(Precision::kF32);
  const PerplexityResult want = MustHave(Perplexity(quantized, tokens, options));
  const Model on_device = MustHave(quantized.OnDevice(Device::kCuda));
  options.cache = OnDevice();
  options.runner = With(Precision::kInt8);
  for (const int64_t batch : {8, 100, 512}) {
    options.runner.batch_tokens = batch;
    const PerplexityResult got = MustHave(Perplexity(on_device, tokens, options));
    EXPECT_NEAR(got.mean_nll.value, want.mean_nll.value, 0.02) << batch;
  }
}

// Batches, wanted outputs of some rows and forks, with caches of all types.
TEST_F(RunnerGpuTest, CachesOfEveryTypeServe) {
  const Model model = MustHave(ReferenceModel().OnDevice(Device::kCuda, Precision::kF32));
  std::vector<int32_t> tokens = {1};
  for (int i = 1; i < 70; ++i) tokens.push_back(300 + i * 7919 % 3700);
  for (CacheType type : {CacheType::kF16, CacheType::kQ8_0, CacheType::kQ4_0, CacheType::kInt8}) {
    std::vector<float> results[2];
    for (const bool is_host : {true, false}) {
      KvCacheOptions cache_options;
      cache_options.keys = cache_options.values = type;
      if (!is_host) cache_options.device = Device::kCuda;
      KvCache cache = *KvCache::Create(model.config(), cache_options);
      Runner runner(is_host ? ReferenceModel() : model, With(Precision::kF32));
      const int sequence = cache.AddSequence();
      std::vector<float> hidden;
      const SequenceInput first = {sequence, std::span(tokens).first(60), true};
      ASSERT_TRUE(runner.Forward(cache, {&first, 1}, &hidden).ok());
      std::vector<float>& all = results[is_host ? 0 : 1];
      all = hidden;
      const int fork = *cache.Fork(sequence);
      const SequenceInput rest[] = {{fork, std::span(tokens).last(10), true},
                                    {sequence, std::span(tokens).first(3), false}};
      ASSERT_TRUE(runner.Forward(cache, rest, &hidden).ok());
      all.insert(all.end(), hidden.begin(), hidden.end());
    }
    ASSERT_EQ(results[0].size(), results[1].size());
    const float epsilon = type == CacheType::kF16 ? 5e-3f : 0.3f;  // steps of the caches' types
    for (size_t i = 0; i < results[0].size(); ++i) {
      ASSERT_NEAR(results[0][i], results[1][i], epsilon) << static_cast<int>(type) << ", " << i;
    }
  }
}

}  // namespace
}  // namespace nibble
