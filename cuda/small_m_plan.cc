#include "cuda/small_m.h"

namespace nibble::cuda {
namespace {

// Shared memory for activations: as much as leaves room for two blocks on a Hopper processor.
constexpr int64_t kActivationBytes = 66 * 1024;

constexpr int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t BlocksOfAll(const RecordTraits& traits, const SmallMPlan& plan,
                    std::span<const ProductSize> members) {
  int64_t blocks = 0;
  for (const ProductSize& member : members) blocks += BlocksOf(traits, plan, member);
  return blocks;
}

}  // namespace

SmallMPlan PlanSmallM(const RecordTraits& traits, std::span<const ProductSize> members,
                      int64_t records, int record_bytes, const DeviceLimits& limits) {
  SmallMPlan plan;
  plan.record_bytes = record_bytes;
  for (const ProductSize& member : members) {
    plan.tokens = std::max(plan.tokens, static_cast<int>(member.tokens));
  }
  const int tokens = plan.tokens;
  const int most_splits = limits.has_clusters ? kMostSplits : 1;
  const auto blocks = [&] { return BlocksOfAll(traits, plan, members); };

  // Every block reads all activations of its columns from the second-level cache: its rows are so
  // many that this is at most about a quarter of what it reads of weights ...
  const int wanted = 4 * tokens / (traits.warp_tiles * traits.bits);
  while (plan.row_groups < kWarps && plan.row_groups < wanted) plan.row_groups *= 2;
  // ... as long as there are blocks for every processor.
  while (plan.row_groups > 1 && blocks() * most_splits < limits.multiprocessors) {
    plan.row_groups /= 2;
  }
  // Columns are split until there are two blocks a processor, each with some records a warp.
  const int phases = kWarps / plan.row_groups;
  while (plan.splits < most_splits && blocks() * plan.splits < 2 * limits.multiprocessors &&
         records >= int64_t{4} * plan.splits * phases) {
    plan.splits *= 2;
  }
  plan.split_records = static_cast<int>(DivideUp(records, plan.splits));

  SmallMPlan probe = plan;
  probe.tokens = 0;
  const SmallMShared bare(probe, traits);
  const int64_t rings = bare.rings + int64_t{kWarps} * bare.ring_bytes;
  const int64_t room = std::min<int64_t>(kActivationBytes, limits.shared_bytes - rings);
  const int64_t record_room = (room / tokens - 16) / (2 * traits.cols);
  if (record_room < 1) return SmallMPlan();
  plan.segment_records = static_cast<int>(std::min<int64_t>(plan.split_records, record_room));
  const SmallMShared layout(plan, traits);
  plan.shared_bytes = layout.rings + int64_t{kWarps} * layout.ring_bytes;
  plan.blocks = blocks();
  return plan;
}

}  // namespace nibble::cuda
