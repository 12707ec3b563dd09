// The product of many activation rows, called tokens here, with packed weights: the whole kernel
// but for its barriers, for device and host.
//
// A thread block is eight warps, which take a row tile each; the product of the two by kTokens
// tokens stays in their registers. Weights are decoded, scaled, and rounded to the activations'
// type in the registers of the left operand, each once in a block; activations are copied to shared
// memory by all, several records ahead. Where there are few blocks, the columns are split over
// those of a cluster.
//
// Activations lie in shared memory as the right operand of wgmma needs them and ldmatrix can take
// them: by panels of 64 columns, in which a token has 128 bytes, whose 16-byte parts are permuted
// by the token's number (the 128-byte swizzle).
#ifndef NIBBLE_CUDA_GEMM_H_
#define NIBBLE_CUDA_GEMM_H_

#include <cstdint>

#include "cuda/async_copy.h"
#include "cuda/decode_record.h"
#include "cuda/multiply_step.h"
#include "cuda/packed_format.h"
#include "cuda/product_member.h"
#include "cuda/warp.h"
#include "nibble/dtype.h"

namespace nibble::cuda {

inline constexpr int kGemmRows = kWarps * kTileRows;
inline constexpr int kSwizzleCols = 64, kSwizzleBytes = 2 * kSwizzleCols;

// How a launch is laid out: blocks along x take rows of weights, along z tokens.
struct GemmPlan {
  int tokens = 64;  // of a block: 64 or 128
  int splits = 1;   // blocks along y, one cluster
  int split_records = 0;
  int stages = 2;  // records in shared memory at once: 2 to 4
  int record_bytes = 0;
  int64_t row_blocks = 0, token_blocks = 0;
  int64_t shared_bytes = 0;
};

// Activations are of the operands' type, in rows that begin at multiples of 16 bytes, and in the
// order of the packed columns.
struct GemmArguments {
  Activations activations;
  GemmPlan plan;
  ProductMember member;
};

// Bytes of a stage: activations, then the records of the eight row tiles.
constexpr NIBBLE_HD int GemmStageBytes(int tokens, int cols, int record_bytes) {
  return (2 * tokens * cols + kWarps * record_bytes + 1023) / 1024 * 1024;
}

// A plan without blocks is returned where the processor's shared memory does not do.
GemmPlan PlanGemm(int record_cols, int64_t row_tiles, int64_t records, int record_bytes,
                  int64_t tokens, const DeviceLimits& limits);

template <class Format, DType kType, int kTokens>
class GemmBlock {
 public:
  static constexpr int kTokenTiles = kTokens / 8;

  template <class Warp>
  struct WarpState {
    typename Warp::template Lanes<Sums4> sums[kTokenTiles];
  };

  // `shared` is aligned to 1024 bytes.
  NIBBLE_HD GemmBlock(const GemmArguments& args, int64_t row_block, int split, int64_t token_block,
                      uint8_t* shared)
      : args_(args),
        plan_(args.plan),
        member_(args.member),
        shared_(shared),
        first_row_(row_block * kGemmRows),
        first_token_(token_block * kTokens),
        records_(member_.weights.template records_per_tile<Format>()),
        first_record_(int64_t{split} * plan_.split_records),
        stage_bytes_(GemmStageBytes(kTokens, Format::kCols, plan_.record_bytes)),
        multiplier_(kType == DType::kF16 ? *member_.weights.multiplier : 1.0f),
        policy_(EvictFirst()) {
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
      uint8_t* to = RecordOf(stage, warp);
      for (int at = 16 * (thread % kLanes); at < plan_.record_bytes; at += 16 * kLanes) {
        CopyStreamAsync(to + at, from + at, policy_);
      }
    }
    CommitCopies();
  }

  template <class Warp>
  NIBBLE_HD void Begin(const Warp& warp, WarpState<Warp>& state) const {
    warp.Each([&](int lane) {
      NIBBLE_UNROLL
      for (int tile = 0; tile < kTokenTiles; ++tile) state.sums[tile][lane] = Sums4{};
    });
  }

  // A warp: its row tile by the tokens, of a unit that has arrived.
  template <class Warp>
  NIBBLE_HD void MultiplyUnit(const Warp& warp, int index, int unit, WarpState<Warp>& state) const {
    const uint8_t* stage = StageOf(unit);
    const uint8_t* record = RecordOf(stage, index);
    const PackedMatrix& weights = member_.weights;
    const Book& book = kType == DType::kF16 ? weights.book_f16 : weights.book_bf16;
    NIBBLE_NO_UNROLL
    for (int panel = 0; panel < Format::kCols / kPanelCols; ++panel) {
      typename Warp::template Lanes<LaneCodes<Format>> codes;
      typename Warp::template Lanes<LaneScales<Format>> scales;
      typename Warp::template Lanes<ScalePairs> pairs;
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
            pairs[lane] = PairsOf(scales[lane].Get(weights, step, lane), multiplier_);
          }
          left[step % 2][lane] =
              Scaled(DecodeStep<Format, kType>(codes[lane], step, book), pairs[lane]);
        });
        const int col = kPanelCols * panel + kStepCols * step;
        MultiplyStep<kType, kTokens>(warp, left[step % 2],
                                     stage + col / kSwizzleCols * kTokens * kSwizzleBytes,
                                     col % kSwizzleCols / kStepCols, state.sums);
      }
    }
    WaitForSums(warp, state.sums);
  }

  // A warp, where columns are not split: its outputs.
  template <class Warp>
  NIBBLE_HD void StoreOutputs(const Warp& warp, int index, WarpState<Warp>& state) const {
    const float inverse = 1.0f / multiplier_;
    warp.Each([&](int lane) {
      ForSums(index, lane, [&](int tile, int i, int row, int token) {
        StoreOutput(token, row, state.sums[tile][lane].v[i] * inverse);
      });
    });
  }

  // A warp, when no one needs the stages any more: its sums to shared memory, token by token.
  template <class Warp>
  NIBBLE_HD void StoreSums(const Warp& warp, int index, WarpState<Warp>& state) const {
    warp.Each([&](int lane) {
      ForSums(index, lane, [&](int tile, int i, int row, int token) {
        Sums()[token * kGemmRows + row] = state.sums[tile][lane].v[i];
      });
    });
  }

  // All threads of a block of a cluster, `of_split`(s) being the sums of split s: this block's part
  // of the outputs, split by split.
  template <class OfSplit>
  NIBBLE_HD void CombineSplits(int thread, int split, const OfSplit& of_split) const {
    const float inverse = 1.0f / multiplier_;
    for (int i = split * kThreads + thread; i < kTokens * kGemmRows; i += plan_.splits * kThreads) {
      float sum = of_split(0)[i];
      for (int s = 1; s < plan_.splits; ++s) sum += of_split(s)[i];
      StoreOutput(i / kGemmRows, i % kGemmRows, sum * inverse);
    }
  }

  NIBBLE_HD float* Sums() const { return reinterpret_cast<float*>(shared_); }

 private:
  // Scales and minima, of rows g and g + 8, twice each.
  struct ScalePairs {
    uint32_t scale[2], min[2];
  };

  NIBBLE_HD static ScalePairs PairsOf(const GroupScales& group, float multiplier) {
    ScalePairs pairs = {};
    NIBBLE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float scale = group.scale[i] * multiplier, min = -group.min[i] * multiplier;
      pairs.scale[i] = Pair<kType>(scale, scale);
      if constexpr (Format::kHasMin) pairs.min[i] = Pair<kType>(min, min);
    }
    return pairs;
  }
  NIBBLE_HD static LeftOperand Scaled(LeftOperand left, const ScalePairs& pairs) {
    NIBBLE_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      if constexpr (Format::kHasMin) {
        left.v[pair] =
            MultiplyAdd2<kType>(left.v[pair], pairs.scale[pair % 2], pairs.min[pair % 2]);
      } else {
        left.v[pair] = Multiply2<kType>(left.v[pair], pairs.scale[pair % 2]);
      }
    }
    return left;
  }

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
      CopyAsync(panel + token * kSwizzleBytes + 16 * (piece % 8 ^ token % 8), from,
                is_there ? bytes : 0);
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

  // Calls visit(tile of tokens, element, row and token in the block) for the sums of a lane.
  template <class Visit>
  NIBBLE_HD void ForSums(int index, int lane, const Visit& visit) const {
    NIBBLE_UNROLL
    for (int tile = 0; tile < kTokenTiles; ++tile) {
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) {
        visit(tile, i, index * kTileRows + lane / 4 + 8 * (i / 2),
              8 * tile + 2 * (lane % 4) + i % 2);
      }
    }
  }
  NIBBLE_HD void StoreOutput(int token, int row, float sum) const {
    if (first_token_ + token < member_.tokens && first_row_ + row < member_.weights.rows) {
      member_.Store(first_token_ + token, first_row_ + row, sum);
    }
  }

  const GemmArguments& args_;
  const GemmPlan& plan_;
  const ProductMember& member_;
  uint8_t* shared_;
  int64_t first_row_, first_token_;
  int64_t records_, first_record_;
  int stage_bytes_, units_;
  float multiplier_;
  uint64_t policy_;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_GEMM_H_
