// The entry points of nibble/quantize.h for block formats: what they refuse, what they promise for
// any format, and that threads and input types do not change the bytes.
#include "nibble/quantize.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/encode.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 67, kCols = 512;

// Values that half precision and bfloat16 hold exactly, so that all input types say the same.
std::vector<float> Weights(int64_t count) {
  std::vector<float> w(static_cast<size_t>(count));
  uint32_t state = 12345;
  for (float& x : w) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int32_t>(state >> 24) - 128) / 64.0f;
  }
  return w;
}

std::vector<FormatInfo> Encodable() {
  std::vector<FormatInfo> formats;
  for (const FormatInfo& info : AllFormats()) {
    if (info.can_encode()) {
      formats.push_back(info);
    }
  }
  return formats;
}

class EveryFormat : public testing::TestWithParam<FormatInfo> {
 protected:
  Format format() const { return GetParam().format; }
};

std::vector<std::byte> Bytes(const QuantizedTensor& t) {
  const auto bytes = t.plane(Plane::kCodes).bytes();
  return {bytes.begin(), bytes.end()};
}

TEST_P(EveryFormat, ThreadsAndInputTypesDoNotChangeTheBytes) {
  const std::vector<float> w = Weights(kRows * kCols);
  const auto expected = Quantize(ViewOf(w.data(), kRows, kCols), format());
  ASSERT_TRUE(expected.ok()) << expected.status().message();

  ThreadPool pool(3);
  QuantizeOptions options;
  options.parallel = pool.parallel_for();
  const auto threaded = Quantize(ViewOf(w.data(), kRows, kCols), format(), options);
  ASSERT_TRUE(threaded.ok());
  EXPECT_EQ(Bytes(*expected), Bytes(*threaded));

  // Half precision in rows with a gap, at an odd address.
  constexpr int64_t kStride = kCols + 3;
  for (DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
    const size_t size = DTypeBytes(type);
    std::vector<std::byte> memory(static_cast<size_t>(kRows * kStride) * size + 1);
    TensorView view{memory.data() + 1, type, kRows, kCols, kStride, Device::kCpu};
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < kCols; ++c) {
        const float x = w[static_cast<size_t>(r * kCols + c)];
        const uint16_t bits = type == DType::kF16 ? ToF16(x).bits : ToBF16(x).bits;
        std::byte* to = memory.data() + 1 + static_cast<size_t>(r * kStride + c) * size;
        if (size == 2) {
          std::memcpy(to, &bits, 2);
        } else {
          std::memcpy(to, &x, 4);
        }
      }
    }
    const auto other = Quantize(view, format());
    ASSERT_TRUE(other.ok());
    EXPECT_EQ(Bytes(*expected), Bytes(*other)) << DTypeName(type);
  }
}

TEST_P(EveryFormat, RoundTripsThroughAnyOutputType) {
  const std::vector<float> w = Weights(kRows * kCols);
  const auto q = Quantize(ViewOf(w.data(), kRows, kCols), format());
  ASSERT_TRUE(q.ok());
  std::vector<float> decoded(w.size());
  ASSERT_TRUE(Dequantize(*q, ViewOf(decoded.data(), kRows, kCols)).ok());
  // Halves are the roundings of the floats; a gap between rows stays untouched.
  ThreadPool pool(2);
  std::vector<F16> half(static_cast<size_t>(kRows * (kCols + 1)), F16{0x1234});
  MutableTensorView out{half.data(), DType::kF16, kRows, kCols, kCols + 1, Device::kCpu};
  ASSERT_TRUE(Dequantize(*q, out, pool.parallel_for()).ok());
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kCols; ++c) {
      ASSERT_EQ(half[static_cast<size_t>(r * (kCols + 1) + c)].bits,
                ToF16(decoded[static_cast<size_t>(r * kCols + c)]).bits);
    }
    ASSERT_EQ(half[static_cast<size_t>(r * (kCols + 1) + kCols)].bits, 0x1234);
  }
}

TEST_P(EveryFormat, NamesTheFirstWeightThatIsNotFinite) {
  std::vector<float> w = Weights(kRows * kCols);
  w[40 * kCols + 7] = std::numeric_limits<float>::infinity();
  w[40 * kCols + 300] = std::numeric_limits<float>::quiet_NaN();
  w[66 * kCols + 1] = std::numeric_limits<float>::quiet_NaN();
  ThreadPool pool(2);
  for (bool threads : {false, true}) {
    QuantizeOptions options;
    if (threads) options.parallel = pool.parallel_for();
    const auto q = Quantize(ViewOf(w.data(), kRows, kCols), format(), options);
    ASSERT_FALSE(q.ok());
    EXPECT_EQ(q.status().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(q.status().message().find("infinity at row 40, column 7"), std::string::npos)
        << q.status().message();
  }
}

TEST_P(EveryFormat, ClampsOnRequestAndDecodesToFiniteWeights) {
  std::vector<float> w = Weights(kCols);
  w[3] = std::numeric_limits<float>::quiet_NaN();
  w[70] = -std::numeric_limits<float>::infinity();
  QuantizeOptions options;
  options.non_finite = NonFinite::kClamp;
  const auto q = Quantize(ViewOf(w.data(), 1, kCols), format(), options);
  ASSERT_TRUE(q.ok()) << q.status().message();
  std::vector<float> decoded(w.size());
  ASSERT_TRUE(Dequantize(*q, ViewOf(decoded.data(), 1, kCols)).ok());
  for (float x : decoded) ASSERT_TRUE(std::isfinite(x));
  EXPECT_LT(decoded[70], -0.5f * LargestMagnitude(format()));
  // The caller's weights are not written.
  EXPECT_TRUE(std::isnan(w[3]));
}

TEST_P(EveryFormat, RefusesWhatItsScalesCannotCarry) {
  std::vector<float> w = Weights(kCols);
  w[5] = 1e6f;
  const auto q = Quantize(ViewOf(w.data(), 1, kCols), format());
  EXPECT_EQ(q.ok(), LargestMagnitude(format()) >= 1e6f);
  if (!q.ok()) {
    EXPECT_NE(q.status().message().find("row 0, column 5"), std::string::npos);
  }
}

TEST_P(EveryFormat, RefusesContradictions) {
  const std::vector<float> w = Weights(kCols);
  const TensorView view = ViewOf(w.data(), 1, kCols);
  const size_t size = *FormatBytes(format(), 1, kCols);
  std::vector<std::byte> out(size + 1);
  EXPECT_FALSE(QuantizeTo(view, format(), {out.data(), size + 1}).ok());
  EXPECT_FALSE(QuantizeTo(view, format(), {out.data(), size - 1}).ok());
  EXPECT_TRUE(QuantizeTo(view, format(), {out.data() + 1, size}).ok());  // any alignment

  TensorView bad = view;
  bad.dtype = DType::kI32;
  EXPECT_FALSE(Quantize(bad, format()).ok());
  bad = view;
  bad.rows = 0;
  EXPECT_FALSE(Quantize(bad, format()).ok());
  bad = view;
  bad.data = nullptr;
  EXPECT_FALSE(Quantize(bad, format()).ok());
  if (GetParam().block_weights > 1) {
    bad = view;
    bad.cols = kCols - 1;
    EXPECT_FALSE(Quantize(bad, format()).ok());
  }

  std::vector<float> importance(kCols, 1.0f);
  QuantizeOptions options;
  options.importance = {importance.data(), kCols - 1};
  EXPECT_FALSE(Quantize(view, format(), options).ok());
  options.importance = importance;
  EXPECT_TRUE(Quantize(view, format(), options).ok());
  for (float x :
       {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    importance[17] = x;
    EXPECT_FALSE(Quantize(view, format(), options).ok());
  }

  std::vector<float> decoded(kCols);
  const MutableTensorView to = ViewOf(decoded.data(), 1, kCols);
  EXPECT_TRUE(Dequantize(format(), {out.data() + 1, size}, to).ok());
  EXPECT_FALSE(Dequantize(format(), {out.data(), size - 1}, to).ok());
  EXPECT_FALSE(QuantizedTensor::Create(format(), 1, kCols, *Buffer::Allocate(size + 1)).ok());
}

std::string NameOf(const testing::TestParamInfo<FormatInfo>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Formats, EveryFormat, testing::ValuesIn(Encodable()), NameOf);

TEST(QuantizeTest, RefusesFormatsThatHoldNoWeights) {
  const std::vector<float> w = Weights(256);
  for (Format f : {Format::kQ8_1, Format::kQ8_K, Format::kIQ2_XXS, Format::kI32}) {
    const auto q = Quantize(ViewOf(w.data(), 1, 256), f);
    ASSERT_FALSE(q.ok());
    EXPECT_EQ(q.status().code(), StatusCode::kUnsupported);
  }
  EXPECT_FALSE(Quantize(ViewOf(w.data(), 1, 256), static_cast<Format>(999)).ok());
}

}  // namespace
}  // namespace nibble
