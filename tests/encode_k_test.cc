// The search encoders: errors no larger than ggml's, the same bytes from every instruction set, and
// sense in degenerate cases.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/highway.h"
#include "kernels/codec.h"
#include "kernels/dequantize.h"
#include "kernels/encode.h"
#include "kernels/search-inl.h"
#include "nibble/target.h"
#include "tests/encode_k_matrices.h"

namespace nibble {
namespace {

constexpr Format kSearched[] = {Format::kQ2_K, Format::kQ3_K,   Format::kQ4_K,  Format::kQ5_K,
                                Format::kQ6_K, Format::kIQ4_NL, Format::kIQ4_XS};
constexpr Format kSearchedWithImportance[] = {Format::kQ4_0, Format::kQ4_1, Format::kQ5_0,
                                              Format::kQ5_1};

struct Case {
  Format format;
  bool weighted;
};

void PrintTo(const Case& c, std::ostream* os) {
  *os << GetFormatInfo(c.format).name << (c.weighted ? " with importance" : "");
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const Format f : kSearched) cases.insert(cases.end(), {{f, false}, {f, true}});
  for (const Format f : kSearchedWithImportance) cases.push_back({f, true});
  return cases;
}

std::string NameOf(const testing::TestParamInfo<Case>& info) {
  return std::string(GetFormatInfo(info.param.format).name) +
         (info.param.weighted ? "_importance" : "");
}

class EveryCase : public testing::TestWithParam<Case> {
 protected:
  Format format() const { return GetParam().format; }
  const FormatInfo& info() const { return GetFormatInfo(format()); }
  int64_t block() const { return info().block_weights; }
  size_t Bytes(int64_t weights) const {
    return static_cast<size_t>(weights / block()) * info().block_bytes;
  }
  // Importance for a row, where the case has any.
  const float* Importance(int64_t cols) {
    if (!GetParam().weighted) return nullptr;
    importance_ = MakeImportance(cols);
    return importance_.data();
  }

  std::vector<std::byte> Encode(const std::vector<float>& row, const float* importance) const {
    std::vector<std::byte> out(Bytes(static_cast<int64_t>(row.size())));
    EncodeRow(format(), row.data(), static_cast<int64_t>(row.size()), importance, out.data());
    return out;
  }
  // Row by row, as matrices are.
  std::vector<std::byte> EncodeMatrix(const std::vector<float>& matrix, const float* importance) {
    std::vector<std::byte> out(Bytes(static_cast<int64_t>(matrix.size())));
    for (int64_t r = 0; r < kMatrixRows; ++r) {
      EncodeRow(format(), matrix.data() + r * kMatrixCols, kMatrixCols, importance,
                out.data() + Bytes(r * kMatrixCols));
    }
    return out;
  }
  std::vector<float> Decode(const std::vector<std::byte>& blocks) const {
    std::vector<float> weights(blocks.size() / info().block_bytes * info().block_weights);
    DecodeRow(format(), blocks.data(), static_cast<int64_t>(weights.size()), weights.data());
    return weights;
  }

 private:
  std::vector<float> importance_;
};

double SquaredError(const std::vector<float>& a, const std::vector<float>& b,
                    const float* importance, int64_t cols) {
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double e = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    total += e * e * (importance == nullptr ? 1 : importance[i % static_cast<size_t>(cols)]);
  }
  return total;
}

// ggml's errors by matrix.
std::map<std::string, double> PeerErrors(const Case& c) {
  std::ifstream file(NIBBLE_TEST_DATA "/encode_k.txt");
  std::map<std::string, double> errors;
  std::string format, matrix;
  int weighted = 0;
  double error = 0;
  while (file >> format >> weighted >> matrix >> error) {
    if (format == GetFormatInfo(c.format).name && (weighted != 0) == c.weighted) {
      errors[matrix] = error;
    }
  }
  return errors;
}

TEST_P(EveryCase, ErrsNoMoreThanGgml) {
  const std::map<std::string, double> peer = PeerErrors(GetParam());
  const float* importance = Importance(kMatrixCols);
  for (const char* name : kMatrixNames) {
    ASSERT_EQ(peer.count(name), 1u) << name;
    const std::vector<float> matrix = MakeMatrix(name);
    const std::vector<float> decoded = Decode(EncodeMatrix(matrix, importance));
    const double error = SquaredError(matrix, decoded, importance, kMatrixCols);
    // Weights far from zero all get the one or two largest codes of a grid without a minimum: there
    // luck decides, not the search. The table has seven digits.
    const bool luck = std::strcmp(name, "offset") == 0;
    EXPECT_LE(std::sqrt(error), std::sqrt(peer.at(name)) * (luck ? 1.03 : 1 + 1e-6)) << name;
  }
}

TEST_P(EveryCase, ErrsClearlyLessThanGgmlOnGaussianAndTrainedWeights) {
  const std::map<std::string, double> peer = PeerErrors(GetParam());
  const float* importance = Importance(kMatrixCols);
  for (const char* name : {"gauss", "attn_q", "ffn_down"}) {
    const std::vector<float> matrix = MakeMatrix(name);
    const std::vector<float> decoded = Decode(EncodeMatrix(matrix, importance));
    const double error = SquaredError(matrix, decoded, importance, kMatrixCols);
    EXPECT_LE(std::sqrt(error / peer.at(name)), 0.985) << name;
  }
}

// The same template with vectors of one lane: the scalar algorithm.
void EncodeOneLane(Format format, const std::vector<float>& row, const float* importance,
                   std::byte* out) {
  namespace target = nibble::HWY_NAMESPACE;
  const float* data = row.data();
  target::EncodeSearchWith(hwy::HWY_NAMESPACE::CappedTag<float, 1>(), format, {&data, 1},
                           static_cast<int64_t>(row.size()), importance, out);
}

TEST_P(EveryCase, EveryTargetGivesTheBytesOfOneLane) {
  for (const char* name : kMatrixNames) {
    std::vector<float> row = MakeMatrix(name);
    row.resize(static_cast<size_t>(kMatrixCols));
    const float* importance = Importance(kMatrixCols);
    std::vector<std::byte> expected(Bytes(kMatrixCols));
    EncodeOneLane(format(), row, importance, expected.data());
    for (const std::string& target : SupportedTargets()) {
      ASSERT_TRUE(ForceTarget(target).ok());
      EXPECT_EQ(Encode(row, importance), expected) << name << " on " << target;
    }
  }
  ASSERT_TRUE(ForceTarget("").ok());
}

TEST_P(EveryCase, RowsTogetherHaveTheBytesOfRowsAlone) {
  const int64_t cols = 3 * block();
  const float* importance = Importance(cols);
  const std::vector<float> matrix = MakeMatrix("heavy");
  std::vector<const float*> rows;
  std::vector<std::byte> together(Bytes(5 * cols)), alone(Bytes(5 * cols));
  for (int64_t r = 0; r < 5; ++r) {
    rows.push_back(matrix.data() + r * (cols + 7));
    EncodeRow(format(), rows.back(), cols, importance, alone.data() + Bytes(r * cols));
  }
  EncodeRows(format(), rows, cols, importance, together.data());
  EXPECT_EQ(together, alone);
}

// Any number of blocks at any address gives the blocks that each gives alone.
TEST_P(EveryCase, BlocksDoNotKnowTheirNeighbours) {
  const int64_t cols = 37 * block();
  const float* importance = Importance(cols);
  std::vector<float> row;
  for (uint32_t i = 0; i < cols; ++i) row.push_back(Bell(i) * Burst(i / 32));
  const std::vector<std::byte> whole = Encode(row, importance);
  for (const int64_t count : {1, 2, 3, 5, 15, 16, 17, 33}) {
    for (const int64_t first : {int64_t{0}, 37 - count}) {
      std::vector<std::byte> out(Bytes(count * block()) + 2, std::byte{0xA5});
      EncodeRow(format(), row.data() + first * block(), count * block(),
                importance == nullptr ? nullptr : importance + first * block(), out.data() + 1);
      EXPECT_EQ(std::memcmp(out.data() + 1, whole.data() + Bytes(first * block()),
                            Bytes(count * block())),
                0)
          << count << " blocks from " << first;
      EXPECT_EQ(out.front(), std::byte{0xA5});
      EXPECT_EQ(out.back(), std::byte{0xA5});
    }
  }
}

TEST_P(EveryCase, StaysFiniteAtTheEndsOfTheRange) {
  const int64_t cols = 2 * block();
  const float largest = LargestMagnitude(format());
  const auto check = [&](const char* what, auto weight) {
    std::vector<float> row;
    for (uint32_t i = 0; i < cols; ++i) row.push_back(weight(i));
    const std::vector<float> decoded = Decode(Encode(row, Importance(cols)));
    for (size_t i = 0; i < row.size(); ++i) {
      ASSERT_TRUE(std::isfinite(decoded[i])) << what << " " << i;
      // All are extremes or zero, which the coarsest grid keeps to a half.
      ASSERT_NEAR(decoded[i], row[i], 0.5 * largest) << what << " " << i;
    }
  };
  check("largest", [&](uint32_t i) { return largest; });
  check("least", [&](uint32_t i) { return -largest; });
  check("both", [&](uint32_t i) { return Hash(i) % 2 == 0 ? largest : -largest; });
  check("one", [&](uint32_t i) { return i == 3 ? largest : 0.0f; });
  check("denormal", [&](uint32_t i) { return std::numeric_limits<float>::denorm_min(); });
  check("negative zero", [&](uint32_t i) { return -0.0f; });
}

// Weights that are decoded ones already come back within half a step, on average far less.
TEST_P(EveryCase, RequantizesWhatItDecodedWithinTheFirstError) {
  for (const char* name : {"gauss", "heavy", "attn_q"}) {
    const std::vector<float> matrix = MakeMatrix(name);
    const float* importance = Importance(kMatrixCols);
    const std::vector<float> once = Decode(EncodeMatrix(matrix, importance));
    const std::vector<float> twice = Decode(EncodeMatrix(once, importance));
    EXPECT_LE(SquaredError(once, twice, importance, kMatrixCols),
              SquaredError(matrix, once, importance, kMatrixCols))
        << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, EveryCase, testing::ValuesIn(AllCases()), NameOf);

class EveryWeightedCase : public EveryCase {};

TEST_P(EveryWeightedCase, ImportanceLowersTheErrorThatCounts) {
  const std::vector<float> matrix = MakeMatrix("gauss");
  const std::vector<float> importance = MakeImportance(kMatrixCols);
  const std::vector<float> flat(static_cast<size_t>(kMatrixCols), 1.0f);
  const auto error = [&](const std::vector<float>& encode_with, const std::vector<float>& counts) {
    return SquaredError(matrix, Decode(EncodeMatrix(matrix, encode_with.data())), counts.data(),
                        kMatrixCols);
  };
  EXPECT_LT(error(importance, importance), 0.97 * error(flat, importance));
  EXPECT_LT(error(flat, flat), error(importance, flat));
}

TEST_P(EveryWeightedCase, OnlyRatiosOfImportanceMatter) {
  std::vector<float> row = MakeMatrix("heavy");
  row.resize(static_cast<size_t>(kMatrixCols));
  const std::vector<float> importance = MakeImportance(kMatrixCols);
  const std::vector<std::byte> expected = Encode(row, importance.data());
  for (const float factor : {0x1p-100f, 0x1p-20f, 0x1p+20f, 0x1p+110f}) {
    std::vector<float> scaled = importance;
    for (float& v : scaled) v *= factor;
    EXPECT_EQ(Encode(row, scaled.data()), expected) << factor;
  }
}

TEST_P(EveryWeightedCase, ToleratesColumnsWithoutImportance) {
  std::vector<float> row = MakeMatrix("gauss");
  row.resize(static_cast<size_t>(kMatrixCols));
  const std::vector<float> none(row.size(), 0.0f);
  const std::vector<float> decoded = Decode(Encode(row, none.data()));
  // Nothing counts, yet what comes out is still the row: a two-bit grid takes off 90% of it.
  EXPECT_LT(SquaredError(row, decoded, nullptr, 1), 0.25 * SquaredError(row, none, nullptr, 1));
  // One column a block counts, the others still span the grid.
  std::vector<float> one = none;
  for (size_t i = 5; i < one.size(); i += static_cast<size_t>(block())) one[i] = 1e-30f;
  EXPECT_LT(SquaredError(row, Decode(Encode(row, one.data())), one.data(), kMatrixCols),
            0.25 * SquaredError(row, none, one.data(), kMatrixCols));
}

std::vector<Case> WeightedCases() {
  std::vector<Case> cases = AllCases();
  std::erase_if(cases, [](const Case& c) { return !c.weighted; });
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Formats, EveryWeightedCase, testing::ValuesIn(WeightedCases()), NameOf);

// --- Against brute force, which knows of the search nothing but the decoder. ---

TEST(EncodeKTest, ComesCloseToTheBestOfAllHalfPrecisionScales) {
  double found = 0, best = 0;
  for (uint32_t b = 0; b < 16; ++b) {
    std::vector<float> x;
    for (uint32_t i = 0; i < 32; ++i) x.push_back(Bell(32 * b + i));
    BlockIQ4_NL block;
    EncodeRow(Format::kIQ4_NL, x.data(), 32, nullptr, reinterpret_cast<std::byte*>(&block));
    for (int i = 0; i < 32; ++i) {
      const float e = x[static_cast<size_t>(i)] - DecodeWeight<CodecIQ4_NL>(block, i);
      found += e * e;
    }
    double least = 1e30;
    for (uint32_t bits = ToF16(0.005f).bits; bits < ToF16(0.08f).bits; ++bits) {
      for (const uint32_t sign : {0u, 0x8000u}) {
        const float scale = ToFloat(F16{static_cast<uint16_t>(bits | sign)});
        double error = 0;
        for (const float w : x) {
          float nearest = 1e30f;
          for (const int8_t value : kIq4Values) {
            nearest = std::min(nearest, std::fabs(w - scale * static_cast<float>(value)));
          }
          error += nearest * nearest;
        }
        least = std::min(least, error);
      }
    }
    best += least;
  }
  EXPECT_GE(found, best * (1 - 1e-6));
  EXPECT_LE(found, best * 1.03);
}

TEST(EncodeKTest, ComesCloseToTheBestOfAllIntegerScalesAndMinima) {
  for (uint32_t b = 0; b < 8; ++b) {
    std::vector<float> x;
    for (uint32_t i = 0; i < 256; ++i) x.push_back(Bell(256 * b + i));
    BlockQ2_K block;
    EncodeRow(Format::kQ2_K, x.data(), 256, nullptr, reinterpret_cast<std::byte*>(&block));
    double found = 0, best = 0;
    for (int g = 0; g < 16; ++g) {
      double least = 1e30;
      for (int packed = 0; packed < 256; ++packed) {
        const float scale = ToFloat(block.d) * static_cast<float>(packed & 15);
        const float min = ToFloat(block.dmin) * static_cast<float>(packed >> 4);
        double error = 0;
        for (int i = 16 * g; i < 16 * g + 16; ++i) {
          float nearest = 1e30f;
          for (int q = 0; q < 4; ++q) {
            const float w = scale * static_cast<float>(q) - min;
            nearest = std::min(nearest, std::fabs(x[static_cast<size_t>(i)] - w));
          }
          error += nearest * nearest;
        }
        least = std::min(least, error);
      }
      best += least;
      for (int i = 16 * g; i < 16 * g + 16; ++i) {
        const float e = x[static_cast<size_t>(i)] - DecodeWeight<CodecQ2_K>(block, i);
        found += e * e;
      }
    }
    EXPECT_GE(found, best * (1 - 1e-6)) << b;
    EXPECT_LE(found, best * 1.02) << b;
  }
}

}  // namespace
}  // namespace nibble
