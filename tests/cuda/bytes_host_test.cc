// The kernels of products of bytes on emulated warps: integer sums exactly, those of f8 nearly.
#include "cuda/bytes.h"

#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "cuda/round_row.h"
#include "gtest/gtest.h"
#include "nibble/llm_int8.h"
#include "tests/cuda/emulate.h"
#include "tests/cuda/products.h"

namespace nibble::cuda {
namespace {

constexpr DeviceLimits kHopper = {132, 227 * 1024, true, true};
constexpr DeviceLimits kAmpere = {108, 163 * 1024, false, false};
constexpr DeviceLimits kFew = {1, 227 * 1024, false, true};  // takes the widest blocks

template <DType kType>
void Emulate(const BytesArguments& args, Late late) {
  const auto emulate = [&]<int kTokens>() {
    EmulateUnits<BytesBlock<kType, kTokens>>(args, 0x7E, late);
  };
  if (args.plan.tokens == 64) return emulate.template operator()<64>();
  if (args.plan.tokens == 128) return emulate.template operator()<128>();
  emulate.template operator()<256>();
}

template <DType kType>
void ExpectProduct(int64_t rows, int64_t cols, int64_t tokens, const DeviceLimits& limits,
                   Late late) {
  const std::string what = std::to_string(rows) + " x " + std::to_string(cols) + ", " +
                           std::to_string(tokens) + " tokens";
  std::mt19937 random(static_cast<uint32_t>(rows + cols + tokens));
  const auto fill = [&](AlignedBytes& bytes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      uint8_t code = static_cast<uint8_t>(random());
      if (kType == DType::kF8E4M3 && (code & 0x7F) == 0x7F) code = 0;  // a NaN
      bytes.data()[i] = code;
    }
  };
  AlignedBytes w(static_cast<size_t>(rows * cols)), a(static_cast<size_t>(tokens * cols));
  fill(w, rows * cols);
  fill(a, tokens * cols);
  std::vector<float> row_scales(static_cast<size_t>(rows)),
      token_scales(static_cast<size_t>(tokens));
  for (float& s : row_scales) s = 1.0f / static_cast<float>(1 + random() % 100);
  for (float& s : token_scales) s = 1.0f / static_cast<float>(1 + random() % 100);
  std::vector<float> out(static_cast<size_t>(rows * tokens), NAN);

  Scheme scheme;
  scheme.code = kType == DType::kI8 ? Code::kUniform : Code::kF8E4M3;
  scheme.bits = 8;
  scheme.granularity = Granularity::kChannel;
  BytesArguments args = {};
  args.activations = a.data();
  args.activation_scales = token_scales.data();
  args.tokens = tokens;
  args.activation_stride = cols;
  args.weights = {scheme, rows,     cols,
                  1,      w.data(), reinterpret_cast<const uint8_t*>(row_scales.data())};
  args.out = out.data();
  args.out_stride = rows;
  args.plan = PlanBytes(rows, cols, tokens, limits);
  ASSERT_GT(args.plan.row_blocks, 0);
  Emulate<kType>(args, late);
  for (int64_t m = 0; m < tokens; ++m) {
    for (int64_t n = 0; n < rows; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < cols; ++k) {
        const double product = double{ElementOf<kType>(a.data()[m * cols + k], 0)} *
                               double{ElementOf<kType>(w.data()[n * cols + k], 0)};
        sum += product;
        magnitude += std::fabs(product);
      }
      const double scale =
          double{row_scales[static_cast<size_t>(n)] * token_scales[static_cast<size_t>(m)]};
      const double error = std::fabs(double{out[static_cast<size_t>(m * rows + n)]} - sum * scale);
      const double allowed = kType == DType::kI8 ? 0x1p-22 * std::fabs(sum) : 0x1p-19 * magnitude;
      ASSERT_LE(error, allowed * scale) << what << " at " << m << ", " << n;
    }
  }
}

TEST(BytesHostTest, Multiplies) {
  for (const DeviceLimits& limits : {kHopper, kAmpere, kFew}) {
    for (const auto& [rows, cols, tokens] : {std::array<int64_t, 3>{1, 16, 1},
                                             {130, 272, 5},
                                             {20, 1040, 66},
                                             {129, 144, 70},
                                             {40, 400, 300}}) {
      ExpectProduct<DType::kI8>(rows, cols, tokens, limits, Late::kCopies);
      ExpectProduct<DType::kI8>(rows, cols, tokens, limits, Late::kProducts);
      ExpectProduct<DType::kF8E4M3>(rows, cols, tokens, limits, Late::kCopies);
    }
  }
  ExpectProduct<DType::kI8>(10, 4096, 3, kHopper, Late::kProducts);  // in splits
}

// --- Activations rounded on the way, as the launches one after the other do ----------------------

struct Rounded {
  AlignedBytes codes;
  std::vector<float> scales;
  int64_t stride;
};

template <DType kType>
Rounded Round(const Activations& activations, const uint8_t* skipped) {
  Rounded rounded;
  rounded.stride = (activations.cols + 15) / 16 * 16;
  rounded.codes = AlignedBytes(static_cast<size_t>(activations.rows * rounded.stride));
  rounded.scales.resize(static_cast<size_t>(activations.rows));
  const RoundRow<kType> round = {activations, skipped, rounded.stride, rounded.codes.data(),
                                 rounded.scales.data()};
  for (int64_t row = 0; row < activations.rows; ++row) {
    uint32_t most[kWarps];
    for (int w = 0; w < kWarps; ++w) round.FindLargest(HostWarp(), w, row, most);
    for (int t = 0; t < kThreads; ++t) round.Write(t, row, most);
  }
  return rounded;
}

// out[tokens, rows] by weights whose columns are a multiple of 16.
template <DType kType>
void MultiplyRounded(const QuantizedTensor& weights, const Rounded& rounded, int64_t tokens,
                     float* out) {
  BytesArguments args = {};
  args.activations = rounded.codes.data();
  args.activation_scales = rounded.scales.data();
  args.tokens = tokens;
  args.activation_stride = rounded.stride;
  args.weights = PlanesOf(weights);
  args.out = out;
  args.out_stride = weights.rows();
  args.plan = PlanBytes(weights.rows(), weights.cols(), tokens, kAmpere);
  ASSERT_GT(args.plan.row_blocks, 0);
  Emulate<kType>(args, Late::kCopies);
}

TEST(BytesHostTest, RoundsActivationsAsTheCpuDoes) {
  MatmulOptions options;
  options.precision = Precision::kInt8PerRow;
  for (const auto& [rows, cols, tokens] :
       {std::array<int64_t, 3>{37, 256, 3}, {20, 1040, 9}, {130, 48, 70}}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      TypedValues a = RandomActivations(dtype, tokens * cols, 2);
      const TensorView view = {a.bytes.data(), dtype, tokens, cols, cols, Device::kCpu};
      const QuantizedTensor weights = PlanarWeights("int8 sym channel", rows, cols);
      std::vector<float> want(static_cast<size_t>(tokens * rows)), got(want.size());
      ASSERT_TRUE(Matmul(view, weights, ViewOf(want.data(), tokens, rows), options).ok());
      const Activations source = {a.bytes.data(), dtype, tokens, cols, cols, false};
      MultiplyRounded<DType::kI8>(weights, Round<DType::kI8>(source, nullptr), tokens, got.data());
      EXPECT_EQ(got, want) << rows << " x " << cols << ", " << tokens << " of " << DTypeName(dtype);

      // Three bits behind the point.
      const QuantizedTensor floats = PlanarWeights("f8_e4m3 channel", rows, cols);
      MultiplyRounded<DType::kF8E4M3>(floats, Round<DType::kF8E4M3>(source, nullptr), tokens,
                                      got.data());
      ExpectProducts(got, a.floats, {}, floats, tokens, 0x1p-4, "f8");
    }
  }
}

TEST(BytesHostTest, RowsThatAreNotFiniteHaveNoScale) {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    std::vector<float> a = RandomValues(3 * 48, 4);
    a[48 + 5] = bad;
    const Activations source = {a.data(), DType::kF32, 3, 48, 48, false};
    const Rounded rounded = Round<DType::kI8>(source, nullptr);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(std::isnan(rounded.scales[i]), i == 1);
    std::vector<uint8_t> skipped(48);
    skipped[5] = 1;
    const Rounded skipping = Round<DType::kI8>(source, skipped.data());
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_FALSE(std::isnan(skipping.scales[i]));
      EXPECT_EQ(skipping.codes.data()[48 * i + 5], 0);
    }
  }
}

TEST(BytesHostTest, ListsFlaggedColumns) {
  std::mt19937 random(3);
  for (const int64_t cols : {1, 31, 256, 257, 1500}) {
    for (const uint32_t one_in : {1u, 3u, 100u}) {
      std::vector<uint8_t> flags(static_cast<size_t>(cols));
      std::vector<int32_t> want, got(flags.size(), -1);
      for (size_t i = 0; i < flags.size(); ++i) {
        flags[i] = random() % one_in == 0;
        if (flags[i] != 0) want.push_back(static_cast<int32_t>(i));
      }
      const FlaggedColumns flagged = {flags.data(), cols, got.data()};
      int32_t placed = 0;
      for (int64_t begin = 0; begin < cols; begin += kThreads) {
        int counts[kWarps];
        for (int w = 0; w < kWarps; ++w) flagged.Count(HostWarp(), w, begin, counts);
        int32_t after = placed;
        for (int w = 0; w < kWarps; ++w) {
          after = flagged.Place(HostWarp(), w, begin, placed, counts);
        }
        placed = after;
      }
      ASSERT_EQ(placed, static_cast<int32_t>(want.size()));
      got.resize(want.size());
      EXPECT_EQ(got, want);
    }
  }
}

// LLM.int8(), launch by launch.
TEST(BytesHostTest, KeepsOutlierColumns) {
  for (const auto& [rows, cols, tokens] :
       {std::array<int64_t, 3>{37, 256, 3}, {20, 1040, 9}, {130, 48, 70}}) {
    const QuantizedTensor weights = PlanarWeights("int8 sym channel", rows, cols);
    std::vector<float> a = RandomValues(tokens * cols, 5);
    for (int64_t m = 0; m < tokens; ++m) {
      a[static_cast<size_t>(m * cols + 3)] *= 40;
      a[static_cast<size_t>(m * cols + cols - 1)] *= 30;
    }
    std::vector<float> want(static_cast<size_t>(tokens * rows)), got(want.size());
    ASSERT_TRUE(MatmulLlmInt8(ViewOf(std::as_const(a).data(), tokens, cols), weights,
                              ViewOf(want.data(), tokens, rows))
                    .ok());
    const Activations source = {a.data(), DType::kF32, tokens, cols, cols, false};
    std::vector<uint8_t> flags(static_cast<size_t>(cols));
    std::vector<int32_t> columns;
    for (int64_t col = 0; col < cols; ++col) {
      flags[static_cast<size_t>(col)] = IsOutlier(source, col, kLlmInt8Threshold);
      if (flags[static_cast<size_t>(col)] != 0) columns.push_back(static_cast<int32_t>(col));
    }
    ASSERT_GE(columns.size(), 2u);
    ASSERT_LT(columns.size(), flags.size());
    MultiplyRounded<DType::kI8>(weights, Round<DType::kI8>(source, flags.data()), tokens,
                                got.data());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t first = 0; first < tokens; first += kTokensAtOnce) {
        AddColumns(HostWarp(), source, PlanesOf(weights), columns.data(),
                   static_cast<int>(columns.size()), row, first, got.data(), rows);
      }
    }
    float largest = 0;
    for (float x : want) largest = std::max(largest, std::fabs(x));
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5f * largest) << i;
  }
}

TEST(BytesHostTest, PlansCoverEveryShape) {
  for (const DeviceLimits& limits : {kHopper, kAmpere, DeviceLimits{84, 99 * 1024, false, true}}) {
    for (int64_t rows : {1, 128, 129, 8192, 152064}) {
      for (int64_t cols : {16, 128, 4096, 131072}) {
        for (int64_t tokens : {1, 64, 65, 128, 129, 1024, 100000}) {
          const BytesPlan plan = PlanBytes(rows, cols, tokens, limits);
          ASSERT_GT(plan.row_blocks, 0);
          ASSERT_GE(plan.row_blocks * kBlockRows, rows);
          ASSERT_LT((plan.row_blocks - 1) * kBlockRows, rows);
          ASSERT_GE(plan.blocks * plan.tokens, tokens * plan.row_blocks);
          ASSERT_LT((plan.blocks - plan.row_blocks) * plan.tokens, tokens * plan.row_blocks);
          ASSERT_GE(int64_t{plan.splits} * plan.split_units * kUnitBytes, cols);
          ASSERT_LE(plan.splits, limits.has_clusters ? 8 : 1);
          ASSERT_TRUE(plan.stages == 3 || plan.stages == 4);
          ASSERT_EQ(plan.shared_bytes, plan.stages * BytesStageBytes(plan.tokens) + 1024);
          ASSERT_LE(plan.shared_bytes, limits.shared_bytes);
          // Sums take the place of the stages.
          ASSERT_LE(plan.tokens * kTokenSums * 4, plan.stages * BytesStageBytes(plan.tokens));
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::cuda
