// Forecasts against what comes true, and the advice that follows from them.
#include "nibble/estimate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "nibble/tensor_error.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

const std::string kFolder = std::string(NIBBLE_EXAMPLES) + "/reference-model";

ModelSource ReferenceSource() {
  Result<ModelSource> source = ModelSource::Open(kFolder);
  if (!source.ok()) {
    ADD_FAILURE() << source.status().message();
    std::abort();
  }
  return *std::move(source);
}

ModelShape ShapeOf(const ModelSource& source) {
  return {source.metadata(), {source.tensors().begin(), source.tensors().end()}};
}

TEST(ForecastType, ComesTrue) {
  const ModelSource source = ReferenceSource();
  const TemporaryFolder folder;
  ThreadPool pool(2);
  ForecastOptions options;
  options.parallel = pool.parallel_for();
  for (const char* type : {"Q8_0", "Q4_K_M", "Q2_K"}) {
    const auto forecast = ForecastType(source, type, options);
    ASSERT_TRUE(forecast.ok()) << forecast.status().message();
    EXPECT_EQ(forecast->type, type);
    ModelRecipe recipe;
    recipe.type = type;
    const auto plan = PlanModel(source, recipe);
    ASSERT_TRUE(plan.ok());
    const std::string path = folder / (std::string(type) + ".gguf");
    ASSERT_TRUE(WriteModel(source, *plan, path).ok());
    EXPECT_EQ(forecast->file_bytes, std::filesystem::file_size(path));

    const Result<ModelSource> made = ModelSource::Open(path);
    ASSERT_TRUE(made.ok());
    ErrorSums total;
    for (const SampledTensor& tensor : forecast->tensors) {
      const auto error =
          CompareTensors(source, *source.Find(tensor.name), *made, *made->Find(tensor.name), {});
      ASSERT_TRUE(error.ok());
      EXPECT_EQ(tensor.weights, error->weights);
      EXPECT_EQ(tensor.format, made->Find(tensor.name)->format);
      total.Add(*error);
    }
    // Half of the rows tell the error of all within a few hundredths of its decibels.
    EXPECT_NEAR(*forecast->SnrDb(), total.SnrDb(), 0.15) << type;
    EXPECT_GT(forecast->quantize_seconds, 0);
    EXPECT_GT(forecast->quantize_memory, 4096u * 256 * 2);  // the embedding's bytes
    EXPECT_LT(forecast->quantize_memory, 64u << 20);
  }
}

TEST(ForecastType, WithoutASampleReadsNothingAndWithoutChangeLosesNothing) {
  const ModelSource source = ReferenceSource();
  ForecastOptions options;
  options.sample_weights = 0;
  const auto blind = ForecastType(source, "q4_k_m", options);
  ASSERT_TRUE(blind.ok());
  EXPECT_FALSE(blind->Nmse().has_value());
  EXPECT_EQ(blind->type, "Q4_K_M");
  EXPECT_EQ(blind->decode_limit, 0);  // of an unknown machine
  options.sample_weights = 1000;
  const auto copy = ForecastType(source, kCopyType, options);
  ASSERT_TRUE(copy.ok());
  EXPECT_EQ(*copy->Nmse(), 0);
  EXPECT_TRUE(std::isinf(*copy->SnrDb()));
  EXPECT_FALSE(ForecastType(source, "Q9_Z", options).ok());
}

TEST(ForecastType, ImportanceMovesTheErrors) {
  const ModelSource source = ReferenceSource();
  ImportanceMatrix importance;
  for (const ModelTensor& tensor : source.tensors()) {
    if (tensor.dims.size() < 2) continue;
    LayerStatistics layer;
    layer.cols = tensor.cols();
    layer.counts = {1};
    for (int64_t c = 0; c < tensor.cols(); ++c) {
      layer.sum_squares.push_back(c % 8 == 0 ? 100.0f : 0.01f);
    }
    importance.layers[tensor.name] = layer;
  }
  ForecastOptions options;
  options.sample_weights = 4096;
  const auto plain = ForecastType(source, "Q3_K_M", options);
  options.importance = &importance;
  const auto weighed = ForecastType(source, "Q3_K_M", options);
  ASSERT_TRUE(plain.ok() && weighed.ok());
  EXPECT_GT(*weighed->Nmse(), 1.05 * *plain->Nmse());  // others pay for the columns that count
}

TEST(ForeseeFootprint, IsWhatTheRunnerTakes) {
  const Result<Model> model = Model::Load(kFolder);
  ASSERT_TRUE(model.ok());
  FootprintOptions options;
  options.context = 100;
  options.sequences = 3;
  for (const CacheType type : {CacheType::kF16, CacheType::kQ8_0, CacheType::kInt8}) {
    options.cache.keys = options.cache.values = type;
    const auto footprint = ForeseeFootprint(ShapeOf(ReferenceSource()), options);
    ASSERT_TRUE(footprint.ok()) << footprint.status().message();
    Result<KvCache> cache = KvCache::Create(model->config(), options.cache);
    ASSERT_TRUE(cache.ok());
    Runner runner(*model, {});
    const std::vector<int32_t> tokens(100, 5);
    std::vector<float> hidden;
    for (int i = 0; i < 3; ++i) {
      const SequenceInput input{cache->AddSequence(), tokens, false};
      ASSERT_TRUE(runner.Forward(*cache, {&input, 1}, &hidden).ok());
    }
    EXPECT_EQ(footprint->cache, cache->used_bytes());
    EXPECT_GT(footprint->weights, 2 * 7344384u);  // f16, and norms
    EXPECT_EQ(footprint->total(), footprint->weights + footprint->cache + footprint->scratch);
  }
  // Scratch grows with the tokens at once; the rest does not.
  options.batch_tokens = 512;
  const auto large = ForeseeFootprint(ShapeOf(ReferenceSource()), options);
  options.batch_tokens = 1;
  const auto small = ForeseeFootprint(ShapeOf(ReferenceSource()), options);
  EXPECT_EQ(large->cache, small->cache);
  EXPECT_GT(large->scratch, 10 * small->scratch);
}

TEST(CostOfToken, ReadsAnUntiedEmbeddingByTheRow) {
  std::vector<GgufTensorInfo> tensors(3);
  tensors[0].name = "token_embd.weight";
  tensors[0].format = Format::kF16;
  tensors[0].dims = {64, 100};
  tensors[1].name = "blk.0.ffn_up.weight";
  tensors[1].format = Format::kQ8_0;
  tensors[1].dims = {64, 10};
  tensors[2].name = "output.weight";
  tensors[2].format = Format::kF16;
  tensors[2].dims = {64, 100};
  const TokenCost untied = CostOfToken(tensors);
  EXPECT_EQ(untied.read_bytes, 128u + 10 * 68 + 12800);
  EXPECT_EQ(untied.multiply_adds, 640u);
  tensors.pop_back();
  EXPECT_EQ(CostOfToken(tensors).read_bytes, 12800u + 10 * 68);
}

TEST(UsualShape, HasAboutTheWeightsAskedFor) {
  for (const double weights : {1e9, 7e9, 13e9, 70e9}) {
    const auto shape = UsualShape(static_cast<uint64_t>(weights));
    ASSERT_TRUE(shape.ok());
    double sum = 0;
    for (const GgufTensorInfo& t : shape->tensors) {
      sum += static_cast<double>(t.rows()) * static_cast<double>(t.cols());
    }
    EXPECT_NEAR(sum / weights, 1, 0.06) << weights;
    ForecastOptions options;
    options.machine.read_bytes_per_second = 20e9;
    const auto forecast = ForecastType(*shape, "Q4_K_M", options);
    ASSERT_TRUE(forecast.ok()) << forecast.status().message();
    EXPECT_NEAR(forecast->bits_per_weight, 4.85, 0.15);
    // A token takes the time to read what is stored, the embedding's table aside, and the cache.
    EXPECT_GT(forecast->decode_limit, 20e9 / static_cast<double>(forecast->footprint.total()));
    EXPECT_LT(forecast->decode_limit, 24e9 / static_cast<double>(forecast->footprint.weights));
  }
  EXPECT_FALSE(UsualShape(1000).ok());
}

TEST(MeasureMachine, FindsPlausibleFigures) {
  const auto machine = MeasureMachine({});
  ASSERT_TRUE(machine.ok()) << machine.status().message();
  EXPECT_GT(machine->read_bytes_per_second, 1e8);
  EXPECT_GT(machine->multiply_adds_per_second, 1e8);
}

TypeForecast Made(const std::string& type, uint64_t bytes, double nmse) {
  TypeForecast forecast;
  forecast.type = type;
  forecast.file_bytes = bytes;
  forecast.footprint.weights = bytes;
  forecast.bits_per_weight = static_cast<double>(bytes) / 10;
  forecast.decode_limit = 1000.0 / static_cast<double>(bytes);
  forecast.sampled = true;
  forecast.tensors = {{"t", Format::kQ4_0, 100, 1.0, nmse}};
  return forecast;
}

std::string Order(const std::vector<TypeForecast>& forecasts, const Advice& advice) {
  std::string order;
  for (const RankedType& r : advice.ranking) {
    if (!r.fits && order.find('|') == std::string::npos) order += "|";
    order += forecasts[r.index].type;
  }
  return order;
}

TEST(Advise, RanksWhatFitsByErrorOrBySize) {
  const std::vector<TypeForecast> forecasts = {Made("A", 80, 1e-4), Made("B", 50, 3e-3),
                                               Made("C", 45, 2e-3), Made("D", 30, 2e-2)};
  AdviceGoal goal;
  Advice advice = Advise(forecasts, goal);
  EXPECT_EQ(Order(forecasts, advice), "ACBD");
  EXPECT_TRUE(advice.found);
  EXPECT_TRUE(advice.method == Method::kRtn && !advice.importance);  // 40 dB
  EXPECT_EQ(advice.ranking[2].reasons, std::vector<std::string>{"C is smaller and closer"});
  goal.max_file_bytes = 50;
  advice = Advise(forecasts, goal);
  EXPECT_EQ(Order(forecasts, advice), "CBD|A");
  EXPECT_TRUE(advice.method == Method::kRtn && advice.importance);  // 27 dB
  EXPECT_EQ(advice.ranking[3].reasons, std::vector<std::string>{"file 1.6 times the limit"});
  goal.max_memory_bytes = 40;
  EXPECT_EQ(Order(forecasts, Advise(forecasts, goal)), "D|CBA");
  EXPECT_EQ(Advise(forecasts, goal).method, Method::kGptq);  // 17 dB
  goal.min_snr_db = 20;
  advice = Advise(forecasts, goal);
  EXPECT_EQ(Order(forecasts, advice), "|DCBA");
  EXPECT_FALSE(advice.found);
  AdviceGoal small;
  small.smallest = true;
  small.min_snr_db = 25;
  EXPECT_EQ(Order(forecasts, Advise(forecasts, small)), "CBA|D");
  AdviceGoal fast;
  fast.min_decode = 1000.0 / 47;
  EXPECT_EQ(Order(forecasts, Advise(forecasts, fast)), "CD|BA");
}

TEST(Advise, TakesBitsForQualityWithoutASample) {
  std::vector<TypeForecast> forecasts = {Made("A", 30, 0), Made("B", 50, 0)};
  for (TypeForecast& forecast : forecasts) forecast.sampled = false;
  const Advice advice = Advise(forecasts, {});
  EXPECT_EQ(Order(forecasts, advice), "BA");
  EXPECT_TRUE(advice.method == Method::kRtn && advice.importance);  // 5 bits
  EXPECT_TRUE(Advise({}, {}).ranking.empty());
}

}  // namespace
}  // namespace nibble
