// Error feedback inside block formats, against rounding without it on the same inputs.
#include "nibble/gptq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "kernels/feedback.h"
#include "lib/quantize/hessian.h"
#include "nibble/quantize.h"
#include "tests/gptq_inputs.h"
#include "tests/targets.h"

namespace nibble {
namespace {

std::vector<Format> FeedbackFormats() {
  std::vector<Format> formats;
  for (const FormatInfo& info : AllFormats()) {
    if (HasFeedback(info.format)) formats.push_back(info.format);
  }
  return formats;
}

TEST(Hessian, FactorGivesTheMatrixBack) {
  const int64_t n = 96;
  const std::vector<float> inputs = CorrelatedInputs(400, n, 3);
  const Hessian hessian = HessianOf(inputs, n);
  const RowMatrix h = Eigen::Map<const RowMatrix>(hessian.sums().data(), n, n) / 400.0f;
  EXPECT_TRUE(h.isApprox(h.transpose(), 0));
  double expected = 0;
  for (int64_t t = 0; t < 400; ++t) expected += inputs[t * n + 3] * inputs[t * n + 60];
  EXPECT_NEAR(h(3, 60), expected / 400, 1e-4);
  const auto factor = FactorHessian(h);
  ASSERT_TRUE(factor.ok());
  EXPECT_TRUE(factor->unit.isUpperTriangular(0));
  const RowMatrix again = factor->unit * factor->diagonal.asDiagonal() * factor->unit.transpose();
  EXPECT_LT((again - h).norm() / h.norm(), 1e-6);
}

TEST(Hessian, PiecesAndMergesAddUp) {
  const std::vector<float> inputs = CorrelatedInputs(64, 32, 5);
  const Hessian whole = HessianOf(inputs, 32);
  Hessian pieces(32), other(32);
  ASSERT_TRUE(pieces.Add(ViewOf(inputs.data(), 40, 32)).ok());
  ASSERT_TRUE(other.Add(ViewOf(inputs.data() + 40 * 32, 24, 32)).ok());
  ASSERT_TRUE(pieces.Merge(other).ok());
  EXPECT_EQ(pieces.tokens(), 64);
  for (size_t i = 0; i < whole.sums().size(); ++i) {
    EXPECT_NEAR(pieces.sums()[i], whole.sums()[i], 1e-3 + 1e-5 * std::abs(whole.sums()[i]));
  }
  EXPECT_FALSE(pieces.Merge(Hessian(31)).ok());
  std::vector<float> bad(inputs.begin(), inputs.begin() + 64);
  bad[33] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(
      pieces.Add(ViewOf(std::as_const(bad).data(), 2, 32)).message().find("token 1, column 1"),
      std::string::npos);
}

TEST(Gptq, LowersTheOutputErrorOfEveryFormat) {
  const int64_t rows = 19, cols = 512;  // rows that do not fill the lanes; two chunks
  const std::vector<float> w = BellMatrix(rows, cols, 1), inputs = CorrelatedInputs(1024, cols, 2);
  const Hessian hessian = HessianOf(inputs, cols);
  const std::vector<float> importance = hessian.MeanSquares();
  for (const Format format : FeedbackFormats()) {
    QuantizeOptions weighed;
    weighed.importance = importance;
    const auto rounded = Quantize(ViewOf(w.data(), rows, cols), format, weighed);
    ASSERT_TRUE(rounded.ok());
    const double before = OutputError(w, *rounded, inputs);
    double last = before;
    for (const int sweeps : {0, 2}) {
      GptqOptions options;
      options.sweeps = sweeps;
      GptqReport report;
      const auto fed =
          QuantizeGptq(ViewOf(w.data(), rows, cols), format, hessian, options, &report);
      ASSERT_TRUE(fed.ok()) << fed.status().message();
      const double after = OutputError(w, *fed, inputs);
      EXPECT_LT(after, 0.7 * before) << GetFormatInfo(format).name << ", sweeps " << sweeps;
      EXPECT_LE(after, last) << GetFormatInfo(format).name;  // a sweep never makes it worse
      EXPECT_NEAR(report.output_error / after, 1, 1e-3);
      EXPECT_EQ(report.dead_columns, 0);
      last = after;
    }
  }
}

TEST(Gptq, WithoutCorrelationItIsNoWorseThanTheSearch) {
  const int64_t rows = 16, cols = 256;
  const std::vector<float> w = BellMatrix(rows, cols, 9);
  // Every column alone, with its own size: the Hessian is diagonal.
  std::vector<float> inputs(static_cast<size_t>(cols * cols));
  for (int64_t j = 0; j < cols; ++j)
    inputs[static_cast<size_t>(j * cols + j)] = 1.0f + 0.25f * static_cast<float>(j % 7);
  const Hessian hessian = HessianOf(inputs, cols);
  const std::vector<float> importance = hessian.MeanSquares();
  for (const Format format : FeedbackFormats()) {
    QuantizeOptions weighed;
    weighed.importance = importance;
    const auto searched = Quantize(ViewOf(w.data(), rows, cols), format, weighed);
    GptqOptions options;
    options.damping = 0;
    const auto fed = QuantizeGptq(ViewOf(w.data(), rows, cols), format, hessian, options);
    ASSERT_TRUE(searched.ok() && fed.ok());
    EXPECT_LE(OutputError(w, *fed, inputs), OutputError(w, *searched, inputs) * (1 + 1e-5))
        << GetFormatInfo(format).name;
  }
}

class GptqTargets : public EveryTarget {};

TEST_P(GptqTargets, GivesTheSameBytesForAnyThreads) {
  const int64_t rows = 70, cols = 512;
  const std::vector<float> w = BellMatrix(rows, cols, 21);
  const Hessian hessian = HessianOf(CorrelatedInputs(700, cols, 22), cols);
  ThreadPool pool(2);
  static std::map<Format, std::vector<std::byte>> first;  // of the first target
  for (const Format format : {Format::kQ4_0, Format::kQ5_1, Format::kIQ4_NL, Format::kQ4_K}) {
    for (const bool threads : {false, true}) {
      GptqOptions options;
      options.sweeps = 1;
      if (threads) options.parallel = pool.parallel_for();
      const auto fed = QuantizeGptq(ViewOf(w.data(), rows, cols), format, hessian, options);
      ASSERT_TRUE(fed.ok());
      const auto bytes = fed->plane(Plane::kCodes).bytes();
      const std::vector<std::byte> copy(bytes.begin(), bytes.end());
      EXPECT_EQ(first.try_emplace(format, copy).first->second, copy) << GetFormatInfo(format).name;
    }
  }
}

NIBBLE_ON_EVERY_TARGET(GptqTargets);

TEST(Gptq, HandlesDeadColumnsAndSingularHessians) {
  const int64_t rows = 8, cols = 256;
  const std::vector<float> w = BellMatrix(rows, cols, 31);
  std::vector<float> inputs =
      CorrelatedInputs(40, cols, 32);  // fewer tokens than columns: singular
  for (size_t t = 0; t < 40; ++t) inputs[t * 256 + 17] = inputs[t * 256 + 200] = 0;
  const Hessian hessian = HessianOf(inputs, cols);
  GptqOptions options;
  options.damping = 0;
  GptqReport report;
  const auto fed =
      QuantizeGptq(ViewOf(w.data(), rows, cols), Format::kQ4_K, hessian, options, &report);
  ASSERT_TRUE(fed.ok()) << fed.status().message();
  EXPECT_EQ(report.dead_columns, 2);
  EXPECT_GT(report.damping, 0);  // none was asked for: it had to be raised
  QuantizeOptions plain;
  const auto rounded = Quantize(ViewOf(w.data(), rows, cols), Format::kQ4_K, plain);
  EXPECT_LT(OutputError(w, *fed, inputs), OutputError(w, *rounded, inputs));
  // All inputs zero: still a quantized matrix.
  const Hessian zero = HessianOf(std::vector<float>(static_cast<size_t>(4 * cols)), cols);
  EXPECT_TRUE(QuantizeGptq(ViewOf(w.data(), rows, cols), Format::kQ3_K, zero).ok());
}

TEST(Gptq, RefusesWhatItCannotDo) {
  const std::vector<float> w = BellMatrix(2, 256, 41);
  const Hessian hessian = HessianOf(CorrelatedInputs(16, 256, 42), 256);
  const auto message = [&](TensorView view, Format format, const Hessian& h) {
    const auto result = QuantizeGptq(view, format, h);
    return result.ok() ? std::string("fine") : result.status().message();
  };
  const TensorView view = ViewOf(w.data(), 2, 256);
  EXPECT_NE(message(view, Format::kQ4_K, Hessian(256)).find("no token"), std::string::npos);
  EXPECT_NE(message(view, Format::kQ4_K, Hessian(128)).find("128 columns"), std::string::npos);
  EXPECT_NE(message(view, Format::kTQ2_0, hessian).find("tq2_0"), std::string::npos);
  std::vector<float> bad = w;
  bad[256 + 9] = std::numeric_limits<float>::infinity();
  EXPECT_NE(message(ViewOf(std::as_const(bad).data(), 2, 256), Format::kQ4_K, hessian)
                .find("row 1, column 9"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble
