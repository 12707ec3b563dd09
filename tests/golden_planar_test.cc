// The bytes of planar schemes, for ever: equal for every compiler, instruction set and number of
// threads. A change of one of these digests is a change of what quantized files hold, and has to be
// meant.
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/quantize.h"
#include "tests/targets.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 9, kCols = 613;

// Heavy-tailed rows of different size, all from integers, with a group of zeros.
std::vector<float> Weights() {
  std::vector<float> w;
  Random random(2024);
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    const uint64_t u = random.Next();
    const float x = static_cast<float>(static_cast<int32_t>(u >> 32) >> 8) * 0x1p-23f;
    const float y = static_cast<float>(u & 0xFFFF) * 0x1p-16f;
    w.push_back(x * y * y * static_cast<float>(1 + i / kCols));
  }
  for (size_t i = 64; i < 128; ++i) w[i] = 0.0f;
  return w;
}

std::vector<float> Importance() {
  std::vector<float> importance;
  Random random(7);
  for (int64_t c = 0; c < kCols; ++c) {
    importance.push_back(static_cast<float>(random.Next() >> 48) * 0x1p-16f);
  }
  return importance;
}

struct Golden {
  const char* scheme;
  const char* rounded;   // to nearest
  const char* searched;  // with importance
};

constexpr Golden kGolden[] = {
    {"int8 sym channel", "763d78171ead2c15", "efaf1c9f132b2ce1"},
    {"int8 sym g128 f16", "e84a282a8c772bea", "47f2be37b5434360"},
    {"int8 asym tensor", "adcd7a3fed498f0e", "adcd7a3fed498f0e"},
    {"int4 sym g64", "53ed0edda0e3925a", "37cdcf9d89363646"},
    {"int4 sym g128 f16", "c532b124ac8cda71", "03b819204ad86a0d"},
    {"int4 asym g32 bf16", "a3e2bf7c655233b8", "033ac706656b57aa"},
    {"int4 asym g64 f16 zf16", "94ea66c1f49797b2", "f135a9cd3c61ffa0"},
    {"int3 asym g64 f16", "8e1f594a64bd137c", "e2ebb68d8201ef17"},
    {"int3 sym channel", "787c654dfa1f1fac", "1e79145a23c4c0e4"},
    {"int2 asym g32 zf32", "8b138b6249a8a0cf", "b5467d10c566ef9a"},
    {"int1 asym g16", "c0046f07d7e82057", "40c44ccb7b09e6a1"},
    {"int5 sym g32", "c730dc49145a5cd2", "8334735ad915b24b"},
    {"int6 asym channel", "1ccaf78cd1a6784a", "2e3c80a0a2c329ae"},
    {"int7 sym tensor", "aad7ef572a5d958b", "aad7ef572a5d958b"},
    {"int4 sym g64 act-order", "a7618e17277848ab", "06d7e1f25aac90c4"},
    {"nf4 g64", "21a1ca2512f1c5ad", "3283e28cdbc3262c"},
    {"nf4 g64 double", "81c2fa50d700f49b", "9d842cbb532f3bff"},
    {"nf4 channel f16", "c0f8fe5a3dbb3ff5", "414bbb7c708a845c"},
    {"fp4 g64", "59c26c4531dd5b13", "f49f5bc7806cffaa"},
    {"fp4 g64 double", "b9e39c70f5ec8a01", "54703e1f2a0d94fe"},
    {"f8_e4m3 tensor", "f48272eef45f7fd3", "f48272eef45f7fd3"},
    {"f8_e4m3 channel bf16", "3e1cc114f47b6bc6", "3e1cc114f47b6bc6"},
    {"f8_e5m2 channel", "dc67207c36efc4c2", "dc67207c36efc4c2"},
    {"table3 g64", "fcc838d9110309c9", "5344335a629a23d8"},
    {"1x8g8 f16", "64a348aaf89e5286", "0911a4f2a9dca5d0"},
    {"2x8g8 f16", "7d09f0294065367f", "5a5609e395c245c4"},
    {"3x8g16 bf16", "90b5057f3018e35a", "4de86cb47aecd120"},
    {"2x8g32 f32", "f2a2c3d4308bfb6d", "cb5efc823305e048"},
};

class GoldenPlanar : public EveryTarget {};

TEST_P(GoldenPlanar, BytesNeverChange) {
  const std::vector<float> w = Weights(), importance = Importance();
  ThreadPool pool(2);
  std::vector<int32_t> index;
  for (int64_t c = 0; c < kCols; ++c) index.push_back(static_cast<int32_t>(c * 5 % kCols / 64));
  for (const Golden& golden : kGolden) {
    const Scheme scheme = *ParseScheme(golden.scheme);
    std::vector<float> table;
    if (scheme.code == Code::kTable) table = {-1.0f, -0.5f, -0.2f, 0.0f, 0.125f, 0.3f, 0.6f, 1.0f};
    for (const bool searched : {false, true}) {
      for (const bool threads : {false, true}) {
        QuantizeOptions options;
        if (searched) options.importance = importance;
        if (scheme.has_group_index) options.group_index = index;
        if (threads) options.parallel = pool.parallel_for();
        const auto q = Quantize(ViewOf(w.data(), kRows, kCols), scheme, options, table);
        ASSERT_TRUE(q.ok()) << q.status().message();
        EXPECT_EQ(Digest(*q), searched ? golden.searched : golden.rounded)
            << golden.scheme << (searched ? ", searched" : ", rounded");
      }
    }
  }
}

NIBBLE_ON_EVERY_TARGET(GoldenPlanar);

}  // namespace
}  // namespace nibble
