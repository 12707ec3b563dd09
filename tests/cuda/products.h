// Weights, activations and bounds for tests of products on packed weights.
#ifndef NIBBLE_TESTS_CUDA_PRODUCTS_H_
#define NIBBLE_TESTS_CUDA_PRODUCTS_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "nibble/quantize.h"
#include "tests/matmul_oracle.h"

namespace nibble {

inline constexpr Format kPackedBlockFormats[] = {
    Format::kQ4_0,  Format::kQ4_1,  Format::kQ5_0,   Format::kQ5_1,   Format::kQ8_0,
    Format::kQ2_K,  Format::kQ3_K,  Format::kQ4_K,   Format::kQ5_K,   Format::kQ6_K,
    Format::kTQ1_0, Format::kTQ2_0, Format::kIQ4_NL, Format::kIQ4_XS, Format::kMXFP4};
inline constexpr const char* kPackedSchemes[] = {
    "int4 sym g128 f16", "int4 sym g32 f32",  "int4 asym g64 f16", "int4 asym g128 bf16",
    "int4 sym channel",  "int8 sym channel",  "int8 asym channel", "int8 asym g64 f16",
    "int3 sym g32 f16",  "int3 asym g64",     "int2 asym g16 f16", "int2 sym g64",
    "int5 asym g64",     "int6 sym g128 f16", "int7 sym g32",      "int1 asym g64",
    "nf4 g64",           "nf4 g64 double",    "fp4 g64",           "f8_e4m3 channel",
    "f8_e5m2 tensor",    "f8_e4m3 g64 f16",   "int8 sym tensor",   "int4 asym g256 f16"};

inline std::string NameOf(const QuantizedTensor& tensor) {
  return tensor.is_block_format() ? GetFormatInfo(tensor.format()).name
                                  : SchemeName(tensor.scheme());
}

inline QuantizedTensor PlanarWeights(const Scheme& scheme, int64_t rows, int64_t cols,
                                     const QuantizeOptions& options = {}) {
  const std::vector<float> w = RandomValues(rows * cols, 5);
  auto tensor = Quantize(ViewOf(w.data(), rows, cols), scheme, options);
  EXPECT_TRUE(tensor.ok()) << tensor.status().message();
  return tensor.ok() ? *std::move(tensor) : QuantizedTensor();
}
inline QuantizedTensor PlanarWeights(const char* name, int64_t rows, int64_t cols) {
  return PlanarWeights(*ParseScheme(name), rows, cols);
}

// Activations of a type, and their values.
struct TypedValues {
  DType dtype;
  std::vector<float> floats;  // after rounding to dtype
  std::vector<std::byte> bytes;
};
inline TypedValues RandomActivations(DType dtype, int64_t count, uint32_t seed) {
  TypedValues values = {dtype, RandomValues(count, seed), {}};
  values.bytes.resize(values.floats.size() * DTypeBytes(dtype));
  for (size_t i = 0; i < values.floats.size(); ++i) {
    float& x = values.floats[i];
    if (dtype == DType::kF32) {
      std::memcpy(values.bytes.data() + 4 * i, &x, 4);
      continue;
    }
    const uint16_t bits = dtype == DType::kF16 ? ToF16(x).bits : ToBF16(x).bits;
    std::memcpy(values.bytes.data() + 2 * i, &bits, 2);
    x = dtype == DType::kF16 ? ToFloat(F16{bits}) : ToFloat(BF16{bits});
  }
  return values;
}

// Checks out[m_rows, n_rows] against products in double precision of `a`, whose row for output row
// m is rows[m] (or m, without rows). An error may be `epsilon` of the sum of |a| times the row's
// largest weight, by which minima and codes, which cancel, are bounded too.
inline void ExpectProducts(const std::vector<float>& out, const std::vector<float>& a,
                           const std::vector<int32_t>& rows, const QuantizedTensor& weights,
                           int64_t m_rows, double epsilon, const std::string& what) {
  const std::vector<float> w = Decoded(weights);
  const int64_t n_rows = weights.rows(), cols = weights.cols();
  for (int64_t n = 0; n < n_rows; ++n) {
    const float* row = w.data() + n * cols;
    double largest = 0;
    for (int64_t k = 0; k < cols; ++k) largest = std::max(largest, std::fabs(double{row[k]}));
    for (int64_t m = 0; m < m_rows; ++m) {
      const int64_t from = rows.empty() ? m : rows[static_cast<size_t>(m)];
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < cols; ++k) {
        const double x = a[static_cast<size_t>(from * cols + k)];
        sum += x * double{row[k]};
        magnitude += std::fabs(x);
      }
      const double got = out[static_cast<size_t>(m * n_rows + n)];
      ASSERT_LE(std::fabs(got - sum), epsilon * magnitude * largest)
          << what << " at " << m << ", " << n << ": " << got << " for " << sum;
    }
  }
}

// Entries of books that are no integers are rounded to the type of the activations.
inline bool HasRoundedValues(const QuantizedTensor& weights) {
  if (weights.is_block_format()) return false;
  const Code code = weights.scheme().code;
  return code == Code::kNf4 || code == Code::kFp4 || code == Code::kTable;
}

}  // namespace nibble

#endif  // NIBBLE_TESTS_CUDA_PRODUCTS_H_
