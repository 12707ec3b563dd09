// Tests that run once on every instruction set the machine has.
#ifndef NIBBLE_TESTS_TARGETS_H_
#define NIBBLE_TESTS_TARGETS_H_

#include <string>

#include "gtest/gtest.h"
#include "nibble/target.h"

namespace nibble {

// class MyTest : public EveryTarget {};  TEST_P(MyTest, ...) ...  NIBBLE_ON_EVERY_TARGET(MyTest);
class EveryTarget : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    before_ = CurrentTarget();
    ASSERT_TRUE(ForceTarget(GetParam()).ok());
  }
  void TearDown() override { EXPECT_TRUE(ForceTarget(before_).ok()); }

 private:
  std::string before_;
};

#define NIBBLE_ON_EVERY_TARGET(Fixture)                                             \
  INSTANTIATE_TEST_SUITE_P(Targets, Fixture, testing::ValuesIn(SupportedTargets()), \
                           [](const auto& info) { return info.param; })

}  // namespace nibble

#endif  // NIBBLE_TESTS_TARGETS_H_
