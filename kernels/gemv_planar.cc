#include "kernels/gemv_planar.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "hwy/aligned_allocator.h"
#include "hwy/cache_control.h"
#include "kernels/int8_targets.h"
#include "kernels/planar.h"
#include "kernels/round_planar.h"
#include "kernels/round_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gemv_planar.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/dots-inl.h"

#ifndef NIBBLE_GEMV_PLANAR_CONSTANTS
#define NIBBLE_GEMV_PLANAR_CONSTANTS
namespace nibble {
namespace {

// Bytes of codes that the kernels take from one row before they turn to the next stream.
constexpr int64_t kUnitBytes = 512;
// Weight rows that are read at once, each a stream from a quarter of its own.
constexpr int kRowStreams = 4;
// Activation rows that share one unpacking.
constexpr int kMostShared = 4;
// Floats that a vector of group scales may read beyond the row's last.
constexpr int64_t kScalePadding = 16;

}  // namespace
}  // namespace nibble
#endif

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
NIBBLE_BEGIN_DOTS

namespace hn = hwy::HWY_NAMESPACE;

using D8 = hn::CappedTag<uint8_t, 64>;
using DS8 = hn::RebindToSigned<D8>;
using DI = hn::Repartition<int32_t, D8>;
using DF = hn::RebindToFloat<DI>;
using DU = hn::RebindToUnsigned<DI>;
using V8 = hn::Vec<D8>;
using VI = hn::Vec<DI>;
using VF = hn::Vec<DF>;

// How far ahead, in its stream, weights are asked for.
constexpr int64_t kPrefetchBytes = 1024;

// Phase kPhase of bytes of kBits-bit codes, `flip` already applied. Codes spread to a byte each are
// of 7 bits here.
template <int kBits, int kPhase>
HWY_INLINE V8 PhaseOf(V8 bytes) {
  if constexpr (kBits > 4) {
    return bytes;
  } else {
    // A shift of wider lanes: what comes over from the neighbour is masked.
    if constexpr (kPhase > 0) {
      bytes = hn::BitCast(D8(), hn::ShiftRight<kBits * kPhase>(hn::BitCast(DU(), bytes)));
    }
    return hn::And(bytes, hn::Set(D8(), static_cast<uint8_t>((1 << kBits) - 1)));
  }
}

// The constants of one product.
struct Shape {
  uint8_t flip;
  const uint8_t* table;
  int64_t group_bytes;  // bytes of codes under one scale; 0: all
  int64_t a_bytes;      // PlanarActivations::bytes
  int64_t a_codes;      // between activation rows
  int64_t a_lanes;
};

// Codes [byte, byte + count) of a row, count <= kUnitBytes, times kM activation rows: adds to
// sums[m] (of a vector's lanes each).
template <int kBits, bool kHasTable, bool kGrouped, int kM>
HWY_INLINE void MultiplyUnit(const Shape& shape, const uint8_t* HWY_RESTRICT codes, int64_t byte,
                             int64_t count, const int8_t* HWY_RESTRICT a_codes,
                             const float* HWY_RESTRICT a_scales, const float* HWY_RESTRICT scales,
                             float* HWY_RESTRICT sums) {
  static_assert(kM <= kMostShared);
  const D8 d;
  const DF df;
  const DI di;
  constexpr bool kSmall = kBits < 8 && !kHasTable;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t floats = static_cast<int64_t>(hn::Lanes(df));
  const DS8 ds;
  const V8 flip = hn::Set(d, shape.flip);
  const V8 table = hn::LoadDup128(d, shape.table);

  // Which of the scales at the vector's first byte a lane has.
  const int64_t group_bytes = kGrouped ? shape.group_bytes : kUnitBytes;
  const int shift = std::countr_zero(static_cast<uint64_t>(group_bytes));
  const bool one_scale = group_bytes >= lanes;
  const auto which = hn::IndicesFromVec(
      df, one_scale ? hn::Zero(di) : hn::ShiftRightSame(hn::Iota(di, 0), shift - 2));

  VF s0 = hn::LoadU(df, sums), s1 = s0, s2 = s0, s3 = s0;
  if constexpr (kM > 1) s1 = hn::LoadU(df, sums + floats);
  if constexpr (kM > 2) s2 = hn::LoadU(df, sums + 2 * floats);
  if constexpr (kM > 3) s3 = hn::LoadU(df, sums + 3 * floats);

  const auto step = [&](V8 bytes, int64_t at) HWY_ATTR {
    VF scale = hn::Zero(df);
    if constexpr (kGrouped) {
      const float* first = scales + (at >> shift);
      scale = one_scale ? hn::Set(df, *first) : hn::TableLookupLanes(hn::LoadU(df, first), which);
    }
    if constexpr (!kHasTable) bytes = hn::Xor(bytes, flip);
    VI i0 = hn::Zero(di), i1 = i0, i2 = i0, i3 = i0;
    const int8_t* a = a_codes + at;
    const auto phase = [&](auto number) HWY_ATTR {
      constexpr int kPhase = decltype(number)::value;
      if constexpr (kPhase < 8 / kBits) {
        V8 w = PhaseOf<kBits, kPhase>(bytes);
        if constexpr (kHasTable) w = hn::TableLookupBytes(table, w);
        const int8_t* from = a + kPhase * shape.a_bytes;
        i0 = AddDots<kSmall>(d, w, hn::LoadU(ds, from), i0);
        if constexpr (kM > 1) i1 = AddDots<kSmall>(d, w, hn::LoadU(ds, from + shape.a_codes), i1);
        if constexpr (kM > 2)
          i2 = AddDots<kSmall>(d, w, hn::LoadU(ds, from + 2 * shape.a_codes), i2);
        if constexpr (kM > 3)
          i3 = AddDots<kSmall>(d, w, hn::LoadU(ds, from + 3 * shape.a_codes), i3);
      }
    };
    phase(std::integral_constant<int, 0>());
    phase(std::integral_constant<int, 1>());
    phase(std::integral_constant<int, 2>());
    phase(std::integral_constant<int, 3>());
    phase(std::integral_constant<int, 4>());
    phase(std::integral_constant<int, 5>());
    phase(std::integral_constant<int, 6>());
    phase(std::integral_constant<int, 7>());
    const auto add = [&](VI dots, int m, VF sum) HWY_ATTR {
      VF by = hn::LoadU(df, a_scales + at / 4 + m * shape.a_lanes);
      if constexpr (kGrouped) by = hn::Mul(by, scale);
      return hn::MulAdd(hn::ConvertTo(df, dots), by, sum);
    };
    s0 = add(i0, 0, s0);
    if constexpr (kM > 1) s1 = add(i1, 1, s1);
    if constexpr (kM > 2) s2 = add(i2, 2, s2);
    if constexpr (kM > 3) s3 = add(i3, 3, s3);
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) step(hn::LoadU(d, codes + i), byte + i);
  if (i < count) step(hn::LoadN(d, codes + i, static_cast<size_t>(count - i)), byte + i);

  hn::StoreU(s0, df, sums);
  if constexpr (kM > 1) hn::StoreU(s1, df, sums + floats);
  if constexpr (kM > 2) hn::StoreU(s2, df, sums + 2 * floats);
  if constexpr (kM > 3) hn::StoreU(s3, df, sums + 3 * floats);
}

// Consecutive floats of a plane.
HWY_INLINE VF LoadPlaneFloats(DType dtype, const uint8_t* plane, int64_t i) {
  const DF df;
  switch (dtype) {
    case DType::kU8: {
      const hn::Rebind<uint8_t, DF> du8;
      return hn::ConvertTo(df, hn::PromoteTo(DI(), hn::LoadU(du8, plane + i)));
    }
    case DType::kBF16: {
      const hn::Rebind<uint16_t, DF> du16;
      const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(plane + 2 * i));
      return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(DU(), bits)));
    }
    default:
      return hn::LoadU(df, reinterpret_cast<const float*>(plane + 4 * i));
  }
}

// `count` floats of a plane from element `first` on, as the codec decodes them.
void DecodePlane(DType dtype, const uint8_t* plane, int64_t first, int64_t count, float* out) {
  const DF df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  int64_t i = 0;
#if !(HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2)
  if (dtype == DType::kF16) {
    const hn::Rebind<hwy::float16_t, DF> dh;
    const hn::Rebind<uint16_t, DF> du16;
    for (; i + lanes <= count; i += lanes) {
      const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(plane + 2 * (first + i)));
      hn::StoreU(hn::PromoteTo(df, hn::BitCast(dh, bits)), df, out + i);
    }
  }
#endif
  if (dtype != DType::kF16) {
    for (; i + lanes <= count; i += lanes) {
      hn::StoreU(LoadPlaneFloats(dtype, plane, first + i), df, out + i);
    }
  }
  for (; i < count; ++i) out[i] = LoadPlaneFloat(plane, dtype, first + i);
}

// Scales of double quantization.
void DecodeDouble(const PlanarInt8& weights, int64_t first, int64_t count, float* out) {
  const DF df;
  const DI di;
  const hn::Rebind<uint8_t, DF> du8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const PlanarPlanes& p = weights.planes();
  const int64_t blocks = DivideUp(p.scale_count(), kScalesPerSuperBlock);
  const float mean = LoadPlaneFloat(p.super_scales, DType::kF32, blocks);
  for (int64_t i = 0; i < count;) {
    const int64_t block = (first + i) / kScalesPerSuperBlock;
    const int64_t end = HWY_MIN(count, (block + 1) * kScalesPerSuperBlock - first);
    const float maximum = LoadPlaneFloat(p.super_scales, DType::kF32, block);
    for (; i + lanes <= end; i += lanes) {
      const VI code = hn::PromoteTo(di, hn::LoadU(du8, p.scales + first + i));
      const VF value = hn::GatherIndex(df, weights.map(), code);
      hn::StoreU(hn::Add(hn::Mul(value, hn::Set(df, maximum)), hn::Set(df, mean)), df, out + i);
    }
    for (; i < end; ++i) out[i] = weights.map()[p.scales[first + i]] * maximum + mean;
  }
}

// Asks for the scales and zeros of a row that will come: one row's are too few for the processor to
// see a stream in them.
HWY_INLINE void PrefetchRowScales(const PlanarPlanes& p, int64_t row) {
  const auto prefetch = [&](const uint8_t* plane, size_t width) {
    const int64_t bytes = p.groups * static_cast<int64_t>(width);
    for (int64_t i = 0; i < bytes + 63; i += 64) hwy::Prefetch(plane + row * bytes + i);
  };
  prefetch(p.scales, p.scheme.double_quant ? 1 : DTypeBytes(p.scheme.scale_dtype));
  if (!p.scheme.symmetric) prefetch(p.zeros, DTypeBytes(p.scheme.zero_dtype));
}

// The scales of a row, zeros behind them, and what each sum of activations takes off:
// scale * (zero + offset).
void DecodeRowScales(const PlanarInt8& weights, int64_t row, int64_t groups, float* scales,
                     float* takes_off) {
  const DF df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const PlanarPlanes& p = weights.planes();
  const int64_t at = p.ScaleAt(row, 0);
  if (p.scheme.double_quant) {
    DecodeDouble(weights, at, groups, scales);
  } else {
    DecodePlane(p.scheme.scale_dtype, p.scales, at, groups, scales);
  }
  std::memset(scales + groups, 0, kScalePadding * sizeof(float));
  const bool small = p.scheme.bits < 8 && !weights.has_table();
  const float offset = static_cast<float>(weights.offset() - (small ? 0 : 128 - kDotsOffset));
  if (p.scheme.symmetric) {
    std::memset(takes_off, 0, static_cast<size_t>(groups) * sizeof(float));
  } else {
    DecodePlane(p.scheme.zero_dtype, p.zeros, at, groups, takes_off);
  }
  for (int64_t i = 0; i < groups; i += lanes) {
    const VF zero = hn::Add(hn::LoadU(df, takes_off + i), hn::Set(df, offset));
    hn::StoreU(hn::Mul(hn::LoadU(df, scales + i), zero), df, takes_off + i);
  }
}

// Memory of one worker for one row of each stream.
struct RowScratch {
  float* scales;
  float* takes_off;
  float* sums;  // [kMostShared][64]

  static int64_t Floats(int64_t groups) {
    return 2 * (RoundUp(groups, 64) + kScalePadding + 64) + kMostShared * 64;
  }
  RowScratch(float* memory, int64_t groups)
      : scales(memory),
        takes_off(memory + RoundUp(groups, 64) + kScalePadding + 64),
        sums(memory + 2 * (RoundUp(groups, 64) + kScalePadding + 64)) {}
};

template <int kBits, bool kHasTable, bool kGrouped>
HWY_INLINE void MultiplyShared(const Shape& shape, int m_count, const uint8_t* codes, int64_t byte,
                               int64_t count, const int8_t* a_codes, const float* a_scales,
                               const float* scales, float* sums) {
  switch (m_count) {
    case 1:
      return MultiplyUnit<kBits, kHasTable, kGrouped, 1>(shape, codes, byte, count, a_codes,
                                                         a_scales, scales, sums);
    case 2:
      return MultiplyUnit<kBits, kHasTable, kGrouped, 2>(shape, codes, byte, count, a_codes,
                                                         a_scales, scales, sums);
    case 3:
      return MultiplyUnit<kBits, kHasTable, kGrouped, 3>(shape, codes, byte, count, a_codes,
                                                         a_scales, scales, sums);
    default:
      return MultiplyUnit<kBits, kHasTable, kGrouped, 4>(shape, codes, byte, count, a_codes,
                                                         a_scales, scales, sums);
  }
}

// out[m * kRowStreams + s] = activation row m0 + m times weight row rows[s].
template <int kBits, bool kHasTable, bool kGrouped>
void MultiplyRows(const PlanarInt8& weights, const int64_t* rows, int row_count,
                  const PlanarActivations& a, int64_t m0, int m_count, float* memory, float* out) {
  const DF df;
  const PlanarPlanes& p = weights.planes();
  const int bits = p.scheme.bits;
  const int64_t row_bytes = PlanarRowBytes(bits, p.cols);
  const int64_t code_bytes = DivideUp(p.cols, weights.phases());
  const int64_t stride = RowScratch::Floats(a.groups);
  const Shape shape = {weights.flip(),
                       weights.table(),
                       weights.group() / weights.phases(),
                       a.bytes,
                       weights.phases() * a.bytes,
                       a.bytes / 4};
  const int8_t* a_codes = a.codes + m0 * shape.a_codes;
  const float* a_scales = a.lane_scales + m0 * shape.a_lanes;
  for (int s = 0; s < row_count; ++s) {
    const RowScratch scratch(memory + s * stride, a.groups);
    DecodeRowScales(weights, rows[s], a.groups, scratch.scales, scratch.takes_off);
    if (kGrouped && rows[s] + 2 < p.rows) PrefetchRowScales(p, rows[s] + 2);
    std::memset(scratch.sums, 0, sizeof(float) * hn::Lanes(df) * static_cast<size_t>(m_count));
  }
  for (int64_t byte = 0; byte < code_bytes; byte += kUnitBytes) {
    const int64_t count = HWY_MIN(kUnitBytes, code_bytes - byte);
    for (int s = 0; s < row_count; ++s) {
      const RowScratch scratch(memory + s * stride, a.groups);
      const uint8_t* codes = p.codes + rows[s] * row_bytes;
      uint8_t spread[kUnitBytes];
      if (kBits == 7) {
        codes += byte / 8 * bits;
        for (int64_t i = 0; i < kUnitBytes / 8 * bits; i += 64) {
          hwy::Prefetch(codes + kPrefetchBytes + i);
        }
        UnpackCodes(codes, bits, count, spread);
        codes = spread;
      } else {
        codes += byte;
        for (int64_t i = 0; i < kUnitBytes; i += 64) hwy::Prefetch(codes + kPrefetchBytes + i);
      }
      MultiplyShared<kBits, kHasTable, kGrouped>(shape, m_count, codes, byte, count, a_codes,
                                                 a_scales, scratch.scales, scratch.sums);
    }
  }
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  for (int s = 0; s < row_count; ++s) {
    const RowScratch scratch(memory + s * stride, a.groups);
    for (int m = 0; m < m_count; ++m) {
      const float* a_sums = a.sums + (m0 + m) * a.groups;
      VF off = hn::Zero(df);
      int64_t g = 0;
      for (; g + lanes <= a.groups; g += lanes) {
        off = hn::MulAdd(hn::LoadU(df, scratch.takes_off + g), hn::LoadU(df, a_sums + g), off);
      }
      if (g < a.groups) {
        const size_t rest = static_cast<size_t>(a.groups - g);
        off = hn::MulAdd(hn::LoadN(df, scratch.takes_off + g, rest),
                         hn::LoadN(df, a_sums + g, rest), off);
      }
      VF sum = hn::LoadU(df, scratch.sums + m * lanes);
      if constexpr (!kGrouped) sum = hn::Mul(sum, hn::Set(df, scratch.scales[0]));
      out[m * kRowStreams + s] = hn::ReduceSum(df, hn::Sub(sum, off)) * weights.table_scale();
    }
  }
}

using MultiplyRowsFunction = void (*)(const PlanarInt8& weights, const int64_t* rows, int row_count,
                                      const PlanarActivations& a, int64_t m0, int m_count,
                                      float* memory, float* out);

template <bool kGrouped>
MultiplyRowsFunction FindMultiplyRowsOf(const PlanarInt8& weights) {
  if (weights.has_table()) return MultiplyRows<4, true, kGrouped>;
  switch (weights.phases()) {
    case 8:
      return MultiplyRows<1, false, kGrouped>;
    case 4:
      return MultiplyRows<2, false, kGrouped>;
    case 2:
      return MultiplyRows<4, false, kGrouped>;
    default:
      return weights.is_spread() ? MultiplyRows<7, false, kGrouped>
                                 : MultiplyRows<8, false, kGrouped>;
  }
}

MultiplyRowsFunction FindMultiplyRows(const PlanarInt8& weights) {
  return weights.group() > 0 ? FindMultiplyRowsOf<true>(weights)
                             : FindMultiplyRowsOf<false>(weights);
}

NIBBLE_END_DOTS
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#include "kernels/avx_vnni_pass.h"

#if NIBBLE_ONCE
namespace nibble {

HWY_EXPORT(FindMultiplyRows);

namespace {

// Sums of weight rows [first, first + count) with all activation rows.
void MultiplyPart(const Product<const PlanarInt8*>& product, const PlanarActivations& a,
                  int64_t first, int64_t count, float* memory) {
  const PlanarInt8& weights = *product.weights;
  const ProductOutput& output = product.output;
  const auto multiply = NIBBLE_DISPATCH_DOTS(FindMultiplyRows)(weights);
  const int64_t m_rows = product.activations.rows;
  const int64_t part = DivideUp(count, kRowStreams);
  for (int64_t i = 0; i < part; ++i) {
    int64_t rows[kRowStreams] = {};
    int row_count = 0;
    for (int64_t n = i; n < count; n += part) rows[row_count++] = first + n;
    for (int64_t m0 = 0; m0 < m_rows; m0 += kMostShared) {
      const int m_count = static_cast<int>(std::min<int64_t>(kMostShared, m_rows - m0));
      float sums[kMostShared * kRowStreams];
      multiply(weights, rows, row_count, a, m0, m_count, memory, sums);
      for (int m = 0; m < m_count; ++m) {
        float* out = output.Row(m0 + m);
        for (int s = 0; s < row_count; ++s) {
          const int64_t n = rows[s];
          float sum = sums[m * kRowStreams + s];
          if (output.bias != nullptr) sum += output.bias[n];
          out[n] = output.accumulate ? out[n] + sum : sum;
        }
      }
    }
  }
}

int64_t ActivationGroups(const PlanarInt8& weights) {
  return weights.group() > 0 ? weights.planes().groups : 1;
}

int64_t ActivationBytes(const PlanarInt8& weights) {
  return RoundUp(DivideUp(weights.planes().cols, weights.phases()), 64);
}

}  // namespace

Status MatmulInt8Planar(std::span<const Product<const PlanarInt8*>> products,
                        const ParallelFor& parallel) {
  const int workers = std::max(1, parallel.workers);
  int64_t weight_rows = 0, groups = 1;
  for (const auto& product : products) {
    weight_rows += product.weights->rows();
    groups = std::max(groups, ActivationGroups(*product.weights));
  }
  // An element is a column; a row has no more group sums than every 32 columns one.
  const RoundedLayout layout(
      products,
      [&](size_t i) {
        const PlanarInt8 &one = *products[i].weights, &before = *products[i - 1].weights;
        return one.phases() == before.phases() && one.group() == before.group();
      },
      [&](size_t i) {
        return ActivationBytes(*products[i].weights) * products[i].weights->phases();
      });
  const size_t elements = static_cast<size_t>(layout.elements());
  auto codes = hwy::AllocateAligned<int8_t>(elements);
  auto lane_scales = hwy::AllocateAligned<float>(elements / 4);
  auto sums = hwy::AllocateAligned<float>(elements / 32);
  const int64_t scratch =
      kRowStreams * (2 * (RoundUp(groups, 64) + kScalePadding + 64) + kMostShared * 64);
  auto memory = hwy::AllocateAligned<float>(static_cast<size_t>(workers * scratch));
  if (!codes || !lane_scales || !sums || !memory) {
    return OutOfMemory("matmul: no memory for activations");
  }
  const auto rounded = [&](size_t i) {
    const int64_t begin = layout.Begin(i);
    return PlanarActivations{ActivationBytes(*products[i].weights),
                             ActivationGroups(*products[i].weights), codes.get() + begin,
                             lane_scales.get() + begin / 4, sums.get() + begin / 32};
  };
  NIBBLE_RETURN_IF_ERROR(
      RoundRows(products, layout, parallel, [&](size_t i, int64_t m, const float* row) {
        const PlanarInt8& weights = *products[i].weights;
        const PlanarActivations a = rounded(i);
        RoundPlanarRow(row, weights.planes().cols, weights.phases(), weights.group(), a.bytes,
                       a.groups, const_cast<int8_t*>(a.codes) + m * a.bytes * weights.phases(),
                       const_cast<float*>(a.lane_scales) + m * a.bytes / 4,
                       const_cast<float*>(a.sums) + m * a.groups);
      }));

  const int64_t task_rows = RowsPerTask(weight_rows, kRowStreams, weight_rows, workers);
  TaskList tasks;
  for (const auto& product : products) tasks.Add(DivideUp(product.weights->rows(), task_rows));
  parallel(tasks.count(), [&](int64_t index, int worker) {
    const auto [i, task] = tasks.At(index);
    const int64_t first = task * task_rows;
    MultiplyPart(products[i], rounded(i), first,
                 std::min(task_rows, products[i].weights->rows() - first),
                 memory.get() + worker * scratch);
  });
  return OkStatus();
}

}  // namespace nibble
#endif  // NIBBLE_ONCE
