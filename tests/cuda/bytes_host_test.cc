// The kernel of products of bytes on emulated warps: integer sums exactly, those of f8 nearly.
#include "cuda/bytes.h"

#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "gtest/gtest.h"
#include "tests/cuda/emulate.h"

namespace nibble::cuda {
namespace {

constexpr DeviceLimits kHopper = {132, 227 * 1024, true, true};
constexpr DeviceLimits kAmpere = {108, 163 * 1024, false, false};
constexpr DeviceLimits kFew = {1, 227 * 1024, false, true};  // takes the widest blocks

template <DType kType, int kTokens>
void Emulate(const BytesArguments& args) {
  EmulateUnits<BytesBlock<kType, kTokens>>(args, 0x7E);
}

template <DType kType>
void ExpectProduct(int64_t rows, int64_t cols, int64_t tokens, const DeviceLimits& limits) {
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
  if (args.plan.tokens == 64) {
    Emulate<kType, 64>(args);
  } else if (args.plan.tokens == 128) {
    Emulate<kType, 128>(args);
  } else {
    Emulate<kType, 256>(args);
  }
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
      ExpectProduct<DType::kI8>(rows, cols, tokens, limits);
      ExpectProduct<DType::kF8E4M3>(rows, cols, tokens, limits);
    }
  }
  ExpectProduct<DType::kI8>(10, 4096, 3, kHopper);  // in splits
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
          // The sums of a split take the place of the stages.
          ASSERT_LE(plan.tokens * kBlockRows * 4, plan.stages * BytesStageBytes(plan.tokens));
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::cuda
