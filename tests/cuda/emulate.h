// Packs weights and multiplies with them as kernels do, on the host, with emulated warps.
#ifndef NIBBLE_TESTS_CUDA_EMULATE_H_
#define NIBBLE_TESTS_CUDA_EMULATE_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/gemm.h"
#include "cuda/pack.h"
#include "cuda/small_m.h"
#include "gtest/gtest.h"
#include "lib/quantize/planar.h"
#include "nibble/quantized_tensor.h"

namespace nibble::cuda {

// Memory aligned to 16 bytes, and nothing but it: an access beyond is seen by a sanitizer.
class AlignedBytes {
 public:
  explicit AlignedBytes(size_t size = 0) : words_(size / 16 + (size % 16 != 0)) {}
  uint8_t* data() { return reinterpret_cast<uint8_t*>(words_.data()); }
  const uint8_t* data() const { return reinterpret_cast<const uint8_t*>(words_.data()); }

 private:
  std::vector<Words4> words_;
};

struct PackedOnHost {
  PackedPlan plan;
  AlignedBytes records;
  std::vector<int32_t> order;
  std::unique_ptr<float> multiplier = std::make_unique<float>(1.0f);
};

inline PackedOnHost PackOnHost(const QuantizedTensor& weights) {
  PackedOnHost packed;
  PlanarPlanes planes;
  std::vector<float> table;
  if (!weights.is_block_format()) {
    planes = PlanesOf(weights);
    const Buffer& values = weights.plane(Plane::kTable);
    table.resize(values.size() / 4);
    if (!table.empty()) std::memcpy(table.data(), values.data(), values.size());
  }
  auto plan = PlanPack(weights, table);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  packed.plan = *plan;
  PackedMatrix& matrix = packed.plan.matrix;
  if (planes.group_index != nullptr) {
    std::vector<int32_t> groups(static_cast<size_t>(weights.cols()));
    std::memcpy(groups.data(), planes.group_index, groups.size() * 4);
    auto order = ColumnOrder(groups, planes.groups, kPanelCols / matrix.panel_groups);
    EXPECT_TRUE(order.ok()) << order.status().message();
    packed.order = *order;
    matrix.order = packed.order.data();
  }
  const auto fill = [&](auto format, const auto& source) -> Status {
    using Format = decltype(format);
    const int64_t records = matrix.records_per_tile<Format>();
    const int words = matrix.record_bytes<Format>() / 4;
    packed.records = AlignedBytes(static_cast<size_t>(matrix.row_tiles() * records * words * 4));
    auto* to = reinterpret_cast<uint32_t*>(packed.records.data());
    matrix.records = packed.records.data();
    for (int64_t tile = 0; tile < matrix.row_tiles(); ++tile) {
      for (int64_t record = 0; record < records; ++record) {
        for (int word = 0; word < words; ++word) {
          *to++ = RecordWord<Format>(source, matrix, tile, record, word);
        }
      }
    }
    float largest = 0;
    for (int64_t record = 0; record < matrix.row_tiles() * records; ++record) {
      for (int place = 0; place < Format::kSteps * 8; ++place) {
        const int step = place / 8;
        largest = std::max(
            largest, LargestUnderScales<Format>(matrix, packed.records.data() + record * words * 4,
                                                step / kPanelSteps, step % kPanelSteps, place % 8));
      }
    }
    *packed.multiplier = MultiplierFor(largest);
    return OkStatus();
  };
  EXPECT_TRUE(VisitPackSource(packed.plan, weights, planes, matrix.order, fill).ok());
  matrix.multiplier = packed.multiplier.get();
  return packed;
}

// The copies of a block's warps: made as late as their waits allow, or at once.
class BlockCopies {
 public:
  explicit BlockCopies(bool are_late) : are_late_(are_late) {}
  ~BlockCopies() { host_copies = nullptr; }

  // What follows is done by a warp, or by one of its threads.
  void PlayWarp(int warp) {
    host_copies = are_late_ ? &copies_[static_cast<size_t>(warp)] : nullptr;
    copies_[static_cast<size_t>(warp)].is_group_open = false;
  }
  void PlayThread(int thread) {
    PlayWarp(thread / kLanes);
    copies_[static_cast<size_t>(thread / kLanes)].is_group_open = thread % kLanes != kLanes - 1;
  }

 private:
  bool are_late_;
  std::array<HostCopies, kWarps> copies_;
};

// A launch of the small-M kernel: each block's phases one after the other, all its warps in turn.
template <class Format, DType kType, int kTokenTiles>
void EmulateSmallM(const SmallMArguments& args) {
  using Block = SmallMBlock<Format, kType, kTokenTiles>;
  using State = typename Block::template WarpState<HostWarp>;
  const HostWarp warp;
  for (int64_t x = 0; x < args.plan.blocks; ++x) {
    std::vector<AlignedBytes> shared;
    std::vector<Block> blocks;
    for (int split = 0; split < args.plan.splits; ++split) {
      shared.emplace_back(static_cast<size_t>(args.plan.shared_bytes));
      // What was there before, as on the device.
      std::memset(shared.back().data(), 0xFF, static_cast<size_t>(args.plan.shared_bytes));
    }
    for (int split = 0; split < args.plan.splits; ++split) {
      const Block& block =
          blocks.emplace_back(args, x, split, shared[static_cast<size_t>(split)].data());
      auto states = std::make_unique<std::array<State, kWarps>>();
      const auto state = [&](int w) -> State& { return (*states)[static_cast<size_t>(w)]; };
      BlockCopies copies(true);
      for (int segment = 0; segment < block.segments(); ++segment) {
        for (int t = 0; t < kThreads; ++t) {
          copies.PlayThread(t);
          block.StageActivations(t, segment);
        }
        for (int w = 0; w < kWarps; ++w) {
          copies.PlayWarp(w);
          if (segment == 0) {
            block.Begin(warp, w, state(w));
            WaitForCopies<Block::kStages - 1>();
          } else {
            WaitForCopies<0>();
          }
        }
        for (int w = 0; w < kWarps; ++w) {
          copies.PlayWarp(w);
          block.MultiplySegment(warp, w, segment, state(w));
        }
      }
      if (block.segments() == 0) {
        for (int w = 0; w < kWarps; ++w) block.Begin(warp, w, state(w));
      }
      for (int w = 0; w < kWarps; ++w) block.StoreSums(warp, state(w));
      for (int t = 0; t < kThreads; ++t) block.CombineWarps(t);
    }
    for (int split = 0; split < args.plan.splits; ++split) {
      for (int t = 0; t < kThreads; ++t) {
        blocks[static_cast<size_t>(split)].StoreOutputs(
            t, split, [&](int s) { return blocks[static_cast<size_t>(s)].SumsOf(0); });
      }
    }
  }
}

// Two ways in which the kernel's pipeline may run: copies arrive as late as they may; or at once,
// and then products are done as late as they may be, beside the copies that follow.
enum class Late { kCopies, kProducts };

// A launch of blocks that go through their columns unit by unit (cuda/unit_kernel.cuh); shared
// memory begins as bytes of `fill`.
template <class Block, class Arguments>
void EmulateUnits(const Arguments& args, int fill, Late late) {
  using Sums = typename Block::Sums;
  struct State {
    typename Sums::template Registers<HostWarp> sums;
  };
  const HostWarp warp;
  const int ahead = args.plan.stages - Block::kStagesInUse;
  for (int64_t at = 0; at < args.plan.blocks; ++at) {
    std::vector<AlignedBytes> shared;
    std::vector<Block> blocks;
    auto states = std::make_unique<std::array<State, kWarps>>();
    const auto sums = [&](int w) -> auto& { return (*states)[static_cast<size_t>(w)].sums; };
    for (int split = 0; split < args.plan.splits; ++split) {
      shared.emplace_back(static_cast<size_t>(args.plan.shared_bytes));
      std::memset(shared.back().data(), fill, static_cast<size_t>(args.plan.shared_bytes));
    }
    for (int split = 0; split < args.plan.splits; ++split) {
      const Block& block =
          blocks.emplace_back(args, at, split, shared[static_cast<size_t>(split)].data());
      BlockCopies copies(late == Late::kCopies);
      const auto stage = [&](int unit) {
        for (int t = 0; t < kThreads; ++t) {
          copies.PlayThread(t);
          block.StageUnit(t, unit);
        }
      };
      const auto multiply = [&](int unit) {
        for (int w = 0; w < kWarps && unit >= 0; ++w) {
          block.MultiplyUnit(warp, w, unit, sums(w));
        }
      };
      const int behind = late == Late::kProducts ? Block::kStagesInUse - 1 : 0;
      for (int w = 0; w < kWarps; ++w) Sums::Clear(warp, sums(w));
      for (int unit = 0; unit < ahead; ++unit) stage(unit);
      for (int unit = 0; unit < block.units(); ++unit) {
        for (int w = 0; w < kWarps; ++w) {
          copies.PlayWarp(w);
          WaitForStage(ahead - 1);
        }
        stage(unit + ahead);
        multiply(unit - behind);
      }
      for (int unit = std::max(0, block.units() - behind); unit < block.units(); ++unit) {
        multiply(unit);
      }
      for (int w = 0; w < kWarps; ++w) Sums::Store(warp, w, sums(w), block.SharedSums());
    }
    const auto of_split = [&](int s) { return blocks[static_cast<size_t>(s)].SharedSums(); };
    for (int split = 0; split < args.plan.splits; ++split) {
      const Block& block = blocks[static_cast<size_t>(split)];
      const auto store_of = [&](int row) { return block.StoreOf(row); };
      for (int t = 0; t < kThreads; ++t) {
        Sums::Combine(t, split, args.plan.splits, of_split, store_of);
      }
    }
  }
}

// A launch of the kernel of large products.
template <class Format, DType kType, int kTokens>
void EmulateGemm(const GemmArguments& args) {
  EmulateUnits<GemmBlock<Format, kType, kTokens>>(args, 0xFF, Late::kCopies);
}

}  // namespace nibble::cuda

#endif  // NIBBLE_TESTS_CUDA_EMULATE_H_
