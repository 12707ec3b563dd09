// Whole models quantized with error feedback, against the importance search on the same text.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "lib/model/activations.h"
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
    const auto calibration = CutCalibrationText(
        *model_, ReadWholeFile(kFolder + "/calibration.txt"), /*context=*/256, /*max_windows=*/24);
    const auto evaluation = model_->tokenizer().Encode(ReadWholeFile(kFolder + "/evaluation.txt"));
    ASSERT_TRUE(calibration.ok() && evaluation.ok());
    calibration_ = *calibration;
    evaluation_ = *evaluation;
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
    options.context = calibration_.context;
    options.runner = run;
    EXPECT_TRUE(Perplexity(*model_, calibration_.tokens, options).ok());
    matrix.layers.erase("token_embd.weight");
    return matrix;
  }

  // Mean KL divergence of a file from the model, on text that calibration has not seen.
  double Divergence(const std::string& path) {
    const auto quantized = Model::Load(path);
    EXPECT_TRUE(quantized.ok()) << quantized.status().message();
    PerplexityOptions options;
    options.context = calibration_.context;
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
  CalibrationText calibration_;
  std::vector<int32_t> evaluation_;
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
  ModelProgress last;
  options_.progress = [&](const ModelProgress& progress) {
    EXPECT_GE(progress.weights_done, last.weights_done);
    last = progress;
    return true;
  };
  const auto fed = QuantizeLayerwise(*model_, plan, calibration_, options_);
  ASSERT_TRUE(fed.ok()) << fed.status().message();
  EXPECT_EQ(fed->reports.size(), static_cast<size_t>(7 * model_->config().layers));
  EXPECT_EQ(last.index, fed->reports.size());
  EXPECT_EQ(last.weights_done, last.weights_total);
  for (const MatrixReport& report : fed->reports) {
    EXPECT_TRUE(report.feedback) << report.name;
    EXPECT_LT(report.gptq.output_error, 0.2 * report.gptq.weight_energy) << report.name;
  }
  EXPECT_TRUE(CalibrationNotices(fed->reports).empty());
  run.ready = &fed->tensors;
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

// Activations on disk are the same activations, and leave nothing behind.
TEST_F(LayerwiseTest, ActivationsMayLieOnDisk) {
  ModelRecipe recipe;
  recipe.type = "F16";
  recipe.tensor_types = {*ParseTensorTypeRule("blk\\.[01]\\.=q3_K")};
  const ModelPlan plan = *PlanModel(*source_, recipe);
  calibration_.tokens.resize(512);
  options_.gptq.sweeps = 0;
  const auto in_memory = QuantizeLayerwise(*model_, plan, calibration_, options_);
  ASSERT_TRUE(in_memory.ok()) << in_memory.status().message();
  options_.activations = {.memory_bytes = 0, .folder = folder_.path()};
  const auto on_disk = QuantizeLayerwise(*model_, plan, calibration_, options_);
  ASSERT_TRUE(on_disk.ok()) << on_disk.status().message();
  ASSERT_EQ(on_disk->tensors.size(), 14u);
  for (const auto& [name, tensor] : in_memory->tensors) {
    EXPECT_TRUE(std::ranges::equal(tensor.plane(Plane::kCodes).bytes(),
                                   on_disk->tensors.at(name).plane(Plane::kCodes).bytes()))
        << name;
  }
  EXPECT_TRUE(folder_.List().empty());

  options_.activations.folder = folder_ / "none";
  const Status missing = QuantizeLayerwise(*model_, plan, calibration_, options_).status();
  EXPECT_EQ(missing.code(), StatusCode::kNotFound);
  EXPECT_NE(missing.message().find("none: no file for activations"), std::string::npos)
      << missing.message();
  StatisticsOptions statistics;
  statistics.activations = options_.activations;
  EXPECT_EQ(VisitHessians(*model_, calibration_, statistics,
                          [](const SharedInputs&, const Hessian&) { return OkStatus(); })
                .code(),
            StatusCode::kNotFound);
}

TEST(Activations, LieWhereTheyFit) {
  const TemporaryFolder folder;
  for (const bool on_disk : {false, true}) {
    const ActivationMemory where = {.memory_bytes = size_t{48000} - (on_disk ? 1 : 0),
                                    .folder = folder.path()};
    auto made = Activations::Create(1000, 12, where);
    ASSERT_TRUE(made.ok()) << made.status().message();
    EXPECT_EQ(made->on_disk(), on_disk);
    EXPECT_TRUE(folder.List().empty());
    for (int i = 0; i < 12000; ++i) {
      EXPECT_EQ(made->data()[i], 0.0f);
      made->data()[i] = static_cast<float>(i);
    }
    Activations moved = *std::move(made);
    EXPECT_EQ(moved.data()[11999], 11999.0f);
  }
  const ActivationMemory disk = {.memory_bytes = 0, .folder = folder.path()};
  EXPECT_FALSE(Activations::Create(int64_t{1} << 40, 1 << 20, disk).ok());
  EXPECT_TRUE(Activations::Create(0, 8, disk).ok());
}

TEST_F(LayerwiseTest, RefusesWhatItCannotUse) {
  const ModelPlan plan = Plan("q4_K");
  const auto cut = [&](int64_t context) {
    return CutCalibrationText(*model_, "A short text.", context).status().message();
  };
  EXPECT_NE(cut(256).find("fewer than a window of 256"), std::string::npos) << cut(256);
  EXPECT_NE(cut(100000).find("100000"), std::string::npos) << cut(100000);
  EXPECT_EQ(QuantizeLayerwise(*model_, plan, {}, options_).status().code(),
            StatusCode::kInvalidArgument);
  CalibrationText wrong = calibration_;
  wrong.tokens.resize(256);
  wrong.tokens[7] = -1;
  EXPECT_NE(QuantizeLayerwise(*model_, plan, wrong, options_).status().message().find("token -1"),
            std::string::npos);
  options_.progress = [](const ModelProgress&) { return false; };
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

class CalibrationTroubleTest : public LayerwiseTest {
 protected:
  // Two windows through the first layers of the reference model with one number of a norm replaced.
  Result<CalibratedTensors> Quantize(const std::string& norm, int64_t index, float value) {
    const std::string path = folder_ / "edited.gguf";
    ModelRecipe f16;
    f16.type = "F16";
    EXPECT_TRUE(WriteModel(*source_, *PlanModel(*source_, f16), path).ok());
    const uint64_t offset = GgufFile::Open(path)->Find(norm)->file_offset;
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset) + 4 * index);
    file.write(reinterpret_cast<const char*>(&value), sizeof(value));
    file.close();
    edited_source_.emplace(*ModelSource::Open(path));
    edited_.emplace(*Model::Load(path));
    ModelRecipe recipe;
    recipe.type = "F16";
    recipe.tensor_types = {*ParseTensorTypeRule("blk\\.[01]\\.=q4_K")};
    const ModelPlan plan = *PlanModel(*edited_source_, recipe);
    CalibrationText text = calibration_;
    text.tokens.resize(512);
    options_.gptq.sweeps = 0;
    return QuantizeLayerwise(*edited_, plan, text, options_);
  }

  std::optional<ModelSource> edited_source_;
  std::optional<Model> edited_;
};

TEST_F(CalibrationTroubleTest, DeadInputsAndRaisedDampingAreToldOnce) {
  options_.gptq.damping = 0;  // 512 tokens leave the 768 inputs of ffn_down dependent
  const auto result = Quantize("blk.0.attn_norm.weight", 3, 0.0f);
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_EQ(result->reports.size(), 14u);
  for (const MatrixReport& report : result->reports) {
    const bool dead = report.name == "blk.0.attn_q.weight" ||
                      report.name == "blk.0.attn_k.weight" || report.name == "blk.0.attn_v.weight";
    EXPECT_EQ(report.gptq.dead_columns, dead ? 1 : 0) << report.name;
    EXPECT_EQ(report.gptq.damping_raised, report.gptq.damping > 0) << report.name;
    EXPECT_TRUE(report.gptq.damping_raised || report.name != "blk.0.ffn_down.weight");
  }
  const std::vector<std::string> notices = CalibrationNotices(result->reports);
  ASSERT_EQ(notices.size(), 2u);
  EXPECT_NE(notices[0].find("damping was raised"), std::string::npos) << notices[0];
  EXPECT_NE(notices[1].find("3 matrices (blk.0.attn_q.weight first)"), std::string::npos)
      << notices[1];
}

TEST_F(CalibrationTroubleTest, AnActivationThatIsNotFiniteNamesItsMatrix) {
  const auto result = Quantize("blk.1.ffn_norm.weight", 5, std::numeric_limits<float>::quiet_NaN());
  const std::string message = result.status().message();
  EXPECT_TRUE(message.starts_with("blk.1.ffn_gate.weight: ")) << message;
  EXPECT_NE(message.find("window 0, token 0, column 5"), std::string::npos) << message;
}

}  // namespace
}  // namespace nibble
