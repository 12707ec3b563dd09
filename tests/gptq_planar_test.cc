// Error feedback in planar schemes, against the published algorithm in double and against rounding.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "nibble/gptq.h"
#include "nibble/quantize.h"
#include "tests/gptq_inputs.h"
#include "tests/targets.h"

namespace nibble {
namespace {

// GPTQ as published (arXiv 2210.17323, algorithm 1, with its code's act-order and static groups),
// column by column in double: codes from the range of each group, no blocks, no search. Returns the
// decoded weights.
std::vector<float> Published(const std::vector<float>& weights, int64_t rows, int64_t cols,
                             const std::vector<float>& inputs, int bits, bool symmetric,
                             int64_t group, const GptqOptions& options) {
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const int64_t tokens = static_cast<int64_t>(inputs.size()) / cols;
  const Matrix x =
      Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
          inputs.data(), tokens, cols)
          .cast<double>();
  Matrix h = x.transpose() * x / static_cast<double>(tokens);
  std::vector<int64_t> order(static_cast<size_t>(cols));
  std::iota(order.begin(), order.end(), 0);
  if (options.act_order) {
    std::ranges::stable_sort(order, [&](int64_t a, int64_t b) { return h(a, a) > h(b, b); });
  }
  h.diagonal().array() += options.damping * h.diagonal().mean();
  Matrix hessian(cols, cols), w(rows, cols);
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t i = 0; i < cols; ++i) hessian(i, j) = h(order[i], order[j]);
    for (int64_t r = 0; r < rows; ++r) w(r, j) = weights[r * cols + order[j]];
  }
  const Matrix inverse = hessian.llt().solve(Matrix::Identity(cols, cols));
  const Matrix upper = Eigen::LLT<Matrix>(inverse).matrixU();

  const double top = symmetric ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
  struct Grid {
    double scale, zero;
  };
  const auto grid_of = [&](const std::vector<double>& v) -> Grid {
    const double low = std::min(0.0, *std::ranges::min_element(v));
    const double high = std::max(0.0, *std::ranges::max_element(v));
    if (symmetric) return {std::max(-low, high) / top, 0};
    const double scale = (high - low) / top;
    return {scale, std::nearbyint(-low / scale)};
  };
  const auto round = [&](double v, Grid g) {
    const double q = std::clamp(std::nearbyint(v / g.scale + g.zero), symmetric ? -top : 0.0, top);
    return g.scale * (q - g.zero);
  };
  std::vector<float> out(weights.size());
  for (int64_t r = 0; r < rows; ++r) {
    std::map<int64_t, Grid> fixed;
    if (options.static_groups) {
      for (int64_t g = 0; g * group < cols; ++g) {
        const auto begin = weights.begin() + r * cols + g * group;
        fixed[g] = grid_of({begin, begin + std::min(group, cols - g * group)});
      }
    }
    Grid grid{};
    for (int64_t j = 0; j < cols; ++j) {
      if (options.static_groups) {
        grid = fixed.at(order[j] / group);
      } else if (j % group == 0) {
        std::vector<double> v;
        for (int64_t k = j; k < std::min(cols, j + group); ++k) v.push_back(w(r, k));
        grid = grid_of(v);
      }
      const double q = round(w(r, j), grid);
      const double error = (w(r, j) - q) / upper(j, j);
      for (int64_t k = j; k < cols; ++k) w(r, k) -= error * upper(j, k);
      out[static_cast<size_t>(r * cols + order[j])] = static_cast<float>(q);
    }
  }
  return out;
}

class GptqOracle : public testing::TestWithParam<std::tuple<int, int, bool, bool, bool>> {};

TEST_P(GptqOracle, OutputErrorIsThatOfThePublishedAlgorithm) {
  const auto [bits, group, symmetric, act_order, static_groups] = GetParam();
  const int64_t rows = 24, cols = 384;
  const std::vector<float> w = BellMatrix(rows, cols, 1);
  const std::vector<float> inputs = CorrelatedInputs(600, cols, 2);
  const Hessian hessian = HessianOf(inputs, cols);
  const Scheme scheme = {.bits = static_cast<uint8_t>(bits),
                         .symmetric = symmetric,
                         .granularity = group > 0 ? Granularity::kGroup : Granularity::kChannel,
                         .group_size = group > 0 ? group : 64,
                         .has_group_index = group > 0 && act_order && !static_groups};
  GptqOptions options;
  options.act_order = act_order;
  options.static_groups = static_groups;
  options.search_scales = false;
  const TensorView view = ViewOf(w.data(), rows, cols);
  GptqReport report;
  const auto plain = QuantizeGptq(view, scheme, hessian, options, &report);
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  const double ours = OutputError(w, *plain, inputs);
  GptqOptions per_channel = options;  // one group, known before the pass
  per_channel.static_groups |= group <= 0;
  const double theirs = OutputError(
      w, Published(w, rows, cols, inputs, bits, symmetric, group > 0 ? group : cols, per_channel),
      rows, cols, inputs);
  EXPECT_NEAR(ours / theirs, 1, 0.01);
  EXPECT_NEAR(report.output_error / ours, 1, 1e-3);
  EXPECT_EQ(report.damping, GptqOptions().damping);

  options.search_scales = true;
  const auto searched = QuantizeGptq(view, scheme, hessian, options);
  ASSERT_TRUE(searched.ok());
  EXPECT_LT(OutputError(w, *searched, inputs), theirs * (bits < 8 ? 1.0 : 1.01));

  QuantizeOptions rounding;
  std::vector<int32_t> index;
  if (scheme.has_group_index) {
    index.resize(static_cast<size_t>(cols));
    std::memcpy(index.data(), plain->plane(Plane::kGroupIndex).data(), index.size() * 4);
    rounding.group_index = index;
  }
  const auto rounded = Quantize(view, scheme, rounding);
  ASSERT_TRUE(rounded.ok());
  EXPECT_LT(ours, 0.7 * OutputError(w, *rounded, inputs));
}

std::string OracleName(const testing::TestParamInfo<GptqOracle::ParamType>& info) {
  const auto [bits, group, symmetric, act_order, static_groups] = info.param;
  return "int" + std::to_string(bits) + (symmetric ? "_sym" : "_asym") +
         (group > 0 ? "_g" + std::to_string(group) : std::string("_channel")) +
         (act_order ? "_act_order" : "") + (static_groups ? "_static" : "");
}

INSTANTIATE_TEST_SUITE_P(Schemes, GptqOracle,
                         testing::Combine(testing::Values(2, 3, 4, 8),
                                          testing::Values(32, 64, 128, -1), testing::Bool(),
                                          testing::Bool(), testing::Bool()),
                         OracleName);

TEST(GptqPlanar, GroupIndexFollowsTheInputs) {
  const int64_t rows = 3, cols = 160;  // the last group is short
  const std::vector<float> w = BellMatrix(rows, cols, 5);
  const Hessian hessian = HessianOf(CorrelatedInputs(400, cols, 6), cols);
  const std::vector<float> squares = hessian.MeanSquares();
  GptqOptions options;
  options.act_order = true;
  const auto q = QuantizeGptq(ViewOf(w.data(), rows, cols), *ParseScheme("int4 asym g64 act-order"),
                              hessian, options);
  ASSERT_TRUE(q.ok()) << q.status().message();
  std::vector<int32_t> index(static_cast<size_t>(cols));
  std::memcpy(index.data(), q->plane(Plane::kGroupIndex).data(), index.size() * 4);
  std::map<int32_t, int> sizes;
  for (size_t i = 0; i < index.size(); ++i) {
    ++sizes[index[i]];
    for (size_t j = 0; j < index.size(); ++j) {
      if (index[i] < index[j]) {
        EXPECT_GE(squares[i], squares[j]);
      }
    }
  }
  EXPECT_EQ(sizes, (std::map<int32_t, int>{{0, 64}, {1, 64}, {2, 32}}));
}

TEST(GptqPlanar, ServesEveryCode) {
  const int64_t rows = 9, cols = 192;
  const std::vector<float> w = BellMatrix(rows, cols, 7), inputs = CorrelatedInputs(600, cols, 8);
  const Hessian hessian = HessianOf(inputs, cols);
  const TensorView view = ViewOf(w.data(), rows, cols);
  std::vector<float> table(8);
  for (size_t i = 0; i < 8; ++i) table[i] = std::sinh(0.6f * (static_cast<float>(i) - 3.5f));
  for (const char* name :
       {"nf4 g64", "fp4 g64 f16", "f8_e4m3 channel", "f8_e5m2 g64", "table3 g64", "int4 sym tensor",
        "int5 asym g64 f16 zf16", "nf4 g64 double", "nf4 channel bf16", "int1 asym g64 zf32"}) {
    const Scheme scheme = *ParseScheme(name);
    GptqOptions options;
    options.static_groups = scheme.double_quant;
    const std::span<const float> values =
        scheme.code == Code::kTable ? std::span<const float>(table) : std::span<const float>();
    GptqReport report;
    const auto fed = QuantizeGptq(view, scheme, hessian, options, &report, values);
    ASSERT_TRUE(fed.ok()) << name << ": " << fed.status().message();
    const auto rounded = Quantize(view, scheme, {}, values);
    ASSERT_TRUE(rounded.ok());
    const double after = OutputError(w, *fed, inputs);
    EXPECT_LT(after, 0.7 * OutputError(w, *rounded, inputs)) << name;
    EXPECT_NEAR(report.output_error / after, 1, 1e-3) << name;
    double energy = 0;
    energy = OutputError(w, std::vector<float>(w.size()), rows, cols, inputs);
    EXPECT_NEAR(report.weight_energy / energy, 1, 1e-4) << name;
  }
}

class GptqPlanarTargets : public EveryTarget {};

TEST_P(GptqPlanarTargets, GivesTheSameBytesForAnyThreads) {
  const int64_t rows = 130, cols = 256;
  const std::vector<float> w = BellMatrix(rows, cols, 21);
  const Hessian hessian = HessianOf(CorrelatedInputs(500, cols, 22), cols);
  ThreadPool pool(2);
  static std::map<std::string, std::vector<std::byte>> first;  // of the first target
  for (const std::string name :
       {"int3 sym g32", "int4 asym g128 f16 act-order", "nf4 g64", "int8 sym channel"}) {
    const Scheme scheme = *ParseScheme(name);
    for (const bool threads : {false, true}) {
      GptqOptions options;
      options.act_order = scheme.has_group_index;
      if (threads) options.parallel = pool.parallel_for();
      const auto fed = QuantizeGptq(ViewOf(w.data(), rows, cols), scheme, hessian, options);
      ASSERT_TRUE(fed.ok());
      std::vector<std::byte> all;
      for (int p = 0; p < kPlaneCount; ++p) {
        const auto bytes = fed->plane(static_cast<Plane>(p)).bytes();
        all.insert(all.end(), bytes.begin(), bytes.end());
      }
      EXPECT_EQ(first.try_emplace(name, all).first->second, all) << name;
    }
  }
}

NIBBLE_ON_EVERY_TARGET(GptqPlanarTargets);

TEST(GptqPlanar, HandlesDeadColumnsAndSingularHessians) {
  const int64_t rows = 8, cols = 256;
  const std::vector<float> w = BellMatrix(rows, cols, 31);
  std::vector<float> inputs = CorrelatedInputs(40, cols, 32);  // fewer tokens than columns
  for (size_t t = 0; t < 40; ++t) inputs[t * 256 + 17] = inputs[t * 256 + 200] = 0;
  const Hessian hessian = HessianOf(inputs, cols);
  const TensorView view = ViewOf(w.data(), rows, cols);
  for (const bool act_order : {false, true}) {
    Scheme scheme = *ParseScheme("int3 asym g64");
    scheme.has_group_index = act_order;
    GptqOptions options;
    options.damping = 0;
    options.act_order = act_order;
    GptqReport report;
    const auto fed = QuantizeGptq(view, scheme, hessian, options, &report);
    ASSERT_TRUE(fed.ok()) << fed.status().message();
    EXPECT_EQ(report.dead_columns, 2);
    EXPECT_GT(report.damping, 0);  // none was asked for: it had to be raised
    std::vector<float> decoded(w.size());
    ASSERT_TRUE(Dequantize(*fed, ViewOf(decoded.data(), rows, cols)).ok());
    // A column that was never seen is rounded as it is: text of another kind may use it.
    for (int64_t r = 0; r < rows; ++r) {
      EXPECT_NEAR(decoded[static_cast<size_t>(r * cols + 17)],
                  w[static_cast<size_t>(r * cols + 17)], 0.05);
    }
    const auto rounded = Quantize(view, *ParseScheme("int3 asym g64"));
    EXPECT_LT(OutputError(w, *fed, inputs), 0.7 * OutputError(w, *rounded, inputs));
  }
  // All inputs zero: what rounding gives.
  const Hessian zero = HessianOf(std::vector<float>(static_cast<size_t>(4 * cols)), cols);
  GptqOptions options;
  options.search_scales = false;
  GptqReport report;
  const auto fed = QuantizeGptq(view, *ParseScheme("int4 sym g32"), zero, options, &report);
  ASSERT_TRUE(fed.ok());
  EXPECT_EQ(report.dead_columns, cols);
  const auto rounded = Quantize(view, *ParseScheme("int4 sym g32"));
  EXPECT_TRUE(
      std::ranges::equal(fed->plane(Plane::kCodes).bytes(), rounded->plane(Plane::kCodes).bytes()));
}

TEST(GptqPlanar, RefusesWhatItCannotDo) {
  const std::vector<float> w = BellMatrix(2, 256, 41);
  const Hessian hessian = HessianOf(CorrelatedInputs(16, 256, 42), 256);
  const TensorView view = ViewOf(w.data(), 2, 256);
  const auto message = [&](TensorView v, const char* scheme, const Hessian& h,
                           const GptqOptions& options = {}) {
    const auto result = QuantizeGptq(v, *ParseScheme(scheme), h, options);
    return result.ok() ? std::string("fine") : result.status().message();
  };
  const auto expect = [](const std::string& said, const char* part) {
    EXPECT_NE(said.find(part), std::string::npos) << said;
  };
  expect(message(view, "int4 sym g64", Hessian(256)), "no token");
  expect(message(view, "int4 sym g64", Hessian(128)), "128 columns");
  expect(message(view, "int4 sym g64 act-order", hessian), "group index");
  expect(message(view, "nf4 g64 double", hessian), "static");
  GptqOptions act_order;
  act_order.act_order = true;
  expect(message(view, "int4 sym g64", hessian, act_order), "group index");
  std::vector<float> bad = w;
  bad[256 + 9] = std::numeric_limits<float>::quiet_NaN();
  expect(message(ViewOf(std::as_const(bad).data(), 2, 256), "int4 sym g64", hessian),
         "NaN at row 1, column 9");
  // A scale that only feedback makes too large for its type.
  bad = w;
  for (float& x : bad) x *= 1e7f;
  expect(message(ViewOf(std::as_const(bad).data(), 2, 256), "int4 sym g64 f16", hessian), "f16");
}

}  // namespace
}  // namespace nibble
