#include "nibble/target.h"

#include <algorithm>
#include <cstdlib>

#include "gtest/gtest.h"
#include "tests/targets.h"

namespace nibble {
namespace {

class TargetTest : public EveryTarget {};

TEST_P(TargetTest, IsTheOneThatWasForced) { EXPECT_EQ(CurrentTarget(), GetParam()); }

NIBBLE_ON_EVERY_TARGET(TargetTest);

TEST(TargetsTest, UnknownNamesAreRefusedAndChangeNothing) {
  const std::string before = CurrentTarget();
  const Status status = ForceTarget("z80");
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find(before), std::string::npos);  // tells what can run
  EXPECT_EQ(CurrentTarget(), before);
}

TEST(TargetsTest, TheCurrentOneIsSupported) {
  const auto targets = SupportedTargets();
  EXPECT_NE(std::find(targets.begin(), targets.end(), CurrentTarget()), targets.end());
  ASSERT_TRUE(ForceTarget("").ok());
  EXPECT_EQ(CurrentTarget(), targets.front());
  // Set where the processor is emulated.
  if (const char* best = std::getenv("NIBBLE_TEST_BEST_TARGET")) {
    EXPECT_EQ(CurrentTarget(), best);
  }
}

}  // namespace
}  // namespace nibble
