#include "kernels/planar.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/planar.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"
#include "kernels/planar_decoders-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace {

// --- Packing: eight codes are one 64-bit word of bytes and `bits` bytes of the stream
// -------------

// Moves the low halves of the lanes of width 2 * kLane together: kUsed bits of each half count.
template <int kLane, int kUsed>
HWY_INLINE uint64_t Squeeze(uint64_t x) {
  constexpr uint64_t kOnes =
      ~uint64_t{0} / ((kLane == 32 ? 0 : uint64_t{1} << (2 * kLane % 64)) - 1);
  constexpr uint64_t kMask = (kLane == 32 ? uint64_t{1} : kOnes) * ((uint64_t{1} << kUsed) - 1);
  return (x & kMask) | ((x >> kLane & kMask) << kUsed);
}

// The inverse.
template <int kLane, int kUsed>
HWY_INLINE uint64_t Spread(uint64_t x) {
  constexpr uint64_t kOnes =
      ~uint64_t{0} / ((kLane == 32 ? 0 : uint64_t{1} << (2 * kLane % 64)) - 1);
  constexpr uint64_t kMask = (kLane == 32 ? uint64_t{1} : kOnes) * ((uint64_t{1} << kUsed) - 1);
  return (x & kMask) | ((x >> kUsed & kMask) << kLane);
}

template <int kBits>
void UnpackBits(const uint8_t* HWY_RESTRICT stream, int64_t count, uint8_t* HWY_RESTRICT codes) {
  const auto unpack = [](uint64_t word) HWY_ATTR {
    return Spread<8, kBits>(Spread<16, 2 * kBits>(Spread<32, 4 * kBits>(word)));
  };
  const int64_t words = count / 8;
  int64_t w = 0;
  // Whole 64-bit loads for as long as they end inside the stream.
  for (; w * kBits + 8 <= words * kBits; ++w) {
    uint64_t word;
    std::memcpy(&word, stream + w * kBits, 8);
    word = unpack(word);
    std::memcpy(codes + w * 8, &word, 8);
  }
  for (; w < words; ++w) {
    uint64_t word = 0;
    std::memcpy(&word, stream + w * kBits, kBits);
    word = unpack(word);
    std::memcpy(codes + w * 8, &word, 8);
  }
  for (int64_t i = words * 8; i < count; ++i) {
    codes[i] = static_cast<uint8_t>(PlanarCode(stream, kBits, i));
  }
}

// Codes of 3, 5, 6 and 7 bits: 16-bit windows that begin in a code's first byte, shifted by lane.
template <int kBits>
void UnpackOdd(const uint8_t* HWY_RESTRICT stream, int64_t count, uint8_t* HWY_RESTRICT codes) {
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::CappedTag<uint16_t, 16> d;
  const hn::Repartition<uint8_t, decltype(d)> d8;
  const hn::Rebind<uint8_t, decltype(d)> half;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  // Every 16 bytes of the vector hold eight windows, and all see the same 16 bytes of the stream.
  alignas(32) uint8_t bytes[32] = {};
  alignas(32) uint16_t shifts[16] = {};
  for (int lane = 0; lane < 16; ++lane) {
    bytes[2 * lane] = static_cast<uint8_t>(lane * kBits / 8);
    bytes[2 * lane + 1] = static_cast<uint8_t>(lane * kBits / 8 + 1);
    shifts[lane] = static_cast<uint16_t>(lane * kBits % 8);
  }
  const auto windows = hn::Load(d8, bytes);
  const auto shift = hn::Load(d, shifts);
  const auto mask = hn::Set(d, (1 << kBits) - 1);
  const int64_t step = lanes * kBits / 8, end = PlanarRowBytes(kBits, count);
  for (int64_t at = 0; i + lanes <= count && at + 16 <= end; i += lanes, at += step) {
    const auto here = hn::TableLookupBytes(hn::LoadDup128(d8, stream + at), windows);
    const auto code = hn::And(hn::Shr(hn::BitCast(d, here), shift), mask);
    hn::StoreU(hn::TruncateTo(half, code), half, codes + i);
  }
#endif
  UnpackBits<kBits>(stream + i / 8 * kBits, count - i, codes + i);
}

template <int kBits>
void PackBits(const uint8_t* HWY_RESTRICT codes, int64_t count, uint8_t* HWY_RESTRICT stream) {
  for (int64_t w = 0; w * 8 < count; ++w) {
    const size_t n = static_cast<size_t>(HWY_MIN(int64_t{8}, count - w * 8));
    uint64_t word = 0;
    std::memcpy(&word, codes + w * 8, n);
    word = Squeeze<32, 4 * kBits>(Squeeze<16, 2 * kBits>(Squeeze<8, kBits>(word)));
    std::memcpy(stream + w * kBits, &word, (n * kBits + 7) / 8);
  }
}

// The hot width: a byte holds two neighbours.
void UnpackNibbles(const uint8_t* HWY_RESTRICT stream, int64_t count, uint8_t* HWY_RESTRICT codes) {
  const hn::FixedTag<uint8_t, 16> d;
  const auto mask = hn::Set(d, 15);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const auto bytes = hn::LoadU(d, stream + i / 2);
    const auto even = hn::And(bytes, mask);
    const auto odd = hn::ShiftRight<4>(bytes);
    hn::StoreU(hn::InterleaveLower(d, even, odd), d, codes + i);
    hn::StoreU(hn::InterleaveUpper(d, even, odd), d, codes + i + 16);
  }
  UnpackBits<4>(stream + i / 2, count - i, codes + i);
}

void Unpack(const uint8_t* stream, int bits, int64_t count, uint8_t* codes) {
  switch (bits) {
    case 1:
      return UnpackBits<1>(stream, count, codes);
    case 2:
      return UnpackBits<2>(stream, count, codes);
    case 3:
      return UnpackOdd<3>(stream, count, codes);
    case 4:
      return UnpackNibbles(stream, count, codes);
    case 5:
      return UnpackOdd<5>(stream, count, codes);
    case 6:
      return UnpackOdd<6>(stream, count, codes);
    case 7:
      return UnpackOdd<7>(stream, count, codes);
    default:
      std::memcpy(codes, stream, static_cast<size_t>(count));
  }
}

void Pack(const uint8_t* codes, int bits, int64_t count, uint8_t* stream) {
  switch (bits) {
    case 1:
      return PackBits<1>(codes, count, stream);
    case 2:
      return PackBits<2>(codes, count, stream);
    case 3:
      return PackBits<3>(codes, count, stream);
    case 4:
      return PackBits<4>(codes, count, stream);
    case 5:
      return PackBits<5>(codes, count, stream);
    case 6:
      return PackBits<6>(codes, count, stream);
    case 7:
      return PackBits<7>(codes, count, stream);
    default:
      std::memcpy(stream, codes, static_cast<size_t>(count));
  }
}

// --- Ranges --------------------------------------------------------------------------------------

Range RangeOf(const float* x, int64_t count) {
  const DF df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  Range range = {x[0], x[0]};
  int64_t i = 0;
  if (count >= lanes) {
    VF low = hn::LoadU(df, x);
    VF high = low;
    for (i = lanes; i + lanes <= count; i += lanes) {
      const VF v = hn::LoadU(df, x + i);
      low = hn::Min(low, v);
      high = hn::Max(high, v);
    }
    range = {hn::ReduceMin(df, low), hn::ReduceMax(df, high)};
  }
  for (; i < count; ++i) {
    range.min = x[i] < range.min ? x[i] : range.min;
    range.max = x[i] > range.max ? x[i] : range.max;
  }
  return range;
}

bool Finite(const float* x, int64_t count) {
  const DF df;
  const DU du;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const VU magnitude = hn::Set(du, 0x7FFFFFFFu);
  VU largest = hn::Zero(du);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    largest = hn::Max(largest, hn::And(hn::BitCast(du, hn::LoadU(df, x + i)), magnitude));
  }
  uint32_t most = hn::ReduceMax(du, largest);
  for (; i < count; ++i) most = HWY_MAX(most, std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFu);
  return most < 0x7F800000u;
}

// --- Choosing codes: a chooser turns a vector of weights into as many codes
// -----------------------

struct ChooseUniform {
  explicit ChooseUniform(const PlanarCodebook& book)
      : low(book.low), high(book.high), mask((1u << book.bits) - 1) {}
  void SetGroup(const PlanarGroup& g) {
    scale = g.scale != 0.0f ? g.scale : 1.0f;
    zero = g.zero;
  }
  HWY_INLINE VU8 operator()(VF x) const {
    const DF df;
    const DU du;
    VF position = hn::Add(hn::Div(x, hn::Set(df, scale)), hn::Set(df, zero));
    position = hn::Min(hn::Max(position, hn::Set(df, low)), hn::Set(df, high));
    // The low bits of 1.5 * 2^23 + n are those of n in two's complement.
    const VU bits = hn::BitCast(du, hn::Add(position, hn::Set(df, 12582912.0f)));
    return hn::TruncateTo(DU8(), hn::And(bits, hn::Set(du, mask)));
  }
  float low, high, scale = 1, zero = 0;
  uint32_t mask;
};

// Up to 16 values: the rank is the number of midpoints below the value.
struct ChooseOf16 {
  explicit ChooseOf16(const PlanarCodebook& book) : book(book) {}
  void SetGroup(const PlanarGroup& g) { inverse = InverseScale(g.scale); }
  HWY_INLINE VU8 operator()(VF x) const {
    const DF df;
    const DI di;
    const VF v = hn::Mul(x, hn::Set(df, inverse));
    auto rank = hn::Zero(di);
#if HWY_MAX_BYTES == 64 && !HWY_HAVE_SCALABLE
    const VF midpoints = hn::Load(df, book.midpoints);  // by halves
    for (int step = 8; step >= 1; step /= 2) {
      const auto probe = hn::Add(rank, hn::Set(di, step - 1));
      const VF midpoint = hn::TableLookupLanes(midpoints, hn::IndicesFromVec(df, probe));
      rank = hn::IfThenElse(hn::RebindMask(di, hn::Lt(midpoint, v)),
                            hn::Add(rank, hn::Set(di, step)), rank);
    }
#else
    for (int i = 0; i + 1 < book.values_count; ++i) {
      const auto below = hn::Lt(hn::Set(df, book.midpoints[i]), v);
      rank = hn::Sub(rank, hn::VecFromMask(di, hn::RebindMask(di, below)));
    }
#endif
    const VU8 ranks = hn::TruncateTo(DU8(), hn::BitCast(DU(), rank));
    return hn::TableLookupBytes(hn::LoadDup128(hn::ScalableTag<uint8_t>(), book.code_of_rank),
                                ranks);
  }
  const PlanarCodebook& book;
  float inverse = 1;
};

// Larger tables: binary search, one value at a time.
struct ChooseOfMany {
  explicit ChooseOfMany(const PlanarCodebook& book) : book(book) {}
  void SetGroup(const PlanarGroup& g) { inverse = InverseScale(g.scale); }
  HWY_INLINE VU8 operator()(VF x) const {
    const DF df;
    HWY_ALIGN float values[hn::MaxLanes(df)];
    HWY_ALIGN uint8_t codes[hn::MaxLanes(df)];
    hn::Store(hn::Mul(x, hn::Set(df, inverse)), df, values);
    for (size_t i = 0; i < hn::Lanes(df); ++i) {
      codes[i] = book.code_of_rank[NearestRank(book.midpoints, book.values_count, values[i])];
    }
    return hn::Load(DU8(), codes);
  }
  const PlanarCodebook& book;
  float inverse = 1;
};

// 8-bit floats: as internal::RoundToSmallFloat, saturating. Infinities are larger than all codes.
template <int kExponentBits, int kMantissaBits, uint32_t kLargest>
struct ChooseF8 {
  explicit ChooseF8(const PlanarCodebook&) {}
  void SetGroup(const PlanarGroup& g) { scale = g.scale != 0.0f ? g.scale : 1.0f; }
  HWY_INLINE VU8 operator()(VF x) const {
    constexpr uint32_t kBias = (1u << (kExponentBits - 1)) - 1;
    constexpr uint32_t kRebase = (127 - kBias) << 23;
    constexpr int kShift = 23 - kMantissaBits;
    // A float whose last bit is the unit of the subnormal codes: adding it rounds to them.
    constexpr float kRounder = std::bit_cast<float>((127 + 23 + 1 - kBias - kMantissaBits) << 23);
    const DF df;
    const DU du;
    const VU bits = hn::BitCast(du, hn::Div(x, hn::Set(df, scale)));
    const VU magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFFu));
    const VU rebased = hn::Sub(magnitude, hn::Set(du, kRebase));
    const VU odd = hn::And(hn::ShiftRight<kShift>(rebased), hn::Set(du, 1));
    const VU normal = hn::ShiftRight<kShift>(
        hn::Add(hn::Add(rebased, hn::Set(du, (1u << (kShift - 1)) - 1)), odd));
    const VF rounder = hn::Set(df, kRounder);
    const VU subnormal = hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(df, magnitude), rounder)),
                                 hn::BitCast(du, rounder));
    const auto is_normal = hn::Ge(magnitude, hn::Set(du, kRebase + (1u << 23)));
    const VU code = hn::Min(hn::IfThenElse(is_normal, normal, subnormal), hn::Set(du, kLargest));
    const VU sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(du, 0x80u));
    return hn::TruncateTo(DU8(), hn::Or(code, sign));
  }
  float scale = 1;
};

template <class Chooser>
void ChooseWith(const PlanarCodebook& book, std::span<const PlanarGroup> groups,
                const float* HWY_RESTRICT x, uint8_t* HWY_RESTRICT codes) {
  const DF df;
  const DU8 d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  Chooser choose(book);
  int64_t i = 0;
  for (const PlanarGroup& g : groups) {
    choose.SetGroup(g);
    for (; i + lanes <= g.end; i += lanes) {
      hn::StoreU(choose(hn::LoadU(df, x + i)), d8, codes + i);
    }
    if (i < g.end) {
      const size_t rest = static_cast<size_t>(g.end - i);
      hn::StoreN(choose(hn::LoadN(df, x + i, rest)), d8, codes + i, rest);
      i = g.end;
    }
  }
}

void Choose(const PlanarCodebook& book, std::span<const PlanarGroup> groups, const float* x,
            uint8_t* codes) {
  switch (book.code) {
    case Code::kUniform:
      return ChooseWith<ChooseUniform>(book, groups, x, codes);
    case Code::kF8E4M3:
      return ChooseWith<ChooseF8<4, 3, 0x7E>>(book, groups, x, codes);
    case Code::kF8E5M2:
      return ChooseWith<ChooseF8<5, 2, 0x7B>>(book, groups, x, codes);
    default:
      if (book.values_count <= 16) return ChooseWith<ChooseOf16>(book, groups, x, codes);
      return ChooseWith<ChooseOfMany>(book, groups, x, codes);
  }
}

// --- Decoding ------------------------------------------------------------------------------------

template <class Decoder>
void DecodeWith(const Decoder& decode, std::span<const PlanarGroup> groups,
                const uint8_t* HWY_RESTRICT codes, float* HWY_RESTRICT out) {
  const DF df;
  const DU8 d8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  int64_t i = 0;
  for (const PlanarGroup& g : groups) {
    const VF scale = hn::Set(df, g.scale);
    const VF zero = hn::Set(df, g.zero);
    for (; i + lanes <= g.end; i += lanes) {
      hn::StoreU(decode(hn::LoadU(d8, codes + i), scale, zero), df, out + i);
    }
    if (i < g.end) {
      const size_t rest = static_cast<size_t>(g.end - i);
      hn::StoreN(decode(hn::LoadN(d8, codes + i, rest), scale, zero), df, out + i, rest);
      i = g.end;
    }
  }
}

void Decode(const PlanarCodebook& book, std::span<const PlanarGroup> groups, const uint8_t* codes,
            float* out) {
  VisitDecoder(book, [&](const auto& decode) { DecodeWith(decode, groups, codes, out); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

// Streams and words are both read as little-endian integers.
static_assert(std::endian::native == std::endian::little);

HWY_EXPORT(Unpack);
HWY_EXPORT(Pack);
HWY_EXPORT(RangeOf);
HWY_EXPORT(Finite);
HWY_EXPORT(Choose);
HWY_EXPORT(Decode);

PlanarCodebook MakePlanarCodebook(const Scheme& scheme, const uint8_t* table) {
  PlanarCodebook book;
  book.code = scheme.code;
  book.bits = scheme.bits;
  book.symmetric = scheme.symmetric;
  book.low = static_cast<float>(MinCode(scheme));
  book.high = static_cast<float>(MaxCode(scheme));
  std::fill(std::begin(book.midpoints), std::end(book.midpoints),
            std::numeric_limits<float>::infinity());
  if (scheme.code != Code::kNf4 && scheme.code != Code::kFp4 && scheme.code != Code::kTable) {
    return book;
  }
  const int count = 1 << scheme.bits;
  book.values_count = count;
  for (int i = 0; i < count; ++i) {
    book.values[i] = CodeValue(scheme, static_cast<uint32_t>(i), table);
    book.code_of_rank[i] = static_cast<uint8_t>(
        scheme.code == Code::kFp4 ? Fp4CodeOfRank(i) : static_cast<uint32_t>(i));
  }
  for (int i = 0; i + 1 < count; ++i) {
    book.midpoints[i] =
        (book.values[book.code_of_rank[i]] + book.values[book.code_of_rank[i + 1]]) / 2.0f;
  }
  return book;
}

void UnpackCodes(const uint8_t* stream, int bits, int64_t count, uint8_t* codes) {
  NIBBLE_DISPATCH(Unpack)(stream, bits, count, codes);
}

void PackCodes(const uint8_t* codes, int bits, int64_t count, uint8_t* stream) {
  NIBBLE_DISPATCH(Pack)(codes, bits, count, stream);
}

Range FindRange(const float* x, int64_t count) { return NIBBLE_DISPATCH(RangeOf)(x, count); }

bool AllFinite(const float* x, int64_t count) { return NIBBLE_DISPATCH(Finite)(x, count); }

void ChooseCodes(const PlanarCodebook& book, std::span<const PlanarGroup> groups, const float* x,
                 uint8_t* codes) {
  NIBBLE_DISPATCH(Choose)(book, groups, x, codes);
}

void DecodeCodes(const PlanarCodebook& book, std::span<const PlanarGroup> groups,
                 const uint8_t* codes, float* out) {
  NIBBLE_DISPATCH(Decode)(book, groups, codes, out);
}

}  // namespace nibble
#endif  // HWY_ONCE
