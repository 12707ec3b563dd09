// The product of few activation rows, called tokens here, with packed weights: the whole kernel but
// for its barriers, for device and host.
//
// A thread block is eight warps. It takes `row_groups` groups of row tiles, a warp for each; where
// there are fewer than eight, several warps share a group and take its records in turn. The columns
// may be split over the blocks of a cluster. Each warp streams its records through a ring of its
// own in shared memory, several copies in flight, without waiting for others; activations lie in
// shared memory for all, a segment of the columns at a time. Sums meet in shared memory and then
// across the cluster, always in the same order, so that results are the same in every run.
//
// Values that are small integers take part in products as such, exactly, and the f32 sum of a group
// is scaled; what a minimum takes away is the sum of the activations, from a product with ones.
#ifndef NIBBLE_CUDA_SMALL_M_H_
#define NIBBLE_CUDA_SMALL_M_H_

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>

#include "cuda/async_copy.h"
#include "cuda/decode_record.h"
#include "cuda/packed_format.h"
#include "cuda/product_member.h"
#include "cuda/warp.h"
#include "nibble/dtype.h"

namespace nibble::cuda {

inline constexpr int kMostTokens = 16;
inline constexpr int kMostSplits = 8;  // blocks of a portable cluster

// How a launch is laid out.
struct SmallMPlan {
  int row_groups = 1;       // of a block: 1, 2, 4 or 8
  int splits = 1;           // blocks along y, one cluster
  int split_records = 0;    // records of a split
  int segment_records = 0;  // whose activations lie in shared memory at once
  int record_bytes = 0;
  int tokens = 0;  // the most of any member
  int64_t blocks = 0;
  int64_t shared_bytes = 0;
};

struct SmallMArguments {
  Activations activations;
  SmallMPlan plan;
  int members_count;
  ProductMember members[kMostMembers];
};

// What a plan needs to know of a format.
struct RecordTraits {
  int cols, warp_tiles, stages, bits;
};
template <class Format>
constexpr NIBBLE_HD RecordTraits TraitsOf() {
  return {Format::kCols, Format::kWarpTiles, Format::kStages, Format::kBits};
}

// Parts of a block's shared memory, in bytes from its beginning.
struct SmallMShared {
  int zeros = 0;            // a row of activations for tokens that there are not
  int activations, stride;  // of a token
  int rings, stage_bytes, ring_bytes;

  constexpr NIBBLE_HD SmallMShared(const SmallMPlan& plan, RecordTraits traits)
      : activations(2 * kPanelCols),
        stride(plan.segment_records * traits.cols * 2 + 16),
        rings(activations + plan.tokens * stride),
        stage_bytes(traits.warp_tiles * plan.record_bytes),
        ring_bytes(traits.stages * stage_bytes) {}
};

// Lays out products with weights of `records` records a tile. A plan without blocks is returned
// where the processor's shared memory does not do.
SmallMPlan PlanSmallM(const RecordTraits& traits, std::span<const ProductSize> members,
                      int64_t records, int record_bytes, const DeviceLimits& limits);

// Blocks along x of a member.
constexpr NIBBLE_HD int64_t BlocksOf(const RecordTraits& traits, const SmallMPlan& plan,
                                     const ProductSize& member) {
  const int64_t tiles = int64_t{plan.row_groups} * traits.warp_tiles;
  return (member.row_tiles + tiles - 1) / tiles;
}

// --- The kernel ----------------------------------------------------------------------------------

// One thread block. kTokenTiles: tokens by eights, 1 or 2.
template <class Format, DType kType, int kTokenTiles>
class SmallMBlock {
 public:
  static constexpr int kTiles = Format::kWarpTiles, kStages = Format::kStages;

  struct Totals {
    float v[kTiles][kTokenTiles][4];
  };
  template <class Warp>
  struct WarpState {
    typename Warp::template Lanes<Totals> totals;
    int64_t row_tile;  // the first
    int64_t record;    // that unit 0 begins with
    int units;         // records that the warp takes
    int unit;          // the next
    int group, phase;  // of its row group, its turn
  };

  NIBBLE_HD SmallMBlock(const SmallMArguments& args, int64_t block, int split, uint8_t* shared)
      : args_(args),
        plan_(args.plan),
        member_(MemberOfBlock(args.members, args.members_count, block)),
        layout_(args.plan, TraitsOf<Format>()),
        shared_(shared),
        block_(block - member_.first_block),
        records_(member_.weights.template records_per_tile<Format>()),
        first_record_(int64_t{split} * plan_.split_records),
        end_record_(Least(records_, first_record_ + plan_.split_records)) {}

  NIBBLE_HD int segments() const {
    const int64_t count = end_record_ - first_record_;
    return count <= 0
               ? 0
               : static_cast<int>((count + plan_.segment_records - 1) / plan_.segment_records);
  }

  // All threads: activations of a segment on their way to shared memory, as one group of copies.
  NIBBLE_HD void StageActivations(int thread, int segment) const {
    const int64_t from = first_record_ + int64_t{segment} * plan_.segment_records;
    const int64_t col = from * Format::kCols;
    const int pieces =
        static_cast<int>(Least(end_record_ - from, plan_.segment_records)) * (Format::kCols / 8);
    const Activations& a = args_.activations;
    const bool is_plain = a.dtype == kType && a.is_aligned && member_.weights.order == nullptr;
    if (segment == 0 && thread < 2 * kPanelCols / 16) {
      *reinterpret_cast<Words4*>(shared_ + layout_.zeros + 16 * thread) = Words4{};
    }
    for (int token = 0; token < member_.tokens; ++token) {
      const int64_t row = member_.RowOf(token, a.rows);
      uint8_t* to = shared_ + layout_.activations + token * layout_.stride;
      for (int piece = thread; piece < pieces; piece += kThreads) {
        const int64_t at = col + 8 * piece;
        if (is_plain && row >= 0 && at + 8 <= a.cols) {
          CopyAsync(to + 16 * piece,
                    static_cast<const uint8_t*>(a.data) + 2 * (row * a.stride + at));
        } else {
          *reinterpret_cast<Words4*>(to + 16 * piece) = Eight(row, at);
        }
      }
    }
    CommitCopies();
  }

  // A warp, before its first segment: the first records on their way.
  template <class Warp>
  NIBBLE_HD void Begin(const Warp& warp, int index, WarpState<Warp>& state) const {
    const int phases = kWarps / plan_.row_groups;
    state.group = index % plan_.row_groups;
    state.phase = index / plan_.row_groups;
    state.row_tile = (block_ * plan_.row_groups + state.group) * kTiles;
    state.record = first_record_ + state.phase;
    const int64_t left = end_record_ - state.record;
    const bool has_rows = state.row_tile < member_.weights.row_tiles();
    state.units = has_rows && left > 0 ? static_cast<int>((left + phases - 1) / phases) : 0;
    state.unit = 0;
    warp.Each([&](int lane) { state.totals[lane] = Totals{}; });
    for (int unit = 0; unit < kStages - 1; ++unit) CopyUnit(warp, index, state, unit);
  }

  // A warp: its records of a segment.
  template <class Warp>
  NIBBLE_HD void MultiplySegment(const Warp& warp, int index, int segment,
                                 WarpState<Warp>& state) const {
    const int phases = kWarps / plan_.row_groups;
    const int64_t begin = first_record_ + int64_t{segment} * plan_.segment_records;
    const int64_t end = Least(end_record_, begin + plan_.segment_records);
    for (; state.unit < state.units; ++state.unit) {
      const int64_t record = state.record + int64_t{state.unit} * phases;
      if (record >= end) return;
      CopyUnit(warp, index, state, state.unit + kStages - 1);
      WaitForCopies<kStages - 1>();
      SyncWarp();
      const uint8_t* stage = Stage(index, state.unit);
      const int col = static_cast<int>(record - begin) * Format::kCols;
      NIBBLE_NO_UNROLL
      for (int panel = 0; panel < Format::kCols / kPanelCols; ++panel) {
        MultiplyPanel(warp, stage, panel, col + kPanelCols * panel, state.totals);
      }
      SyncWarp();  // before another copy takes the stage
    }
  }

  // A warp, when no one needs the rings any more: its sums to shared memory.
  template <class Warp>
  NIBBLE_HD void StoreSums(const Warp& warp, WarpState<Warp>& state) const {
    float* sums = SumsOf(state.phase);
    warp.Each([&](int lane) {
      NIBBLE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        NIBBLE_UNROLL
        for (int tokens = 0; tokens < kTokenTiles; ++tokens) {
          NIBBLE_UNROLL
          for (int i = 0; i < 4; ++i) {
            const int row = (state.group * kTiles + tile) * kTileRows + lane / 4 + 8 * (i / 2);
            const int token = 8 * tokens + 2 * (lane % 4) + i % 2;
            sums[token * block_rows() + row] = state.totals[lane].v[tile][tokens][i];
          }
        }
      }
    });
  }

  // All threads: the sums of the block, turn by turn.
  NIBBLE_HD void CombineWarps(int thread) const {
    const int phases = kWarps / plan_.row_groups;
    for (int i = thread; i < sums_count(); i += kThreads) {
      float sum = SumsOf(0)[i];
      for (int phase = 1; phase < phases; ++phase) sum += SumsOf(phase)[i];
      SumsOf(0)[i] = sum;
    }
  }

  // All threads of a block of a cluster, `of_split`(s) being the block sums of split s: this
  // block's part of the outputs, split by split.
  template <class OfSplit>
  NIBBLE_HD void StoreOutputs(int thread, int split, const OfSplit& of_split) const {
    for (int i = split * kThreads + thread; i < sums_count(); i += plan_.splits * kThreads) {
      const int64_t row = block_ * block_rows() + i % block_rows();
      const int token = i / block_rows();
      if (token >= member_.tokens || row >= member_.weights.rows) continue;
      float sum = of_split(0)[i];
      for (int s = 1; s < plan_.splits; ++s) sum += of_split(s)[i];
      member_.Store(token, row, sum);
    }
  }

  NIBBLE_HD float* SumsOf(int phase) const {
    return reinterpret_cast<float*>(shared_ + layout_.rings) + phase * sums_count();
  }

 private:
  NIBBLE_HD int block_rows() const { return plan_.row_groups * kTiles * kTileRows; }
  NIBBLE_HD int sums_count() const { return block_rows() * kTokenTiles * 8; }
  NIBBLE_HD uint8_t* Stage(int index, int unit) const {
    return shared_ + layout_.rings + index * layout_.ring_bytes +
           unit % kStages * layout_.stage_bytes;
  }

  // Eight activations of kType from column `col` of the packed order on; zeros beyond the last, and
  // where there is no such row.
  NIBBLE_HD Words4 Eight(int64_t row, int64_t col) const {
    const Activations& a = args_.activations;
    const int32_t* order = member_.weights.order;
    Words4 words = {};
    for (int i = 0; i < 8 && row >= 0 && col + i < a.cols; ++i) {
      const uint32_t bits =
          FromFloat<kType>(a.At(row, order == nullptr ? col + i : order[col + i]));
      words.v[i / 2] |= bits << (16 * (i % 2));
    }
    return words;
  }

  // One group of copies, empty beyond the last unit.
  template <class Warp>
  NIBBLE_HD void CopyUnit(const Warp& warp, int index, const WarpState<Warp>& state,
                          int unit) const {
    if (unit < state.units) {
      const int64_t record = state.record + int64_t{unit} * (kWarps / plan_.row_groups);
      uint8_t* stage = Stage(index, unit);
      warp.Each([&](int lane) {
        NIBBLE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          const int64_t row_tile = Least(state.row_tile + tile, member_.weights.row_tiles() - 1);
          const uint8_t* from =
              member_.weights.records + (row_tile * records_ + record) * plan_.record_bytes;
          CopyByLane<Format::kCodeBytes>(lane, from, plan_.record_bytes,
                                         stage + tile * plan_.record_bytes);
        }
      });
    }
    CommitCopies();
  }

  // A panel of the records of a stage with the activations from a column of the segment on.
  template <class Warp>
  NIBBLE_HD void MultiplyPanel(const Warp& warp, const uint8_t* stage, int panel, int col,
                               typename Warp::template Lanes<Totals>& totals) const {
    using Sums = typename Warp::template Lanes<Sums4>;
    const PackedMatrix& weights = member_.weights;
    const Book& book = kType == DType::kF16 ? weights.book_f16 : weights.book_bf16;

    typename Warp::template Lanes<LaneCodes<Format>> codes[kTiles];
    typename Warp::template Lanes<LaneScales<Format>> scales[kTiles];
    typename Warp::template Lanes<const uint8_t*> rows[kTokenTiles];
    warp.Each([&](int lane) {
      NIBBLE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        codes[tile][lane].Load(stage + tile * plan_.record_bytes, lane, panel);
        scales[tile][lane].Load(stage + tile * plan_.record_bytes, lane, panel);
      }
      NIBBLE_UNROLL
      for (int tokens = 0; tokens < kTokenTiles; ++tokens) {
        const int token = 8 * tokens + lane % 8;
        rows[tokens][lane] = (token < member_.tokens
                                  ? shared_ + layout_.activations + token * layout_.stride + 2 * col
                                  : shared_ + layout_.zeros) +
                             16 * (lane / 8);
      }
    });

    Sums parts[kTiles][kTokenTiles], ones_sums[kTokenTiles];
    const auto clear = [&](int lane) {
      NIBBLE_UNROLL
      for (int tokens = 0; tokens < kTokenTiles; ++tokens) {
        NIBBLE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) parts[tile][tokens][lane] = Sums4{};
        ones_sums[tokens][lane] = Sums4{};
      }
    };
    typename Warp::template Lanes<LeftOperand> ones;
    warp.Each([&](int lane) {
      clear(lane);
      constexpr uint32_t kOnes = kType == DType::kF16 ? 0x3C003C00u : 0x3F803F80u;
      ones[lane] = LeftOperand{{kOnes, kOnes, kOnes, kOnes}};
    });

    typename Warp::template Lanes<Words4> right[kTokenTiles];
    NIBBLE_UNROLL
    for (int step = 0; step < kPanelSteps; ++step) {
      if (step % 2 == 0) {  // two steps at once
        NIBBLE_UNROLL
        for (int tokens = 0; tokens < kTokenTiles; ++tokens) {
          typename Warp::template Lanes<const uint8_t*> here;
          warp.Each([&](int lane) { here[lane] = rows[tokens][lane] + 2 * kStepCols * step; });
          LoadMatrices(warp, here, right[tokens]);
        }
      }
      NIBBLE_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        typename Warp::template Lanes<LeftOperand> left;
        warp.Each([&](int lane) {
          left[lane] = DecodeStep<Format, kType>(codes[tile][lane], step, book);
        });
        NIBBLE_UNROLL
        for (int tokens = 0; tokens < kTokenTiles; ++tokens) {
          Mma<kType>(warp, parts[tile][tokens], left, right[tokens], 2 * (step % 2));
        }
      }
      if constexpr (Format::kHasMin) {
        NIBBLE_UNROLL
        for (int tokens = 0; tokens < kTokenTiles; ++tokens) {
          Mma<kType>(warp, ones_sums[tokens], ones, right[tokens], 2 * (step % 2));
        }
      }
      if (!EndsGroup<Format>(weights, step)) continue;
      warp.Each([&](int lane) {
        NIBBLE_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          const GroupScales group = scales[tile][lane].Get(weights, step, lane);
          NIBBLE_UNROLL
          for (int tokens = 0; tokens < kTokenTiles; ++tokens) {
            NIBBLE_UNROLL
            for (int i = 0; i < 4; ++i) {
              float& total = totals[lane].v[tile][tokens][i];
              total = MultiplyAdd(group.scale[i / 2], parts[tile][tokens][lane].v[i], total);
              if constexpr (Format::kHasMin) {
                total = MultiplyAdd(-group.min[i / 2], ones_sums[tokens][lane].v[i], total);
              }
            }
          }
        }
        clear(lane);
      });
    }
  }

  const SmallMArguments& args_;
  const SmallMPlan& plan_;
  const ProductMember& member_;
  SmallMShared layout_;
  uint8_t* shared_;
  int64_t block_;
  int64_t records_, first_record_, end_record_;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_CUDA_SMALL_M_H_
