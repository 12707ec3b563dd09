// Products of few activation rows with planar schemes, on every target.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/matmul.h"
#include "nibble/quantize.h"
#include "tests/matmul_oracle.h"
#include "tests/targets.h"

namespace nibble {
namespace {

// Every number of bits, kind of code, scale and zero that integer products take.
const char* const kIntegerSchemes[] = {
    "int8 sym channel f32", "int8 sym tensor f32", "int8 sym g32 f16",      "int8 asym g128 f16",
    "int7 sym g64 f16",     "int6 asym g32 f32",   "int5 sym channel f32",  "int4 sym g32 f16",
    "int4 sym g64 bf16",    "int4 sym g128 f16",   "int4 asym g256 f32",    "int4 sym channel f32",
    "int4 asym tensor f32", "int4 sym g1024 f16",  "int3 sym g128 f16",     "int3 asym g32 f32",
    "int2 sym g64 f16",     "int2 asym g32 f16",   "int2 asym channel f32", "int1 asym g32 f16",
    "int1 asym channel f32"};

QuantizedTensor RandomPlanar(const std::string& name, int64_t rows, int64_t cols) {
  const auto scheme = ParseScheme(name);
  EXPECT_TRUE(scheme.ok()) << name << ": " << scheme.status().message();
  const std::vector<float> dense = RandomValues(rows * cols, static_cast<uint32_t>(rows + cols));
  auto tensor = Quantize(ViewOf(dense.data(), rows, cols), *scheme);
  EXPECT_TRUE(tensor.ok()) << name << ": " << tensor.status().message();
  return *std::move(tensor);
}

// Activations that int8 holds exactly: integers, 127 among each 32.
std::vector<float> IntegerActivations(int64_t rows, int64_t cols) {
  std::mt19937 random(5);
  std::vector<float> a(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < a.size(); ++i) {
    const bool first = static_cast<int64_t>(i) % cols % 32 == 0;
    a[i] = first ? 127.0f : static_cast<float>(static_cast<int>(random() % 255) - 127);
  }
  return a;
}

class PlanarProducts : public EveryTarget {};

// Where rounding loses nothing, int8 products are exact but for float sums: any mistake in where a
// code, scale or zero lies shows. Codes lose the offset that made them unsigned, and the zero, in
// float, so that the error is measured against the largest weight.
TEST_P(PlanarProducts, AreExactWhereActivationsAreIntegers) {
  for (const char* name : kIntegerSchemes) {
    for (const int64_t cols : {1, 31, 64, 100, 515, 1100, 2176}) {
      const int64_t n_rows = cols == 1100 ? 37 : 6;
      const QuantizedTensor weights = RandomPlanar(name, n_rows, cols);
      const std::vector<float> a = IntegerActivations(7, cols), w = Decoded(weights);
      const Oracle oracle = Multiply(a, w, 7, n_rows, cols);
      float largest = 0;
      for (const float v : w) largest = std::max(largest, std::fabs(v));
      const double bound = 16 * std::pow(2, -24) * 127 * static_cast<double>(cols) * largest;
      for (const int64_t m_rows : {1, 2, 3, 4, 7}) {
        const std::vector<float> out = Product(a, weights, m_rows);
        for (size_t i = 0; i < out.size(); ++i) {
          ASSERT_NEAR(out[i], oracle.product[i], bound)
              << name << " " << m_rows << " x " << n_rows << " x " << cols << " at " << i;
        }
      }
    }
  }
}

TEST_P(PlanarProducts, KeepTheErrorSmallForAnyActivations) {
  std::vector<std::string> names(std::begin(kIntegerSchemes), std::end(kIntegerSchemes));
  for (const char* name : {"nf4 g64 double", "nf4 g128 f16", "nf4 channel f32", "fp4 g64 f32",
                           "fp4 tensor f32", "f8_e4m3 channel f32", "f8_e5m2 tensor f32"}) {
    names.push_back(name);
  }
  const int64_t cols = 1100, n_rows = 131, m_rows = 4;
  const std::vector<float> a = RandomValues(m_rows * cols, 7);
  for (const std::string& name : names) {
    const QuantizedTensor weights = RandomPlanar(name, n_rows, cols);
    const Oracle oracle = Multiply(a, Decoded(weights), m_rows, n_rows, cols);
    EXPECT_LE(NormalisedError(oracle, Product(a, weights, m_rows)), 5e-4) << name;
  }
}

NIBBLE_ON_EVERY_TARGET(PlanarProducts);

// Planes at any address, strided operands, bias and accumulation.
TEST(PlanarMatmul, TakesPlanesAtAnyAddressAndStrides) {
  const int64_t cols = 416, n_rows = 21, m_rows = 3, a_stride = 431, out_stride = 30;
  for (const char* name : {"int4 asym g32 f16", "int3 sym g64 bf16", "int8 sym channel f32"}) {
    const QuantizedTensor weights = RandomPlanar(name, n_rows, cols);
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
    const std::vector<float> a = RandomValues(m_rows * cols, 1), bias = RandomValues(n_rows, 2);
    const std::vector<float> plain = Product(a, weights, m_rows);

    std::vector<float> strided(static_cast<size_t>(m_rows * a_stride)),
        out(static_cast<size_t>(m_rows * out_stride), 0.5f);
    for (int64_t m = 0; m < m_rows; ++m) {
      std::copy_n(a.begin() + m * cols, cols, strided.begin() + m * a_stride);
    }
    MatmulOptions options;
    options.bias = bias;
    options.accumulate = true;
    ASSERT_TRUE(Matmul({strided.data(), DType::kF32, m_rows, cols, a_stride, Device::kCpu}, *odd,
                       {out.data(), DType::kF32, m_rows, n_rows, out_stride, Device::kCpu}, options)
                    .ok());
    for (int64_t m = 0; m < m_rows; ++m) {
      for (int64_t n = 0; n < out_stride; ++n) {
        const float got = out[static_cast<size_t>(m * out_stride + n)];
        if (n >= n_rows) {
          ASSERT_EQ(got, 0.5f);
        } else {
          ASSERT_EQ(got, 0.5f + (plain[static_cast<size_t>(m * n_rows + n)] +
                                 bias[static_cast<size_t>(n)]));
        }
      }
    }
  }
}

// The same bits with any number of threads, and for eight callers at once.
TEST(PlanarMatmul, ThreadsAndCallersDoNotChangeTheBits) {
  const int64_t cols = 1280, n_rows = 203;
  ThreadPool pool(4);
  for (const char* name : {"int4 asym g32 f16", "nf4 g64 double", "int3 sym g128 f16"}) {
    const QuantizedTensor weights = RandomPlanar(name, n_rows, cols);
    for (const int64_t m_rows : {1, 6}) {
      const std::vector<float> a = RandomValues(m_rows * cols, 11);
      const std::vector<float> alone = Product(a, weights, m_rows);
      MatmulOptions options;
      options.parallel = pool.parallel_for();
      std::vector<std::vector<float>> results(8);
      std::vector<std::thread> callers;
      for (auto& result : results) {
        callers.emplace_back([&] { result = Product(a, weights, m_rows, options); });
      }
      for (std::thread& caller : callers) caller.join();
      for (const auto& result : results) {
        EXPECT_EQ(0, std::memcmp(alone.data(), result.data(), alone.size() * sizeof(float)));
      }
    }
  }
}

// Packed planes give the same bits, and are read again from their bytes; strangers are refused.
TEST(PlanarMatmul, PackedPlanesAreThePlanes) {
  const int64_t cols = 300, n_rows = 19;
  const std::vector<float> a = RandomValues(20 * cols, 4);
  for (const char* name : {"int4 asym g32 f16", "nf4 g64 double", "int8 sym channel f32"}) {
    const QuantizedTensor weights = RandomPlanar(name, n_rows, cols);
    const auto packed = Pack(weights);
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    EXPECT_EQ(packed->target(), "planes/1");
    const auto mapped = PackedWeights::FromBytes(Buffer::Borrow(packed->serialized()));
    ASSERT_TRUE(mapped.ok()) << mapped.status().message();
    for (const int64_t m_rows : {1, 20}) {
      const std::vector<float> plain = Product(a, weights, m_rows);
      std::vector<float> out(plain.size());
      ASSERT_TRUE(
          Matmul(ViewOf(a.data(), m_rows, cols), *mapped, ViewOf(out.data(), m_rows, n_rows)).ok());
      EXPECT_EQ(out, plain);
    }
    const auto good = packed->serialized();
    const auto code = [&](size_t size, size_t at, uint64_t value, size_t width) {
      auto copy = Buffer::Allocate(good.size());
      std::memcpy(copy->data(), good.data(), good.size());
      std::memcpy(copy->data() + at, &value, width);
      return PackedWeights::FromBytes(Buffer::Borrow({copy->data(), size})).status().code();
    };
    // The header: target at 8, rows at 40, columns at 48; the scheme's name at 64.
    EXPECT_EQ(code(good.size() - 1, 0, 0, 0), StatusCode::kCorrupt);
    EXPECT_EQ(code(64, 0, 0, 0), StatusCode::kCorrupt);
    EXPECT_EQ(code(good.size(), 64, 'X', 1), StatusCode::kCorrupt);
    for (const uint64_t count :
         {uint64_t{0}, uint64_t{1} << 62, ~uint64_t{0}, uint64_t{INT64_MAX}}) {
      EXPECT_EQ(code(good.size(), 40, count, 8), StatusCode::kCorrupt) << count;
      EXPECT_EQ(code(good.size(), 48, count, 8), StatusCode::kCorrupt) << count;
    }
  }
}

// A value that is not finite makes its own row of the output not finite, and no other.
TEST(PlanarMatmul, ActivationsThatAreNotFiniteAreNotHidden) {
  const int64_t cols = 512, n_rows = 20;
  const QuantizedTensor weights = RandomPlanar("int4 sym g64 f16", n_rows, cols);
  for (const float value : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> a = RandomValues(3 * cols, 4);
    a[static_cast<size_t>(cols) + 100] = value;
    const std::vector<float> out = Product(a, weights, 3);
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(std::isfinite(out[i]), i / n_rows != 1) << i;
    }
  }
}

}  // namespace
}  // namespace nibble
