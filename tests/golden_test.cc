// The same bytes everywhere: digests of what fixed matrices quantize to, on every target, on one
// and two threads. They change only when a format's encoder is meant to change, and then the change
// log says so.
#include <algorithm>
#include <iterator>

#include "gtest/gtest.h"
#include "nibble/quantize.h"
#include "tests/targets.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

struct Golden {
  const char* format;
  const char* plain;       // digest of the blocks
  const char* importance;  // and of those made with an importance of the columns
};

constexpr Golden kGolden[] = {
    {"f32", "ecc8b58dabb29aab", "ecc8b58dabb29aab"},
    {"f16", "650f1896cf5d024c", "650f1896cf5d024c"},
    {"bf16", "d6021519a5cc3d74", "d6021519a5cc3d74"},
    {"q4_0", "3b793815f81d1f62", "a321ee1143bc696f"},
    {"q4_1", "ca1d9d98bd38f2da", "2ab291609a031a56"},
    {"q5_0", "910080444ac8e93c", "9dd70ecfbd4acec7"},
    {"q5_1", "48d3a826dba5b6f4", "83a0b51a919a56f4"},
    {"q8_0", "c288996ff106ecab", "c288996ff106ecab"},
    {"q2_K", "49262c0f5b57fd3d", "aab2ca3caac5398b"},
    {"q3_K", "9a4e4794aec8f342", "db10636416f7657f"},
    {"q4_K", "5c6dde62a40774f1", "6c87cf509ba1220e"},
    {"q5_K", "79dd85339d24270b", "b9994cc99cf066bc"},
    {"q6_K", "ad5bd7f1236cac4e", "f00fd70b9596d48f"},
    {"iq4_nl", "132feb0b61047f70", "7150b534c72b7b8f"},
    {"iq4_xs", "7ad529fe55e648a6", "4195deab3f630df8"},
    {"mxfp4", "32d2798344f05a61", "32d2798344f05a61"},
    {"tq1_0", "b573a9d501dd601b", "b573a9d501dd601b"},
    {"tq2_0", "59d70b65a16e5166", "59d70b65a16e5166"},
};

constexpr int64_t kCols = 1024, kRowsOfCase = 4;
constexpr int64_t kRows = kRowsOfCase * static_cast<int64_t>(std::size(kCases));

std::vector<float> Matrix() {
  std::vector<float> matrix;
  for (const char* name : kCases) {
    const std::vector<float> rows = CaseFloats(name, static_cast<int>(kRowsOfCase * kCols));
    matrix.insert(matrix.end(), rows.begin(), rows.end());
  }
  return matrix;
}

// From 0 to 1, every tenth column 0, every hundredth 1000.
std::vector<float> Importance() {
  std::vector<float> importance(kCols);
  Random random(5);
  for (size_t i = 0; i < importance.size(); ++i) {
    const uint64_t u = random.Next();
    importance[i] = u % 10 == 0 ? 0 : static_cast<float>(u >> 40) / (1 << 24);
    if (u % 100 == 1) importance[i] = 1000;
  }
  return importance;
}

class GoldenTest : public EveryTarget {};

TEST_P(GoldenTest, BytesAreThoseOfEveryOtherMachine) {
  const std::vector<float> matrix = Matrix(), importance = Importance();
  ThreadPool pool(2);
  for (const Golden& golden : kGolden) {
    const FormatInfo* info = FindFormat(std::string_view(golden.format));
    ASSERT_NE(info, nullptr);
    std::vector<std::byte> out(*FormatBytes(info->format, kRows, kCols));
    for (bool threads : {false, true}) {
      for (bool weighted : {false, true}) {
        QuantizeOptions options;
        if (threads) options.parallel = pool.parallel_for();
        if (weighted) options.importance = importance;
        const Status status =
            QuantizeTo(ViewOf(matrix.data(), kRows, kCols), info->format, out, options);
        ASSERT_TRUE(status.ok()) << golden.format << ": " << status.message();
        EXPECT_EQ(Digest(out), weighted ? golden.importance : golden.plain)
            << golden.format << (weighted ? " with importance" : "");
      }
    }
  }
}

NIBBLE_ON_EVERY_TARGET(GoldenTest);

TEST(GoldenTableTest, HasEveryFormatThatCanBeWritten) {
  for (const FormatInfo& info : AllFormats()) {
    if (!info.can_encode()) continue;
    EXPECT_EQ(
        std::count_if(std::begin(kGolden), std::end(kGolden),
                      [&](const Golden& g) { return std::string_view(g.format) == info.name; }),
        1)
        << info.name;
  }
}

}  // namespace
}  // namespace nibble
