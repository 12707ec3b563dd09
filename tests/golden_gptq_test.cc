// The bytes that error feedback gives, for ever: equal for every compiler, instruction set and
// number of threads. A change of one of these digests is a change of what quantized files hold, and
// has to be meant.
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/gptq.h"
#include "tests/targets.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 37, kCols = 512, kTokens = 700;

// All from integers; each column moves with the one before it.
std::vector<float> Correlated(int64_t rows, uint64_t seed) {
  std::vector<float> x;
  Random random(seed);
  for (int64_t r = 0; r < rows; ++r) {
    float last = 0;
    for (int64_t c = 0; c < kCols; ++c) {
      const uint64_t u = random.Next();
      const float fresh = static_cast<float>(static_cast<int32_t>(u >> 32) >> 8) * 0x1p-23f;
      last = 0.5f * last + fresh * static_cast<float>(1 + c % 5);
      x.push_back(last);
    }
  }
  return x;
}

struct Golden {
  const char* name;
  const char* digest;
};

constexpr Golden kFormats[] = {
    {"q2_K", "c9cb07c74507e09d"},   {"q3_K", "755b73e769be7b6d"}, {"q4_K", "7715bb2d6122bf57"},
    {"q5_K", "05e09ad6e7e9924b"},   {"q6_K", "98029a70b8f5c557"}, {"iq4_nl", "99a8d1389bda23fc"},
    {"iq4_xs", "b1c963b87f193ea7"}, {"q4_0", "1c1ebacd1040c559"}, {"q4_1", "ccc749ae2b68b8ae"},
    {"q5_0", "e0f3437dd054b07b"},   {"q5_1", "0db0383df0e0040b"}, {"q8_0", "52ecf7ee8f5f5bff"},
};
constexpr Golden kSchemes[] = {
    {"int4 sym g128 f16", "3c9671a209c1dac1"}, {"int3 asym g64 f16 act-order", "cbe78e85a09ad45c"},
    {"int8 sym channel", "0c87f102cb0324b1"},  {"nf4 g64", "08dbfaf28fff58e2"},
    {"int4 asym g32 f32", "32edc677103f0b7f"}, {"int4 sym g64 f32", "40652d1e9b2a9df0"},
    {"1x8g8 f16", "59f41e3621e468f2"},         {"2x8g16 bf16", "f54b4e97ff29fe10"},
};

class GoldenGptq : public EveryTarget {};

TEST_P(GoldenGptq, BytesNeverChange) {
  const std::vector<float> w = Correlated(kRows, 5), inputs = Correlated(kTokens, 6);
  Hessian hessian(kCols);
  ASSERT_TRUE(hessian.Add(ViewOf(inputs.data(), kTokens, kCols)).ok());
  ThreadPool pool(2);
  for (const bool threads : {false, true}) {
    GptqOptions options;
    options.damping = 0.01;
    options.sweeps = 1;
    if (threads) options.parallel = pool.parallel_for();
    for (const Golden& golden : kFormats) {
      const auto q = QuantizeGptq(ViewOf(w.data(), kRows, kCols), FindFormat(golden.name)->format,
                                  hessian, options);
      ASSERT_TRUE(q.ok()) << q.status().message();
      EXPECT_EQ(Digest(*q), golden.digest) << golden.name;
    }
    options.sweeps = 0;
    for (const Golden& golden : kSchemes) {
      const Scheme scheme = *ParseScheme(golden.name);
      options.act_order = scheme.has_group_index;
      const auto q = QuantizeGptq(ViewOf(w.data(), kRows, kCols), scheme, hessian, options);
      ASSERT_TRUE(q.ok()) << golden.name << ": " << q.status().message();
      EXPECT_EQ(Digest(*q), golden.digest) << golden.name;
    }
  }
}

NIBBLE_ON_EVERY_TARGET(GoldenGptq);

}  // namespace
}  // namespace nibble
