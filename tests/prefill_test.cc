// Products of many activation rows: on every instruction set of the machine, with ragged shapes and
// odd addresses, from several threads, and where the system refuses the tile unit.
#include <sys/wait.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/amx.h"
#include "nibble/matmul.h"
#include "nibble/quantize.h"
#include "tests/targets.h"

#if defined(__linux__) && defined(__x86_64__)
#include <asm/unistd.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#endif

namespace nibble {
namespace {

constexpr Format kFormats[] = {Format::kQ4_0,  Format::kQ5_1,   Format::kQ8_0,
                               Format::kQ2_K,  Format::kQ4_K,   Format::kQ6_K,
                               Format::kTQ2_0, Format::kIQ4_XS, Format::kMXFP4};

std::vector<float> RandomValues(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(random);
  return values;
}

QuantizedTensor Weights(Format format, int64_t rows, int64_t cols) {
  const std::vector<float> dense = RandomValues(rows * cols, 5);
  auto weights = Quantize(ViewOf(dense.data(), rows, cols), format);
  EXPECT_TRUE(weights.ok()) << weights.status().message();
  return *std::move(weights);
}

std::vector<double> Product(const std::vector<float>& a, const QuantizedTensor& weights,
                            int64_t m_rows) {
  const int64_t n_rows = weights.rows(), cols = weights.cols();
  std::vector<float> w(static_cast<size_t>(n_rows * cols));
  EXPECT_TRUE(Dequantize(weights, ViewOf(w.data(), n_rows, cols)).ok());
  std::vector<double> product(static_cast<size_t>(m_rows * n_rows));
  for (int64_t m = 0; m < m_rows; ++m) {
    for (int64_t n = 0; n < n_rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < cols; ++k) {
        sum += static_cast<double>(a[static_cast<size_t>(m * cols + k)]) *
               w[static_cast<size_t>(n * cols + k)];
      }
      product[static_cast<size_t>(m * n_rows + n)] = sum;
    }
  }
  return product;
}

double NormalisedError(const std::vector<double>& product, const float* out, int64_t stride,
                       int64_t m_rows, int64_t n_rows) {
  double error = 0, norm = 0;
  for (int64_t m = 0; m < m_rows; ++m) {
    for (int64_t n = 0; n < n_rows; ++n) {
      const double p = product[static_cast<size_t>(m * n_rows + n)];
      error += std::pow(out[m * stride + n] - p, 2);
      norm += p * p;
    }
  }
  return error / norm;
}

double PromisedError(Precision precision) {
  return precision == Precision::kInt8 ? 5e-4 : precision == Precision::kBf16 ? 1e-5 : 1e-10;
}

class PrefillTest : public EveryTarget {};

// Activation rows around what tiles and blocks of rows hold; weight rows and columns beyond them.
TEST_P(PrefillTest, AgreesWithTheProductForRaggedShapes) {
  for (const Format format : kFormats) {
    const bool super = GetFormatInfo(format).block_weights == 256;
    const int64_t n_rows = 67, cols = super ? 768 : 608;
    const QuantizedTensor weights = Weights(format, n_rows, cols);
    const std::vector<float> a = RandomValues(141 * cols, 7);
    const std::vector<double> product = Product(a, weights, 141);
    for (const Precision precision : {Precision::kInt8, Precision::kBf16, Precision::kF32}) {
      const auto packed = Pack(weights, precision);
      ASSERT_TRUE(packed.ok());
      for (const int64_t m_rows : {9, 25, 65, 141}) {
        for (const bool use_packed : {false, true}) {
          // An output at an odd multiple of four bytes, with a stride.
          const int64_t stride = n_rows + 6;
          std::vector<float> out(static_cast<size_t>(m_rows * stride + 1), -1.0f);
          const MutableTensorView y = {out.data() + 1, DType::kF32, m_rows,
                                       n_rows,         stride,      Device::kCpu};
          MatmulOptions options;
          options.precision = precision;
          const TensorView x = ViewOf(a.data(), m_rows, cols);
          const Status status =
              use_packed ? Matmul(x, *packed, y, options) : Matmul(x, weights, y, options);
          ASSERT_TRUE(status.ok()) << status.message();
          EXPECT_LE(NormalisedError(product, out.data() + 1, stride, m_rows, n_rows),
                    PromisedError(precision))
              << GetFormatInfo(format).name << " " << m_rows << " rows"
              << (use_packed ? ", packed" : "");
          for (int64_t m = 0; m + 1 < m_rows; ++m) {
            for (int64_t n = n_rows; n < stride; ++n) {
              ASSERT_EQ(out[static_cast<size_t>(1 + m * stride + n)], -1.0f);  // left alone
            }
          }
        }
      }
    }
  }
}

// More columns than sums stay in the tile unit for, and more activation rows than a slab has.
TEST_P(PrefillTest, AgreesWithTheProductOfManyColumns) {
  const int64_t n_rows = 37, m_most = 545;
  for (const Format format : {Format::kQ4_0, Format::kQ6_K, Format::kBF16, Format::kF32}) {
    const int64_t cols = GetFormatInfo(format).block_weights == 1 ? 4871 : 4864;
    const QuantizedTensor weights = Weights(format, n_rows, cols);
    const std::vector<float> a = RandomValues(m_most * cols, 9);
    const std::vector<double> product = Product(a, weights, m_most);
    const auto packed = Pack(weights);
    ASSERT_TRUE(packed.ok());
    for (const int64_t m_rows : {int64_t{20}, int64_t{100}, m_most}) {
      for (const bool use_packed : {false, true}) {
        std::vector<float> out(static_cast<size_t>(m_rows * n_rows), NAN);
        const TensorView x = ViewOf(a.data(), m_rows, cols);
        const MutableTensorView y = ViewOf(out.data(), m_rows, n_rows);
        const Status status = use_packed ? Matmul(x, *packed, y) : Matmul(x, weights, y);
        ASSERT_TRUE(status.ok()) << status.message();
        EXPECT_LE(NormalisedError(product, out.data(), n_rows, m_rows, n_rows),
                  PromisedError(Precision::kInt8))
            << GetFormatInfo(format).name << " " << m_rows << (use_packed ? " packed" : "");
      }
    }
  }
}

TEST_P(PrefillTest, EightCallersAgreeBitForBitWithOne) {
  const int64_t n_rows = 200, cols = 1280, m_rows = 45;
  const std::vector<float> a = RandomValues(m_rows * cols, 3);
  const TensorView x = ViewOf(a.data(), m_rows, cols);
  ThreadPool pool(2);
  for (const Format format : {Format::kQ4_0, Format::kQ6_K}) {
    const QuantizedTensor weights = Weights(format, n_rows, cols);
    const auto packed = Pack(weights);
    ASSERT_TRUE(packed.ok());
    for (const bool use_packed : {false, true}) {
      const auto multiply = [&](std::vector<float>& out, const ParallelFor& parallel) {
        out.assign(static_cast<size_t>(m_rows * n_rows), NAN);
        MatmulOptions options;
        options.parallel = parallel;
        const MutableTensorView y = ViewOf(out.data(), m_rows, n_rows);
        return use_packed ? Matmul(x, *packed, y, options).ok()
                          : Matmul(x, weights, y, options).ok();
      };
      std::vector<float> one;
      ASSERT_TRUE(multiply(one, {}));
      std::vector<std::vector<float>> outs(8);
      std::vector<char> ok(8, 0);
      std::vector<std::thread> callers;
      for (size_t i = 0; i < 8; ++i) {
        callers.emplace_back([&, i] {
          ok[i] = multiply(outs[i], i % 2 == 0 ? ParallelFor{} : pool.parallel_for());
        });
      }
      for (std::thread& caller : callers) caller.join();
      for (size_t i = 0; i < 8; ++i) {
        ASSERT_TRUE(ok[i]);
        EXPECT_EQ(0, std::memcmp(one.data(), outs[i].data(), one.size() * sizeof(float))) << i;
      }
    }
  }
}

NIBBLE_ON_EVERY_TARGET(PrefillTest);

#if defined(__linux__) && defined(__x86_64__)
// Has the system answer the request for tiles with "not permitted", for the rest of the process.
bool RefuseTiles() {
  constexpr uint32_t kRequestPermission = 0x1023;
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_arch_prctl, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[0])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kRequestPermission, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// Exits with 0 if products work without tiles.
void MultiplyRefused() {
  if (!RefuseTiles()) std::exit(2);  // no filters in this kernel
  if (GetAmxSupport().bf16 || GetAmxSupport().int8) std::exit(3);
  const int64_t n_rows = 40, cols = 512, m_rows = 33;
  const QuantizedTensor weights = Weights(Format::kQ4_K, n_rows, cols);
  const std::vector<float> a = RandomValues(m_rows * cols, 3);
  std::vector<float> out(static_cast<size_t>(m_rows * n_rows));
  for (const Precision precision : {Precision::kInt8, Precision::kBf16}) {
    MatmulOptions options;
    options.precision = precision;
    if (!Matmul(ViewOf(a.data(), m_rows, cols), weights, ViewOf(out.data(), m_rows, n_rows),
                options)
             .ok()) {
      std::exit(4);
    }
    if (!(NormalisedError(Product(a, weights, m_rows), out.data(), n_rows, m_rows, n_rows) <=
          PromisedError(precision))) {
      std::exit(5);
    }
  }
  std::exit(0);
}

TEST(PrefillDeathTest, WorksWhereTheSystemRefusesTiles) {
  // The child begins anew: nothing has asked the system yet.
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      MultiplyRefused(),
      [](int status) {
        return WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 2);
      },
      "");
}
#endif

}  // namespace
}  // namespace nibble
