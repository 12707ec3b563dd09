// A multiple-choice knapsack: Pareto lists of partial sums, item after item, cut down by the bound
// of the Lagrangian relaxation.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "nibble/budget.h"

namespace nibble {
namespace {

// Partial sums that compete at once, at most.
constexpr size_t kMostSums = 1 << 16;
// What a further search must promise, as a share of the loss: losses are measured no better.
constexpr double kWorth = 1e-4;

struct Choice {
  uint64_t bytes;
  double loss;
  size_t index;  // among the options given
};

// The options that no other beats in both size and loss, from small to large.
std::vector<Choice> Frontier(const std::vector<AllocationOption>& options) {
  std::vector<Choice> sorted;
  for (size_t i = 0; i < options.size(); ++i) {
    sorted.push_back({options[i].bytes, options[i].loss, i});
  }
  std::ranges::stable_sort(sorted, [](const Choice& a, const Choice& b) {
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.loss < b.loss;
  });
  std::vector<Choice> frontier;
  for (const Choice& choice : sorted) {
    if (frontier.empty() || choice.loss < frontier.back().loss) frontier.push_back(choice);
  }
  return frontier;
}

using Frontiers = std::vector<std::vector<Choice>>;

struct Sum {
  uint64_t bytes = 0;
  double loss = 0;
};

// The choices of least loss + price * bytes; of equals the smallest.
Sum AtPrice(const Frontiers& items, double price, std::vector<size_t>* choice) {
  Sum sum;
  for (size_t i = 0; i < items.size(); ++i) {
    size_t best = 0;
    double least = std::numeric_limits<double>::infinity();
    for (size_t k = 0; k < items[i].size(); ++k) {
      const double cost = items[i][k].loss + price * static_cast<double>(items[i][k].bytes);
      if (cost < least) {
        least = cost;
        best = k;
      }
    }
    (*choice)[i] = best;
    sum.bytes += items[i][best].bytes;
    sum.loss += items[i][best].loss;
  }
  return sum;
}

// Spends what is left of the budget where it saves most a byte.
void Fill(const Frontiers& items, uint64_t budget, std::vector<size_t>& choice, Sum& sum) {
  for (;;) {
    double best_rate = 0;
    size_t best_item = 0, best_option = 0;
    for (size_t i = 0; i < items.size(); ++i) {
      const Choice& now = items[i][choice[i]];
      for (size_t k = choice[i] + 1; k < items[i].size(); ++k) {
        const uint64_t more = items[i][k].bytes - now.bytes;
        if (sum.bytes + more > budget) break;
        const double rate = (now.loss - items[i][k].loss) / static_cast<double>(more);
        if (rate > best_rate) {
          best_rate = rate;
          best_item = i;
          best_option = k;
        }
      }
    }
    if (best_rate == 0) return;
    const Choice& from = items[best_item][choice[best_item]];
    const Choice& to = items[best_item][best_option];
    sum.bytes += to.bytes - from.bytes;
    sum.loss += to.loss - from.loss;
    choice[best_item] = best_option;
  }
}

// A partial sum: of the items so far, and how it came about.
struct Partial {
  uint64_t bytes;
  double loss;
  uint32_t parent;  // among the sums one item before
  uint32_t option;
};

// What the items from each one on cost at least.
struct Remainder {
  std::vector<uint64_t> bytes;  // the smallest options
  std::vector<double> cost;     // loss + price * bytes
};

Remainder RemainderOf(const Frontiers& items, double price) {
  Remainder rest{std::vector<uint64_t>(items.size() + 1), std::vector<double>(items.size() + 1)};
  for (size_t i = items.size(); i-- > 0;) {
    double least = std::numeric_limits<double>::infinity();
    for (const Choice& choice : items[i]) {
      least = std::min(least, choice.loss + price * static_cast<double>(choice.bytes));
    }
    rest.bytes[i] = rest.bytes[i + 1] + items[i].front().bytes;
    rest.cost[i] = rest.cost[i + 1] + least;
  }
  return rest;
}

// Keeps those that no other beats, in order of size.
void KeepBest(std::vector<Partial>& sums) {
  std::ranges::sort(sums, [](const Partial& a, const Partial& b) {
    if (a.bytes != b.bytes) return a.bytes < b.bytes;
    if (a.loss != b.loss) return a.loss < b.loss;
    return a.parent != b.parent ? a.parent < b.parent : a.option < b.option;
  });
  size_t kept = 0;
  for (const Partial& sum : sums) {
    if (kept == 0 || sum.loss < sums[kept - 1].loss) sums[kept++] = sum;
  }
  sums.resize(kept);
}

// Improves on `choice`, of the loss `known`, where anything can by more than kWorth of it.
void Search(const Frontiers& items, uint64_t budget, double price, double known,
            std::vector<size_t>& choice) {
  const Remainder rest = RemainderOf(items, price);
  const double worth = known * (1 - kWorth);
  std::vector<std::vector<Partial>> stages{{{0, 0.0, 0, 0}}};
  for (size_t i = 0; i < items.size(); ++i) {
    const std::vector<Partial>& before = stages.back();
    std::vector<Partial> after;
    const auto bound = [&](const Partial& sum) {
      return sum.loss + rest.cost[i + 1] +
             price * (static_cast<double>(sum.bytes) - static_cast<double>(budget));
    };
    for (size_t s = 0; s < before.size(); ++s) {
      for (size_t k = 0; k < items[i].size(); ++k) {
        const Partial sum{before[s].bytes + items[i][k].bytes, before[s].loss + items[i][k].loss,
                          static_cast<uint32_t>(s), static_cast<uint32_t>(k)};
        if (sum.bytes + rest.bytes[i + 1] > budget) break;  // the larger options too
        if (bound(sum) < worth) after.push_back(sum);
      }
    }
    KeepBest(after);
    if (after.size() > kMostSums) {
      const auto middle = after.begin() + static_cast<std::ptrdiff_t>(kMostSums);
      std::nth_element(after.begin(), middle, after.end(),
                       [&](const Partial& a, const Partial& b) { return bound(a) < bound(b); });
      after.resize(kMostSums);
      KeepBest(after);
    }
    if (after.empty()) return;  // nothing is better than what is known
    stages.push_back(std::move(after));
  }
  uint32_t at = static_cast<uint32_t>(stages.back().size() - 1);  // the largest has the least loss
  for (size_t i = items.size(); i-- > 0;) {
    const Partial& sum = stages[i + 1][at];
    choice[i] = sum.option;
    at = sum.parent;
  }
}

}  // namespace

Result<std::vector<size_t>> Allocate(std::span<const std::vector<AllocationOption>> options,
                                     uint64_t budget) {
  Frontiers items;
  Sum smallest;
  for (const std::vector<AllocationOption>& item : options) {
    if (item.empty()) return InvalidArgument("an item without an option");
    for (const AllocationOption& option : item) {
      if (!std::isfinite(option.loss) || option.loss < 0 || option.bytes > (uint64_t{1} << 56)) {
        return InvalidArgument("an option whose loss or size is none");
      }
    }
    items.push_back(Frontier(item));
    smallest.bytes += items.back().front().bytes;
  }
  if (smallest.bytes > budget) {
    return InvalidArgument("the smallest choice takes " + std::to_string(smallest.bytes) +
                           " bytes, more than " + std::to_string(budget));
  }
  // The least price at which the choices fit, by bisection of its logarithm; at no price there is
  // nothing left to search.
  std::vector<size_t> choice(items.size()), trial(items.size());
  double price = 0;
  Sum sum = AtPrice(items, price, &choice);
  if (sum.bytes > budget) {
    double low = -700, high = 700;
    for (int step = 0; step < 100; ++step) {
      const double middle = (low + high) / 2;
      const bool fits = AtPrice(items, std::exp(middle), &trial).bytes <= budget;
      (fits ? high : low) = middle;
    }
    price = std::exp(high);
    sum = AtPrice(items, price, &choice);
    Fill(items, budget, choice, sum);
    Search(items, budget, price, sum.loss, choice);
  }
  std::vector<size_t> result;
  for (size_t i = 0; i < items.size(); ++i) result.push_back(items[i][choice[i]].index);
  return result;
}

}  // namespace nibble
