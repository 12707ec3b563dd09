// SmoothQuant and LLM.int8() on the reference model's layers, as they are and with planted
// outliers.
#include "nibble/smoothquant.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "nibble/llm_int8.h"
#include "tests/method_fixture.h"

namespace nibble {
namespace {

class SmoothQuantTest : public MethodTest {
 protected:
  // Mean of the relative errors of all pairs' products in int8.
  double Mean(const std::vector<SmoothQuantReport>& reports, bool after) const {
    double sum = 0;
    for (const SmoothQuantReport& r : reports) sum += after ? r.error_after : r.error_before;
    return sum / static_cast<double>(reports.size());
  }

  std::vector<SmoothQuantReport> Smooth(const ModelSource& source, SmoothQuantOptions options,
                                        ModelEdits* edits = nullptr) {
    options.inputs = inputs_;
    std::vector<SmoothQuantReport> reports;
    auto result = SmoothQuant(source, Loaded(source), calibration_, options, &reports);
    EXPECT_TRUE(result.ok()) << result.status().message();
    if (edits != nullptr) *edits = *std::move(result);
    return reports;
  }
};

TEST_F(SmoothQuantTest, LowersTheErrorOfInt8Products) {
  const auto plain = Smooth(*source_, {});
  ASSERT_EQ(plain.size(), static_cast<size_t>(4 * model_->config().layers));
  for (const SmoothQuantReport& r : plain) EXPECT_LE(r.error_after, r.error_before) << r.producer;
  EXPECT_LT(Mean(plain, true), 0.8 * Mean(plain, false));
}

TEST_F(SmoothQuantTest, WinsClearlyWhereThereAreOutliers) {
  const ModelSource planted = WithOutliers(60);
  SmoothQuantOptions fixed;
  fixed.search = false;
  fixed.between_matrices = false;
  ModelEdits edits;
  const auto reports = Smooth(planted, fixed, &edits);
  ASSERT_EQ(reports.size(), static_cast<size_t>(2 * model_->config().layers));
  EXPECT_LT(Mean(reports, true), 0.1 * Mean(reports, false));
  SmoothQuantOptions searched = fixed;
  searched.search = true;
  EXPECT_LE(Mean(Smooth(planted, searched), true), Mean(reports, true));
  // The function is the same.
  const Divergence divergence = Compare(Loaded(Edited(planted, edits)));
  EXPECT_LT(divergence.kl.value, 1e-6);
}

// LLM.int8() on what the matrices see, on tokens that the columns were not chosen from.
TEST_F(SmoothQuantTest, OutlierColumnsSaveInt8Products) {
  const ModelSource planted = WithOutliers(60);
  const Model model = Loaded(planted);
  const std::vector<std::string> names = {"blk.0.attn_q.weight", "blk.4.ffn_gate.weight",
                                          "blk.7.attn_k.weight"};
  std::map<std::string, std::vector<int32_t>, std::less<>> columns;
  ASSERT_TRUE(VisitLayerInputs(model, calibration_, names, inputs_,
                               [&](std::string_view name, const LayerInputs& inputs) {
                                 float sum = 0;
                                 for (const float maximum : inputs.maxima) sum += maximum;
                                 const float mean = sum / static_cast<float>(inputs.maxima.size());
                                 columns[std::string(name)] =
                                     OutlierColumns(inputs.maxima, 4 * mean);
                                 return OkStatus();
                               })
                  .ok());
  const auto check = [&](std::string_view name, const LayerInputs& inputs) -> Status {
    const auto matrix = model.Matrix(name);
    const int64_t rows = matrix->rows(), cols = matrix->cols(), tokens = inputs.sample_count();
    const TensorView x = ViewOf(inputs.samples.data(), tokens, cols);
    std::vector<float> w(static_cast<size_t>(rows * cols));
    NIBBLE_RETURN_IF_ERROR(Dequantize(*matrix, ViewOf(w.data(), rows, cols)));
    std::vector<float> exact(static_cast<size_t>(tokens * rows)), y(exact.size());
    MatmulOptions options;
    options.precision = Precision::kF32;
    NIBBLE_RETURN_IF_ERROR(Matmul(x, *matrix, ViewOf(exact.data(), tokens, rows), options));
    const auto error = [&](std::span<const int32_t> outliers) {
      const auto split = SplitOutliers(ViewOf(std::as_const(w).data(), rows, cols), outliers);
      EXPECT_TRUE(split.ok());
      EXPECT_TRUE(Matmul(x, *split, ViewOf(y.data(), tokens, rows)).ok());
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += (y[i] - exact[i]) * (y[i] - exact[i]);
      return sum;
    };
    const std::vector<int32_t>& found = columns.find(name)->second;
    EXPECT_GE(found.size(), 2u) << name;
    EXPECT_LE(found.size(), 10u) << name;
    EXPECT_LT(error(found), 0.1 * error({})) << name;
    return OkStatus();
  };
  ASSERT_TRUE(VisitLayerInputs(model, {evaluation_, kContext}, names, inputs_, check).ok());
}

// The whole model in integers: weights by row, inputs by token.
TEST_F(SmoothQuantTest, ModelsRunInInt8) {
  TemporaryFolder folder;
  PerplexityOptions options;
  options.context = kContext;
  options.runner.precision = Precision::kF32;
  options.runner.parallel = inputs_.parallel;
  ASSERT_TRUE(SaveReferenceLogits(*model_, evaluation_, folder / "logits", options).ok());
  options.reference_logits = folder / "logits";
  options.runner.precision = Precision::kInt8PerRow;
  const auto divergence = [&](const ModelSource& source) {
    const Model model = Loaded(source);
    Matrices matrices;
    ForMatrices(model, [&](const std::string& name, const Tensor& weights) {
      matrices.emplace(name, *Quantize(weights.view(), *ParseScheme("int8 sym channel")));
    });
    const auto result = Perplexity(*model.With(std::move(matrices)), evaluation_, options);
    EXPECT_TRUE(result.ok()) << result.status().message();
    return result->divergence.kl.value;
  };
  const ModelSource planted = WithOutliers(60);
  SmoothQuantOptions smooth;
  smooth.search = false;
  ModelEdits edits;
  Smooth(planted, smooth, &edits);
  const double before = divergence(planted), after = divergence(Edited(planted, edits));
  RecordProperty("nearest", std::to_string(before));
  RecordProperty("smoothquant", std::to_string(after));
  EXPECT_LT(after, 0.2 * before) << after << " of " << before;
}

TEST_F(SmoothQuantTest, ChecksItsOptions) {
  SmoothQuantOptions options;
  options.alpha = 1.5f;
  EXPECT_EQ(SmoothQuant(*source_, *model_, calibration_, options).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
