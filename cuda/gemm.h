// The product of many activation rows, called tokens here, with packed weights: the whole kernel
// but for its barriers, for device and host.
//
// A thread block is eight warps, which take a row tile each; the product of the two by kTokens
// tokens stays in their registers. Weights are decoded, scaled, and rounded to the activations'
// type in the registers of the left operand, each once in a block; activations are copied to shared
// memory by all, several records ahead. Where there are few blocks, the columns are split over
// those of a cluster.
//
// Activations lie in shared memory by panels of 64 columns, in the 128-byte swizzle (cuda/warp.h).
#ifndef NIBBLE_CUDA_GEMM_H_
#define NIBBLE_CUDA_GEMM_H_

#include <cstdint>
#include <span>

#include "cuda/async_copy.h"
#include "cuda/block_sums.h"
#include "cuda/decode_record.h"
#include "cuda/multiply_step.h"
#include "cuda/packed_format.h"
#include "cuda/product_member.h"
#include "cuda/scale_step.h"
#include "cuda/warp.h"
#include "nibble/dtype.h"

namespace nibble::cuda {

inline constexpr int kSwizzleCols = 64, kSwizzleBytes = 2 * kSwizzleCols;

// How a launch is laid out: blocks along x take the members' rows of weights by their tokens, rows
// first.
struct GemmPlan {
  int tokens = 64;  // of a block: 64 or 128
  int splits = 1;   // blocks along y, one cluster
  int split_records = 0;
  int stages = 2;  // records in shared memory at once: 2 to 4
  int record_bytes = 0;
  int64_t blocks = 0;
  int64_t shared_bytes = 0;
};

// Activations are of the operands' type, in rows that begin at multiples of 16 bytes, and in the
// order of the packed columns. All members are of one format, record size and number of columns.
struct GemmArguments {
  Activations activations;
  GemmPlan plan;
  int members_count;
  ProductMember members[kMostMembers];
};

// Bytes of a stage: activations, then the records of the eight row tiles.
constexpr NIBBLE_HD int GemmStageBytes(int tokens, int cols, int record_bytes) {
  return (2 * tokens * cols + kWarps * record_bytes + 1023) / 1024 * 1024;
}

// A plan without blocks is returned where the processor's shared memory does not do.
GemmPlan PlanGemm(int record_cols, std::span<const ProductSize> members, int64_t records,
                  int record_bytes, const DeviceLimits& limits);

// Blocks along x of a member: those of its rows of weights, times those of its tokens.
constexpr NIBBLE_HD int64_t RowBlocksOf(int64_t row_tiles) {
  return (row_tiles + kWarps - 1) / kWarps;
}
constexpr NIBBLE_HD int64_t BlocksOf(const GemmPlan& plan, const ProductSize& member) {
  return RowBlocksOf(member.row_tiles) * ((member.tokens + plan.tokens - 1) / plan.tokens);
}

template <class Format, DType kType, int kTokens>
class GemmBlock {
 public:
  using Sum = float;
  using Sums = BlockSums<Sum, kTokens>;
  static constexpr int kStagesInUse = 1;

  // `block`: along x. `shared` is aligned to 1024 bytes.
  NIBBLE_HD GemmBlock(const GemmArguments& args, int64_t block, int split, uint8_t* shared)
      : args_(args),
        plan_(args.plan),
        member_(MemberOfBlock(args.members, args.members_count, block)),
        shared_(shared),
        records_(member_.weights.template records_per_tile<Format>()),
        first_record_(int64_t{split} * plan_.split_records),
        stage_bytes_(GemmStageBytes(kTokens, Format::kCols, plan_.record_bytes)),
        multiplier_(kType == DType::kF16 ? *member_.weights.multiplier : 1.0f) {
    const int64_t row_blocks = RowBlocksOf(member_.weights.row_tiles());
    first_row_ = (block - member_.first_block) % row_blocks * kBlockRows;
    first_token_ = (block - member_.first_block) / row_blocks * kTokens;
    const int64_t end = Least(records_, first_record_ + plan_.split_records);
    units_ = end > first_record_ ? static_cast<int>(end - first_record_) : 0;
  }

  // Records that the block multiplies with, one after the other.
  NIBBLE_HD int units() const { return units_; }

  // All threads: a unit on its way to its stage, as one group of copies; an empty one beyond the
  // last.
  NIBBLE_HD void StageUnit(int thread, int unit) const {
    if (unit < units_) {
      uint8_t* stage = StageOf(unit);
      StageActivations(thread, (first_record_ + unit) * Format::kCols, stage);
      const int warp = thread / kLanes;
      const int64_t tile = Least(first_row_ / kTileRows + warp, member_.weights.row_tiles() - 1);
      const uint8_t* from =
          member_.weights.records + (tile * records_ + first_record_ + unit) * plan_.record_bytes;
      CopyByLane<Format::kCodeBytes>(thread % kLanes, from, plan_.record_bytes,
                                     RecordOf(stage, warp));
    }
    CommitCopies();
  }

  // A warp: its row tile by the tokens, of a unit that has arrived.
  template <class Warp>
  NIBBLE_HD void MultiplyUnit(const Warp& warp, int index, int unit,
                              typename Sums::template Registers<Warp>& sums) const {
    const uint8_t* stage = StageOf(unit);
    const uint8_t* record = RecordOf(stage, index);
    const PackedMatrix& weights = member_.weights;
    const Book& book = kType == DType::kF16 ? weights.book_f16 : weights.book_bf16;
    NIBBLE_NO_UNROLL
    for (int panel = 0; panel < Format::kCols / kPanelCols; ++panel) {
      typename Warp::template Lanes<LaneCodes<Format>> codes;
      typename Warp::template Lanes<LaneScales<Format>> scales;
      typename Warp::template Lanes<ScalePairs<Format, kType>> pairs;
      warp.Each([&](int lane) {
        codes[lane].Load(record, lane, panel);
        scales[lane].Load(record, lane, panel);
      });
      // Two operands in turn: while the product of one is under way, the other is made.
      typename Warp::template Lanes<LeftOperand> left[2];
      NIBBLE_UNROLL
      for (int step = 0; step < kPanelSteps; ++step) {
        WaitForLeft(warp);
        warp.Each([&](int lane) {
          if (step == 0 || EndsGroup<Format>(weights, step - 1)) {
            pairs[lane] =
                ScalePairs<Format, kType>::Of(scales[lane].Get(weights, step, lane), multiplier_);
          }
          left[step % 2][lane] =
              pairs[lane].Scaled(DecodeStep<Format, kType>(codes[lane], step, book));
        });
        const int col = kPanelCols * panel + kStepCols * step;
        MultiplyStep<kType, kTokens>(warp, left[step % 2],
                                     stage + col / kSwizzleCols * kTokens * kSwizzleBytes,
                                     col % kSwizzleCols / kStepCols, sums);
      }
    }
    WaitForProducts();
  }

  // What stores (token, sum) of a row of the block, if they are some of the matrices'.
  NIBBLE_HD auto StoreOf(int block_row) const {
    const int64_t row = first_row_ + block_row;
    const int64_t tokens = row < member_.weights.rows ? member_.tokens - first_token_ : 0;
    const float inverse = 1.0f / multiplier_;
    return [this, row, tokens, inverse](int token, float sum) {
      if (token < tokens) member_.Store(first_token_ + token, row, sum * inverse);
    };
  }

  // Where sums lie when no one needs the stages any more.
  NIBBLE_HD float* SharedSums() const { return reinterpret_cast<float*>(shared_); }

 private:
  NIBBLE_HD void StageActivations(int thread, int64_t first_col, uint8_t* stage) const {
    constexpr int kPieces = Format::kCols / 8;
    const Activations& a = args_.activations;
    const int piece = thread % kPieces;
    const int64_t col = first_col + 8 * piece;
    const int bytes = static_cast<int>(Least(16, 2 * (a.cols - col)));
    uint8_t* panel = stage + piece / 8 * (kTokens * kSwizzleBytes);
    NIBBLE_UNROLL
    for (int i = 0; i < kTokens * kPieces / kThreads; ++i) {
      const int token = thread / kPieces + i * (kThreads / kPieces);
      const int64_t at = first_token_ + token;
      const int64_t row = at < member_.tokens ? member_.RowOf(at, a.rows) : -1;
      const bool is_there = row >= 0 && bytes > 0;
      const uint16_t* from =
          static_cast<const uint16_t*>(a.data) + (is_there ? row * a.stride + col : 0);
      CopyAsync(panel + SwizzledPart(token, piece % 8), from, is_there ? bytes : 0);
    }
  }

  NIBBLE_HD uint8_t* StageOf(int unit) const {
    return shared_ + unit % plan_.stages * stage_bytes_;
  }
  NIBBLE_HD uint8_t* RecordOf(uint8_t* stage, int warp) const {
    return stage + 2 * kTokens * Format::kCols + warp * plan_.record_bytes;
  }
  NIBBLE_HD const uint8_t* RecordOf(const uint8_t* stage, int warp) const {
    return stage + 2 * kTokens * Format::kCols + warp * plan_.record_bytes;
  }

  const GemmArguments& args_;
  const GemmPlan& plan_;
  const ProductMember& member_;
  uint8_t* shared_;
  int64_t first_row_, first_token_;
  int64_t records_, first_record_;
  int stage_bytes_, units_;
  float multiplier_;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_GEMM_H_
