// A model on a device, without one: the GPU's kernels on emulated warps, each against the CPU's
// function, and then the whole runner.
#include <cmath>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/transformer.h"
#include "lib/model/kv_cache.h"
#include "nibble/evaluate.h"
#include "nibble/generate.h"
#include "nibble/model_benchmark.h"
#include "nlohmann/json.hpp"
#include "tests/cuda/host_decoder.h"
#include "tests/matmul_oracle.h"
#include "tests/model/reference_model.h"

namespace nibble {
namespace {

using cuda::HostDecoder;
using cuda::HostWarp;

constexpr CacheType kCacheTypes[] = {CacheType::kF16, CacheType::kQ8_0, CacheType::kQ4_0,
                                     CacheType::kInt8};

void ExpectNear(const std::vector<float>& got, const std::vector<float>& want, float epsilon,
                const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], want[i], epsilon * std::max(1.0f, std::fabs(want[i]))) << what << ", " << i;
  }
}

// --- Kernels

TEST(DeviceKernels, NormsRows) {
  for (int64_t width : {1, 31, 256, 2050}) {
    const std::vector<float> x = RandomValues(3 * width, 1), weight = RandomValues(width, 2);
    std::vector<float> want(x.size()), got(x.size());
    for (int64_t r = 0; r < 3; ++r) {
      RmsNorm(x.data() + r * width, weight.data(), width, 1e-5f, want.data() + r * width);
    }
    cuda::EmulateRmsNorm({x.data(), weight.data(), width, 1e-5f, got.data()}, 3);
    ExpectNear(got, want, 1e-6f, "width " + std::to_string(width));
    std::vector<float> in_place = x;
    cuda::EmulateRmsNorm({in_place.data(), weight.data(), width, 1e-5f, in_place.data()}, 3);
    EXPECT_EQ(in_place, got);
  }
}

TEST(DeviceKernels, ActivationsAndCaps) {
  std::vector<float> gate = RandomValues(1000, 3);
  for (float& x : gate) x *= 20;
  gate[0] = 100.0f;
  gate[1] = -100.0f;
  const std::vector<float> up = RandomValues(1000, 4);
  std::vector<float> silu(1000), gelu(1000), capped = gate, want(1000);
  for (size_t i = 0; i < gate.size(); ++i) {
    silu[i] = cuda::Gated(Activation::kSilu, gate[i], up[i]);
    gelu[i] = cuda::Gated(Activation::kGelu, gate[i], up[i]);
    capped[i] = cuda::SoftCapped(gate[i], 30.0f);
  }
  SiluMultiply(gate.data(), up.data(), 1000, want.data());
  ExpectNear(silu, want, 2e-6f, "silu");
  GeluMultiply(gate.data(), up.data(), 1000, want.data());
  ExpectNear(gelu, want, 2e-6f, "gelu");
  want = gate;
  SoftCap(want.data(), 1000, 30.0f);
  ExpectNear(capped, want, 2e-6f, "cap");
}

TEST(DeviceKernels, StoreRowsOfACacheAsTheCpuDoes) {
  for (CacheType type : kCacheTypes) {
    for (int64_t dims : {32, 64, 128, 256}) {
      for (uint32_t seed = 0; seed < 6; ++seed) {
        std::vector<float> values = RandomValues(dims, 10 + seed);
        if (seed == 1) std::fill(values.begin(), values.end(), 0.0f);
        if (seed == 2) values[3] = 1e6f;  // beyond f16
        if (seed == 3) values[5] = NAN;
        if (seed == 4) values[7] = -values[9];  // equal magnitudes
        if (type == CacheType::kInt8 && (seed == 2 || seed == 3)) continue;
        const size_t bytes = CacheRowBytes(type, dims);
        std::vector<std::byte> want(bytes), got(bytes + 4);
        EncodeCacheRows(type, values.data(), 1, dims, want.data());
        cuda::EncodeCacheRow(HostWarp(), type, values.data(), dims, LargestCached(type),
                             reinterpret_cast<uint8_t*>(got.data()));
        got.resize(bytes);
        EXPECT_EQ(got, want) << static_cast<int>(type) << ", " << dims << ", " << seed;
        std::vector<float> decoded(static_cast<size_t>(dims));
        DecodeCacheRows(type, want.data(), 1, dims, decoded.data());
        for (int i = 0; i < dims; ++i) {
          ASSERT_EQ(cuda::CachedValue(type, reinterpret_cast<const uint8_t*>(got.data()), i),
                    decoded[static_cast<size_t>(i)]);
        }
      }
    }
  }
}

TEST(DeviceKernels, FindTheFirstOfTheLargestLogits) {
  for (int64_t count : {1, 7, 300, 4096}) {
    std::vector<float> logits = RandomValues(count, 7);
    for (int64_t at : {int64_t{0}, count / 2, count - 1}) {
      std::vector<float> some = logits;
      some[static_cast<size_t>(at)] = 5.0f;
      some[static_cast<size_t>(count - 1)] = 5.0f;  // a later equal
      EXPECT_EQ(cuda::EmulateLikeliest(some.data(), count), at);
    }
  }
  const std::vector<float> low(100, -INFINITY);
  EXPECT_EQ(cuda::EmulateLikeliest(low.data(), 100), 0);
}

// A cache of one layer, two heads of keys for six of queries, and its batch.
struct Attention {
  static constexpr int64_t kHeads = 6, kKvHeads = 2;

  Attention(int64_t head_dim, int64_t value_dim, CacheType keys, CacheType values) {
    layer.heads = kHeads;
    layer.kv_heads = kKvHeads;
    layer.head_dim = head_dim;
    layer.value_dim = value_dim;
    layer.norm_eps = 1e-6f;
    layer.keys = keys;
    layer.values = values;
    layer.largest_key = LargestCached(keys);
    layer.largest_value = LargestCached(values);
    layer.page_tokens = 16;
    layer.offset = 64;
    layer.key_row = CacheRowBytes(keys, head_dim);
    layer.value_row = CacheRowBytes(values, value_dim);
  }

  AttentionLayer layer;
};

// Turned as the CPU turns them; with and without norms, whole and in part, in both orders.
TEST(DeviceKernels, TurnHeads) {
  constexpr int64_t kDim = 96;
  const std::vector<float> norm = RandomValues(kDim, 5);
  for (bool half_split : {false, true}) {
    for (int64_t pairs : {kDim / 2, int64_t{20}}) {
      for (const float* weight : {norm.data(), static_cast<const float*>(nullptr)}) {
        Attention attention(kDim, kDim, CacheType::kF16, CacheType::kF16);
        attention.layer.half_split = half_split;
        attention.layer.pairs = pairs;
        std::vector<float> cosines, sines;
        for (int64_t i = 0; i < pairs; ++i) {
          cosines.push_back(std::cos(static_cast<float>(i)));
          sines.push_back(std::sin(static_cast<float>(i)));
        }
        std::vector<float> got = RandomValues(kDim, 6), want = got;
        cuda::TurnHead(HostWarp(), attention.layer, weight, cosines.data(), sines.data(), 0.125f,
                       got.data());
        if (weight != nullptr) RmsNorm(want.data(), weight, kDim, 1e-6f, want.data());
        Rope(want.data(), cosines.data(), sines.data(), pairs, half_split);
        for (float& x : want) x *= 0.125f;
        ExpectNear(got, want, 1e-6f, "turned");
      }
    }
  }
}

// Against a softmax in double precision over the cached values, decoded.
template <int kParts>
void ExpectAttention(int64_t head_dim, int64_t value_dim, CacheType keys, CacheType values,
                     int64_t window, float soft_cap) {
  Attention attention(head_dim, value_dim, keys, values);
  AttentionLayer& layer = attention.layer;
  layer.window = window;
  layer.soft_cap = soft_cap;
  const size_t page_bytes = layer.offset + static_cast<size_t>(layer.kv_heads * layer.page_tokens) *
                                               (layer.key_row + layer.value_row);
  // Two sequences, whose pages lie in disorder; the first row is the only token of its own.
  constexpr int64_t kPages = 8, kMostPages = 8;
  std::vector<std::vector<uint64_t>> memory;
  std::vector<std::byte*> pages(2 * kMostPages, nullptr);
  for (int64_t p = 0; p < kPages; ++p) {
    memory.emplace_back(page_bytes / sizeof(uint64_t) + 1, ~uint64_t{0});
  }
  for (int64_t p = 0; p < kPages; ++p) {
    pages[static_cast<size_t>(p < 2 ? p : kMostPages + p - 2)] =
        reinterpret_cast<std::byte*>(memory[static_cast<size_t>((p * 3) % kPages)].data());
  }
  const std::vector<int32_t> sequences = {0, 1, 1, 1}, positions = {0, 15, 16, 77};
  std::vector<std::vector<float>> key_floats(2), value_floats(2);
  for (int s = 0; s < 2; ++s) {
    const int64_t tokens = s == 0 ? 1 : 78;
    for (int64_t t = 0; t < tokens; ++t) {
      std::byte* page = pages[static_cast<size_t>(s * kMostPages + t / layer.page_tokens)];
      const size_t slot = static_cast<size_t>(t % layer.page_tokens);
      for (int64_t h = 0; h < layer.kv_heads; ++h) {
        const uint32_t seed = static_cast<uint32_t>(1000 * s + 10 * t + h);
        const auto put = [&](CacheType type, int64_t dims, uint8_t* at, uint32_t own,
                             std::vector<float>& all) {
          const std::vector<float> x = RandomValues(dims, own);
          auto* bytes = reinterpret_cast<std::byte*>(at);
          EncodeCacheRows(type, x.data(), 1, dims, bytes);
          all.resize(all.size() + static_cast<size_t>(dims));
          DecodeCacheRows(type, bytes, 1, dims, all.data() + all.size() - dims);
        };
        put(keys, head_dim, cuda::KeysOf(layer, page, h) + slot * layer.key_row, seed,
            key_floats[static_cast<size_t>(s)]);
        put(values, value_dim, cuda::ValuesOf(layer, page, h) + slot * layer.value_row, seed + 5,
            value_floats[static_cast<size_t>(s)]);
      }
    }
  }
  DecoderBatch batch;
  batch.rows = static_cast<int64_t>(positions.size());
  batch.sequences = sequences.data();
  batch.positions = positions.data();
  batch.pages = pages.data();
  batch.most_pages = kMostPages;
  std::vector<float> query = RandomValues(batch.rows * layer.heads * head_dim, 9);
  std::vector<float> got(static_cast<size_t>(batch.rows * layer.heads * value_dim), NAN);
  cuda::EmulateAttend<kParts>(batch, layer, query.data(), got.data());
  for (int64_t row = 0; row < batch.rows; ++row) {
    const size_t s = static_cast<size_t>(sequences[static_cast<size_t>(row)]);
    const int64_t position = positions[static_cast<size_t>(row)];
    const int64_t oldest = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
    for (int64_t head = 0; head < layer.heads; ++head) {
      const int64_t kv = head / 3;
      const float* q = query.data() + (row * layer.heads + head) * head_dim;
      std::vector<double> want(static_cast<size_t>(value_dim));
      double sum = 0;
      for (int64_t t = oldest; t <= position; ++t) {
        double score = 0;
        for (int64_t i = 0; i < head_dim; ++i) {
          score +=
              double{q[i]} *
              double{key_floats[s][static_cast<size_t>((t * layer.kv_heads + kv) * head_dim + i)]};
        }
        if (soft_cap > 0) score = soft_cap * std::tanh(score / soft_cap);
        const double weight = std::exp(score);
        sum += weight;
        for (int64_t i = 0; i < value_dim; ++i) {
          want[static_cast<size_t>(i)] +=
              weight *
              double{
                  value_floats[s][static_cast<size_t>((t * layer.kv_heads + kv) * value_dim + i)]};
        }
      }
      for (int64_t i = 0; i < value_dim; ++i) {
        ASSERT_NEAR(got[static_cast<size_t>((row * layer.heads + head) * value_dim + i)],
                    want[static_cast<size_t>(i)] / sum, 2e-5)
            << row << ", " << head << ", " << i;
      }
    }
  }
}

TEST(DeviceKernels, Attend) {
  ExpectAttention<2>(64, 64, CacheType::kF16, CacheType::kF16, 0, 0.0f);
  ExpectAttention<2>(40, 24, CacheType::kF16, CacheType::kInt8, 0, 0.0f);
  ExpectAttention<4>(128, 96, CacheType::kQ8_0, CacheType::kQ4_0, 0, 0.0f);
  ExpectAttention<8>(256, 256, CacheType::kF16, CacheType::kF16, 20, 5.0f);
  ExpectAttention<4>(128, 128, CacheType::kInt8, CacheType::kF16, 1, 0.0f);
}

// --- The runner

class DeviceRunner : public testing::Test {
 protected:
  void SetUp() override {
    HostDecoder::Register();
    HostDecoder::recorded = HostDecoder::replayed = 0;
  }
  void TearDown() override { HostDecoder::Forget(); }

  static RunnerOptions Exact() {
    RunnerOptions options;
    options.precision = Precision::kF32;
    return options;
  }
  static KvCacheOptions OnDevice(KvCacheOptions options = {}) {
    options.device = Device::kCuda;
    return options;
  }
  static Model DeviceModel() { return *ReferenceModel().OnDevice(Device::kCuda, Precision::kF32); }
};

std::vector<int32_t> SomeTokens(int count, int seed) {
  std::vector<int32_t> tokens = {1};
  for (int i = 1; i < count; ++i) tokens.push_back(300 + (i * 7919 + seed) % 3700);
  return tokens;
}

TEST_F(DeviceRunner, SaysTheExpectedText) {
  const Model model = DeviceModel();
  EXPECT_EQ(model.device(), Device::kCuda);
  EXPECT_GT(model.device_bytes(), ReferenceModel().file_bytes() / 2);
  std::ifstream file(kReferenceFolder + "/expected.json");
  const auto expected = nlohmann::json::parse(file);
  for (size_t i = 0; i < 2; ++i) {
    const auto& sample = expected["greedy"][i];
    GenerateOptions options;
    options.max_tokens = 64;
    options.runner = Exact();
    options.cache = OnDevice();
    const auto prompt = sample["prompt_ids"].get<std::vector<int32_t>>();
    const Result<Generation> generation = Generate(model, prompt, options);
    ASSERT_TRUE(generation.ok()) << generation.status().message();
    EXPECT_EQ(generation->tokens, sample["greedy_ids"].get<std::vector<int32_t>>());
  }
  // A graph for each number of pages in a row of the table, else replays.
  EXPECT_GE(HostDecoder::recorded, 2);
  EXPECT_LE(HostDecoder::recorded, 4);
  EXPECT_GT(HostDecoder::replayed, 100);
}

// Several sequences in batches, wanted outputs of some rows, forks, all types of caches.
TEST_F(DeviceRunner, EqualsTheHost) {
  const Model device_model = DeviceModel();
  const std::vector<int32_t> a = SomeTokens(37, 0), b = SomeTokens(12, 5), c = SomeTokens(70, 9);
  for (CacheType type : kCacheTypes) {
    const auto run = [&](const Model& model, bool on_device) {
      KvCacheOptions cache_options;
      cache_options.keys = cache_options.values = type;
      Result<KvCache> cache =
          KvCache::Create(model.config(), on_device ? OnDevice(cache_options) : cache_options);
      EXPECT_TRUE(cache.ok());
      RunnerOptions options = Exact();
      options.batch_tokens = 50;
      Runner runner(model, options);
      std::vector<float> all, hidden;
      const auto forward = [&](std::span<const SequenceInput> inputs) {
        const Status status = runner.Forward(*cache, inputs, &hidden);
        EXPECT_TRUE(status.ok()) << status.message();
        all.insert(all.end(), hidden.begin(), hidden.end());
      };
      const SequenceInput inputs[] = {{cache->AddSequence(), a, false},
                                      {cache->AddSequence(), b, true},
                                      {cache->AddSequence(), c, false}};
      forward(inputs);
      const int fork = *cache->Fork(inputs[0].sequence);  // inside a page
      const std::vector<int32_t> more = {400, 500};
      const SequenceInput next[] = {{fork, more, true}, {inputs[0].sequence, b, false}};
      forward(next);
      std::vector<float> logits(2 * static_cast<size_t>(model.config().vocab_size));
      const int64_t width = model.config().width;
      EXPECT_TRUE(runner
                      .Logits(ViewOf(std::as_const(hidden).data(), 2, width),
                              ViewOf(logits.data(), 2, model.config().vocab_size))
                      .ok());
      all.insert(all.end(), logits.begin(), logits.end());
      return all;
    };
    const std::vector<float> want = run(ReferenceModel(), false), got = run(device_model, true);
    // A step of a cache's rounding more or less in some keys.
    const float epsilon = type == CacheType::kF16 ? 2e-3f : 0.2f;
    ExpectNear(got, want, epsilon, "cache type " + std::to_string(static_cast<int>(type)));
  }
}

// Graphs are recorded anew where the number of sequences or pages changes.
TEST_F(DeviceRunner, StepsAreTheSameRecordedOrNot) {
  const auto run = [&](const Model& model, bool on_device) {
    KvCacheOptions cache_options;
    cache_options.page_tokens = 4;
    Result<KvCache> cache =
        KvCache::Create(model.config(), on_device ? OnDevice(cache_options) : cache_options);
    EXPECT_TRUE(cache.ok());
    Runner runner(model, Exact());
    std::vector<int> sequences;
    std::vector<int32_t> tokens, all;
    for (int s = 0; s < 3; ++s) {
      sequences.push_back(cache->AddSequence());
      const std::vector<int32_t> prompt = SomeTokens(20 + s, s);
      const SequenceInput input = {sequences.back(), prompt, false};
      std::vector<int32_t> next;
      const Status status = runner.NextTokens(*cache, {&input, 1}, &next);
      EXPECT_TRUE(status.ok()) << status.message();
      tokens.push_back(next[0]);
      for (int step = 0; step < 12; ++step) {
        std::vector<SequenceInput> inputs;
        for (size_t i = 0; i < sequences.size(); ++i) {
          inputs.push_back({sequences[i], std::span(tokens).subspan(i, 1), false});
        }
        EXPECT_TRUE(runner.NextTokens(*cache, inputs, &next).ok());
        tokens = next;
        all.insert(all.end(), tokens.begin(), tokens.end());
      }
    }
    return all;
  };
  EXPECT_EQ(run(DeviceModel(), true), run(ReferenceModel(), false));
  EXPECT_GE(HostDecoder::recorded, 3);
  EXPECT_GE(HostDecoder::replayed, 24);
}

TEST_F(DeviceRunner, MeasuresPerplexity) {
  const Model model = DeviceModel();
  const std::vector<int32_t> tokens = SomeTokens(130, 3);
  PerplexityOptions options;
  options.context = 64;
  options.runner = Exact();
  const auto want = Perplexity(ReferenceModel(), tokens, options);
  options.cache = OnDevice();
  const auto got = Perplexity(model, tokens, options);
  ASSERT_TRUE(want.ok() && got.ok()) << got.status().message();
  EXPECT_NEAR(got->mean_nll.value, want->mean_nll.value, 1e-4);
}

TEST_F(DeviceRunner, IsTimed) {
  ModelBenchmarkOptions options;
  options.prompts = {8};
  options.batches = {4};
  options.sequences = {2};
  options.decode_tokens = 3;
  options.runs = 2;
  options.runner = Exact();
  options.cache = OnDevice();
  const auto timed = BenchmarkModels({&kReferenceFolder, 1}, options);
  ASSERT_TRUE(timed.ok()) << timed.status().message();
  const ModelBenchmark& model = (*timed)[0];
  EXPECT_TRUE(model.same_tokens_in_runs);
  EXPECT_TRUE(model.same_tokens_in_threads);
  EXPECT_GT(model.device_memory_bytes, model.file_bytes / 2);
  EXPECT_GT(model.first_product_seconds, model.load_seconds);
}

TEST_F(DeviceRunner, RefusesWhatItCannot) {
  const Model model = DeviceModel();
  const std::vector<int32_t> tokens = SomeTokens(5, 0);
  std::vector<float> hidden;
  // A cache in another memory than the weights.
  KvCache on_host = *KvCache::Create(model.config());
  Runner runner(model, Exact());
  SequenceInput input = {on_host.AddSequence(), tokens, false};
  EXPECT_EQ(runner.Forward(on_host, {&input, 1}, &hidden).code(), StatusCode::kInvalidArgument);
  KvCache cache = *KvCache::Create(model.config(), OnDevice());
  Runner host_runner(ReferenceModel(), Exact());
  input.sequence = cache.AddSequence();
  EXPECT_EQ(host_runner.Forward(cache, {&input, 1}, &hidden).code(), StatusCode::kInvalidArgument);
  // An observer.
  RunnerOptions observed = Exact();
  observed.observer = [](std::string_view, TensorView) {};
  Runner observing(model, observed);
  EXPECT_EQ(observing.Forward(cache, {&input, 1}, &hidden).code(), StatusCode::kUnsupported);
  // A device that nothing serves.
  HostDecoder::Forget();
  const auto nowhere = ReferenceModel().OnDevice(Device::kCuda);
  EXPECT_EQ(nowhere.status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(KvCache::Create(model.config(), OnDevice()).status().code(), StatusCode::kUnsupported);
}

TEST_F(DeviceRunner, OtherWeightsComeFromTheHost) {
  const Model model = DeviceModel();
  const Result<Model> other = model.With({});
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(other->device(), Device::kCpu);
  const Result<Model> back = model.OnDevice(Device::kCpu);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->device(), Device::kCpu);
}

}  // namespace
}  // namespace nibble
