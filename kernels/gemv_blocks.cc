#include "kernels/gemv_blocks.h"

#include <cstring>
#include <type_traits>

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
#include "kernels/dots-inl.h"
#include "kernels/round32-inl.h"
#include "kernels/unpack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
NIBBLE_BEGIN_DOTS

namespace hn = hwy::HWY_NAMESPACE;

// How far ahead, in its stream, weights are asked for.
constexpr int kPrefetchBytes = 1024;

// Tags of vectors of bytes, and of the sums and factors of their dot products.
template <class D>
using Ints = hn::Repartition<int32_t, D>;
template <class D>
using Floats = hn::RebindToFloat<Ints<D>>;

#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
using Widest = hn::CappedTag<uint8_t, 64>;
#else
using Widest = Bytes32;
#endif

// What the codes of dot products stand above the codes of the format.
template <class Block>
constexpr float Offset() {
  return kStoredOffset<Block> == 128 ? kDotsOffset : kStoredOffset<Block>;
}

// Eight halves from as many places.
template <class Bits>
HWY_INLINE void LoadHalves(const Bits& bits, float* out) {
#if NIBBLE_HAVE_F16_CONVERSION
  const Floats<Bytes32> df;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
#if HWY_ARCH_ARM
  // GCC 12, asked for a vector of them as below, takes the halves of the unit before.
  const uint16_t halves[8] = {bits(0), bits(1), bits(2), bits(3),
                              bits(4), bits(5), bits(6), bits(7)};
#else
  const hn::CappedTag<uint16_t, 8> d16;
  alignas(16) uint16_t halves[8];
  hn::Store(hn::Dup128VecFromValues(d16, bits(0), bits(1), bits(2), bits(3), bits(4), bits(5),
                                    bits(6), bits(7)),
            d16, halves);
#endif
  for (size_t i = 0; i < 8; i += hn::Lanes(df)) {
    const auto part = hn::LoadU(hn::Rebind<uint16_t, decltype(df)>(), halves + i);
    hn::StoreU(hn::PromoteTo(df, hn::BitCast(dh, part)), df, out + i);
  }
#else
  for (int i = 0; i < 8; ++i) out[i] = ToFloat(F16{bits(i)});
#endif
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
  static constexpr bool kHasMin = Codec::kHasMin || Offset<Block>() != 0;

  // Super-blocks in the widest vectors there are.
  static constexpr bool kWide = IsWide(Widest()) && kBlocks == 1;
  using D = std::conditional_t<kWide, Widest, Bytes32>;
  static constexpr CodeOrder kOrder = kWide ? kWideOrder<Block> : CodeOrder::kNatural;

  // A weight is scales[g] * (its stored code) - mins[g].
  static HWY_INLINE void LoadScales(const Block* blocks, float* scales, float* mins) {
    const hn::CappedTag<float, kGroups> df;  // stored as they will be loaded
    if constexpr (kBlocks == 1) {
      UnpackScales(*blocks, scales, mins);
      if constexpr (Codec::kGroup > 32) {
        for (size_t g = 0; g < kGroups; g += hn::Lanes(df)) {
          hn::StoreU(hn::Set(df, scales[0]), df, scales + g);
        }
      }
    } else if constexpr (std::is_same_v<Block, BlockMXFP4>) {
      const hn::RebindToSigned<decltype(df)> di;
      const hn::Rebind<uint8_t, decltype(df)> d8;
      uint64_t exponents = 0;
      for (int i = 0; i < kBlocks; ++i) exponents |= uint64_t{blocks[i].e} << (8 * i);
      const uint8_t* bytes = reinterpret_cast<const uint8_t*>(&exponents);
      for (size_t i = 0; i < kBlocks; i += hn::Lanes(df)) {
        hn::StoreU(PowersOfTwo(df, hn::PromoteTo(di, hn::LoadU(d8, bytes + i))), df, scales + i);
      }
    } else {
      LoadHalves([blocks](int i) { return blocks[i].d.bits; }, scales);
      if constexpr (Codec::kHasMin) {
        LoadHalves([blocks](int i) { return blocks[i].m.bits; }, mins);
        for (size_t g = 0; g < kGroups; g += hn::Lanes(df)) {
          hn::StoreU(hn::Neg(hn::LoadU(df, mins + g)), df, mins + g);
        }
      }
    }
    if constexpr (Offset<Block>() != 0) {
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
                               NIBBLE_INLINE_LAMBDA { sink(d, stored, i * Codec::kWeights + k); };
      VisitCodes(D(), blocks[i], shifted);
    }
  }
};

// The factors of a unit's groups: scales of the weights times those of the activations. Each has
//   Combine(..., sum)  sets them and returns `sum` less what the minima take off
//   Lanes(place)       those of the codes from `place` on, one for each dot product of a vector
// This one keeps them in memory.
template <class D, int kGroup>
struct GroupFactors {
  using DF = Floats<D>;
  static constexpr int kGroups = kUnitCols / kGroup;
  alignas(64) float at[kGroups];

  HWY_INLINE hn::Vec<DF> Combine(const float* w_scales, const float* w_mins, const float* a_scales,
                                 const float* a_sums, bool has_min, hn::Vec<DF> sum) {
    const DF df;
    for (size_t g = 0; g < kGroups; g += hn::Lanes(df)) {
      const auto scale = hn::Mul(hn::LoadU(df, w_scales + g), hn::LoadU(df, a_scales + g));
      hn::Store(scale, df, at + g);
      if (has_min) sum = hn::NegMulAdd(hn::LoadU(df, w_mins + g), hn::LoadU(df, a_sums + g), sum);
    }
    // Compilers would shuffle registers, of which there is one a cycle, to save these loads.
    const float* place = at;
    hwy::PreventElision(place);
    return sum;
  }

  HWY_INLINE hn::Vec<DF> Lanes(size_t place) const {
    const DF df;
    const size_t g = place / kGroup;
    if constexpr (hn::MaxLanes(df) * 4 <= kGroup) {
      return hn::Set(df, at[g]);
    } else {
      return hn::ConcatLowerLower(df, hn::Set(df, at[g + 1]), hn::Set(df, at[g]));
    }
  }
};

#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
// For each dot product of a wide vector the group of its codes.
template <int kGroup, CodeOrder kOrder>
struct LaneGroups {
  alignas(64) int32_t at[kUnitCols / 64][16];
  constexpr LaneGroups() : at() {
    for (int place = 0; place < kUnitCols; place += 4) {
      at[place / 64][place % 64 / 4] = ColumnAt(kOrder, place) / kGroup;
    }
  }
};
template <int kGroup, CodeOrder kOrder>
inline constexpr LaneGroups<kGroup, kOrder> kLaneGroups;

// This one keeps up to sixteen factors in a register.
template <int kGroup, CodeOrder kOrder>
struct WideFactors {
  using DF = Floats<Widest>;
  hn::Vec<DF> factors;

  HWY_INLINE hn::Vec<DF> Combine(const float* w_scales, const float* w_mins, const float* a_scales,
                                 const float* a_sums, bool has_min, hn::Vec<DF> sum) {
    factors = hn::Mul(Load(w_scales), Load(a_scales));
    return has_min ? hn::NegMulAdd(Load(w_mins), Load(a_sums), sum) : sum;
  }
  HWY_INLINE hn::Vec<DF> Lanes(size_t place) const {
    const auto groups = hn::Load(Ints<Widest>(), kLaneGroups<kGroup, kOrder>.at[place / 64]);
    return hn::TableLookupLanes(factors, hn::IndicesFromVec(DF(), groups));
  }

 private:
  static HWY_INLINE hn::Vec<DF> Load(const float* groups) {
    const DF df;
    if constexpr (kGroup == 16) {
      return hn::LoadU(df, groups);
    } else {
      return hn::ZeroExtendVector(df, hn::LoadU(hn::Half<DF>(), groups));
    }
  }
};
#endif

template <class D, int kGroup, CodeOrder kOrder>
struct FactorsFor {
  using Type = GroupFactors<D, kGroup>;
};
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
template <int kGroup, CodeOrder kOrder>
struct FactorsFor<Widest, kGroup, kOrder> {
  using Type = WideFactors<kGroup, kOrder>;
};
#endif

// One unit times one activation row. `visit(sink)` gives the codes to sink(d, stored, place).
template <class Unit, class D, class Visit>
HWY_INLINE void MultiplyCodes(const float* w_scales, const float* w_mins, const int8_t* a_codes,
                              const float* a_scales, const float* a_sums, const Visit& visit,
                              float* sums) {
  const Floats<D> df;
  const hn::RebindToSigned<D> ds;
  typename FactorsFor<D, Unit::kGroup, Unit::kOrder>::Type factors;
  auto even = hn::Load(df, sums);
  auto odd = factors.Combine(w_scales, w_mins, a_scales, a_sums, Unit::kHasMin, hn::Zero(df));
  visit([&](auto d, auto stored, size_t place) NIBBLE_INLINE_LAMBDA {
    const auto dots = AddDots<Unit::kSmall>(d, stored, hn::LoadU(ds, a_codes + place),
                                            hn::Zero(Ints<decltype(d)>()));
    auto& sum = place / hn::MaxLanes(d) % 2 == 0 ? even : odd;
    sum = hn::MulAdd(hn::ConvertTo(df, dots), factors.Lanes(place), sum);
  });
  hn::Store(hn::Add(even, odd), df, sums);
}

// sums (as many as a vector holds) += one unit times one activation row.
template <class Unit>
HWY_INLINE void MultiplyUnit(const typename Unit::Block* blocks, const int8_t* a_codes,
                             const float* a_scales, const float* a_sums, float* sums) {
  alignas(64) float scales[Unit::kGroups], mins[Unit::kGroups];
  Unit::LoadScales(blocks, scales, mins);
  MultiplyCodes<Unit, typename Unit::D>(
      scales, mins, a_codes, a_scales, a_sums,
      [&](const auto& sink) NIBBLE_INLINE_LAMBDA { Unit::VisitUnit(blocks, sink); }, sums);
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

// The same as MultiplyUnit.
template <class Unit>
HWY_INLINE void MultiplyUnpacked(const UnpackedUnit& w, const int8_t* a_codes,
                                 const float* a_scales, const float* a_sums, float* sums) {
  const Widest d;
  const auto visit = [&](const auto& sink) NIBBLE_INLINE_LAMBDA {
    for (size_t k = 0; k < kUnitCols; k += hn::Lanes(d)) sink(d, hn::Load(d, w.codes + k), k);
  };
  MultiplyCodes<Unit, Widest>(w.scales, w.mins, a_codes, a_scales, a_sums, visit, sums);
}

// out[m * kStreams + s] = activation row m0 + m times row s of the streams, for m < m_count.
template <class Unit>
void MultiplyRows(const RowStreams& streams, bool aligned, const RoundedActivations& a, int64_t m0,
                  int m_count, float* out) {
  using Block = typename Unit::Block;
  constexpr int kBytes = sizeof(Block) * Unit::kBlocks;
  alignas(64) float sums[kStreams][kMostGemvRows][16] = {};
  const int64_t groups = a.cols / Unit::kGroup;
  const int8_t* a_codes = a.codes + m0 * a.cols;
  const float* a_scales = a.scales + m0 * groups;
  const float* a_sums = a.sums + m0 * groups;
  const auto multiply = [&](int s, const Block* blocks) HWY_ATTR {
    if (m_count == 1) {
      MultiplyUnit<Unit>(blocks, a_codes, a_scales, a_sums, sums[s][0]);
      return;
    }
    UnpackedUnit unpacked;
    UnpackUnit<Unit>(blocks, unpacked);
    for (int m = 0; m < m_count; ++m) {
      MultiplyUnpacked<Unit>(unpacked, a_codes + m * a.cols, a_scales + m * groups,
                             a_sums + m * groups, sums[s][m]);
    }
  };

  const int64_t units = a.cols / kUnitCols;
  const int64_t whole = aligned ? streams.row_bytes / kBytes : 0;  // units to be read in place
  for (int64_t u = 0; u < units;) {
    // Two at a time, where there is little to do for each.
    const int step = m_count == 1 && u + 2 <= whole ? 2 : 1;
    for (int s = 0; s < streams.count; ++s) {
      const std::byte* at = streams.row[s] + u * kBytes;
      for (int line = 0; line < step * kBytes; line += 64) {
        hwy::Prefetch(at + kPrefetchBytes + line);
      }
      const Block* blocks = reinterpret_cast<const Block*>(at);
      if (step == 2) {
        MultiplyUnit<Unit>(blocks, a_codes, a_scales, a_sums, sums[s][0]);
        MultiplyUnit<Unit>(blocks + Unit::kBlocks, a_codes + kUnitCols, a_scales + Unit::kGroups,
                           a_sums + Unit::kGroups, sums[s][0]);
      } else if (u < whole) {
        multiply(s, blocks);
      } else {
        // A unit that ends early or lies at an odd address.
        Block copy[Unit::kBlocks] = {};
        const int64_t bytes = std::min<int64_t>(kBytes, streams.row_bytes - u * kBytes);
        std::memcpy(copy, at, static_cast<size_t>(bytes));
        multiply(s, copy);
      }
    }
    u += step;
    a_codes += step * kUnitCols;
    a_scales += step * Unit::kGroups;
    a_sums += step * Unit::kGroups;
  }
  // Lanes that a narrower vector left alone are 0.
  const Floats<Widest> df;
  for (int m = 0; m < m_count; ++m) {
    for (int s = 0; s < streams.count; ++s) {
      out[m * kStreams + s] = hn::ReduceSum(df, hn::Load(df, sums[s][m]));
    }
  }
}

BlockKernel FindBlockKernel(Format format) {
  BlockKernel found;
  VisitCodec(format, [&](auto codec) {
    using Unit = Unit<decltype(codec)>;
    found = {MultiplyRows<Unit>, Unit::kGroup, Unit::kOrder};
  });
  return found;
}

// One activation row, its codes in the order that a kernel takes them; columns beyond `cols` are 0.
void RoundActivations(const float* row, int64_t cols, const BlockKernel& kernel, int8_t* codes,
                      float* scales, float* sums) {
  const int64_t padded_cols = RoundUp(cols, kUnitCols), group = kernel.group;
  // Where sixteen columns of a unit go.
  int place[kUnitCols / 16];
  for (int to = 0; to < kUnitCols; to += 16) place[ColumnAt(kernel.order, to) / 16] = to;
  std::memset(codes, 0, static_cast<size_t>(padded_cols));
  const int64_t repeat = 32 / group;
  for (int64_t k = 0; k < cols; k += 32) {
    const int64_t within = k % kUnitCols;
    int8_t* unit = codes + (k - within);
    auto [scale, sum] = Round32(row + k, unit + place[within / 16], unit + place[within / 16 + 1]);
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
  zero_rest(scales, group);
  zero_rest(sums, group);
}

NIBBLE_END_DOTS
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#include "kernels/avx_vnni_pass.h"

#if NIBBLE_ONCE
namespace nibble {

HWY_EXPORT(FindBlockKernel);
HWY_EXPORT(RoundActivations);

namespace {

// What the rows of a format look like to the kernels.
struct FormatRows {
  BlockKernel kernel;
  int64_t row_bytes = 0;
  bool aligned = true;
};

}  // namespace

Status MatmulInt8Blocks(std::span<const Product<BlockWeights>> products,
                        const ParallelFor& parallel) {
  std::vector<FormatRows> formats(products.size());
  for (size_t i = 0; i < products.size(); ++i) {
    const BlockWeights& weights = products[i].weights;
    const bool known = VisitCodec(weights.format, [&](auto codec) {
      using Codec = decltype(codec);
      using Block = typename Codec::Block;
      formats[i] = {NIBBLE_DISPATCH_DOTS(FindBlockKernel)(weights.format),
                    weights.cols / Codec::kWeights * static_cast<int64_t>(sizeof(Block)),
                    reinterpret_cast<uintptr_t>(weights.blocks) % alignof(Block) == 0};
    });
    if (!known) return Unsupported("matmul: not a block format");
  }
  const RoundedLayout layout(
      products, [&](size_t i) { return formats[i].kernel.RoundsLike(formats[i - 1].kernel); },
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
        const int64_t begin = layout.Begin(i), group = formats[i].kernel.group;
        const int64_t at = begin / kSmallestGroup + m * padded / group;
        NIBBLE_DISPATCH_DOTS(RoundActivations)
        (row, cols, formats[i].kernel, codes.get() + begin + m * padded, scales.get() + at,
         sums.get() + at);
      }));

  const auto row_count = [&](size_t i) { return products[i].weights.rows; };
  const auto multiply = [&](size_t i, const int64_t* n, int count) {
    const BlockWeights& weights = products[i].weights;
    const int64_t begin = layout.Begin(i), m_rows = products[i].activations.rows;
    const RoundedActivations a = {RoundUp(weights.cols, kUnitCols), formats[i].kernel.group,
                                  codes.get() + begin, scales.get() + begin / kSmallestGroup,
                                  sums.get() + begin / kSmallestGroup};
    RowStreams streams;
    streams.count = count;
    streams.row_bytes = formats[i].row_bytes;
    for (int s = 0; s < count; ++s) streams.row[s] = weights.blocks + n[s] * streams.row_bytes;
    for (int64_t m0 = 0; m0 < m_rows; m0 += kMostGemvRows) {
      const int m_count = static_cast<int>(std::min<int64_t>(kMostGemvRows, m_rows - m0));
      float sums_of_rows[kMostGemvRows * kStreams];
      formats[i].kernel.multiply(streams, formats[i].aligned, a, m0, m_count, sums_of_rows);
      for (int m = 0; m < m_count; ++m) {
        for (int s = 0; s < count; ++s) {
          products[i].output.Put(m0 + m, n[s], sums_of_rows[m * kStreams + s]);
        }
      }
    }
  };
  ForStreams(products.size(), row_count, parallel, multiply);
  return OkStatus();
}

}  // namespace nibble
#endif  // NIBBLE_ONCE
