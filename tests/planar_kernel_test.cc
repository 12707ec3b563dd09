// The kernels of planar schemes against kernels/codec_planar.h, bit for bit, on every target.
#include "kernels/planar.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/targets.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();

class PlanarKernel : public EveryTarget {};

std::vector<uint8_t> RandomCodes(int64_t count, int bits, uint64_t seed) {
  std::vector<uint8_t> codes(static_cast<size_t>(count));
  Random random(seed);
  for (uint8_t& c : codes) c = static_cast<uint8_t>(random.Next() & ((1u << bits) - 1));
  return codes;
}

TEST_P(PlanarKernel, PacksAndUnpacksEveryWidthAndLength) {
  for (int bits = 1; bits <= 8; ++bits) {
    for (int64_t count = 1; count <= 150; ++count) {
      const std::vector<uint8_t> codes = RandomCodes(count, bits, static_cast<uint64_t>(count));
      const size_t bytes = static_cast<size_t>(PlanarRowBytes(bits, count));
      ASSERT_EQ(bytes, static_cast<size_t>((count * bits + 7) / 8));
      // Exactly the bytes of the stream, so that a sanitizer sees what goes beyond; and a guard.
      std::vector<uint8_t> stream(bytes + 1, 0xA5);
      PackCodes(codes.data(), bits, count, stream.data());
      ASSERT_EQ(stream.back(), 0xA5) << bits << " bits, " << count;
      stream.resize(bytes);
      for (int64_t i = 0; i < count; ++i) {
        ASSERT_EQ(PlanarCode(stream.data(), bits, i), codes[static_cast<size_t>(i)]);
      }
      const int padding = static_cast<int>(bytes * 8 - static_cast<size_t>(count * bits));
      EXPECT_EQ(stream.back() >> (8 - padding), 0) << "padding is not zero";
      const std::vector<uint8_t> exact(stream);
      std::vector<uint8_t> unpacked(codes.size() + 1, 0x5A);
      UnpackCodes(exact.data(), bits, count, unpacked.data());
      ASSERT_EQ(unpacked.back(), 0x5A);
      unpacked.pop_back();
      ASSERT_EQ(unpacked, codes) << bits << " bits, " << count;
    }
  }
}

TEST_P(PlanarKernel, RangeAndFiniteness) {
  for (int64_t count = 1; count <= 70; ++count) {
    std::vector<float> x = CaseFloats("wide", static_cast<int>(count));
    const Range range = FindRange(x.data(), count);
    EXPECT_EQ(range.min, *std::min_element(x.begin(), x.end()));
    EXPECT_EQ(range.max, *std::max_element(x.begin(), x.end()));
    EXPECT_TRUE(AllFinite(x.data(), count));
    for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf(""),
                            -std::numeric_limits<float>::infinity()}) {
      for (int64_t at = 0; at < count; ++at) {
        std::vector<float> y = x;
        y[static_cast<size_t>(at)] = bad;
        EXPECT_FALSE(AllFinite(y.data(), count)) << at << " of " << count;
      }
    }
  }
}

struct Case {
  Scheme scheme;
  std::vector<float> table;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (int bits = 1; bits <= 8; ++bits) {
    for (const bool symmetric : {true, false}) {
      if (symmetric && bits == 1) continue;
      cases.push_back({{.bits = static_cast<uint8_t>(bits), .symmetric = symmetric}, {}});
    }
    std::vector<float> table(size_t{1} << bits);
    for (size_t i = 0; i < table.size(); ++i) {
      const float t = 2.0f * static_cast<float>(i) / static_cast<float>(table.size() - 1) - 1.0f;
      table[i] = t * std::fabs(t) * 1.5f;
    }
    cases.push_back({{.code = Code::kTable, .bits = static_cast<uint8_t>(bits)}, table});
  }
  for (const Code code : {Code::kNf4, Code::kFp4}) cases.push_back({{.code = code}, {}});
  for (const Code code : {Code::kF8E4M3, Code::kF8E5M2}) {
    cases.push_back({{.code = code, .bits = 8}, {}});
  }
  return cases;
}

const uint8_t* TableBytes(const Case& c) {
  return c.table.empty() ? nullptr : reinterpret_cast<const uint8_t*>(c.table.data());
}

// Irregular groups, some shorter than any vector, one with a scale of zero.
std::vector<PlanarGroup> Groups(const Scheme& s, int64_t count) {
  std::vector<PlanarGroup> groups;
  const int64_t lengths[] = {1, 33, 64, 5, 16, 97, 3};
  const float scales[] = {0.25f, 1.0f / 3, 0.0f, 3e-39f, 7.5f, 0x1p-10f, 1e30f};
  int64_t end = 0;
  for (size_t i = 0; end < count; ++i) {
    end = std::min(count, end + lengths[i % 7]);
    const float zero = s.symmetric ? 0.0f : static_cast<float>(i % 5) * 0.75f;
    groups.push_back({end, scales[i % 7], zero});
  }
  return groups;
}

uint32_t OracleCode(const Scheme& s, const PlanarCodebook& book, const PlanarGroup& g, float x) {
  const float divisor = g.scale != 0.0f ? g.scale : 1.0f;
  switch (s.code) {
    case Code::kUniform: {
      const int q = ChooseInteger(x, divisor, g.zero, static_cast<float>(MinCode(s)),
                                  static_cast<float>(MaxCode(s)));
      return static_cast<uint32_t>(q) & ((1u << s.bits) - 1);
    }
    case Code::kF8E4M3:
      return FloatToF8E4M3(x / divisor);
    case Code::kF8E5M2:
      return FloatToF8E5M2(x / divisor);
    default:
      return book.code_of_rank[NearestRank(book.midpoints, 1 << s.bits, x * InverseScale(g.scale))];
  }
}

TEST_P(PlanarKernel, ChoosesTheCodesOfTheOracle) {
  std::vector<float> x = {0.0f,   -0.0f,  kMax,    -kMax, 1e-45f, -1e-45f,
                          1e-38f, 0.125f, -0.375f, 448,   464};
  for (const char* name : {"uniform", "ties", "denormal", "wide", "powers"}) {
    const std::vector<float> more = CaseFloats(name, 1501);
    x.insert(x.end(), more.begin(), more.end());
  }
  // Every midpoint between two small floats, and its neighbours.
  for (int i = -600; i <= 600; ++i) {
    const float m = static_cast<float>(i) * 0x1p-6f;
    for (const float y : {m, std::nextafter(m, kMax), std::nextafter(m, -kMax)})
      x.push_back(y * 0.25f);
  }
  const int64_t count = static_cast<int64_t>(x.size());
  for (const Case& c : Cases()) {
    const PlanarCodebook book = MakePlanarCodebook(c.scheme, TableBytes(c));
    const std::vector<PlanarGroup> groups = Groups(c.scheme, count);
    std::vector<uint8_t> codes(x.size());
    ChooseCodes(book, groups, x.data(), codes.data());
    size_t i = 0;
    for (const PlanarGroup& g : groups) {
      for (; i < static_cast<size_t>(g.end); ++i) {
        ASSERT_EQ(codes[i], OracleCode(c.scheme, book, g, x[i]))
            << SchemeName(c.scheme) << ", x " << x[i] << ", scale " << g.scale;
      }
    }
  }
}

TEST_P(PlanarKernel, DecodesEveryCodeAsTheOracle) {
  for (const Case& c : Cases()) {
    const PlanarCodebook book = MakePlanarCodebook(c.scheme, TableBytes(c));
    std::vector<uint8_t> codes;
    for (int repeat = 0; repeat < 3; ++repeat) {
      for (int q = 0; q < 1 << c.scheme.bits; ++q) codes.push_back(static_cast<uint8_t>(q));
    }
    const int64_t count = static_cast<int64_t>(codes.size());
    const std::vector<PlanarGroup> groups = Groups(c.scheme, count);
    std::vector<float> out(codes.size());
    DecodeCodes(book, groups, codes.data(), out.data());
    size_t i = 0;
    for (const PlanarGroup& g : groups) {
      for (; i < static_cast<size_t>(g.end); ++i) {
        const float value = CodeValue(c.scheme, codes[i], TableBytes(c));
        const float want = c.scheme.symmetric ? g.scale * value : g.scale * (value - g.zero);
        if (std::isnan(want)) {
          ASSERT_TRUE(std::isnan(out[i])) << SchemeName(c.scheme) << ", code " << int{codes[i]};
        } else {
          ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(want))
              << SchemeName(c.scheme) << ", code " << int{codes[i]} << ", scale " << g.scale;
        }
      }
    }
  }
}

NIBBLE_ON_EVERY_TARGET(PlanarKernel);

}  // namespace
}  // namespace nibble
