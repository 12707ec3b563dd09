// The knapsack of budget mixes, against trying everything.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "nibble/budget.h"

namespace nibble {
namespace {

using Items = std::vector<std::vector<AllocationOption>>;

struct Total {
  uint64_t bytes = 0;
  double loss = 0;
};

Total TotalOf(const Items& items, const std::vector<size_t>& choice) {
  Total total;
  for (size_t i = 0; i < items.size(); ++i) {
    total.bytes += items[i][choice[i]].bytes;
    total.loss += items[i][choice[i]].loss;
  }
  return total;
}

// The least loss within the budget; infinite where nothing fits.
double LeastLoss(const Items& items, uint64_t budget, size_t first = 0) {
  if (first == items.size()) return 0;
  double least = std::numeric_limits<double>::infinity();
  for (const AllocationOption& option : items[first]) {
    if (option.bytes > budget) continue;
    least = std::min(least, option.loss + LeastLoss(items, budget - option.bytes, first + 1));
  }
  return least;
}

uint32_t Next(uint32_t& state) { return (state = state * 1664525u + 1013904223u) >> 8; }

TEST(AllocateTest, FindsTheBestOfAll) {
  uint32_t state = 7;
  int checked = 0;
  for (int round = 0; round < 200; ++round) {
    Items items(1 + Next(state) % 7);
    uint64_t smallest = 0, largest = 0;
    for (auto& item : items) {
      const uint64_t unit = 1 + Next(state) % 50;
      double loss = 1 + Next(state) % 1000;
      uint64_t low = UINT64_MAX, high = 0;
      for (uint32_t k = 0; k < 1 + Next(state) % 5; ++k) {
        // Some options are larger and worse than others.
        loss *= 0.2 + static_cast<double>(Next(state) % 1000) / 1000;
        item.push_back({unit * (1 + Next(state) % 9), loss});
        low = std::min(low, item.back().bytes);
        high = std::max(high, item.back().bytes);
      }
      smallest += low;
      largest += high;
    }
    for (int share = 0; share <= 4; ++share) {
      const uint64_t budget = smallest + (largest - smallest) * static_cast<uint64_t>(share) / 4;
      const auto choice = Allocate(items, budget);
      ASSERT_TRUE(choice.ok()) << choice.status().message();
      const Total total = TotalOf(items, *choice);
      EXPECT_LE(total.bytes, budget);
      const double least = LeastLoss(items, budget);
      EXPECT_NEAR(total.loss, least, 1e-4 * least + 1e-9);
      ++checked;
    }
    EXPECT_EQ(Allocate(items, smallest - 1).ok(), false);
  }
  EXPECT_EQ(checked, 1000);
}

TEST(AllocateTest, ManyItemsStayWithinTheBudget) {
  // As a model has them: seven shapes, eight formats, losses of no pattern.
  uint32_t state = 1;
  Items items(1000);
  uint64_t largest = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const uint64_t blocks = (1 + i % 7) * 4096;
    double loss = static_cast<double>(Next(state) % 100000);
    for (const uint64_t bytes : {84, 110, 136, 144, 176, 210, 272, 512}) {
      items[i].push_back({blocks * bytes, loss});
      loss *= 0.1 + static_cast<double>(Next(state) % 1000) / 2000;
    }
    largest += items[i].back().bytes;
  }
  const auto all = Allocate(items, largest);
  ASSERT_TRUE(all.ok());
  for (const size_t option : *all) EXPECT_EQ(option, 7u);
  const uint64_t budget = largest / 4;
  const auto choice = Allocate(items, budget);
  ASSERT_TRUE(choice.ok());
  const Total total = TotalOf(items, *choice);
  EXPECT_LE(total.bytes, budget);
  EXPECT_GE(total.bytes, budget - budget / 1000);
}

TEST(AllocateTest, RefusesWhatIsNoLoss) {
  EXPECT_TRUE(Allocate({}, 0).ok());
  EXPECT_EQ(Allocate(Items{{}}, 10).status().code(), StatusCode::kInvalidArgument);
  for (const double loss :
       {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    EXPECT_EQ(Allocate(Items{{{1, loss}}}, 10).status().code(), StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace nibble
