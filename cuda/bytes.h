// Products of weights and activations of eight bits, int8 or f8_e4m3, with a scale for each row of
// either: the whole kernel but for its barriers, for device and host. Weights are used as they are.
//
// A thread block is eight warps, of 16 rows of weights each, by kTokens tokens, whose sums stay in
// registers. Units of 128 columns of both operands come to shared memory, several ahead, in the
// 128-byte swizzle (cuda/warp.h).
#ifndef NIBBLE_CUDA_BYTES_H_
#define NIBBLE_CUDA_BYTES_H_

#include <cstdint>

#include "cuda/async_copy.h"
#include "cuda/block_sums.h"
#include "cuda/multiply_bytes.h"
#include "cuda/product_member.h"
#include "cuda/warp.h"
#include "kernels/codec_planar.h"

namespace nibble::cuda {

inline constexpr int kUnitBytes = 128;

// How a launch is laid out: blocks along x take rows of weights by tokens, rows first.
struct BytesPlan {
  int tokens = 64;  // of a block: 64, 128 or 256
  int splits = 1;   // blocks along y, one cluster
  int split_units = 0;
  int stages = 4;                      // units in shared memory at once: 3 or 4
  int64_t row_blocks = 0, blocks = 0;  // of the rows, and along x
  int64_t shared_bytes = 0;
};

// out[tokens, rows] (+)= activations x weights^T + bias.
struct BytesArguments {
  const uint8_t* activations;      // [tokens][activation_stride]
  const float* activation_scales;  // of each token, or one for all
  bool one_activation_scale;
  int64_t tokens, activation_stride;
  PlanarPlanes weights;  // 16-byte aligned rows
  const float* bias;     // or null
  float* out;
  int64_t out_stride;
  bool accumulate;
  BytesPlan plan;

  NIBBLE_HD float ScaleOf(int64_t row) const { return weights.Scale(weights.ScaleAt(row, 0)); }
  NIBBLE_HD void Store(int64_t token, int64_t row, float weight_scale, float sum) const {
    sum *= weight_scale * activation_scales[one_activation_scale ? 0 : token];
    if (bias != nullptr) sum += bias[row];
    float* to = out + token * out_stride + row;
    *to = accumulate ? *to + sum : sum;
  }
};

constexpr NIBBLE_HD int BytesStageBytes(int tokens) { return (kBlockRows + tokens) * kUnitBytes; }

// A plan without blocks is returned where the processor's shared memory does not do.
BytesPlan PlanBytes(int64_t rows, int64_t cols, int64_t tokens, const DeviceLimits& limits);

template <DType kType, int kTokens>
class BytesBlock {
 public:
  using Sum = SumOf<kType>;
  using Sums = BlockSums<Sum, kTokens>;
  // The product of the unit before may be under way while one is multiplied.
  static constexpr int kStagesInUse = 2;

  // `block`: along x. `shared` is aligned to 1024 bytes.
  NIBBLE_HD BytesBlock(const BytesArguments& args, int64_t block, int split, uint8_t* shared)
      : args_(args),
        plan_(args.plan),
        shared_(shared),
        first_row_(block % plan_.row_blocks * kBlockRows),
        first_token_(block / plan_.row_blocks * kTokens),
        first_col_(int64_t{split} * plan_.split_units * kUnitBytes) {
    const int64_t end = Least(args.weights.cols, first_col_ + plan_.split_units * kUnitBytes);
    units_ =
        end > first_col_ ? static_cast<int>((end - first_col_ + kUnitBytes - 1) / kUnitBytes) : 0;
  }

  NIBBLE_HD int units() const { return units_; }

  // All threads: a unit on its way to its stage, as one group of copies; an empty one beyond the
  // last.
  NIBBLE_HD void StageUnit(int thread, int unit) const {
    if (unit < units_) {
      const int64_t col = first_col_ + int64_t{unit} * kUnitBytes;
      uint8_t* stage = StageOf(unit);
      StageRows<kBlockRows>(thread, args_.weights.codes, args_.weights.cols, first_row_,
                            args_.weights.rows, col, stage);
      StageRows<kTokens>(thread, args_.activations, args_.activation_stride, first_token_,
                         args_.tokens, col, stage + kBlockRows * kUnitBytes);
    }
    CommitCopies();
  }

  // A warp: its rows by the tokens, of a unit that has arrived. On sm_90a the product of this unit
  // may still be under way on return, that of the one before not.
  template <class Warp>
  NIBBLE_HD void MultiplyUnit(const Warp& warp, int index, int unit,
                              typename Sums::template Registers<Warp>& sums) const {
    const uint8_t* stage = StageOf(unit);
    MultiplyBytes<kType, kTokens>(warp, index, stage, stage + kBlockRows * kUnitBytes, sums);
  }

  // What stores (token, sum) of a row of the block, if they are some of the matrices'.
  NIBBLE_HD auto StoreOf(int block_row) const {
    const int64_t row = first_row_ + block_row;
    const bool is_there = row < args_.weights.rows;
    const int64_t tokens = is_there ? args_.tokens - first_token_ : 0;
    const float scale = is_there ? args_.ScaleOf(row) : 0.0f;
    return [this, row, tokens, scale](int token, Sum sum) {
      if (token < tokens) {
        args_.Store(first_token_ + token, row, scale, static_cast<float>(sum));
      }
    };
  }

  // Where sums lie when no one needs the stages any more.
  NIBBLE_HD Sum* SharedSums() const { return reinterpret_cast<Sum*>(shared_); }

 private:
  // kRows rows from `first` on, 128 columns from `col` on; zeros where there are none.
  template <int kRows>
  NIBBLE_HD void StageRows(int thread, const uint8_t* rows, int64_t stride, int64_t first,
                           int64_t count, int64_t col, uint8_t* to) const {
    const int piece = thread % 8;
    const int64_t at = col + 16 * piece;
    const int bytes = static_cast<int>(Least(16, args_.weights.cols - at));
    NIBBLE_UNROLL
    for (int i = 0; i < kRows * 8 / kThreads; ++i) {
      const int row = thread / 8 + i * (kThreads / 8);
      const bool is_there = first + row < count && bytes > 0;
      CopyAsync(to + SwizzledPart(row, piece), rows + (is_there ? (first + row) * stride + at : 0),
                is_there ? bytes : 0);
    }
  }

  NIBBLE_HD uint8_t* StageOf(int unit) const {
    return shared_ + unit % plan_.stages * BytesStageBytes(kTokens);
  }

  const BytesArguments& args_;
  const BytesPlan& plan_;
  uint8_t* shared_;
  int64_t first_row_, first_token_, first_col_;
  int units_;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_BYTES_H_
