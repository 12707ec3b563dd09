#include <algorithm>

#include "cuda/gemm.h"

namespace nibble::cuda {
namespace {

constexpr int kMostSplits = 8;  // blocks of a portable cluster
constexpr int kMostStages = 4;

constexpr int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

GemmPlan PlanGemm(int record_cols, std::span<const ProductSize> members, int64_t records,
                  int record_bytes, const DeviceLimits& limits) {
  GemmPlan plan;
  plan.record_bytes = record_bytes;
  const bool few = std::all_of(members.begin(), members.end(),
                               [](const ProductSize& member) { return member.tokens <= 64; });
  plan.tokens = few ? 64 : 128;
  if (2 * GemmStageBytes(plan.tokens, record_cols, record_bytes) + 1024 > limits.shared_bytes) {
    plan.tokens = 64;
  }
  const int64_t stage = GemmStageBytes(plan.tokens, record_cols, record_bytes);
  if (2 * stage + 1024 > limits.shared_bytes) return GemmPlan();
  // As many stages as leave room for a second block, which works while the first one waits.
  plan.stages = static_cast<int>(
      std::clamp<int64_t>((limits.shared_bytes / 2 - 2048) / stage, 2, kMostStages));
  plan.shared_bytes = plan.stages * stage + 1024;  // and room to align them
  for (const ProductSize& member : members) plan.blocks += BlocksOf(plan, member);
  const int most_splits = limits.has_clusters ? kMostSplits : 1;
  while (plan.splits < most_splits && plan.blocks * plan.splits < 2 * limits.multiprocessors &&
         records >= int64_t{8} * plan.splits) {
    plan.splits *= 2;
  }
  plan.split_records = static_cast<int>(DivideUp(records, plan.splits));
  return plan;
}

}  // namespace nibble::cuda
