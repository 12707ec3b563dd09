// Norms fitted to quantized matrices.
#include "nibble/refit_norms.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nibble/quantize_model.h"
#include "tests/method_fixture.h"

namespace nibble {
namespace {

class RefitNormsTest : public MethodTest {};

TEST_F(RefitNormsTest, BringsTheOutputsNearer) {
  Matrices matrices;
  ForMatrices(*model_, [&](const std::string& name, const Tensor& weights) {
    QuantizeOptions options;
    options.parallel = inputs_.parallel;
    const auto q = Quantize(weights.view(), Format::kQ2_K, options);
    ASSERT_TRUE(q.ok());
    matrices.emplace(name, *q);
  });
  RefitNormsOptions options;
  options.inputs = inputs_;
  std::vector<RefitNormReport> reports;
  const auto edits = RefitNorms(*source_, *model_, matrices, calibration_, options, &reports);
  ASSERT_TRUE(edits.ok()) << edits.status().message();
  ASSERT_EQ(reports.size(), static_cast<size_t>(2 * model_->config().layers));
  double before = 0, after = 0;
  for (const RefitNormReport& report : reports) {
    EXPECT_LE(report.error_after, report.error_before) << report.norm;
    before += report.error_before;
    after += report.error_after;
  }
  EXPECT_LT(after, 0.97 * before);

  const Quantizer ready = [&](const std::string& name, TensorView) -> Result<QuantizedTensor> {
    return matrices.at(name);
  };
  const ModelSource refitted = Edited(*source_, *edits);
  const double kl = Compare(Quantized(*model_, ready)).kl.value;
  const double refitted_kl = Compare(Quantized(Loaded(refitted), ready)).kl.value;
  RecordProperty("quantized", std::to_string(kl));
  RecordProperty("refitted", std::to_string(refitted_kl));
  EXPECT_LT(refitted_kl, kl);

  // In a file: the matrices as they were made, the norms refitted.
  TemporaryFolder folder;
  ModelRecipe recipe;
  recipe.type = "q2_K";
  recipe.pure = true;
  recipe.tensor_types = {*ParseTensorTypeRule("token_embd.weight=f16")};
  const auto plan = PlanModel(refitted, recipe);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  ModelRunOptions run;
  run.ready = &matrices;
  const auto written = WriteModel(refitted, *plan, folder / "refitted.gguf", {}, run);
  ASSERT_TRUE(written.ok()) << written.status().message();
  EXPECT_NEAR(Compare(Loaded(*ModelSource::Open(folder / "refitted.gguf"))).kl.value, refitted_kl,
              0.01 * refitted_kl);
}

TEST_F(RefitNormsTest, WithNothingQuantizedNothingChanges) {
  RefitNormsOptions options;
  options.inputs = inputs_;
  std::vector<RefitNormReport> reports;
  const auto edits = RefitNorms(*source_, *model_, {}, calibration_, options, &reports);
  ASSERT_TRUE(edits.ok());
  for (const RefitNormReport& report : reports) {
    EXPECT_NEAR(report.error_before, 0, 1e-6) << report.norm;
  }
  EXPECT_LT(Compare(Loaded(Edited(*source_, *edits))).kl.value, 1e-6);
  options.damping = 0;
  EXPECT_FALSE(RefitNorms(*source_, *model_, {}, calibration_, options).ok());
  const auto small = QuantizedTensor::Allocate(Format::kF32, 2, 2);
  options.damping = 0.01;
  EXPECT_FALSE(
      RefitNorms(*source_, *model_, {{"blk.0.attn_q.weight", *small}}, calibration_, options).ok());
}

}  // namespace
}  // namespace nibble
