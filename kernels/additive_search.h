// Choosing the codes of additive codebooks of 256 entries: costs of entries and of pairs of them,
// and the least. The same bits on every target: products and sums are rounded apart, and sums run
// in ascending order.
#ifndef NIBBLE_KERNELS_ADDITIVE_SEARCH_H_
#define NIBBLE_KERNELS_ADDITIVE_SEARCH_H_

#include <cstdint>

namespace nibble {

inline constexpr int64_t kEntries = 256;

// costs[e] = base[e] + sum over k < depth of v[k] * columns[k * kEntries + e]. `costs` may be
// `base`.
void EntryCosts(const float* columns, int64_t depth, const float* v, const float* base,
                float* costs);

// The least of kEntries costs: the first of equals.
int64_t LeastEntry(const float* costs);

struct EntryPair {
  int64_t first, second;
};

// For each of `count` rows of costs the pair (a, b) with the least
// first[a] + (second[b] + cross[b * kEntries + a]): of equals the one with the least a, then b.
void LeastPairs(int64_t count, const float* first, const float* second, const float* cross,
                EntryPair* pairs);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_ADDITIVE_SEARCH_H_
