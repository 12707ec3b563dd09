// The kernel of large products on emulated warps, against the CPU's decoded weights.
#include "cuda/gemm.h"

#include <cmath>

#include "tests/cuda/emulate.h"
#include "tests/cuda/products.h"

namespace nibble::cuda {
namespace {

constexpr DeviceLimits kHopper = {132, 227 * 1024, true};
constexpr DeviceLimits kAmpere = {108, 163 * 1024, false};

// Weights rounded to 16 bits, minima and scales too.
constexpr double kEpsilonF16 = 0x1p-10, kEpsilonBF16 = 0x1p-7;

struct Case {
  int tokens;
  DType dtype = DType::kF16;
  DeviceLimits limits = kAmpere;
  std::vector<int32_t> rows = {};
};

template <class Format>
void Emulate(const GemmArguments& args) {
  if (args.activations.dtype == DType::kF16) {
    args.plan.tokens == 64 ? EmulateGemm<Format, DType::kF16, 64>(args)
                           : EmulateGemm<Format, DType::kF16, 128>(args);
  } else {
    args.plan.tokens == 64 ? EmulateGemm<Format, DType::kBF16, 64>(args)
                           : EmulateGemm<Format, DType::kBF16, 128>(args);
  }
}

void ExpectProduct(const QuantizedTensor& weights, const Case& test) {
  const std::string what = NameOf(weights) + ", " + std::to_string(weights.rows()) + " x " +
                           std::to_string(weights.cols()) + ", " + std::to_string(test.tokens) +
                           " tokens of " + DTypeName(test.dtype);
  const PackedOnHost packed = PackOnHost(weights);
  const int64_t cols = weights.cols(), a_rows = 150;
  // Rows are as long as the stride, what lies behind the columns is not to be read.
  const int64_t stride = (cols + 7) / 8 * 8;
  const TypedValues a = RandomActivations(test.dtype, a_rows * cols, 6);
  AlignedBytes strided(static_cast<size_t>(a_rows * stride) * 2);
  std::memset(strided.data(), 0xFF, static_cast<size_t>(a_rows * stride) * 2);
  for (int64_t r = 0; r < a_rows; ++r) {
    std::memcpy(strided.data() + 2 * r * stride, a.bytes.data() + 2 * r * cols,
                2 * static_cast<size_t>(cols));
  }
  std::vector<float> out(static_cast<size_t>(test.tokens * weights.rows()), NAN);
  VisitPackedFormat(packed.plan.kind, [&](auto format) {
    using Format = decltype(format);
    const PackedMatrix& matrix = packed.plan.matrix;
    GemmArguments args = {};
    args.activations = {strided.data(), test.dtype, a_rows, cols, stride, true};
    const ProductSize size = {matrix.row_tiles(), test.tokens};
    args.plan = PlanGemm(Format::kCols, {&size, 1}, matrix.records_per_tile<Format>(),
                         matrix.record_bytes<Format>(), test.limits);
    ASSERT_GT(args.plan.blocks, 0) << what;
    args.members_count = 1;
    args.members[0] = {matrix,     test.rows.empty() ? nullptr : test.rows.data(),
                       0,          test.tokens,
                       0,          nullptr,
                       out.data(), weights.rows(),
                       false};
    Emulate<Format>(args);
  });
  ExpectProducts(out, a.floats, test.rows, weights, test.tokens,
                 test.dtype == DType::kF16 ? kEpsilonF16 : kEpsilonBF16, what);
}

TEST(GemmHostTest, MultipliesWithEveryBlockFormat) {
  for (Format format : kPackedBlockFormats) {
    const QuantizedTensor weights = RandomWeights(format, 37, 512, 3);
    ExpectProduct(weights, {23, DType::kF16});
    ExpectProduct(weights, {23, DType::kBF16});
  }
}

TEST(GemmHostTest, MultipliesWithEveryScheme) {
  for (const char* name : kPackedSchemes) {
    const QuantizedTensor weights = PlanarWeights(name, 37, 320);
    ExpectProduct(weights, {23, DType::kF16});
    ExpectProduct(weights, {23, DType::kBF16});
  }
}

TEST(GemmHostTest, TakesShapesWithTails) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 32}, {130, 100}, {129, 999}, {16, 4096}}) {
    const QuantizedTensor weights = PlanarWeights("int4 asym g128 f16", rows, cols);
    for (int tokens : {17, 64, 65, 140}) {
      ExpectProduct(weights, {tokens, DType::kF16, kAmpere});
      ExpectProduct(weights, {tokens, DType::kF16, kHopper});
    }
  }
}

TEST(GemmHostTest, TakesRowsByAList) {
  std::vector<int32_t> rows(40);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(i * 31 % 150);
  ExpectProduct(RandomWeights(Format::kQ4_K, 33, 512, 5), {40, DType::kF16, kHopper, rows});
}

// Members of other sizes and lists of rows share a launch; none writes where another does.
TEST(GemmHostTest, ServesSeveralMembers) {
  constexpr int64_t kCols = 512, kRows = 90;
  struct Member {
    int64_t rows;
    std::vector<int32_t> list;
  };
  std::vector<Member> members = {{150, {}}, {16, std::vector<int32_t>(17)}, {129, {}}, {5, {}}};
  for (size_t i = 0; i < 17; ++i) members[1].list[i] = static_cast<int32_t>(i * 29 % kRows);
  members[3].list.assign(70, 3);
  const TypedValues a = RandomActivations(DType::kBF16, kRows * kCols, 6);
  AlignedBytes aligned(a.bytes.size());
  std::memcpy(aligned.data(), a.bytes.data(), a.bytes.size());
  for (const DeviceLimits& limits : {kHopper, kAmpere}) {
    GemmArguments args = {};
    args.activations = {aligned.data(), DType::kBF16, kRows, kCols, kCols, true};
    std::vector<QuantizedTensor> weights;
    std::vector<PackedOnHost> packed;
    std::vector<std::vector<float>> outs;
    std::vector<ProductSize> sizes;
    for (size_t i = 0; i < members.size(); ++i) {
      weights.push_back(RandomWeights(Format::kQ4_0, members[i].rows, kCols, 20 + i));
      packed.push_back(PackOnHost(weights.back()));
      const std::vector<int32_t>& list = members[i].list;
      const int64_t tokens = list.empty() ? kRows : static_cast<int64_t>(list.size());
      outs.emplace_back(static_cast<size_t>(tokens * members[i].rows), NAN);
      sizes.push_back({packed.back().plan.matrix.row_tiles(), tokens});
    }
    const PackedMatrix& first = packed[0].plan.matrix;
    args.plan = PlanGemm(PackedU4::kCols, sizes, first.records_per_tile<PackedU4>(),
                         first.record_bytes<PackedU4>(), limits);
    ASSERT_EQ(args.plan.tokens, 128);
    args.members_count = static_cast<int>(members.size());
    int64_t block = 0;
    for (size_t i = 0; i < members.size(); ++i) {
      const std::vector<int32_t>& list = members[i].list;
      args.members[i] = {packed[i].plan.matrix,
                         list.empty() ? nullptr : list.data(),
                         0,
                         static_cast<int32_t>(sizes[i].tokens),
                         static_cast<int32_t>(block),
                         nullptr,
                         outs[i].data(),
                         members[i].rows,
                         false};
      block += BlocksOf(args.plan, sizes[i]);
    }
    ASSERT_EQ(block, args.plan.blocks);
    EmulateGemm<PackedU4, DType::kBF16, 128>(args);
    for (size_t i = 0; i < members.size(); ++i) {
      ExpectProducts(outs[i], a.floats, members[i].list, weights[i], sizes[i].tokens, kEpsilonBF16,
                     "member " + std::to_string(i));
    }
  }
}

// Scales that are subnormal in f16 by themselves.
TEST(GemmHostTest, KeepsSmallWeightsExact) {
  std::vector<float> w = RandomValues(16 * 256, 8);
  for (float& x : w) x *= 1e-6f;
  const QuantizedTensor weights =
      *Quantize(ViewOf(w.data(), 16, 256), *ParseScheme("int8 sym g128"));
  ExpectProduct(weights, {20});
}

TEST(GemmHostTest, FindsThePowerOfTwoOfTheLargestWeight) {
  for (float largest : {1e-30f, 1e-6f, 0.3f, 1.0f, 1023.0f, 1e20f}) {
    const float scaled = largest * MultiplierFor(largest);
    EXPECT_GE(scaled, 1024.0f);
    EXPECT_LT(scaled, 2048.0f);
  }
  EXPECT_EQ(MultiplierFor(0.0f), 1.0f);
  EXPECT_EQ(MultiplierFor(INFINITY), 1.0f);
}

// Every row, token and record belongs to one block; limits are kept.
TEST(GemmHostTest, PlansCoverEveryShape) {
  for (const DeviceLimits& limits : {kHopper, kAmpere, DeviceLimits{84, 99 * 1024, false}}) {
    for (int kind = 0; kind <= static_cast<int>(PackedKind::kIQ4_XS); ++kind) {
      VisitPackedFormat(static_cast<PackedKind>(kind), [&](auto format) {
        using Format = decltype(format);
        for (int64_t rows : {1, 127, 1024, 11008, 152064}) {
          for (int64_t cols : {1, 576, 4096, 28672}) {
            for (int64_t tokens : {17, 64, 65, 300, 100000}) {
              PackedMatrix matrix;
              matrix.rows = rows;
              matrix.cols = cols;
              const int64_t records = matrix.records_per_tile<Format>();
              const int record_bytes = matrix.record_bytes<Format>();
              const ProductSize sizes[] = {{matrix.row_tiles(), tokens}, {1, 17}};
              const GemmPlan plan = PlanGemm(Format::kCols, sizes, records, record_bytes, limits);
              if (plan.blocks == 0) {
                ASSERT_GT(2 * GemmStageBytes(64, Format::kCols, record_bytes) + 1024,
                          limits.shared_bytes);
                continue;
              }
              const int64_t row_blocks = RowBlocksOf(matrix.row_tiles());
              ASSERT_GE(row_blocks * kBlockRows, rows);
              ASSERT_LT((row_blocks - 1) * kBlockRows, rows);
              const int64_t token_blocks = BlocksOf(plan, sizes[0]) / row_blocks;
              ASSERT_GE(token_blocks * plan.tokens, tokens);
              ASSERT_LT((token_blocks - 1) * plan.tokens, tokens);
              ASSERT_EQ(plan.blocks, row_blocks * token_blocks + 1);
              ASSERT_GE(int64_t{plan.splits} * plan.split_records, records);
              ASSERT_LE(plan.splits, limits.has_clusters ? 8 : 1);
              const int stage = GemmStageBytes(plan.tokens, Format::kCols, record_bytes);
              ASSERT_EQ(stage % 1024, 0);
              ASSERT_TRUE(plan.stages >= 2 && plan.stages <= 4);
              ASSERT_EQ(plan.shared_bytes, plan.stages * stage + 1024);
              ASSERT_LE(plan.shared_bytes, limits.shared_bytes);
              // Sums take the place of the stages.
              ASSERT_LE(plan.tokens * kTokenSums * 4, plan.stages * stage);
            }
          }
        }
      });
    }
  }
}

}  // namespace
}  // namespace nibble::cuda
