// AWQ on the reference model, as it is and with planted outliers.
#include "nibble/awq.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/method_fixture.h"

namespace nibble {
namespace {

class AwqTest : public MethodTest {
 protected:
  struct Outcome {
    double rounded, awq;  // KL from the model
    std::vector<AwqReport> reports;
  };

  Outcome Try(const ModelSource& source, const QuantizationTarget& target) {
    AwqOptions options;
    options.target = [&](std::string_view) { return target; };
    options.inputs = inputs_;
    options.steps = 5;
    Outcome outcome;
    const Model model = Loaded(source);
    const auto edits = Awq(source, model, calibration_, options, &outcome.reports);
    EXPECT_TRUE(edits.ok()) << edits.status().message();
    const Model prepared = Loaded(Edited(source, *edits));
    outcome.rounded = Compare(Rounded(model, target)).kl.value;
    outcome.awq = Compare(Rounded(prepared, target)).kl.value;
    RecordProperty("rounded", std::to_string(outcome.rounded));
    RecordProperty("awq", std::to_string(outcome.awq));
    EXPECT_EQ(outcome.reports.size(), static_cast<size_t>(4 * model.config().layers));
    for (const AwqReport& report : outcome.reports) {
      EXPECT_LE(report.error_scaled, report.error_before) << report.producer;
      EXPECT_LE(report.error_clipped, report.error_scaled * (1 + 1e-6)) << report.producer;
      EXPECT_GT(report.error_clipped, 0);
    }
    return outcome;
  }
};

TEST_F(AwqTest, BeatsRoundingOfGroups) {
  const Outcome outcome = Try(*source_, *ParseScheme("int3 asym g128 f16"));
  EXPECT_LT(outcome.awq, 0.8 * outcome.rounded) << outcome.awq << " of " << outcome.rounded;
}

TEST_F(AwqTest, IsAPrePassForBlockFormats) {
  const Outcome outcome = Try(WithOutliers(30), Format::kQ3_K);
  EXPECT_LT(outcome.awq, 0.7 * outcome.rounded) << outcome.awq << " of " << outcome.rounded;
}

TEST_F(AwqTest, WinsClearlyWhereThereAreOutliers) {
  const Outcome outcome = Try(WithOutliers(30), *ParseScheme("int4 asym g128 f16"));
  EXPECT_LT(outcome.awq, 0.4 * outcome.rounded) << outcome.awq << " of " << outcome.rounded;
}

TEST_F(AwqTest, NeedsATarget) {
  EXPECT_EQ(Awq(*source_, *model_, calibration_, {}).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
