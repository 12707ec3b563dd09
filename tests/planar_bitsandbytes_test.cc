// The codes and scales of bitsandbytes, bit for bit: NF4, FP4, double quantization, int8 rows.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/codec_planar.h"
#include "lib/quantize/planar.h"
#include "nibble/quantize.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

using Json = nlohmann::json;

const Json& Reference() {
  static const Json json =
      Json::parse(std::ifstream(NIBBLE_TEST_DATA "/bitsandbytes_vectors.json"));
  return json;
}

// As in reference/bitsandbytes_vectors.py.
std::vector<float> Weights(int64_t n, uint32_t seed) {
  std::vector<float> out(static_cast<size_t>(n));
  uint32_t state = seed;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 1664525u + 1013904223u;
    const float factor = static_cast<float>(i / 64 * 7919 % 1000 + 1) * 0x1p-10f;
    out[static_cast<size_t>(i)] =
        static_cast<float>(static_cast<int32_t>(state) >> 8) * 0x1p-23f * factor;
  }
  return out;
}

// The weights of a case in its dtype, and a view of them.
struct Input {
  explicit Input(const Json& c)
      : rows(c["rows"].get<int64_t>()),
        cols(c["cols"].get<int64_t>()),
        floats(Weights(rows * cols, c["seed"].get<uint32_t>())) {
    const std::string name = c["dtype"].get<std::string>();
    dtype = name == "float32" ? DType::kF32 : name == "float16" ? DType::kF16 : DType::kBF16;
    for (const float x : floats) {
      halves.push_back(dtype == DType::kF16 ? ToF16(x).bits : ToBF16(x).bits);
    }
  }
  TensorView view() const {
    const void* data = dtype == DType::kF32 ? static_cast<const void*>(floats.data())
                                            : static_cast<const void*>(halves.data());
    return {data, dtype, rows, cols, cols, Device::kCpu};
  }
  int64_t rows, cols;
  DType dtype;
  std::vector<float> floats;
  std::vector<uint16_t> halves;
};

std::string Hex(const char* format, uint32_t value) {
  char text[16];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

// The floats of a string of their bits.
std::vector<float> Floats(const Json& text) {
  const std::string hex = text.get<std::string>();
  std::vector<float> floats;
  for (size_t i = 0; i < hex.size(); i += 8) {
    floats.push_back(
        std::bit_cast<float>(static_cast<uint32_t>(std::stoul(hex.substr(i, 8), nullptr, 16))));
  }
  return floats;
}

std::string Fnv(const std::vector<float>& values) {
  uint64_t h = 0xCBF29CE484222325u;
  for (const float v : values) {
    const uint32_t bits = std::bit_cast<uint32_t>(v);
    for (int b = 0; b < 4; ++b) h = (h ^ (bits >> (8 * b) & 255)) * 0x100000001B3u;
  }
  char text[32];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(h));
  return text;
}

TEST(Bitsandbytes, DynamicMapIsTheSame) {
  std::string ours;
  for (uint32_t i = 0; i < 256; ++i) {
    ours += Hex("%08x", std::bit_cast<uint32_t>(DynamicMapValue(i)));
  }
  EXPECT_EQ(ours, Reference()["dynamic_map"].get<std::string>());
}

TEST(Bitsandbytes, FourBitCodesScalesAndWeightsAreTheSame) {
  for (const Json& c : Reference()["four_bit"]) {
    SCOPED_TRACE(c["kind"].get<std::string>() + " seed " + std::to_string(c["seed"].get<int>()));
    const Input input(c);
    Scheme scheme;
    scheme.code = c["kind"] == "nf4" ? Code::kNf4 : Code::kFp4;
    scheme.group_size = c["block"].get<int32_t>();
    scheme.double_quant = c["double"].get<bool>();
    auto q = Quantize(input.view(), scheme);
    ASSERT_TRUE(q.ok()) << q.status().message();
    const PlanarPlanes p = PlanesOf(*q);

    std::string codes;
    for (int64_t r = 0; r < p.rows; ++r) {
      for (int64_t i = 0; i < p.cols; ++i) {
        codes += Hex("%x", PlanarCode(p.codes + r * PlanarRowBytes(4, p.cols), 4, i));
      }
    }
    EXPECT_EQ(codes, c["codes"].get<std::string>());

    const int64_t scales = p.rows * p.groups;
    if (scheme.double_quant) {
      std::string scale_codes;
      for (int64_t i = 0; i < scales; ++i) scale_codes += Hex("%02x", p.scales[i]);
      EXPECT_EQ(scale_codes, c["scale_codes"].get<std::string>());
      std::vector<float> theirs = Floats(c["maxima"]);
      theirs.push_back(Floats(c["mean"])[0]);
      ASSERT_EQ(theirs.size(), q->plane(Plane::kSuperScales).size() / sizeof(float));
      // bitsandbytes sums the mean in float, in an order that depends on the machine; here it is
      // the true one, rounded. All else follows it.
      for (size_t i = 0; i < theirs.size(); ++i) {
        const float ours = LoadPlaneFloat(p.super_scales, DType::kF32, static_cast<int64_t>(i));
        EXPECT_NEAR(ours, theirs[i], 0x1p-23f * theirs.back());
      }
      // Their weights are decoded from their own mean.
      std::memcpy(q->plane(Plane::kSuperScales).data(), theirs.data(),
                  theirs.size() * sizeof(float));
    } else {
      const std::vector<float> theirs = Floats(c["scales"]);
      ASSERT_EQ(theirs.size(), static_cast<size_t>(scales));
      for (int64_t i = 0; i < scales; ++i) EXPECT_EQ(p.Scale(i), theirs[static_cast<size_t>(i)]);
    }

    std::vector<float> decoded(input.floats.size());
    ASSERT_TRUE(Dequantize(*q, ViewOf(decoded.data(), p.rows, p.cols)).ok());
    EXPECT_EQ(Fnv(decoded), c["decoded_fnv"].get<std::string>());
  }
}

TEST(Bitsandbytes, Int8RowsAreTheSame) {
  for (const Json& c : Reference()["int8"]) {
    const Input input(c);
    const Scheme scheme = {.bits = 8, .granularity = Granularity::kChannel};
    const auto q = Quantize(input.view(), scheme);
    ASSERT_TRUE(q.ok()) << q.status().message();
    const PlanarPlanes p = PlanesOf(*q);
    std::string codes;
    for (int64_t i = 0; i < p.rows * p.cols; ++i) codes += Hex("%02x", p.codes[i]);
    EXPECT_EQ(codes, c["codes"].get<std::string>());
    // bitsandbytes keeps the maxima, and divides by 127 when it multiplies.
    const std::vector<float> maxima = Floats(c["absmax"]);
    ASSERT_EQ(maxima.size(), static_cast<size_t>(p.rows));
    for (int64_t r = 0; r < p.rows; ++r) {
      EXPECT_EQ(p.Scale(r), maxima[static_cast<size_t>(r)] / 127.0f);
    }
  }
}

}  // namespace
}  // namespace nibble
