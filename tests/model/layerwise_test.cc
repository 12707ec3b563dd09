// Whole models quantized with error feedback, against the importance search on the same text.
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "nibble/calibrate.h"
#include "nibble/evaluate.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

const std::string kFolder = std::string(NIBBLE_EXAMPLES) + "/reference-model";

class LayerwiseTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<Model> model = Model::Load(kFolder);
    ASSERT_TRUE(model.ok()) << model.status().message();
    model_.emplace(*std::move(model));
    Result<ModelSource> source = ModelSource::Open(kFolder);
    ASSERT_TRUE(source.ok());
    source_.emplace(*std::move(source));
    const auto calibration =
        model_->tokenizer().Encode(ReadWholeFile(kFolder + "/calibration.txt"));
    const auto evaluation = model_->tokenizer().Encode(ReadWholeFile(kFolder + "/evaluation.txt"));
    ASSERT_TRUE(calibration.ok() && evaluation.ok());
    calibration_ = *calibration;
    evaluation_ = *evaluation;
    options_.context = 256;
    options_.max_windows = 24;
    options_.gptq.parallel = pool_.parallel_for();
  }

  // The matrices of layers in `type`, the rest as it is.
  ModelPlan Plan(const std::string& type, const ImportanceMatrix* importance = nullptr) {
    ModelRecipe recipe;
    recipe.type = type;
    recipe.pure = true;
    recipe.tensor_types = {*ParseTensorTypeRule("token_embd.weight=f16")};
    recipe.importance = importance;
    auto plan = PlanModel(*source_, recipe);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    return *std::move(plan);
  }

  // Mean squares of all inputs over the calibration windows.
  ImportanceMatrix Importance() {
    ImportanceMatrix matrix;
    RunnerOptions run;
    run.precision = Precision::kF32;
    run.parallel = pool_.parallel_for();
    run.observer = [&](std::string_view name, TensorView x) {
      LayerStatistics& layer = matrix.layers[std::string(name)];
      layer.cols = x.cols;
      layer.sum_squares.resize(static_cast<size_t>(x.cols));
      layer.counts.resize(1);
      layer.counts[0] += x.rows;
      for (int64_t r = 0; r < x.rows; ++r) {
        const float* row = static_cast<const float*>(x.Row(r));
        for (int64_t j = 0; j < x.cols; ++j) {
          layer.sum_squares[static_cast<size_t>(j)] += row[j] * row[j];
        }
      }
    };
    PerplexityOptions options;
    options.context = options_.context;
    options.max_windows = options_.max_windows;
    options.runner = run;
    EXPECT_TRUE(Perplexity(*model_, calibration_, options).ok());
    matrix.layers.erase("token_embd.weight");
    return matrix;
  }

  // Mean KL divergence of a file from the model, on text that calibration has not seen.
  double Divergence(const std::string& path) {
    const auto quantized = Model::Load(path);
    EXPECT_TRUE(quantized.ok()) << quantized.status().message();
    PerplexityOptions options;
    options.context = options_.context;
    options.max_windows = 8;
    options.runner.precision = Precision::kF32;
    options.runner.parallel = pool_.parallel_for();
    options.reference = &*model_;
    const auto result = Perplexity(*quantized, evaluation_, options);
    EXPECT_TRUE(result.ok()) << result.status().message();
    return result->divergence.kl.value;
  }

  ThreadPool pool_{2};
  std::optional<Model> model_;
  std::optional<ModelSource> source_;
  std::vector<int32_t> calibration_, evaluation_;
  LayerwiseOptions options_;
  TemporaryFolder folder_;
};

TEST_F(LayerwiseTest, DivergesLessThanTheImportanceSearch) {
  const ImportanceMatrix importance = Importance();
  ModelRunOptions run;
  run.parallel = pool_.parallel_for();
  const ModelPlan searched = Plan("q2_K", &importance);
  ASSERT_TRUE(WriteModel(*source_, searched, folder_ / "searched.gguf", {}, run).ok());

  const ModelPlan plan = Plan("q2_K");
  int matrices = 0;
  options_.progress = [&](std::string_view, const GptqReport& report) {
    ++matrices;
    return report.output_error < 0.2 * report.weight_energy;
  };
  const auto fed = QuantizeLayerwise(*model_, plan, calibration_, options_);
  ASSERT_TRUE(fed.ok()) << fed.status().message();
  EXPECT_EQ(matrices, 7 * model_->config().layers);
  run.ready = &*fed;
  const auto written = WriteModel(*source_, plan, folder_ / "fed.gguf", {}, run);
  ASSERT_TRUE(written.ok()) << written.status().message();

  const double before = Divergence(folder_ / "searched.gguf");
  const double after = Divergence(folder_ / "fed.gguf");
  RecordProperty("searched", std::to_string(before));
  RecordProperty("fed", std::to_string(after));
  EXPECT_LT(after, 0.8 * before) << after << " of " << before;
  // The file says that its recipe does not tell everything.
  bool importance_needed = false;
  EXPECT_FALSE(
      ReadRecipe(GgufFile::Open(folder_ / "fed.gguf")->metadata(), &importance_needed).ok());
}

TEST_F(LayerwiseTest, RefusesWhatItCannotUse) {
  const ModelPlan plan = Plan("q4_K");
  const auto message = [&](std::span<const int32_t> tokens) {
    return QuantizeLayerwise(*model_, plan, tokens, options_).status().message();
  };
  EXPECT_NE(message(std::span(calibration_).first(255)).find("255 tokens"), std::string::npos);
  std::vector<int32_t> wrong(calibration_.begin(), calibration_.begin() + 256);
  wrong[7] = -1;
  EXPECT_NE(message(wrong).find("token -1"), std::string::npos);
  options_.context = 100000;
  EXPECT_NE(message(calibration_).find("100000"), std::string::npos);
  options_.context = 256;
  options_.max_windows = 1;
  options_.progress = [](std::string_view, const GptqReport&) { return false; };
  EXPECT_EQ(QuantizeLayerwise(*model_, plan, calibration_, options_).status().code(),
            StatusCode::kCancelled);

  // Ready tensors that are not the plan's.
  const auto other = QuantizedTensor::Allocate(Format::kQ2_K, 256, 256);
  std::map<std::string, QuantizedTensor, std::less<>> ready{{"blk.0.attn_q.weight", *other}};
  ModelRunOptions run;
  run.ready = &ready;
  const auto written = WriteModel(*source_, plan, folder_ / "x.gguf", {}, run);
  EXPECT_NE(written.status().message().find("blk.0.attn_q.weight"), std::string::npos);
  EXPECT_TRUE(folder_.List().empty());
}

}  // namespace
}  // namespace nibble
