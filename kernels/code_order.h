// The orders in which the 256 codes of a super-block come out of wide vectors (64 bytes), and thus
// in which kernels that use these keep activations: the bits of a block lie so that vectors of 32
// bytes come out in the order of the columns, and two of these side by side do not.
#ifndef NIBBLE_KERNELS_CODE_ORDER_H_
#define NIBBLE_KERNELS_CODE_ORDER_H_

#include <cstdint>

namespace nibble {

enum class CodeOrder : uint8_t {
  kNatural,
  kKNibbles,      // runs of 32: 0 and 2, 1 and 3, 4 and 6, 5 and 7
  kTwoBits,       // 0 and 4, 1 and 5, 2 and 6, 3 and 7
  kSplitNibbles,  // the first halves of runs 0 to 3, their second halves, those of 4 to 7
};

// The column whose code is at `place`.
constexpr int ColumnAt(CodeOrder order, int place) {
  const int vector = place / 64, byte = place % 64;
  switch (order) {
    case CodeOrder::kKNibbles:
      return 32 * (vector / 2 * 4 + byte / 32 * 2 + vector % 2) + byte % 32;
    case CodeOrder::kTwoBits:
      return 128 * (byte / 32) + 32 * vector + byte % 32;
    case CodeOrder::kSplitNibbles:
      return 128 * (vector / 2) + 32 * (byte / 16) + 16 * (vector % 2) + byte % 16;
    default:
      return place;
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CODE_ORDER_H_
