// Products of few activation rows, as decoding makes them: every block format, from canonical
// blocks and packed, on every instruction set the machine has.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/matmul.h"
#include "tests/matmul_oracle.h"
#include "tests/targets.h"

namespace nibble {
namespace {

std::vector<float> Product(const std::vector<float>& a, int64_t m_rows,
                           const QuantizedTensor& weights, const PackedWeights* packed,
                           const ParallelFor& parallel = {}) {
  std::vector<float> out(static_cast<size_t>(m_rows * weights.rows()), NAN);
  const TensorView rows = ViewOf(a.data(), m_rows, weights.cols());
  const MutableTensorView view = ViewOf(out.data(), m_rows, weights.rows());
  MatmulOptions options;
  options.parallel = parallel;
  const Status status = packed == nullptr ? Matmul(rows, weights, view, options)
                                          : Matmul(rows, *packed, view, options);
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

// Columns that end within a unit of 256 where the format allows it, and rows within a tile.
int64_t RaggedColumns(const FormatInfo& info) {
  switch (info.block_weights) {
    case 1:
      return 1301;
    case 32:
      return 1312;
    default:
      return 1280;
  }
}
constexpr int64_t kRows = 45;

class Decode : public EveryTarget {};

TEST_P(Decode, ErrorOfInt8ActivationsIsSmallForEveryFormat) {
  constexpr int64_t kMost = 17;
  double worst = 0;
  for (const FormatInfo& info : AllFormats()) {
    if (!info.can_decode()) continue;
    const int64_t cols = RaggedColumns(info);
    const QuantizedTensor weights = RandomWeights(info.format, kRows, cols, 21);
    const std::vector<float> a = RandomValues(kMost * cols, 22);
    const Oracle oracle = Multiply(a, Decoded(weights), kMost, kRows, cols);
    const auto packed = Pack(weights);
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    for (const PackedWeights* form : {static_cast<const PackedWeights*>(nullptr), &*packed}) {
      for (const int64_t m_rows : {1, 2, 3, 4, 7, 8, 17}) {
        Oracle part = oracle;
        part.product.resize(static_cast<size_t>(m_rows * kRows));
        const double error = NormalisedError(part, Product(a, m_rows, weights, form));
        // One row is a small sample of an error whose mean is a tenth of this.
        EXPECT_LE(error, 5e-4) << info.name << (form ? " packed " : " ") << m_rows;
        worst = std::max(worst, error);
      }
    }
  }
  RecordProperty("worst_normalised_error", std::to_string(worst));
}

// A product is that of its row alone, whatever the rows beside it.
TEST_P(Decode, RowsOfWeightsDoNotDependOnTheirNumber) {
  for (const FormatInfo& info : AllFormats()) {
    if (!info.can_decode()) continue;
    const int64_t cols = RaggedColumns(info);
    const QuantizedTensor weights = RandomWeights(info.format, kRows, cols, 31);
    const auto blocks = weights.plane(Plane::kCodes).bytes();
    const size_t row_bytes = blocks.size() / kRows;
    const std::vector<float> a = RandomValues(5 * cols, 32);
    for (const int64_t m_rows : {1, 5}) {
      const std::vector<float> all = Product(a, m_rows, weights, nullptr);
      for (const int64_t n : {int64_t{0}, int64_t{13}, kRows - 1}) {
        const auto row = QuantizedTensor::Create(
            info.format, 1, cols,
            Buffer::Borrow(blocks.subspan(static_cast<size_t>(n) * row_bytes, row_bytes)));
        ASSERT_TRUE(row.ok()) << row.status().message();
        const std::vector<float> one = Product(a, m_rows, *row, nullptr);
        for (int64_t m = 0; m < m_rows; ++m) {
          EXPECT_EQ(one[static_cast<size_t>(m)], all[static_cast<size_t>(m * kRows + n)])
              << info.name << " row " << n << " of " << m_rows;
        }
      }
    }
  }
}

NIBBLE_ON_EVERY_TARGET(Decode);

// Mapped files may hold blocks at any address.
TEST(Decoding, TakesBlocksAtOddAddresses) {
  for (const FormatInfo& info : AllFormats()) {
    if (!info.can_decode()) continue;
    const int64_t cols = RaggedColumns(info);
    const QuantizedTensor weights = RandomWeights(info.format, kRows, cols, 41);
    const auto blocks = weights.plane(Plane::kCodes).bytes();
    std::vector<std::byte> moved(blocks.size() + 1);
    std::copy(blocks.begin(), blocks.end(), moved.begin() + 1);
    const auto odd = QuantizedTensor::Create(info.format, kRows, cols,
                                             Buffer::Borrow({moved.data() + 1, blocks.size()}));
    ASSERT_TRUE(odd.ok()) << odd.status().message();
    const std::vector<float> a = RandomValues(3 * cols, 42);
    for (const int64_t m_rows : {1, 3}) {
      EXPECT_EQ(Product(a, m_rows, weights, nullptr), Product(a, m_rows, *odd, nullptr))
          << info.name << " " << m_rows;
    }
  }
}

TEST(Decoding, EightCallersAtOnceGetTheBitsOfOne) {
  ThreadPool pool(2);
  for (const Format format : {Format::kQ4_K, Format::kQ8_0, Format::kIQ2_XS, Format::kBF16}) {
    const int64_t cols = 1280;
    const QuantizedTensor weights = RandomWeights(format, 203, cols, 51);
    const auto packed = Pack(weights);
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    const std::vector<float> a = RandomValues(4 * cols, 52);
    for (const PackedWeights* form : {static_cast<const PackedWeights*>(nullptr), &*packed}) {
      for (const int64_t m_rows : {1, 4}) {
        const std::vector<float> alone = Product(a, m_rows, weights, form);
        std::vector<std::vector<float>> results(8);
        std::vector<std::thread> callers;
        for (std::vector<float>& result : results) {
          callers.emplace_back(
              [&] { result = Product(a, m_rows, weights, form, pool.parallel_for()); });
        }
        for (std::thread& caller : callers) caller.join();
        for (const std::vector<float>& result : results) EXPECT_EQ(result, alone);
      }
    }
  }
}

}  // namespace
}  // namespace nibble
