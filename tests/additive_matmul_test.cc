// Additive codebooks on every target: decoding against the codec, products against sums in double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/codec_planar.h"
#include "lib/quantize/planar.h"
#include "nibble/matmul.h"
#include "nibble/quantize.h"
#include "tests/matmul_oracle.h"
#include "tests/targets.h"

namespace nibble {
namespace {

const char* const kSchemes[] = {"2x8g8 f16",  "1x8g8 f32",  "2x8g16 bf16", "3x8g8 f16",
                                "8x8g32 f32", "1x16g8 f16", "2x16g16 bf16"};

Scheme Parse(const std::string& name) {
  const Result<Scheme> scheme = ParseScheme(name);
  EXPECT_TRUE(scheme.ok()) << scheme.status().message();
  return *scheme;
}

void Store(DType dtype, float x, std::byte* plane, size_t i) {
  if (dtype == DType::kF32) return void(std::memcpy(plane + 4 * i, &x, 4));
  const uint16_t bits = dtype == DType::kF16 ? ToF16(x).bits : ToBF16(x).bits;
  std::memcpy(plane + 2 * i, &bits, 2);
}

void FillCodes(QuantizedTensor& tensor, uint32_t seed) {
  std::mt19937 random(seed);
  for (std::byte& b : tensor.plane(Plane::kCodes).mutable_bytes()) {
    b = static_cast<std::byte>(random());
  }
}

// Random codes, normal entries, scales about one.
QuantizedTensor RandomCodebooks(const std::string& name, int64_t rows, int64_t cols) {
  const Scheme scheme = Parse(name);
  QuantizedTensor tensor = *QuantizedTensor::Allocate(scheme, rows, cols);
  FillCodes(tensor, static_cast<uint32_t>(rows * 7 + cols));
  const size_t width = DTypeBytes(scheme.scale_dtype);
  Buffer &table = tensor.plane(Plane::kTable), &scales = tensor.plane(Plane::kScales);
  const std::vector<float> entries = RandomValues(static_cast<int64_t>(table.size() / width), 3);
  for (size_t i = 0; i < entries.size(); ++i) {
    Store(scheme.scale_dtype, entries[i], table.data(), i);
  }
  for (size_t r = 0; r < scales.size() / width; ++r) {
    const float scale = 0.5f + static_cast<float>(r % 13) / 8;
    Store(scheme.scale_dtype, r % 5 == 1 ? -scale : scale, scales.data(), r);
  }
  return tensor;
}

class Additive : public EveryTarget {};

TEST_P(Additive, DecodesToTheBitWhatTheCodecSays) {
  for (const char* name : kSchemes) {
    for (const int64_t cols : {1, 7, 8, 31, 100, 515, 1032}) {
      const int64_t rows = cols == 100 ? 17 : 3;
      const QuantizedTensor weights = RandomCodebooks(name, rows, cols);
      const PlanarPlanes planes = PlanesOf(weights);
      const std::vector<float> decoded = Decoded(weights);
      std::vector<F16> halves(decoded.size());
      ASSERT_TRUE(Dequantize(weights, {halves.data(), DType::kF16, rows, cols, cols}).ok());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const size_t at = static_cast<size_t>(r * cols + c);
          ASSERT_EQ(decoded[at], DecodePlanarWeight(planes, r, c))
              << name << " row " << r << " column " << c << " of " << cols;
          ASSERT_EQ(halves[at].bits, ToF16(decoded[at]).bits);
        }
      }
    }
  }
}

// Entries that pick one activation, with either sign, and activations that are integers, 127 among
// each 32: then tables hold the dot products exactly, and sums are integers that floats hold.
TEST_P(Additive, ProductsAreExactWhereTablesAre) {
  for (const char* name : {"1x8g8 f16", "2x8g8 f32", "3x8g8 f16", "2x8g16 bf16", "5x8g32 f32"}) {
    const Scheme scheme = Parse(name);
    for (const int64_t cols : {1, 8, 31, 33, 100, 416, 1100}) {
      for (const int64_t n_rows : {1, 63, 64, 65, 131}) {
        if (n_rows != 65 && cols != 100) continue;
        QuantizedTensor weights = RandomCodebooks(name, n_rows, cols);
        Buffer& table = weights.plane(Plane::kTable);
        std::memset(table.data(), 0, table.size());
        for (int64_t c = 0; c < scheme.codebooks; ++c) {
          for (int64_t e = 0; e < 256; ++e) {
            const int64_t pick = (e + 3 * c) % scheme.vector;
            Store(scheme.scale_dtype, e / scheme.vector % 2 == 0 ? 1.0f : -1.0f, table.data(),
                  static_cast<size_t>((c * 256 + e) * scheme.vector + pick));
          }
        }
        for (int64_t r = 0; r < n_rows; ++r) {
          Store(scheme.scale_dtype, r % 3 == 0 ? -0.25f : 2.0f,
                weights.plane(Plane::kScales).data(), static_cast<size_t>(r));
        }
        std::mt19937 random(5);
        std::vector<float> a(static_cast<size_t>(7 * cols));
        for (size_t i = 0; i < a.size(); ++i) {
          const bool first = static_cast<int64_t>(i) % cols % 32 == 0;
          a[i] = first ? 127.0f : static_cast<float>(static_cast<int>(random() % 255) - 127);
        }
        const Oracle oracle = Multiply(a, Decoded(weights), 7, n_rows, cols);
        for (const int64_t m_rows : {1, 2, 4, 7}) {
          const std::vector<float> out = Product(a, weights, m_rows);
          for (size_t i = 0; i < out.size(); ++i) {
            ASSERT_EQ(out[i], oracle.product[i])
                << name << " " << m_rows << " x " << n_rows << " x " << cols << " at " << i;
          }
        }
      }
    }
  }
}

TEST_P(Additive, ProductsKeepTheErrorSmall) {
  const int64_t cols = 1100, n_rows = 131;
  for (const char* name : kSchemes) {
    const QuantizedTensor weights = RandomCodebooks(name, n_rows, cols);
    const std::vector<float> a = RandomValues(20 * cols, 7), w = Decoded(weights);
    for (const int64_t m_rows : {1, 5, 20}) {
      const Oracle oracle = Multiply(a, w, m_rows, n_rows, cols);
      EXPECT_LE(NormalisedError(oracle, Product(a, weights, m_rows)), 2e-4) << name << m_rows;
      MatmulOptions exact;
      exact.precision = Precision::kF32;
      EXPECT_LE(LargestRelativeError(oracle, Product(a, weights, m_rows, exact)), 1e-5)
          << name << m_rows;
    }
  }
}

// Codes of 8 bits are packed in tiles of 64 rows; products are the same bits as with the planes.
TEST_P(Additive, PackedCodesGiveTheSameBits) {
  for (const std::string name : kSchemes) {
    for (const int64_t cols : {1, 8, 31, 423, 2600}) {
      for (const int64_t n_rows : {1, 63, 64, 65, 131, 193, 256, 600}) {
        if (n_rows != 65 && cols != 423) continue;
        if (n_rows > 131 && name != "2x8g8 f16" && name != "1x8g8 f32") continue;
        const QuantizedTensor weights = RandomCodebooks(name, n_rows, cols);
        const auto packed = Pack(weights);
        ASSERT_TRUE(packed.ok()) << packed.status().message();
        EXPECT_EQ(packed->target(), weights.scheme().bits == 8 ? "codes64/1" : "planes/1");
        const auto mapped = PackedWeights::FromBytes(Buffer::Borrow(packed->serialized()));
        ASSERT_TRUE(mapped.ok()) << mapped.status().message();
        const std::vector<float> a = RandomValues(20 * cols, 9);
        for (const Precision precision : {Precision::kInt8, Precision::kBf16, Precision::kF32}) {
          MatmulOptions options;
          options.precision = precision;
          for (const int64_t m_rows : {1, 3, 7, 20}) {
            EXPECT_EQ(Product(a, *mapped, m_rows, options), Product(a, weights, m_rows, options))
                << name << " " << m_rows << " x " << n_rows << " x " << cols;
            EXPECT_STREQ(PlanMatmul(*mapped, m_rows, precision)->kernel,
                         PlanMatmul(weights, m_rows, precision)->kernel);
          }
        }
      }
    }
  }
}

NIBBLE_ON_EVERY_TARGET(Additive);

// Planes at any address, strided operands, bias and accumulation; half activations; a group.
TEST(AdditiveMatmul, TakesPlanesAtAnyAddressAndStrides) {
  const int64_t cols = 423, n_rows = 71, m_rows = 3, a_stride = 431, out_stride = 75;
  for (const char* name : {"2x8g8 f16", "1x16g8 f32"}) {
    const QuantizedTensor weights = RandomCodebooks(name, n_rows, cols);
    std::array<Buffer, kPlaneCount> shifted, kept;
    for (int i = 0; i < kPlaneCount; ++i) {
      const Buffer& plane = weights.plane(static_cast<Plane>(i));
      if (plane.size() == 0) continue;
      kept[i] = *Buffer::Allocate(plane.size() + 1);
      std::memcpy(kept[i].data() + 1, plane.data(), plane.size());
      shifted[i] = Buffer::Borrow(std::as_const(kept[i]).bytes().subspan(1));
    }
    const auto odd = QuantizedTensor::Create(weights.scheme(), n_rows, cols, shifted);
    ASSERT_TRUE(odd.ok()) << odd.status().message();
    EXPECT_EQ(Decoded(*odd), Decoded(weights));
    std::vector<float> a = RandomValues(m_rows * cols, 1);
    for (float& x : a) x = ToFloat(ToF16(x));
    const std::vector<float> bias = RandomValues(n_rows, 2);
    const std::vector<float> plain = Product(a, weights, m_rows);
    std::vector<F16> strided(static_cast<size_t>(m_rows * a_stride));
    std::vector<float> out(static_cast<size_t>(m_rows * out_stride), 0.5f);
    for (int64_t m = 0; m < m_rows; ++m) {
      for (int64_t c = 0; c < cols; ++c) {
        strided[static_cast<size_t>(m * a_stride + c)] =
            ToF16(a[static_cast<size_t>(m * cols + c)]);
      }
    }
    MatmulOptions options;
    options.bias = bias;
    options.accumulate = true;
    ASSERT_TRUE(Matmul({strided.data(), DType::kF16, m_rows, cols, a_stride, Device::kCpu}, *odd,
                       {out.data(), DType::kF32, m_rows, n_rows, out_stride, Device::kCpu}, options)
                    .ok());
    for (int64_t m = 0; m < m_rows; ++m) {
      for (int64_t n = 0; n < out_stride; ++n) {
        const float got = out[static_cast<size_t>(m * out_stride + n)];
        ASSERT_EQ(got, n >= n_rows ? 0.5f
                                   : 0.5f + (plain[static_cast<size_t>(m * n_rows + n)] +
                                             bias[static_cast<size_t>(n)]));
      }
    }
  }
}

TEST(AdditiveMatmul, ThreadsGroupsAndPackingDoNotChangeTheBits) {
  const int64_t cols = 1280, n_rows = 843;
  ThreadPool pool(4);
  MatmulOptions options;
  options.parallel = pool.parallel_for();
  const QuantizedTensor two = RandomCodebooks("2x8g8 f16", n_rows, cols);
  const QuantizedTensor one = RandomCodebooks("1x8g16 f32", 77, cols);
  const auto packed = Pack(two);
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  for (const int64_t m_rows : {1, 6, 20}) {
    const std::vector<float> a = RandomValues(m_rows * cols, 11);
    const std::vector<float> alone = Product(a, two, m_rows), other = Product(a, one, m_rows);
    EXPECT_EQ(Product(a, two, m_rows, options), alone);
    std::vector<float> first(alone.size()), second(other.size());
    const MatmulMember members[] = {{&*packed, ViewOf(first.data(), m_rows, n_rows), {}, {}},
                                    {&one, ViewOf(second.data(), m_rows, 77), {}, {}}};
    ASSERT_TRUE(MatmulGroup(ViewOf(a.data(), m_rows, cols), members, options).ok());
    EXPECT_EQ(first, alone);
    EXPECT_EQ(second, other);
  }
}

TEST(AdditiveMatmul, PackedCodesThatAreNotWholeAreRefused) {
  const QuantizedTensor weights = RandomCodebooks("2x8g8 f16", 65, 70);
  const auto packed = Pack(weights);
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  const auto exact = Pack(weights, Precision::kF32);
  ASSERT_TRUE(exact.ok()) << exact.status().message();
  EXPECT_EQ(exact->target(), "planes/1");
  // Two tiles of 18 codes, where 65 rows would do, filled up to 64 bytes.
  EXPECT_EQ(packed->bytes() - exact->bytes(), size_t{2 * 64 * 18 - (65 * 18 + 46)});
  const auto good = packed->serialized();
  auto copy = Buffer::Allocate(good.size());
  const auto code = [&](size_t size, size_t at, const void* value, size_t width) {
    std::memcpy(copy->data(), good.data(), good.size());
    if (width > 0) std::memcpy(copy->data() + at, value, width);
    return PackedWeights::FromBytes(Buffer::Borrow({copy->data(), size})).status().code();
  };
  EXPECT_EQ(code(good.size(), 0, nullptr, 0), StatusCode::kOk);
  EXPECT_EQ(code(good.size() - 64, 0, nullptr, 0), StatusCode::kCorrupt);
  // The header: target at 8, rows at 40, columns at 48; the scheme's name at 64.
  EXPECT_EQ(code(good.size(), 8, "planes/1\0", 10), StatusCode::kCorrupt);
  for (const char* name : {"1x16g8 f16", "int8 sym channel f16", "2x8g16 f16"}) {
    EXPECT_EQ(code(good.size(), 64, name, std::strlen(name) + 1), StatusCode::kCorrupt) << name;
  }
  for (const int64_t count :
       {int64_t{0}, int64_t{-1}, int64_t{1} << 62, INT64_MAX, INT64_MAX - 64}) {
    EXPECT_EQ(code(good.size(), 40, &count, 8), StatusCode::kCorrupt) << count;
    EXPECT_EQ(code(good.size(), 48, &count, 8), StatusCode::kCorrupt) << count;
  }
}

// What is not finite makes its own row of the output not finite, and no other; entries that no code
// names do no harm.
TEST(AdditiveMatmul, ValuesThatAreNotFiniteAreNotHidden) {
  const int64_t cols = 512, n_rows = 70;
  QuantizedTensor weights = RandomCodebooks("2x8g8 f32", n_rows, cols);
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> a = RandomValues(3 * cols, 4);
    a[static_cast<size_t>(cols) + 100] = value;
    const std::vector<float> out = Product(a, weights, 3);
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(std::isfinite(out[i]), i / static_cast<size_t>(n_rows) != 1) << i;
    }
  }
  std::byte* codes = weights.plane(Plane::kCodes).data();
  for (int64_t r = 0; r < n_rows; ++r) {
    for (int64_t i = 0; i < 128; ++i) {
      if (codes[r * 128 + i] == std::byte{9}) codes[r * 128 + i] = std::byte{10};
    }
  }
  codes[5 * 128 + 40] = std::byte{9};
  for (int64_t k = 0; k < 8; ++k) {
    Store(DType::kF32, INFINITY, weights.plane(Plane::kTable).data(),
          static_cast<size_t>(9 * 8 + k));
  }
  const std::vector<float> out = Product(RandomValues(cols, 4), weights, 1);
  for (size_t n = 0; n < out.size(); ++n) EXPECT_EQ(std::isfinite(out[n]), n != 5) << n;
}

TEST(Additive, PlanesAreCountedToTheByte) {
  const Scheme s = Parse("2x8g8 f16");
  EXPECT_EQ(*PlaneBytes(s, Plane::kCodes, 3, 70), 3u * 9 * 2);
  EXPECT_EQ(*PlaneBytes(s, Plane::kTable, 3, 70), 2u * 256 * 8 * 2);
  EXPECT_EQ(*PlaneBytes(s, Plane::kScales, 3, 70), 6u);
  EXPECT_EQ(*PlaneBytes(s, Plane::kZeros, 3, 70), 0u);
  EXPECT_DOUBLE_EQ(SchemeBitsPerWeight(s, 4096, 4096),
                   2 + 8.0 * (8192 + 2 * 4096) / (4096.0 * 4096.0));
  EXPECT_EQ(*PlaneBytes(Parse("1x16g8"), Plane::kCodes, 1, 9), 4u);
  EXPECT_EQ(*PlaneBytes(Parse("1x16g8"), Plane::kTable, 1, 9), 65536u * 8 * 4);
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  for (const char* name : {"1x8g8", "8x8g8", "8x16g8"}) {
    EXPECT_FALSE(PlaneBytes(Parse(name), Plane::kCodes, kMax, 8).ok() &&
                 PlaneBytes(Parse(name), Plane::kCodes, 9, kMax).ok());
  }
  // A plane of another size is refused.
  std::array<Buffer, kPlaneCount> planes;
  planes[0] = *Buffer::Allocate(18);
  planes[1] = *Buffer::Allocate(2);
  planes[static_cast<int>(Plane::kTable)] = *Buffer::Allocate(8191);
  EXPECT_FALSE(QuantizedTensor::Create(s, 1, 70, planes).ok());
  planes[static_cast<int>(Plane::kTable)] = *Buffer::Allocate(8192);
  EXPECT_TRUE(QuantizedTensor::Create(s, 1, 70, planes).ok());
}

}  // namespace
}  // namespace nibble
