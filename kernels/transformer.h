// What a transformer computes between its matrix products: f32, vectorised, one thread each.
#ifndef NIBBLE_KERNELS_TRANSFORMER_H_
#define NIBBLE_KERNELS_TRANSFORMER_H_

#include <cstdint>

namespace nibble {

// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]. out may be x.
void RmsNorm(const float* x, const float* weight, int64_t n, float eps, float* out);

// x[i] += y[i]
void AddTo(float* x, const float* y, int64_t n);

// out[i] = silu(gate[i]) * up[i], or gelu (tanh form). out may be gate.
void SiluMultiply(const float* gate, const float* up, int64_t n, float* out);
void GeluMultiply(const float* gate, const float* up, int64_t n, float* out);

// x[i] = cap * tanh(x[i] / cap)
void SoftCap(float* x, int64_t n, float cap);

// Turns `pairs` pairs of x by the angles whose cosines and sines are given: pairs (2i, 2i + 1), or
// (i, i + pairs) with half_split.
void Rope(float* x, const float* cosines, const float* sines, int64_t pairs, bool half_split);

// One row's running softmax over tiles of keys (online softmax, arXiv 1805.02867).
struct AttentionState {
  float maximum;  // -infinity before the first tile
  float sum;
};

// Floats of scratch that AttendTile needs.
constexpr int64_t AttendScratch(int64_t key_dims) { return 32 * (key_dims + 4); }

// Adds a tile of `keys` tokens to `rows` attention rows. query [rows, key_dims], scaled already;
// key [keys, key_dims]; value [keys, value_dims]; output [rows, value_dims] holds the weighted sums
// so far, relative to its state's maximum. Row r sees keys [first[r], last[r]) of the tile. Scores
// are soft-capped where soft_cap > 0. What a row becomes does not depend on the other rows' values.
void AttendTile(const float* query, int64_t rows, const float* key, const float* value,
                int64_t keys, int64_t key_dims, int64_t value_dims, const int32_t* first,
                const int32_t* last, float soft_cap, float* scratch, AttentionState* states,
                float* output);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_TRANSFORMER_H_
