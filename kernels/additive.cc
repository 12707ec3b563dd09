#include "kernels/additive.h"

#include <algorithm>

#include "kernels/convert.h"
#include "kernels/float_targets.h"
#include "kernels/pack_bf16.h"
#include "kernels/planar.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/additive.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Vectors are of 8 weights or a multiple.
using D8 = hn::CappedTag<float, 8>;

template <int kBits>
HWY_INLINE const float* Entry(const AdditiveBooks& books, const uint8_t* codes, int codebook) {
  const int64_t code =
      kBits == 8 ? codes[codebook] : codes[2 * codebook] | int64_t{codes[2 * codebook + 1]} << 8;
  return books.entries + ((int64_t{codebook} << kBits) + code) * books.vector;
}

template <int kBits>
HWY_INLINE hn::Vec<D8> Sum(const AdditiveBooks& books, const uint8_t* codes, int64_t k) {
  const D8 d;
  auto sum = hn::Load(d, Entry<kBits>(books, codes, 0) + k);
  for (int c = 1; c < books.codebooks; ++c) {
    sum = hn::Add(sum, hn::Load(d, Entry<kBits>(books, codes, c) + k));
  }
  return sum;
}

template <int kBits>
void DecodeWith(const AdditiveBooks& books, const uint8_t* HWY_RESTRICT codes, float scale,
                int64_t count, float* HWY_RESTRICT out) {
  const D8 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t step = books.codebooks * (kBits / 8);
  const auto by = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + books.vector <= count; i += books.vector, codes += step) {
    for (int64_t k = 0; k < books.vector; k += lanes) {
      hn::StoreU(hn::Mul(by, Sum<kBits>(books, codes, k)), d, out + i + k);
    }
  }
  for (int64_t k = 0; i + k < count; k += lanes) {
    const size_t rest = static_cast<size_t>(HWY_MIN(lanes, count - i - k));
    hn::StoreN(hn::Mul(by, Sum<kBits>(books, codes, k)), d, out + i + k, rest);
  }
}

void DecodeCodes(const AdditiveBooks& books, const uint8_t* codes, float scale, int64_t count,
                 float* out) {
  books.bits == 8 ? DecodeWith<8>(books, codes, scale, count, out)
                  : DecodeWith<16>(books, codes, scale, count, out);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(DecodeCodes);

void DecodeAdditive(const AdditiveBooks& books, const uint8_t* codes, float scale, int64_t count,
                    float* out) {
  NIBBLE_DISPATCH(DecodeCodes)(books, codes, scale, count, out);
}

void PackCodeTile(const PlanarPlanes& planes, int64_t tile, uint8_t* out) {
  const int64_t codes = planes.row_bytes(), first = tile * kCodeTileRows;
  const int64_t rows = std::min(kCodeTileRows, planes.rows - first);
  // A line of each row at a time.
  for (int64_t begin = 0; begin < codes; begin += 64) {
    const int64_t end = std::min(codes, begin + 64);
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* row = planes.codes + (first + r) * codes;
      for (int64_t i = begin; i < end; ++i) out[i * kCodeTileRows + r] = row[i];
    }
  }
}

Result<AdditiveRows> AdditiveRows::Make(const PlanarPlanes& planes, const uint8_t* tiles) {
  const Scheme& s = planes.scheme;
  const int64_t count = int64_t{s.codebooks} * s.vector << s.bits;
  AdditiveRows rows;
  rows.planes_ = planes;
  rows.tiles_ = tiles;
  rows.entries_ = hwy::AllocateAligned<float>(static_cast<size_t>(count));
  if (!rows.entries_) return OutOfMemory("no memory for " + std::to_string(count) + " weights");
  ConvertToFloat(s.scale_dtype, planes.table, count, rows.entries_.get());
  return rows;
}

bool AdditiveRows::AllFinite() const {
  const Scheme& s = planes_.scheme;
  return nibble::AllFinite(entries_.get(), int64_t{s.codebooks} * s.vector << s.bits);
}

WeightRows AdditiveRows::rows() const {
  WeightRows weights;
  weights.rows = planes_.rows;
  weights.cols = planes_.cols;
  weights.unit = planes_.scheme.vector;
  weights.source = this;
  weights.decode = tiles_ == nullptr ? Decode : DecodeTiles;
  weights.decode_bf16 = DecodeBf16ByFloat;
  weights.piece_cols = kBlockCols;
  if (tiles_ == nullptr) {
    weights.codes = reinterpret_cast<const std::byte*>(planes_.codes);
    weights.row_bytes = planes_.row_bytes();
  }
  return weights;
}

void AdditiveRows::Decode(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                          float* out) {
  const AdditiveRows& self = *static_cast<const AdditiveRows*>(weights.source);
  const PlanarPlanes& p = self.planes_;
  const uint8_t* codes = p.codes + row * weights.row_bytes +
                         col / p.scheme.vector * p.scheme.codebooks * (p.scheme.bits / 8);
  DecodeAdditive(self.books(), codes, p.Scale(row), count, out);
}

void AdditiveRows::DecodeTiles(const WeightRows& weights, int64_t row, int64_t col, int64_t count,
                               float* out) {
  const AdditiveRows& self = *static_cast<const AdditiveRows*>(weights.source);
  const Scheme& s = self.planes_.scheme;
  const float scale = self.planes_.Scale(row);
  const uint8_t* tile =
      self.tiles_ + row / kCodeTileRows * CodeTileBytes(self.planes_) + row % kCodeTileRows;
  uint8_t codes[64];
  const int64_t vectors = static_cast<int64_t>(sizeof(codes)) / s.codebooks;
  for (int64_t i = 0; i < count; i += vectors * s.vector) {
    const int64_t some = std::min(count - i, vectors * s.vector);
    const int64_t code_count = DivideUp(some, s.vector) * s.codebooks;
    const uint8_t* from = tile + (col + i) / s.vector * s.codebooks * kCodeTileRows;
    for (int64_t c = 0; c < code_count; ++c) codes[c] = from[c * kCodeTileRows];
    DecodeAdditive(self.books(), codes, scale, some, out + i);
  }
}

}  // namespace nibble
#endif  // HWY_ONCE
