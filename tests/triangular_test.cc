// Triangular systems against sums in double, with room between rows.
#include "lib/quantize/triangular.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace nibble {
namespace {

constexpr int64_t kN = 37, kStride = 41, kRows = 5;

template <class T>
class Triangular : public testing::Test {
 protected:
  std::vector<T> Random(int64_t rows, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    std::vector<T> a(static_cast<size_t>(rows * kStride));
    for (T& x : a) x = static_cast<T>(normal(random));
    return a;
  }
  static constexpr double kTolerance = 500 * std::numeric_limits<T>::epsilon();
};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(Triangular, Types);

TYPED_TEST(Triangular, SolutionsGiveTheRightSides) {
  for (const bool upper : {true, false}) {
    for (const bool unit : {true, false}) {
      if (!upper && !unit) continue;
      // Small beside the diagonal, so that errors stay small; whatever stands in the other half,
      // and of a unit triangle in the diagonal, is not to be read.
      std::vector<TypeParam> a = this->Random(kN, 1);
      const auto at = [&](int64_t i, int64_t j) -> TypeParam& {
        return a[static_cast<size_t>(i * kStride + j)];
      };
      for (int64_t i = 0; i < kN; ++i) {
        for (int64_t j = 0; j < kN; ++j) {
          const bool inside = upper ? j > i : j < i;
          at(i, j) = inside ? at(i, j) / 8 : TypeParam{NAN};
          if (i == j && !unit) at(i, j) = static_cast<TypeParam>(2 + i % 3);
        }
      }
      const std::vector<TypeParam> b = this->Random(kRows, 2);
      std::vector<TypeParam> x = b;
      if (upper) {
        SolveUpper(a.data(), kStride, kN, unit, x.data(), kStride, kRows);
      } else {
        SolveUnitLower(a.data(), kStride, kN, x.data(), kStride, kRows);
      }
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t j = 0; j < kStride; ++j) {
          const size_t to = static_cast<size_t>(r * kStride + j);
          if (j >= kN) {
            EXPECT_EQ(x[to], b[to]);
            continue;
          }
          double sum = 0, magnitude = 1;
          for (int64_t i = 0; i < kN; ++i) {
            if (upper ? i > j : i < j) continue;
            const double factor = i == j && unit ? 1 : at(i, j);
            const double term = x[static_cast<size_t>(r * kStride + i)] * factor;
            sum += term;
            magnitude += std::fabs(term);
          }
          EXPECT_NEAR(sum, b[to], this->kTolerance * magnitude) << upper << unit << " " << j;
        }
      }
    }
  }
}

TYPED_TEST(Triangular, CholeskyFactorsGiveTheMatrix) {
  const std::vector<TypeParam> x = this->Random(kN, 3);
  std::vector<TypeParam> a(static_cast<size_t>(kN * kStride));
  for (int64_t i = 0; i < kN; ++i) {
    for (int64_t j = 0; j < kN; ++j) {
      double sum = i == j ? 1 : 0;
      for (int64_t k = 0; k < kStride; ++k) {
        sum += static_cast<double>(x[static_cast<size_t>(i * kStride + k)]) *
               static_cast<double>(x[static_cast<size_t>(j * kStride + k)]);
      }
      a[static_cast<size_t>(i * kStride + j)] = static_cast<TypeParam>(sum);
    }
  }
  std::vector<TypeParam> l = a;
  ASSERT_TRUE(FactorCholesky(l.data(), kStride, kN));
  const std::vector<TypeParam> transposed = TransposeOf(l.data(), kStride, kN);
  for (int64_t i = 0; i < kN; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t k = 0; k <= j; ++k) {
        sum += static_cast<double>(l[static_cast<size_t>(i * kStride + k)]) *
               static_cast<double>(transposed[static_cast<size_t>(k * kN + j)]);
      }
      EXPECT_NEAR(sum, a[static_cast<size_t>(i * kStride + j)], this->kTolerance * 200);
    }
  }
  a[static_cast<size_t>(20 * kStride + 20)] = -1;
  EXPECT_FALSE(FactorCholesky(a.data(), kStride, kN));
  TypeParam none = NAN;
  EXPECT_FALSE(FactorCholesky(&none, 1, 1));
}

}  // namespace
}  // namespace nibble
