#include "kernels/additive_search.h"

#include <limits>

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/additive_search.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After the above: what follows is compiled once per target.
#include "kernels/dispatch.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;

void Costs(const float* HWY_RESTRICT columns, int64_t depth, const float* HWY_RESTRICT v,
           const float* base, float* costs) {
  const DF df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  for (int64_t e = 0; e < kEntries; e += lanes) {
    VF sum = hn::LoadU(df, base + e);
    for (int64_t k = 0; k < depth; ++k) {
      sum = hn::Add(sum, hn::Mul(hn::Set(df, v[k]), hn::LoadU(df, columns + k * kEntries + e)));
    }
    hn::StoreU(sum, df, costs + e);
  }
}

// Vectors of first codes whose minima stay in registers, for up to four rows that share a reading
// of `cross`.
constexpr int kVectors = HWY_MAX_BYTES == 64 ? 4 : 2;
constexpr int kMostRows = 4;

// least[r * kEntries + a] = first[a] + min over b of (second[b] + cross[b][a]) of row r.
template <int kRows>
void LeastOfFirst(const float* HWY_RESTRICT first, const float* HWY_RESTRICT second,
                  const float* HWY_RESTRICT cross, float* HWY_RESTRICT least) {
  const DF df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  for (int64_t a = 0; a < kEntries; a += kVectors * lanes) {
    VF minima[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kVectors; ++i) {
        minima[r][i] = hn::Set(df, std::numeric_limits<float>::infinity());
      }
    }
    for (int64_t b = 0; b < kEntries; ++b) {
      const float* at = cross + b * kEntries + a;
      for (int i = 0; i < kVectors; ++i) {
        const VF x = hn::LoadU(df, at + i * lanes);
        for (int r = 0; r < kRows; ++r) {
          const VF cost = hn::Add(hn::Set(df, second[r * kEntries + b]), x);
          minima[r][i] = hn::Min(minima[r][i], cost);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kVectors; ++i) {
        const int64_t to = r * kEntries + a + i * lanes;
        hn::StoreU(hn::Add(hn::LoadU(df, first + to), minima[r][i]), df, least + to);
      }
    }
  }
}

void LeastOfFirsts(int64_t rows, const float* first, const float* second, const float* cross,
                   float* least) {
  switch (rows) {
    case 1:
      return LeastOfFirst<1>(first, second, cross, least);
    case 2:
      return LeastOfFirst<2>(first, second, cross, least);
    case 3:
      return LeastOfFirst<3>(first, second, cross, least);
    default:
      return LeastOfFirst<kMostRows>(first, second, cross, least);
  }
}

int64_t Least(const float* costs) {
  const DF df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  VF minimum = hn::LoadU(df, costs);
  for (int64_t e = lanes; e < kEntries; e += lanes) {
    minimum = hn::Min(minimum, hn::LoadU(df, costs + e));
  }
  const VF least = hn::Set(df, hn::ReduceMin(df, minimum));
  for (int64_t e = 0; e < kEntries; e += lanes) {
    const intptr_t lane = hn::FindFirstTrue(df, hn::Eq(hn::LoadU(df, costs + e), least));
    if (lane >= 0) return e + lane;
  }
  return 0;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(Costs);
HWY_EXPORT(Least);
HWY_EXPORT(LeastOfFirsts);

void EntryCosts(const float* columns, int64_t depth, const float* v, const float* base,
                float* costs) {
  NIBBLE_DISPATCH(Costs)(columns, depth, v, base, costs);
}

int64_t LeastEntry(const float* costs) { return NIBBLE_DISPATCH(Least)(costs); }

void LeastPairs(int64_t count, const float* first, const float* second, const float* cross,
                EntryPair* pairs) {
  constexpr int64_t kStep = 4;
  float least[kStep * kEntries];
  for (int64_t done = 0; done < count; done += kStep) {
    const int64_t rows = count - done < kStep ? count - done : kStep;
    const float *f = first + done * kEntries, *s = second + done * kEntries;
    NIBBLE_DISPATCH(LeastOfFirsts)(rows, f, s, cross, least);
    for (int64_t r = 0; r < rows; ++r) {
      EntryPair& pair = pairs[done + r];
      pair = {LeastEntry(least + r * kEntries), 0};
      float best = std::numeric_limits<float>::infinity();
      for (int64_t b = 0; b < kEntries; ++b) {
        const float cost = s[r * kEntries + b] + cross[b * kEntries + pair.first];
        if (cost < best) {
          best = cost;
          pair.second = b;
        }
      }
    }
  }
}

}  // namespace nibble
#endif  // HWY_ONCE
