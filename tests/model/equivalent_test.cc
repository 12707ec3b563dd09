// Changes that leave a model's function as it is.
#include "nibble/equivalent.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "nibble/quantize_model.h"
#include "tests/method_fixture.h"

namespace nibble {
namespace {

class EquivalentTest : public MethodTest {
 protected:
  // Factors between 1/4 and 4.
  static std::vector<float> SomeFactors(int64_t count, uint32_t seed, bool powers_of_two) {
    std::vector<float> factors;
    for (int64_t i = 0; i < count; ++i) {
      seed = seed * 1664525u + 1013904223u;
      const float exponent = static_cast<float>(seed >> 8) * 0x1p-22f - 2;
      factors.push_back(std::exp2(powers_of_two ? std::round(exponent) : exponent));
    }
    return factors;
  }
};

TEST_F(EquivalentTest, FactorsOfEveryPairLeaveTheLogits) {
  const std::vector<float> before = Logits(*model_);
  const auto pairs = ChannelPairs(*source_);
  ASSERT_TRUE(pairs.ok());
  ASSERT_EQ(static_cast<int64_t>(pairs->size()), 4 * model_->config().layers);
  ModelEdits exact, edits, broken;
  uint32_t seed = 1;
  for (const ChannelPair& pair : *pairs) {
    ASSERT_TRUE(MoveFactors(pair, SomeFactors(pair.channels, ++seed, true), exact).ok());
    const std::vector<float> factors = SomeFactors(pair.channels, seed, false);
    ASSERT_TRUE(MoveFactors(pair, factors, edits).ok());
    ChannelPair half = pair;  // one consumer goes without
    half.consumers.pop_back();
    ASSERT_TRUE(MoveFactors(half, factors, broken).ok());
  }
  // Powers of two round nothing but the least of the cached f16 values; others do.
  EXPECT_LT(LargestDifference(before, Logits(Loaded(Edited(*source_, exact)))), 1e-3);
  const ModelSource edited = Edited(*source_, edits);
  EXPECT_LT(LargestDifference(before, Logits(Loaded(edited))), 1e-2);
  EXPECT_GT(LargestDifference(before, Logits(Loaded(Edited(*source_, broken)))), 1.0);

  // Written to a file and read again, it is the same to the bit.
  TemporaryFolder folder;
  ModelRecipe recipe;
  recipe.type = "f32";
  const auto plan = PlanModel(edited, recipe);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  ASSERT_TRUE(WriteModel(edited, *plan, folder / "edited.gguf").ok());
  const auto again = Model::Load(folder / "edited.gguf");
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(Logits(*again), Logits(Loaded(edited)));
}

TEST_F(EquivalentTest, RefusesWrongEdits) {
  const auto pairs = ChannelPairs(*source_);
  ModelEdits edits;
  const auto refused = [&](std::vector<float> factors) {
    return MoveFactors(pairs->front(), factors, edits).code() == StatusCode::kInvalidArgument;
  };
  std::vector<float> factors(static_cast<size_t>(pairs->front().channels), 1.0f);
  EXPECT_FALSE(refused(factors));
  factors[3] = 0;
  EXPECT_TRUE(refused(factors));
  factors[3] = NAN;
  EXPECT_TRUE(refused(factors));
  factors.pop_back();
  EXPECT_TRUE(refused(factors));
  ModelEdits unknown;
  unknown.edits["blk.99.nothing"].push_back([](MutableTensorView) { return OkStatus(); });
  EXPECT_EQ(source_->Edited(unknown).status().code(), StatusCode::kNotFound);
  ModelEdits taken;
  taken.copies["output_norm.weight"] = "token_embd.weight";
  EXPECT_EQ(source_->Edited(taken).status().code(), StatusCode::kInvalidArgument);
  // What an edit says comes with the tensor's name.
  ModelEdits failing;
  failing.edits["output_norm.weight"].push_back(
      [](MutableTensorView) { return InvalidArgument("no"); });
  EXPECT_NE(Model::Load(*source_->Edited(failing)).status().message().find("output_norm.weight"),
            std::string::npos);
}

TEST_F(EquivalentTest, OtherMatricesTakeTheirPlaces) {
  const std::string name = "blk.3.ffn_up.weight";
  const auto matrix = model_->Matrix(name);
  ASSERT_TRUE(matrix.ok());
  const auto zero = QuantizedTensor::Allocate(Format::kF32, matrix->rows(), matrix->cols());
  const auto changed = model_->With({{name, *zero}});
  ASSERT_TRUE(changed.ok());
  EXPECT_GT(LargestDifference(Logits(*model_), Logits(*changed)), 0.1);
  EXPECT_EQ(Logits(*model_), Logits(*changed->With({{name, *matrix}})));
  EXPECT_FALSE(model_->With({{"blk.3.ffn_gate.weights", *zero}}).ok());
  EXPECT_FALSE(model_->With({{"blk.3.attn_q.weight", *zero}}).ok());
  EXPECT_FALSE(model_->Matrix("blk.8.ffn_up.weight").ok());
}

TEST_F(EquivalentTest, LayerInputsAreSeenOnce) {
  const std::vector<std::string> names = {"blk.0.attn_q.weight", "blk.7.ffn_down.weight",
                                          "blk.2.attn_output.weight"};
  std::map<std::string, LayerInputs> whole, parts;
  const auto keep = [](std::map<std::string, LayerInputs>& into) {
    return [&into](std::string_view name, const LayerInputs& inputs) -> Status {
      into.emplace(name, inputs);
      return OkStatus();
    };
  };
  inputs_.samples = 100;
  int64_t last = 0, total = 0;
  inputs_.progress = [&](int64_t done, int64_t batches) {
    last = done;
    total = batches;
    return true;
  };
  ASSERT_TRUE(VisitLayerInputs(*model_, calibration_, names, inputs_, keep(whole)).ok());
  EXPECT_EQ(last, total);
  inputs_.memory_bytes = 1;  // a run for each
  ASSERT_TRUE(VisitLayerInputs(*model_, calibration_, names, inputs_, keep(parts)).ok());
  EXPECT_EQ(last, total);
  ASSERT_EQ(whole.size(), 3u);
  for (const auto& [name, inputs] : whole) {
    EXPECT_EQ(inputs.hessian.tokens(), static_cast<int64_t>(calibration_.tokens.size()));
    EXPECT_LE(inputs.sample_count(), 100);
    EXPECT_GE(inputs.sample_count(), 90);
    EXPECT_EQ(inputs.hessian.sums(), parts.at(name).hessian.sums()) << name;
    EXPECT_EQ(inputs.samples, parts.at(name).samples);
    const std::vector<float> squares = inputs.hessian.MeanSquares();
    for (size_t i = 0; i < squares.size(); ++i) {
      EXPECT_GE(inputs.maxima[i] * inputs.maxima[i], squares[i]);
    }
  }
  const auto code = [&](const CalibrationText& text, std::vector<std::string> wanted) {
    return VisitLayerInputs(*model_, text, wanted, inputs_, keep(whole)).code();
  };
  EXPECT_EQ(code({}, names), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(calibration_, {"blk.0.attn_norm.weight"}), StatusCode::kNotFound);
  inputs_.progress = [](int64_t, int64_t) { return false; };
  EXPECT_EQ(code(calibration_, names), StatusCode::kCancelled);
}

TEST_F(EquivalentTest, InputsThatAreNotFiniteAreNamed) {
  ModelEdits edits;
  edits.edits["blk.1.ffn_norm.weight"].push_back([](MutableTensorView weights) {
    static_cast<float*>(weights.data)[5] = INFINITY;
    return OkStatus();
  });
  const std::vector<std::string> names = {"blk.0.attn_q.weight", "blk.1.ffn_gate.weight"};
  const Status status =
      VisitLayerInputs(Loaded(Edited(*source_, edits)), calibration_, names, inputs_,
                       [](std::string_view, const LayerInputs&) { return OkStatus(); });
  EXPECT_NE(status.message().find("blk.1.ffn_gate.weight"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("column 5"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace nibble
