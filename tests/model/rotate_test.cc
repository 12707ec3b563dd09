// Rotations folded into the weights.
#include "nibble/rotate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "nibble/quantize_model.h"
#include "tests/method_fixture.h"

namespace nibble {
namespace {

TEST(Rotation, IsOrthogonal) {
  for (const int64_t n : {1, 2, 8, 9, 96, 256, 576}) {
    const Rotation q(n, 3);
    // Row i of the matrix is what becomes of the i-th unit vector.
    std::vector<float> rows(static_cast<size_t>(n * n));
    for (int64_t i = 0; i < n; ++i) {
      rows[static_cast<size_t>(i * n + i)] = 1;
      q.Apply(rows.data() + i * n);
    }
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double dot = 0;
        for (int64_t k = 0; k < n; ++k) {
          dot += static_cast<double>(rows[static_cast<size_t>(i * n + k)]) *
                 rows[static_cast<size_t>(j * n + k)];
        }
        worst = std::max(worst, std::fabs(dot - (i == j)));
        largest =
            std::max(largest, std::fabs(static_cast<double>(rows[static_cast<size_t>(i * n + j)])));
      }
    }
    EXPECT_LT(worst, 1e-5) << n;
    // A large input spreads over all channels.
    EXPECT_LE(largest * std::sqrt(static_cast<double>(n)), 1.5) << n;
    // Elements apart from each other, the same.
    std::vector<float> apart(static_cast<size_t>(3 * n)), close(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      apart[static_cast<size_t>(3 * i)] = close[static_cast<size_t>(i)] =
          std::sin(static_cast<float>(i));
    }
    q.Apply(apart.data(), 3);
    q.Apply(close.data());
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(apart[static_cast<size_t>(3 * i)], close[static_cast<size_t>(i)]);
    }
    std::vector<float> other(static_cast<size_t>(n), 1.0f), one = other;
    Rotation(n, 4).Apply(other.data());
    q.Apply(one.data());
    EXPECT_EQ(other == one, n == 1 && other == one) << n;
  }
}

class RotateTest : public MethodTest {
 protected:
  // The largest weight of each group over the root mean square of the group, on average.
  double Peaks(const Model& model) const {
    double sum = 0;
    int64_t groups = 0;
    ForMatrices(model, [&](const std::string&, const Tensor& weights) {
      for (int64_t r = 0; r < weights.rows(); ++r) {
        const float* row = static_cast<const float*>(weights.view().Row(r));
        for (int64_t g = 0; g + 128 <= weights.cols(); g += 128, ++groups) {
          double squares = 0, largest = 0;
          for (int64_t i = g; i < g + 128; ++i) {
            squares += static_cast<double>(row[i]) * row[i];
            largest = std::max(largest, std::fabs(static_cast<double>(row[i])));
          }
          sum += largest / std::sqrt(squares / 128);
        }
      }
    });
    return sum / static_cast<double>(groups);
  }
};

TEST_F(RotateTest, LeavesTheFunction) {
  for (const RotateOptions options :
       {RotateOptions{}, RotateOptions{.residual = false}, RotateOptions{.values = false}}) {
    const auto edits = Rotate(*source_, options);
    ASSERT_TRUE(edits.ok()) << edits.status().message();
    const Model rotated = Loaded(Edited(*source_, *edits));
    EXPECT_LT(LargestDifference(Logits(*model_), Logits(rotated)), 1e-2);
    // One matrix less, and it is another function.
    ModelEdits broken = *edits;
    ASSERT_EQ(broken.edits.erase("blk.2.attn_output.weight"), 1u);
    EXPECT_GT(LargestDifference(Logits(*model_), Logits(Loaded(Edited(*source_, broken)))), 1.0);
  }
}

TEST_F(RotateTest, IsExportedAsAModelOfTheSameKind) {
  const auto edits = Rotate(*source_);
  ASSERT_TRUE(edits.ok());
  const ModelSource rotated = Edited(*source_, *edits);
  TemporaryFolder folder;
  ModelRecipe recipe;
  recipe.type = "q8_0";
  const auto plan = PlanModel(rotated, recipe);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  ASSERT_TRUE(WriteModel(rotated, *plan, folder / "rotated.gguf").ok());
  const auto file = ModelSource::Open(folder / "rotated.gguf");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->tensors().size(), source_->tensors().size() + 1);  // the output's own matrix
  EXPECT_LT(Compare(Loaded(*file)).kl.value, 1e-3);
}

TEST_F(RotateTest, FlattensOutliersAndHelpsRounding) {
  const ModelSource planted = WithOutliers(30);
  const auto edits = Rotate(planted);
  ASSERT_TRUE(edits.ok());
  const Model before = Loaded(planted), after = Loaded(Edited(planted, *edits));
  EXPECT_LT(Peaks(after), Peaks(before));
  const Scheme scheme = *ParseScheme("int4 asym g128 f16");
  const double rounded = Compare(Rounded(before, scheme)).kl.value;
  const double rotated = Compare(Rounded(after, scheme)).kl.value;
  RecordProperty("rounded", std::to_string(rounded));
  RecordProperty("rotated", std::to_string(rotated));
  EXPECT_LT(rotated, 0.5 * rounded) << rotated << " of " << rounded;
}

}  // namespace
}  // namespace nibble
