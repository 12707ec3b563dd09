#include "kernels/gemv_blocks.h"

#include <cstring>

#include "hwy/aligned_allocator.h"
#include "hwy/cache_control.h"
#include "kernels/int8_targets.h"
#include "kernels/round_rows.h"
#include "kernels/visit_codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemv_blocks.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/unpack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// How far ahead, in its stream, weights are asked for.
constexpr int kPrefetchBytes = 1024;

using D8 = Bytes32;
using DS8 = hn::RebindToSigned<D8>;
using DI = hn::Repartition<int32_t, D8>;
using DF = hn::RebindToFloat<DI>;
using V8 = hn::Vec<D8>;
using VS8 = hn::Vec<DS8>;
using VI = hn::Vec<DI>;
using VF = hn::Vec<DF>;

// Dot products of four bytes at a time. Bytes of weights are at most 128 where kSmall.
template <bool kSmall, class D>
HWY_INLINE hn::Vec<hn::Repartition<int32_t, D>> DotQuads(D d, hn::Vec<D> w,
                                                         hn::Vec<hn::RebindToSigned<D>> a) {
  const hn::Repartition<int32_t, D> di;
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL
  // Sums of two products fit in 16 bits, if the weights lose the 128 that made them unsigned.
  const hn::Repartition<int16_t, D> d16;
  if constexpr (!kSmall) {
    const hn::RebindToSigned<D> ds;
    const auto w_signed = hn::BitCast(ds, hn::Xor(w, hn::Set(d, uint8_t{128})));
    a = hn::IfNegativeThenNegOrUndefIfZero(w_signed, a);
    w = hn::BitCast(d, hn::Abs(w_signed));
  }
  const auto pairs = hn::SatWidenMulPairwiseAdd(d16, w, a);
  return hn::WidenMulPairwiseAdd(di, pairs, hn::Set(d16, int16_t{1}));
#else
  return hn::SumOfMulQuadAccumulate(di, w, a, hn::Zero(di));
#endif
}

// What the codes of DotQuads stand above the codes of the format.
template <class Block>
constexpr float Offset() {
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3_DL
  if (kStoredOffset<Block> == 128) return 0;
#endif
  return kStoredOffset<Block>;
}

// One format's unit of 256 columns.
template <class CodecT>
struct Unit {
  using Codec = CodecT;
  using Block = typename Codec::Block;
  static constexpr int kBlocks = kUnitCols / Codec::kWeights;
  static constexpr int kGroup = Codec::kGroup < 32 ? Codec::kGroup : 32;
  static constexpr int kGroups = kUnitCols / kGroup;
  static constexpr bool kSmall = kStoredOffset<Block> < 128;

  // A weight is scales[g] * (its stored code) - mins[g].
  static HWY_INLINE void LoadScales(const Block* blocks, float* scales, float* mins) {
    if constexpr (kBlocks == 1) {
      UnpackScales(*blocks, scales, mins);
      if constexpr (Codec::kGroup > 32) {
        for (int g = 1; g < kGroups; ++g) scales[g] = scales[0];
      }
    } else {
      for (int i = 0; i < kBlocks; ++i) UnpackScales(blocks[i], scales + i, mins + i);
    }
    if constexpr (Offset<Block>() != 0) {
      const DF df;
      for (size_t g = 0; g < kGroups; g += hn::Lanes(df)) {
        const auto scale = hn::LoadU(df, scales + g);
        hn::StoreU(hn::Mul(scale, hn::Set(df, Offset<Block>())), df, mins + g);
      }
    }
  }

  template <class Sink>
  static HWY_INLINE void VisitUnit(const Block* blocks, const Sink& sink) {
    for (size_t i = 0; i < kBlocks; ++i) {
      const auto shifted = [&sink, i](auto d, auto stored, size_t k)
                               HWY_ATTR { sink(d, stored, i * Codec::kWeights + k); };
      VisitCodes(blocks[i], shifted);
    }
  }
};

// The scales of the columns that a vector of dots at column k covers, one for each lane.
template <int kGroup, class DF>
HWY_INLINE hn::Vec<DF> LaneScales(DF df, const float* scales, size_t k) {
  const auto first = hn::Set(df, scales[k / kGroup]);
  if constexpr (hn::MaxLanes(df) * 4 <= kGroup) {
    return first;
  } else {
    return hn::ConcatLowerLower(df, hn::Set(df, scales[k / kGroup + 1]), first);
  }
}

// scales of the weights times those of the activations, and what the minima take off `sum`.
template <int kGroups>
HWY_INLINE VF CombineScales(const float* w_scales, const float* w_mins, const float* a_scales,
                            const float* a_sums, float* combined, bool has_min, VF sum) {
  const DF df;
  for (size_t g = 0; g < kGroups; g += hn::Lanes(df)) {
    const VF scale = hn::Mul(hn::LoadU(df, w_scales + g), hn::LoadU(df, a_scales + g));
    hn::StoreU(scale, df, combined + g);
    if (has_min) sum = hn::NegMulAdd(hn::LoadU(df, w_mins + g), hn::LoadU(df, a_sums + g), sum);
  }
  return sum;
}

// sums (of as many lanes as DF has) += one unit times one activation row.
template <class Unit>
HWY_INLINE void MultiplyUnit(const typename Unit::Block* blocks, const int8_t* a_codes,
                             const float* a_scales, const float* a_sums, float* sums) {
  const DF df;
  alignas(64) float scales[Unit::kGroups], mins[Unit::kGroups], combined[Unit::kGroups];
  Unit::LoadScales(blocks, scales, mins);
  constexpr bool kHasMin = Unit::Codec::kHasMin || Offset<typename Unit::Block>() != 0;
  VF even = hn::Load(df, sums);
  VF odd =
      CombineScales<Unit::kGroups>(scales, mins, a_scales, a_sums, combined, kHasMin, hn::Zero(df));
  Unit::VisitUnit(blocks, [&](auto d, auto stored, size_t k) HWY_ATTR {
    const auto dots = DotQuads<Unit::kSmall>(d, stored, hn::LoadU(DS8(), a_codes + k));
    const VF scale = LaneScales<Unit::kGroup>(df, combined, k);
    VF& sum = k / 32 % 2 == 0 ? even : odd;
    sum = hn::MulAdd(hn::ConvertTo(df, dots), scale, sum);
  });
  hn::Store(hn::Add(even, odd), df, sums);
}

// --- Several activation rows: a unit is unpacked once, into the first-level cache. ---

struct alignas(64) UnpackedUnit {
  uint8_t codes[kUnitCols];  // as stored
  float scales[16], mins[16];
};

template <class Unit>
HWY_INLINE void UnpackUnit(const typename Unit::Block* blocks, UnpackedUnit& unpacked) {
  Unit::LoadScales(blocks, unpacked.scales, unpacked.mins);
  Unit::VisitUnit(blocks, [&](auto d, auto stored, size_t k)
                              HWY_ATTR { hn::Store(stored, d, unpacked.codes + k); });
}

// The same as MultiplyUnit for every format with groups of kGroup columns.
template <int kGroup, bool kSmall>
HWY_INLINE void MultiplyUnpacked(const UnpackedUnit& w, bool has_min, const int8_t* a_codes,
                                 const float* a_scales, const float* a_sums, float* sums) {
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  // Two groups of 32 or four of 16 in a vector.
  const hn::CappedTag<uint8_t, 64> d;
  const hn::RebindToSigned<decltype(d)> ds;
  const hn::Repartition<int32_t, decltype(d)> di;
  const hn::RebindToFloat<decltype(di)> df;
  const auto load = [df](const float* groups)
                        HWY_ATTR { return hn::LoadN(df, groups, kUnitCols / kGroup); };
  const auto scales = hn::Mul(load(w.scales), load(a_scales));
  auto even = hn::Load(df, sums), odd = hn::Zero(df);
  if (has_min) odd = hn::NegMulAdd(load(w.mins), load(a_sums), odd);
  const auto group = hn::ShiftRight<(kGroup == 16 ? 2 : 3)>(hn::Iota(di, 0));
  const auto step = [&](int k, auto sum) HWY_ATTR {
    const auto dots = DotQuads<kSmall>(d, hn::Load(d, w.codes + k), hn::LoadU(ds, a_codes + k));
    const auto at = hn::IndicesFromVec(df, hn::Add(group, hn::Set(di, k / kGroup)));
    return hn::MulAdd(hn::ConvertTo(df, dots), hn::TableLookupLanes(scales, at), sum);
  };
  even = step(0, even);
  odd = step(64, odd);
  even = step(128, even);
  odd = step(192, odd);
  hn::Store(hn::Add(even, odd), df, sums);
#else
  const D8 d;
  const DF df;
  constexpr int kGroups = kUnitCols / kGroup;
  alignas(64) float combined[kGroups];
  VF even = hn::Load(df, sums);
  VF odd =
      CombineScales<kGroups>(w.scales, w.mins, a_scales, a_sums, combined, has_min, hn::Zero(df));
  const auto step = [&](size_t k, VF sum) HWY_ATTR {
    const auto dots = DotQuads<kSmall>(d, hn::Load(d, w.codes + k), hn::LoadU(DS8(), a_codes + k));
    return hn::MulAdd(hn::ConvertTo(df, dots), LaneScales<kGroup>(df, combined, k), sum);
  };
  for (size_t k = 0; k < kUnitCols; k += 2 * hn::Lanes(d)) {
    even = step(k, even);
    odd = step(k + hn::Lanes(d), odd);
  }
  hn::Store(hn::Add(even, odd), df, sums);
#endif
}

HWY_INLINE float SumOf(const float* sums, int m_count) {
  const DF df;
  const hn::CappedTag<float, 16> wide;
  return m_count == 1 ? hn::ReduceSum(df, hn::Load(df, sums))
                      : hn::ReduceSum(wide, hn::Load(wide, sums));
}

// out[m * kStreams + s] = activation row m0 + m times row s of the streams, for m < m_count.
template <class Unit>
void MultiplyRows(const RowStreams& streams, bool aligned, const RoundedActivations& a, int64_t m0,
                  int m_count, float* out) {
  using Block = typename Unit::Block;
  constexpr int kBytes = sizeof(Block) * Unit::kBlocks;
  constexpr bool kHasMin = Unit::Codec::kHasMin || Offset<Block>() != 0;
  alignas(64) float sums[kStreams][kMostGemvRows][16] = {};
  const int64_t groups = a.cols / Unit::kGroup;
  const int8_t* a_codes = a.codes + m0 * a.cols;
  const float* a_scales = a.scales + m0 * groups;
  const float* a_sums = a.sums + m0 * groups;
  const int64_t units = a.cols / kUnitCols;
  for (int64_t u = 0; u < units; ++u) {
    for (int s = 0; s < streams.count; ++s) {
      const std::byte* at = streams.row[s] + u * kBytes;
      for (int line = 0; line < kBytes; line += 64) hwy::Prefetch(at + kPrefetchBytes + line);
      const Block* blocks = reinterpret_cast<const Block*>(at);
      Block copy[Unit::kBlocks];
      if (!aligned || (u + 1) * kBytes > streams.row_bytes) {
        // A unit that ends early or lies at an odd address.
        const int64_t bytes = std::min<int64_t>(kBytes, streams.row_bytes - u * kBytes);
        std::memset(copy, 0, sizeof(copy));
        std::memcpy(copy, at, static_cast<size_t>(bytes));
        blocks = copy;
      }
      if (m_count == 1) {
        MultiplyUnit<Unit>(blocks, a_codes, a_scales, a_sums, sums[s][0]);
        continue;
      }
      UnpackedUnit unpacked;
      UnpackUnit<Unit>(blocks, unpacked);
      for (int m = 0; m < m_count; ++m) {
        MultiplyUnpacked<Unit::kGroup, Unit::kSmall>(unpacked, kHasMin, a_codes + m * a.cols,
                                                     a_scales + m * groups, a_sums + m * groups,
                                                     sums[s][m]);
      }
    }
    a_codes += kUnitCols;
    a_scales += Unit::kGroups;
    a_sums += Unit::kGroups;
  }
  for (int m = 0; m < m_count; ++m) {
    for (int s = 0; s < streams.count; ++s) out[m * kStreams + s] = SumOf(sums[s][m], m_count);
  }
}

using MultiplyRowsFunction = void (*)(const RowStreams& streams, bool aligned,
                                      const RoundedActivations& a, int64_t m0, int m_count,
                                      float* out);

MultiplyRowsFunction FindMultiplyRows(Format format) {
  MultiplyRowsFunction found = nullptr;
  VisitCodec(format, [&](auto codec) { found = MultiplyRows<Unit<decltype(codec)>>; });
  return found;
}

// One activation row; columns beyond `cols` are 0.
void RoundActivations(const float* row, int64_t cols, int64_t padded_cols, int group, int8_t* codes,
                      float* scales, float* sums) {
  const hn::CappedTag<float, 16> df;
  const hn::RebindToSigned<decltype(df)> di;
  const hn::Rebind<int8_t, decltype(df)> d8;
  const size_t lanes = hn::Lanes(df);
  const int64_t repeat = 32 / group;
  for (int64_t k = 0; k < cols; k += 32) {
    auto most = hn::Zero(df), poison = hn::Zero(df);
    for (size_t i = 0; i < 32; i += lanes) {
      const auto v = hn::LoadU(df, row + k + i);
      most = hn::Max(most, hn::Abs(v));
      poison = hn::MulAdd(v, hn::Zero(df), poison);  // NaN where a value is not finite
    }
    const float largest = hn::ReduceMax(df, most), nan = hn::ReduceSum(df, poison);
    const float scale = nan == 0 ? largest / 127.0f : nan;
    const auto inverse = hn::Set(df, largest > 0 && nan == 0 ? 127.0f / largest : 0.0f);
    int32_t sum[2] = {0, 0};
    for (size_t i = 0; i < 32; i += lanes) {
      const auto q = hn::NearestInt(hn::Mul(hn::LoadU(df, row + k + i), inverse));
      hn::StoreU(hn::DemoteTo(d8, q), d8, codes + k + i);
      sum[i / 16] += hn::ReduceSum(di, q);
    }
    if (repeat == 1) sum[0] += sum[1];
    for (int64_t i = 0; i < repeat; ++i) {
      scales[k / group + i] = scale;
      sums[k / group + i] = scale * static_cast<float>(sum[i]);
    }
  }
  const auto zero_rest = [&](auto* values, int64_t per) {
    const int64_t from = cols / per, to = padded_cols / per;
    std::memset(values + from, 0, static_cast<size_t>(to - from) * sizeof(*values));
  };
  zero_rest(codes, 1);
  zero_rest(scales, group);
  zero_rest(sums, group);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(FindMultiplyRows);
HWY_EXPORT(RoundActivations);

namespace {

// What the rows of a format look like to the kernels.
struct FormatRows {
  int group = 0;  // columns of a scale, at most 32
  int64_t row_bytes = 0;
  bool aligned = true;
};

// Sums of weight rows [first, first + count) with all activation rows.
void MultiplyStreams(const Product<BlockWeights>& product, const RoundedActivations& a,
                     const FormatRows& format, int64_t first, int64_t count) {
  const auto multiply = NIBBLE_DISPATCH(FindMultiplyRows)(product.weights.format);
  const ProductOutput& output = product.output;
  const int64_t m_rows = product.activations.rows;
  const int64_t part = DivideUp(count, kStreams);
  for (int64_t i = 0; i < part; ++i) {
    RowStreams streams;
    streams.row_bytes = format.row_bytes;
    for (int64_t n = i; n < count; n += part) {
      streams.row[streams.count++] = product.weights.blocks + (first + n) * format.row_bytes;
    }
    for (int64_t m0 = 0; m0 < m_rows; m0 += kMostGemvRows) {
      const int m_count = static_cast<int>(std::min<int64_t>(kMostGemvRows, m_rows - m0));
      float products[kMostGemvRows * kStreams];
      multiply(streams, format.aligned, a, m0, m_count, products);
      for (int m = 0; m < m_count; ++m) {
        float* out = output.Row(m0 + m) + first + i;
        const float* bias = output.bias == nullptr ? nullptr : output.bias + first + i;
        for (int s = 0; s < streams.count; ++s) {
          float sum = products[m * kStreams + s];
          if (bias != nullptr) sum += bias[s * part];
          out[s * part] = output.accumulate ? out[s * part] + sum : sum;
        }
      }
    }
  }
}

}  // namespace

Status MatmulInt8Blocks(std::span<const Product<BlockWeights>> products,
                        const ParallelFor& parallel) {
  std::vector<FormatRows> formats(products.size());
  int64_t weight_rows = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    const BlockWeights& weights = products[i].weights;
    const bool known = VisitCodec(weights.format, [&](auto codec) {
      using Codec = decltype(codec);
      using Block = typename Codec::Block;
      formats[i] = {Codec::kGroup < 32 ? Codec::kGroup : 32,
                    weights.cols / Codec::kWeights * static_cast<int64_t>(sizeof(Block)),
                    reinterpret_cast<uintptr_t>(weights.blocks) % alignof(Block) == 0};
    });
    if (!known) return Unsupported("matmul: not a block format");
    weight_rows += weights.rows;
  }
  const RoundedLayout layout(
      products, [&](size_t i) { return formats[i].group == formats[i - 1].group; },
      [&](size_t i) { return RoundUp(products[i].weights.cols, kUnitCols); });
  const size_t elements = static_cast<size_t>(layout.elements());
  constexpr int kSmallestGroup = 16;
  auto codes = hwy::AllocateAligned<int8_t>(elements);
  auto scales = hwy::AllocateAligned<float>(elements / kSmallestGroup);
  auto sums = hwy::AllocateAligned<float>(elements / kSmallestGroup);
  if (!codes || !scales || !sums) return OutOfMemory("matmul: no memory for activations");
  NIBBLE_RETURN_IF_ERROR(
      RoundRows(products, layout, parallel, [&](size_t i, int64_t m, const float* row) {
        const int64_t cols = products[i].weights.cols, padded = RoundUp(cols, kUnitCols);
        const int64_t begin = layout.Begin(i), group = formats[i].group;
        const int64_t at = begin / kSmallestGroup + m * padded / group;
        NIBBLE_DISPATCH(RoundActivations)
        (row, cols, padded, formats[i].group, codes.get() + begin + m * padded, scales.get() + at,
         sums.get() + at);
      }));

  const int workers = std::max(1, parallel.workers);
  const int64_t task_rows = RowsPerTask(weight_rows, kStreams, weight_rows, workers);
  TaskList tasks;
  for (const auto& product : products) tasks.Add(DivideUp(product.weights.rows, task_rows));
  parallel(tasks.count(), [&](int64_t index, int) {
    const auto [i, task] = tasks.At(index);
    const int64_t begin = layout.Begin(i), first = task * task_rows;
    const RoundedActivations a = {RoundUp(products[i].weights.cols, kUnitCols), formats[i].group,
                                  codes.get() + begin, scales.get() + begin / kSmallestGroup,
                                  sums.get() + begin / kSmallestGroup};
    MultiplyStreams(products[i], a, formats[i], first,
                    std::min(task_rows, products[i].weights.rows - first));
  });
  return OkStatus();
}

}  // namespace nibble
#endif  // HWY_ONCE
