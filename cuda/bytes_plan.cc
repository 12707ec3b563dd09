#include <algorithm>

#include "cuda/bytes.h"

namespace nibble::cuda {
namespace {

constexpr int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

BytesPlan PlanBytes(int64_t rows, int64_t cols, int64_t tokens, const DeviceLimits& limits) {
  BytesPlan plan;
  plan.row_blocks = DivideUp(rows, kBlockRows);
  const auto bytes = [](int block_tokens, int stages) {
    return int64_t{stages} * BytesStageBytes(block_tokens) + 1024;  // and room to align them
  };
  // The more tokens a block takes, the less it reads from shared memory for each sum; half as many
  // where there would be fewer blocks than processors.
  const bool is_wide = tokens > 128 &&
                       plan.row_blocks * DivideUp(tokens, 256) >= limits.multiprocessors &&
                       bytes(256, 4) <= limits.shared_bytes;
  plan.tokens = tokens <= 64 ? 64 : is_wide ? 256 : 128;
  plan.stages = plan.tokens == 128 ? 3 : 4;
  plan.shared_bytes = bytes(plan.tokens, plan.stages);
  if (plan.shared_bytes > limits.shared_bytes) return BytesPlan();
  plan.blocks = plan.row_blocks * DivideUp(tokens, plan.tokens);
  const int64_t units = DivideUp(cols, kUnitBytes);
  while (limits.has_clusters && plan.splits < 8 &&
         plan.blocks * plan.splits < 2 * limits.multiprocessors &&
         units >= int64_t{8} * plan.splits) {
    plan.splits *= 2;
  }
  plan.split_units = static_cast<int>(DivideUp(units, plan.splits));
  return plan;
}

}  // namespace nibble::cuda
