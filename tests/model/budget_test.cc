// Mixes by budget on the reference model.
#include "nibble/budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "nibble/evaluate.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

const std::string kFolder = std::string(NIBBLE_EXAMPLES) + "/reference-model";

class BudgetTest : public testing::Test {
 protected:
  void SetUp() override {
    auto source = ModelSource::Open(kFolder);
    auto model = Model::Load(kFolder);
    ASSERT_TRUE(source.ok() && model.ok());
    source_.emplace(*std::move(source));
    model_.emplace(*std::move(model));
    const auto text = CutCalibrationText(*model_, ReadWholeFile(kFolder + "/calibration.txt"),
                                         /*context=*/128, /*max_windows=*/16);
    ASSERT_TRUE(text.ok());
    text_ = *text;
    options_.parallel = pool_.parallel_for();
    options_.sample_weights = 1 << 15;
  }

  Sensitivity Measure(const std::optional<Sensitivity>& known = {}) {
    auto result = MeasureSensitivity(*source_, options_, known);
    EXPECT_TRUE(result.ok()) << result.status().message();
    return result.ok() ? *std::move(result) : Sensitivity();
  }

  void MeasureDivergence(int64_t windows) {
    options_.model = &*model_;
    options_.text = &text_;
    options_.windows = windows;
  }

  double Divergence(const ModelPlan& plan) {
    const std::string path = folder_ / "mix.gguf";
    ModelRunOptions run;
    run.parallel = pool_.parallel_for();
    EXPECT_TRUE(WriteModel(*source_, plan, path, {}, run).ok());
    EXPECT_EQ(std::filesystem::file_size(path), *PlannedBytes(plan));
    const auto mix = Model::Load(path);
    EXPECT_TRUE(mix.ok());
    const auto tokens = model_->tokenizer().Encode(ReadWholeFile(kFolder + "/evaluation.txt"));
    PerplexityOptions options;
    options.context = 256;
    options.max_windows = 8;
    options.runner.parallel = pool_.parallel_for();
    options.runner.precision = Precision::kF32;
    options.reference = &*model_;
    return Perplexity(*mix, *tokens, options)->divergence.kl.value;
  }

  ThreadPool pool_{2};
  std::optional<ModelSource> source_;
  std::optional<Model> model_;
  CalibrationText text_;
  SensitivityOptions options_;
  TemporaryFolder folder_;
};

TEST_F(BudgetTest, ErrorsFallWithSize) {
  const Sensitivity sensitivity = Measure();
  ASSERT_EQ(sensitivity.matrices.size(), 57u);  // seven a layer, and the embedding
  for (const MatrixSensitivity& matrix : sensitivity.matrices) {
    EXPECT_FALSE(matrix.kl.has_value());
    ASSERT_EQ(matrix.errors.size(), 8u) << matrix.name;
    for (size_t i = 1; i < matrix.errors.size(); ++i) {
      EXPECT_LT(matrix.errors[i].error, matrix.errors[i - 1].error) << matrix.name;
    }
    const double share = matrix.name == "token_embd.weight" ? 1 : 1.0 / 56;  // the output, too
    EXPECT_DOUBLE_EQ(*matrix.LossOf(Format::kQ4_K), share * *matrix.ErrorOf(Format::kQ4_K));
    EXPECT_FALSE(matrix.LossOf(Format::kQ5_0).has_value());
  }
}

TEST_F(BudgetTest, DivergesLessThanANamedMixOfTheSameSize) {
  MeasureDivergence(2);
  const Sensitivity sensitivity = Measure();
  for (const MatrixSensitivity& matrix : sensitivity.matrices) {
    ASSERT_TRUE(matrix.kl.has_value()) << matrix.name;
    EXPECT_GT(*matrix.kl, 0) << matrix.name;
    EXPECT_DOUBLE_EQ(*matrix.LossOf(matrix.probe), *matrix.kl);
  }
  ModelRecipe recipe;
  recipe.type = "Q3_K_M";
  const ModelPlan named = *PlanModel(*source_, recipe);
  const uint64_t bytes = *PlannedBytes(named);
  const auto mix = PlanBudget(*source_, recipe, {}, sensitivity, {.file_bytes = bytes});
  ASSERT_TRUE(mix.ok()) << mix.status().message();
  EXPECT_LE(*PlannedBytes(mix->plan), bytes);
  EXPECT_GE(*PlannedBytes(mix->plan), bytes - bytes / 100);
  const double before = Divergence(named), after = Divergence(mix->plan);
  EXPECT_LT(after, 0.95 * before) << after << " of " << before;
  // Without a text the shares alone come near, or better.
  options_.model = nullptr;
  options_.text = nullptr;
  const auto rough = PlanBudget(*source_, recipe, {}, Measure(), {.file_bytes = bytes});
  ASSERT_TRUE(rough.ok()) << rough.status().message();
  EXPECT_LT(Divergence(rough->plan), 1.1 * before) << before;
  // The sum over matrices alone foretells the whole.
  EXPECT_NEAR(mix->loss / after, 1, 0.4) << mix->loss << " for " << after;
}

TEST_F(BudgetTest, StaysWithinBothBoundsAndKeepsTheRulesGiven) {
  const Sensitivity sensitivity = Measure();
  ModelRecipe recipe;
  recipe.tensor_types = {*ParseTensorTypeRule("token_embd=q8_0"),
                         *ParseTensorTypeRule("ffn_down=q6_K")};
  for (const double bits : {4.4, 5.0, 6.0, 20.0}) {
    const auto mix = PlanBudget(*source_, recipe, {}, sensitivity, {.bits_per_weight = bits});
    ASSERT_TRUE(mix.ok()) << mix.status().message();
    uint64_t bytes = 0;
    for (const TensorTask& task : mix->plan.tensors) bytes += task.bytes;
    EXPECT_LE(static_cast<double>(8 * bytes), bits * static_cast<double>(mix->plan.weights()));
    EXPECT_EQ(mix->choices.size(), 57u);
    for (const BudgetChoice& choice : mix->choices) {
      const bool down = choice.name.find("ffn_down") != std::string::npos;
      EXPECT_EQ(choice.fixed, down || choice.name == "token_embd.weight") << choice.name;
      if (!choice.fixed) continue;
      EXPECT_EQ(choice.format, down ? Format::kQ6_K : Format::kQ8_0);
    }
    // The recipe alone makes the same plan.
    const auto again = PlanModel(*source_, mix->plan.recipe);
    ASSERT_TRUE(again.ok()) << again.status().message();
    for (size_t i = 0; i < again->tensors.size(); ++i) {
      EXPECT_EQ(again->tensors[i].choice.format, mix->plan.tensors[i].choice.format);
    }
    const uint64_t file = *PlannedBytes(mix->plan);
    const auto smaller = PlanBudget(*source_, recipe, {}, sensitivity,
                                    {.bits_per_weight = bits, .file_bytes = file - 1});
    EXPECT_TRUE(!smaller.ok() || *PlannedBytes(smaller->plan) < file);
  }
  const std::vector<Format> few = {Format::kQ4_K, Format::kQ8_0};
  const auto narrow = PlanBudget(*source_, recipe, {}, sensitivity, {.bits_per_weight = 6}, few);
  ASSERT_TRUE(narrow.ok());
  for (const BudgetChoice& choice : narrow->choices) {
    EXPECT_TRUE(choice.fixed || std::ranges::find(few, choice.format) != few.end());
  }
}

TEST_F(BudgetTest, RefusesWhatCannotBe) {
  const Sensitivity sensitivity = Measure();
  const auto code = [&](const Budget& budget, const Sensitivity& with) {
    return PlanBudget(*source_, {}, {}, with, budget).status().code();
  };
  EXPECT_EQ(code({}, sensitivity), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.bits_per_weight = 2}, sensitivity), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({.file_bytes = 1000}, sensitivity), StatusCode::kInvalidArgument);
  Sensitivity lacking = sensitivity;
  lacking.matrices.pop_back();
  EXPECT_EQ(code({.bits_per_weight = 5}, lacking), StatusCode::kNotFound);
}

TEST_F(BudgetTest, ResumesFromAFileAndRefusesAnother) {
  MeasureDivergence(1);
  options_.at_once = 4;
  const std::string path = folder_ / "sensitivity.json";
  // Stopped after some matrices.
  int pieces = 0;
  options_.keep = [&](const Sensitivity& so_far) {
    EXPECT_TRUE(so_far.Save(path).ok());
    return ++pieces == 4 ? Cancelled("enough") : OkStatus();
  };
  EXPECT_EQ(MeasureSensitivity(*source_, options_).status().code(), StatusCode::kCancelled);
  Sensitivity known = *Sensitivity::Load(path);
  const auto measured = [](const Sensitivity& s) {
    return std::ranges::count_if(s.matrices, [](const auto& m) { return m.kl.has_value(); });
  };
  EXPECT_EQ(measured(known), 12);
  known.matrices[3].kl = 123.0;  // what is known is not measured again
  options_.keep = nullptr;
  const Sensitivity all = Measure(known);
  EXPECT_EQ(measured(all), 57);
  EXPECT_EQ(all.matrices[3].kl, 123.0);
  ASSERT_TRUE(all.Save(path).ok());
  const auto loaded = Sensitivity::Load(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  for (size_t i = 0; i < all.matrices.size(); ++i) {
    EXPECT_EQ(loaded->matrices[i].name, all.matrices[i].name);
    EXPECT_EQ(loaded->matrices[i].kl, all.matrices[i].kl);
    for (const FormatError& error : all.matrices[i].errors) {
      EXPECT_EQ(loaded->matrices[i].ErrorOf(error.format), error.error);
    }
  }

  const auto refusal = [&](const Sensitivity& other) {
    return MeasureSensitivity(*source_, options_, other).status().message();
  };
  Sensitivity other = all;
  other.source[0] ^= 1;
  EXPECT_NE(refusal(other).find("another model"), std::string::npos);
  other = all;
  other.text[0] ^= 1;
  EXPECT_NE(refusal(other).find("another calibration text"), std::string::npos);
  other = all;
  other.importance = "x";
  EXPECT_NE(refusal(other).find("another importance matrix"), std::string::npos);
}

TEST_F(BudgetTest, FilesAreHostile) {
  const std::string path = folder_ / "x.json";
  for (const char* text :
       {"", "[]", "{}", R"({"version": 2, "matrices": []})", R"({"version": 1})",
        R"({"version": 1, "matrices": [1]})",
        R"({"version": 1, "matrices": [{"name": "a", "probe": "q9"}]})",
        R"({"version": 1, "matrices": [{"name": "a", "probe": "q3_K", "kl": -1}]})",
        R"({"version": 1, "matrices": [{"name": "a", "probe": "q3_K", "kl": "1"}]})",
        R"({"version": 1, "matrices": [{"probe": "q3_K", "errors": {"q4_K": -0.5}}]})",
        R"({"version": 1, "matrices": [{"probe": "q3_K", "errors": {"nothing": 0.5}}]})",
        R"({"version": 1, "matrices": [{"probe": "q3_K", "errors": [1]}]})"}) {
    std::ofstream(path) << text;
    EXPECT_FALSE(Sensitivity::Load(path).ok()) << text;
  }
  std::ofstream(path) << R"({"version": 1, "source": "s", "matrices": [{"name": "a",
      "probe": "q3_K", "errors": {"q4_K": 0.5}, "kl": 2}]})";
  const auto loaded = Sensitivity::Load(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->matrices[0].kl, 2.0);
  EXPECT_FALSE(Sensitivity::Load(folder_ / "none.json").ok());
}

}  // namespace
}  // namespace nibble
