// The runner on the reference model: its greedy text, batches, forks, cache types and refusals.
#include "nibble/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nibble/generate.h"
#include "tests/model/reference_model.h"

namespace nibble {
namespace {

nlohmann::json Expected() {
  std::ifstream file(kReferenceFolder + "/expected.json");
  return nlohmann::json::parse(file);
}

RunnerOptions Exact() {
  RunnerOptions options;
  options.precision = Precision::kF32;
  return options;
}

// Logits after each of `tokens`, run `step` at a time.
std::vector<float> LogitsOf(const Model& model, KvCache& cache, int sequence,
                            const std::vector<int32_t>& tokens, size_t step) {
  Runner runner(model, Exact());
  const int64_t width = model.config().width, vocab = model.config().vocab_size;
  std::vector<float> all, hidden;
  for (size_t at = 0; at < tokens.size(); at += step) {
    const size_t count = std::min(step, tokens.size() - at);
    const SequenceInput input{sequence, std::span(tokens).subspan(at, count), true};
    EXPECT_TRUE(runner.Forward(cache, {&input, 1}, &hidden).ok());
    const int64_t rows = static_cast<int64_t>(count);
    const size_t old = all.size();
    all.resize(old + static_cast<size_t>(rows * vocab));
    EXPECT_TRUE(runner
                    .Logits(ViewOf(std::as_const(hidden).data(), rows, width),
                            ViewOf(all.data() + old, rows, vocab))
                    .ok());
  }
  return all;
}

std::vector<int32_t> SomeTokens(int count) {
  std::vector<int32_t> tokens = {1};
  for (int i = 1; i < count; ++i) tokens.push_back(300 + (i * 7919) % 3700);
  return tokens;
}

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max<double>(largest, std::abs(a[i] - b[i]));
  return largest;
}

TEST(Model, GreedyTextIsTheOneExpected) {
  const nlohmann::json expected = Expected();
  ASSERT_EQ(expected["greedy"].size(), 8u);
  for (const auto& sample : expected["greedy"]) {
    const std::string prompt = sample["prompt"];
    const auto ids = ReferenceModel().tokenizer().Encode(prompt);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*ids, sample["prompt_ids"].get<std::vector<int32_t>>()) << prompt;
    GenerateOptions options;
    options.max_tokens = 64;
    options.runner = Exact();
    const Result<Generation> generation = Generate(ReferenceModel(), *ids, options);
    ASSERT_TRUE(generation.ok()) << generation.status().message();
    EXPECT_EQ(generation->tokens, sample["greedy_ids"].get<std::vector<int32_t>>()) << prompt;
    EXPECT_EQ(ReferenceModel().tokenizer().Decode(generation->tokens),
              sample["text"].get<std::string>());
  }
}

TEST(Model, TokenByTokenEqualsAllAtOnce) {
  const std::vector<int32_t> tokens = SomeTokens(70);  // over two pages and a query block
  Result<KvCache> cache = KvCache::Create(ReferenceModel().config());
  ASSERT_TRUE(cache.ok());
  const auto whole =
      LogitsOf(ReferenceModel(), *cache, cache->AddSequence(), tokens, tokens.size());
  const auto single = LogitsOf(ReferenceModel(), *cache, cache->AddSequence(), tokens, 1);
  EXPECT_LT(LargestDifference(whole, single), 2e-3);
}

TEST(Model, SequencesOfABatchDoNotSeeEachOther) {
  Result<KvCache> cache = KvCache::Create(ReferenceModel().config());
  ASSERT_TRUE(cache.ok());
  const std::vector<int32_t> a = SomeTokens(40), b = SomeTokens(9);
  const std::vector<int32_t> reversed(b.rbegin(), b.rend());
  Runner runner(ReferenceModel(), Exact());
  const SequenceInput inputs[] = {{cache->AddSequence(), a, false},
                                  {cache->AddSequence(), reversed, false}};
  std::vector<float> together, alone;
  ASSERT_TRUE(runner.Forward(*cache, inputs, &together).ok());
  ASSERT_EQ(together.size(), 2u * 256u);
  const SequenceInput again{cache->AddSequence(), reversed, false};
  ASSERT_TRUE(runner.Forward(*cache, {&again, 1}, &alone).ok());
  EXPECT_LT(LargestDifference(std::vector<float>(together.begin() + 256, together.end()), alone),
            1e-3);
}

// The same tokens cut into batches: what is wanted of each sequence comes in the same order.
TEST(Runner, BatchesBoundTheScratchAndChangeNothing) {
  Result<KvCache> cache = KvCache::Create(ReferenceModel().config());
  ASSERT_TRUE(cache.ok());
  const std::vector<int32_t> a = SomeTokens(37), b = SomeTokens(12), c = SomeTokens(5);
  const auto run = [&](int64_t batch_tokens) {
    RunnerOptions options = Exact();
    options.batch_tokens = batch_tokens;
    Runner runner(ReferenceModel(), options);
    const SequenceInput inputs[] = {{cache->AddSequence(), a, false},
                                    {cache->AddSequence(), b, true},
                                    {cache->AddSequence(), c, false}};
    std::vector<float> hidden;
    EXPECT_TRUE(runner.Forward(*cache, inputs, &hidden).ok());
    EXPECT_EQ(cache->Length(inputs[0].sequence), 37);
    for (const SequenceInput& input : inputs) EXPECT_TRUE(cache->Remove(input.sequence).ok());
    return hidden;
  };
  const std::vector<float> whole = run(512);
  ASSERT_EQ(whole.size(), (1u + 12u + 1u) * 256u);
  for (const int64_t batch_tokens : {1, 10, 27, 53}) {
    EXPECT_LT(LargestDifference(run(batch_tokens), whole), 2e-3) << batch_tokens;
  }
}

// A tree of sequences in one pool: each goes on as if it had its prefix for itself.
TEST(KvCache, ManySequencesShareAPrefix) {
  const Model& model = ReferenceModel();
  for (const CacheType type :
       {CacheType::kF16, CacheType::kQ8_0, CacheType::kQ4_0, CacheType::kInt8}) {
    KvCacheOptions options;
    options.keys = options.values = type;
    options.page_tokens = 16;
    Result<KvCache> cache = KvCache::Create(model.config(), options);
    ASSERT_TRUE(cache.ok());
    Runner runner(model, Exact());
    const auto run = [&](std::span<const SequenceInput> inputs) {
      std::vector<float> hidden;
      EXPECT_TRUE(runner.Forward(*cache, inputs, &hidden).ok());
      return hidden;
    };
    const std::vector<int32_t> trunk = SomeTokens(40), branch = {700, 701, 702, 703, 704};
    const int root = cache->AddSequence();
    const SequenceInput first{root, trunk, false};
    run({&first, 1});
    const size_t page = 16 * cache->bytes_per_token();
    EXPECT_EQ(cache->used_bytes(), 3 * page);
    // Five children, each with two tokens of its own; two grandchildren of the second.
    std::vector<int> children;
    std::vector<std::vector<int32_t>> own;
    std::vector<SequenceInput> inputs;
    for (int32_t i = 0; i < 5; ++i) {
      children.push_back(*cache->Fork(root));
      own.push_back({800 + i, 900 + i});
    }
    for (size_t i = 0; i < 5; ++i) inputs.push_back({children[i], own[i], false});
    run(inputs);
    EXPECT_EQ(cache->used_bytes(), (3 + 5) * page);  // the last page of each is its own now
    const int grandchildren[] = {*cache->Fork(children[1]), *cache->Fork(children[1])};
    ASSERT_TRUE(cache->Remove(children[1]).ok());
    ASSERT_TRUE(cache->Remove(root).ok());
    const SequenceInput last[] = {{grandchildren[0], branch, false},
                                  {children[4], branch, false},
                                  {grandchildren[1], branch, false}};
    const std::vector<float> together = run(last);
    const auto row = [&](size_t i) {
      return std::vector<float>(together.begin() + static_cast<std::ptrdiff_t>(i * 256),
                                together.begin() + static_cast<std::ptrdiff_t>((i + 1) * 256));
    };
    EXPECT_EQ(LargestDifference(row(0), row(2)), 0);
    for (const size_t child : {size_t{1}, size_t{4}}) {
      const int alone = cache->AddSequence();
      std::vector<float> hidden;
      for (const std::vector<int32_t>& part : {trunk, own[child], branch}) {
        const SequenceInput input{alone, part, false};
        hidden = run({&input, 1});
      }
      EXPECT_LT(LargestDifference(row(child == 1 ? 0 : 1), hidden), 2e-3);
      ASSERT_TRUE(cache->Remove(alone).ok());
    }
    for (const int sequence :
         {children[0], children[2], children[3], children[4], grandchildren[0], grandchildren[1]}) {
      ASSERT_TRUE(cache->Remove(sequence).ok());
    }
    EXPECT_EQ(cache->used_bytes(), 0u);
  }
}

TEST(KvCache, ForksSharePagesUntilTheyWrite) {
  Result<KvCache> cache = KvCache::Create(ReferenceModel().config());
  ASSERT_TRUE(cache.ok());
  const std::vector<int32_t> prefix = SomeTokens(40), more = {500, 501, 502};
  const int parent = cache->AddSequence();
  LogitsOf(ReferenceModel(), *cache, parent, prefix, 40);
  const size_t page = cache->used_bytes() / 2;  // 40 tokens lie in two pages of 32
  EXPECT_EQ(page, 32 * cache->bytes_per_token());
  const Result<int> child = cache->Fork(parent);
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(cache->used_bytes(), 2 * page);
  const auto from_child = LogitsOf(ReferenceModel(), *cache, *child, more, 3);
  EXPECT_EQ(cache->used_bytes(), 3 * page);  // the second page was copied, the first is shared
  const auto from_parent = LogitsOf(ReferenceModel(), *cache, parent, more, 3);
  EXPECT_EQ(LargestDifference(from_child, from_parent), 0);
  ASSERT_TRUE(cache->Truncate(parent, 40).ok());
  EXPECT_EQ(LargestDifference(LogitsOf(ReferenceModel(), *cache, parent, more, 3), from_child), 0);
  ASSERT_TRUE(cache->Remove(parent).ok());
  ASSERT_TRUE(cache->Remove(*child).ok());
  EXPECT_EQ(cache->used_bytes(), 0u);
  EXPECT_EQ(cache->Length(parent), -1);
}

TEST(KvCache, TypesCostWhatTheySayAndStayClose) {
  const std::vector<int32_t> tokens = SomeTokens(64);
  std::vector<float> exact;
  struct Case {
    CacheType type;
    size_t row_bytes;  // of 32 dimensions
    double tolerance;
  };
  for (const Case& c : {Case{CacheType::kF16, 64, 0}, Case{CacheType::kQ8_0, 34, 0.5},
                        Case{CacheType::kInt8, 36, 0.5}, Case{CacheType::kQ4_0, 18, 6}}) {
    KvCacheOptions options;
    options.keys = options.values = c.type;
    Result<KvCache> cache = KvCache::Create(ReferenceModel().config(), options);
    ASSERT_TRUE(cache.ok());
    const auto logits = LogitsOf(ReferenceModel(), *cache, cache->AddSequence(), tokens, 64);
    EXPECT_EQ(cache->used_bytes(), 64 * 8 * 4 * 2 * c.row_bytes);  // tokens, layers, heads, k and v
    if (exact.empty()) exact = logits;
    const double difference = LargestDifference(logits, exact);
    EXPECT_LE(difference, c.tolerance);
    if (c.type != CacheType::kF16) {
      EXPECT_GT(difference, 0);
    }
  }
}

TEST(Runner, RefusesWhatCannotBeRun) {
  const Model& model = ReferenceModel();
  KvCacheOptions options;
  options.max_tokens = 64;
  Result<KvCache> cache = KvCache::Create(model.config(), options);
  ASSERT_TRUE(cache.ok());
  Runner runner(model, Exact());
  std::vector<float> hidden;
  const int sequence = cache->AddSequence();
  const auto run = [&](int id, const std::vector<int32_t>& tokens) {
    const SequenceInput input{id, tokens, false};
    return runner.Forward(*cache, {&input, 1}, &hidden);
  };
  EXPECT_NE(run(99, {1}).message().find("there is no sequence 99"), std::string::npos);
  EXPECT_NE(run(sequence, {}).message().find("no new tokens"), std::string::npos);
  EXPECT_NE(run(sequence, {1, 4096}).message().find("token 4096"), std::string::npos);
  EXPECT_NE(run(sequence, {-1}).message().find("token -1"), std::string::npos);
  EXPECT_NE(run(sequence, std::vector<int32_t>(257, 5)).message().find("context of 256"),
            std::string::npos);
  const Status full = run(sequence, std::vector<int32_t>(65, 5));
  EXPECT_EQ(full.code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(cache->Length(sequence), 0);
  EXPECT_EQ(cache->used_bytes(), 0u);  // nothing stays behind a failure
  EXPECT_TRUE(run(sequence, std::vector<int32_t>(64, 5)).ok());
  const SequenceInput twice[] = {{sequence, {}, false}, {sequence, {}, false}};
  EXPECT_FALSE(runner.Forward(*cache, twice, &hidden).ok());
}

TEST(Generate, ASeedRepeatsItselfAndTemperatureMatters) {
  const auto ids = ReferenceModel().tokenizer().Encode("The function");
  ASSERT_TRUE(ids.ok());
  GenerateOptions options;
  options.max_tokens = 24;
  options.sampling.temperature = 1.0f;
  options.sampling.top_k = 50;
  options.sampling.top_p = 0.95f;
  options.sampling.seed = 7;
  const auto once = Generate(ReferenceModel(), *ids, options);
  const auto again = Generate(ReferenceModel(), *ids, options);
  ASSERT_TRUE(once.ok() && again.ok());
  EXPECT_EQ(once->tokens, again->tokens);
  options.sampling.seed = 8;
  const auto other = Generate(ReferenceModel(), *ids, options);
  ASSERT_TRUE(other.ok());
  EXPECT_NE(once->tokens, other->tokens);
}

TEST(Generate, SamplerKeepsToTopKAndTopP) {
  const std::vector<float> logits = {0, 3, 2, 1};
  SamplingOptions options;
  options.temperature = 1.0f;
  options.top_k = 2;
  Sampler top_k(options);
  int counts[4] = {};
  for (int i = 0; i < 4000; ++i) ++counts[top_k.Sample(logits)];
  EXPECT_EQ(counts[0] + counts[3], 0);
  // p = e / (1 + e) for the likelier of the two; four standard deviations.
  EXPECT_NEAR(counts[1] / 4000.0, 0.7311, 4 * std::sqrt(0.7311 * 0.2689 / 4000));
  options.top_k = 0;
  options.top_p = 0.5f;  // the likeliest alone has 0.64
  Sampler top_p(options);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(top_p.Sample(logits), 1);
}

TEST(Generate, ADraftDoesNotChangeTheText) {
  const auto ids = ReferenceModel().tokenizer().Encode("In the kernel, memory is");
  ASSERT_TRUE(ids.ok());
  GenerateOptions options;
  options.max_tokens = 40;
  options.runner = Exact();
  const auto plain = Generate(ReferenceModel(), *ids, options);
  options.draft = &ReferenceModel();  // agrees with itself
  options.draft_tokens = 3;
  const auto drafted = Generate(ReferenceModel(), *ids, options);
  ASSERT_TRUE(plain.ok() && drafted.ok());
  EXPECT_EQ(plain->tokens, drafted->tokens);
  EXPECT_GT(drafted->accepted, 25);
  EXPECT_LT(drafted->decode_passes, plain->decode_passes / 2);
}

// Whatever the cache rounds keys and values to, and whether the draft is right or not.
TEST(Generate, DraftsKeepTheTextWithEveryCacheType) {
  const Model& model = ReferenceModel();
  // A draft that often errs: the same model without the outputs of its last feed-forward.
  Result<QuantizedTensor> nothing =
      QuantizedTensor::Allocate(Format::kF16, model.config().width, model.config().ffn_width);
  ASSERT_TRUE(nothing.ok());
  const auto draft = model.With({{"blk.7.ffn_down.weight", *std::move(nothing)}});
  ASSERT_TRUE(draft.ok()) << draft.status().message();
  const auto ids = model.tokenizer().Encode("The option --verbose makes the program");
  ASSERT_TRUE(ids.ok());
  const CacheType types[] = {CacheType::kF16, CacheType::kQ8_0, CacheType::kQ4_0, CacheType::kInt8};
  for (const CacheType keys : types) {
    for (const CacheType values : types) {
      GenerateOptions options;
      options.max_tokens = 32;
      options.stop_at_end = false;
      options.runner = Exact();
      options.cache.keys = keys;
      options.cache.values = values;
      const auto plain = Generate(model, *ids, options);
      options.draft = &*draft;
      const auto drafted = Generate(model, *ids, options);
      ASSERT_TRUE(plain.ok() && drafted.ok());
      EXPECT_EQ(plain->tokens, drafted->tokens);
      EXPECT_GT(drafted->accepted, 0);
      EXPECT_LT(drafted->accepted, drafted->drafted);
    }
  }
}

TEST(Generate, TruncatesALongPromptIfAsked) {
  std::vector<int32_t> prompt = SomeTokens(400);
  prompt[0] = ReferenceModel().tokenizer().bos();
  GenerateOptions options;
  options.max_tokens = 8;
  options.stop_at_end = false;
  EXPECT_FALSE(Generate(ReferenceModel(), prompt, options).ok());
  options.truncate_prompt = true;
  const auto result = Generate(ReferenceModel(), prompt, options);
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_EQ(result->prompt_tokens, 248);
  EXPECT_EQ(result->left_out, 152);
  EXPECT_EQ(result->tokens.size(), 8u);
  std::vector<int32_t> kept(prompt.end() - 248, prompt.end());
  kept[0] = prompt[0];
  options.truncate_prompt = false;
  const auto same = Generate(ReferenceModel(), kept, options);
  ASSERT_TRUE(same.ok());
  EXPECT_EQ(result->tokens, same->tokens);
  EXPECT_EQ(same->left_out, 0);
  options.max_tokens = 1000;  // more than fits: half of the context is left for the text
  options.truncate_prompt = true;
  const auto half = Generate(ReferenceModel(), prompt, options);
  ASSERT_TRUE(half.ok());
  EXPECT_EQ(half->prompt_tokens, 128);
}

TEST(Generate, RefusesPromptsThatDoNotFit) {
  EXPECT_FALSE(Generate(ReferenceModel(), std::vector<int32_t>{}).ok());
  const auto result = Generate(ReferenceModel(), std::vector<int32_t>(256, 5));
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.status().message().find("context of 256"), std::string::npos);
  // A prompt that fits goes on to the end of the context and stops there.
  GenerateOptions options;
  options.max_tokens = 1000;
  options.stop_at_end = false;
  const auto full = Generate(ReferenceModel(), std::vector<int32_t>(250, 5), options);
  ASSERT_TRUE(full.ok());
  EXPECT_EQ(full->tokens.size(), 7u);  // the last one's successor would be the 257th
}

}  // namespace
}  // namespace nibble
