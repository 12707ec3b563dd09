// The small-M kernel on emulated warps, against the CPU's decoded weights.
#include "cuda/small_m.h"

#include <cmath>
#include <numeric>

#include "tests/cuda/emulate.h"
#include "tests/cuda/products.h"

namespace nibble::cuda {
namespace {

constexpr DeviceLimits kHopper = {132, 227 * 1024, true};
constexpr DeviceLimits kAmpere = {108, 163 * 1024, false};
constexpr DeviceLimits kConsumer = {84, 99 * 1024, false};

struct Case {
  int tokens;
  DType dtype = DType::kF16;
  DeviceLimits limits = kHopper;
  std::vector<int32_t> rows = {};  // of the activations, or all
  bool plain = true;               // rows begin at multiples of 16 bytes
};

template <class Format>
void Emulate(const SmallMArguments& args, bool is_f16) {
  const bool one = args.plan.tokens <= 8;
  if (is_f16) {
    one ? EmulateSmallM<Format, DType::kF16, 1>(args) : EmulateSmallM<Format, DType::kF16, 2>(args);
  } else {
    one ? EmulateSmallM<Format, DType::kBF16, 1>(args)
        : EmulateSmallM<Format, DType::kBF16, 2>(args);
  }
}

void ExpectProduct(const QuantizedTensor& weights, const Case& test) {
  const std::string what = NameOf(weights) + ", " + std::to_string(weights.rows()) + " x " +
                           std::to_string(weights.cols()) + ", " + std::to_string(test.tokens) +
                           " tokens of " + DTypeName(test.dtype);
  const PackedOnHost packed = PackOnHost(weights);
  const int64_t cols = weights.cols(), a_rows = 20;
  const TypedValues a = RandomActivations(test.dtype, a_rows * cols, 6);
  std::vector<float> out(static_cast<size_t>(test.tokens * weights.rows()), NAN);
  const bool is_f16 = test.dtype == DType::kF16;
  VisitPackedFormat(packed.plan.kind, [&](auto format) {
    using Format = decltype(format);
    const PackedMatrix& matrix = packed.plan.matrix;
    const ProductSize size = {matrix.row_tiles(), test.tokens};
    SmallMArguments args = {};
    args.activations = {a.bytes.data(), test.dtype, a_rows,
                        cols,           cols,       test.plain && cols % 8 == 0};
    args.plan = PlanSmallM(TraitsOf<Format>(), {&size, 1}, matrix.records_per_tile<Format>(),
                           matrix.record_bytes<Format>(), test.limits);
    ASSERT_GT(args.plan.blocks, 0) << what;
    args.members_count = 1;
    args.members[0] = {matrix,     test.rows.empty() ? nullptr : test.rows.data(),
                       0,          test.tokens,
                       0,          nullptr,
                       out.data(), weights.rows(),
                       false};
    Emulate<Format>(args, is_f16);
  });
  // f32 activations are rounded to bf16, and so are values of books for it.
  double epsilon = 0x1p-19;
  if (HasRoundedValues(weights)) epsilon = is_f16 ? 0x1p-11 : 0x1p-8;
  if (test.dtype == DType::kF32) epsilon += 0x1p-8;
  ExpectProducts(out, a.floats, test.rows, weights, test.tokens, epsilon, what);
}

TEST(SmallMHostTest, MultipliesWithEveryBlockFormat) {
  for (Format format : kPackedBlockFormats) {
    const QuantizedTensor weights = RandomWeights(format, 37, 768, 3);
    for (int tokens : {1, 8, 13}) {
      ExpectProduct(weights, {tokens, DType::kF16});
      ExpectProduct(weights, {tokens, DType::kBF16});
    }
  }
}

TEST(SmallMHostTest, MultipliesWithEveryScheme) {
  for (const char* name : kPackedSchemes) {
    const QuantizedTensor weights = PlanarWeights(name, 37, 320);
    for (int tokens : {1, 8, 13}) {
      ExpectProduct(weights, {tokens, DType::kF16});
      ExpectProduct(weights, {tokens, DType::kBF16});
    }
  }
}

TEST(SmallMHostTest, TakesShapesWithTails) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 32}, {16, 100}, {130, 999}, {257, 1288}, {5, 4096}}) {
    const QuantizedTensor weights = PlanarWeights("int4 asym g128 f16", rows, cols);
    for (const DeviceLimits& limits : {kHopper, kAmpere, kConsumer}) {
      for (int tokens : {1, 2, 9, 16}) ExpectProduct(weights, {tokens, DType::kF16, limits});
    }
  }
}

// Little shared memory makes several segments of the columns.
TEST(SmallMHostTest, TakesColumnsInSegments) {
  const QuantizedTensor weights = RandomWeights(Format::kQ6_K, 40, 256 * 9, 4);
  for (int tokens : {3, 16}) {
    const DeviceLimits limits = {2, 82 * 1024 + 512 + tokens * 1100, false};
    ExpectProduct(weights, {tokens, DType::kF16, limits});
  }
}

TEST(SmallMHostTest, ConvertsActivations) {
  const QuantizedTensor weights = PlanarWeights("int4 sym g32 f16", 33, 256);
  ExpectProduct(weights, {4, DType::kF32});
  ExpectProduct(weights, {4, DType::kF16, kHopper, {}, false});
}

TEST(SmallMHostTest, TakesRowsByAList) {
  const QuantizedTensor weights = RandomWeights(Format::kQ4_K, 33, 512, 5);
  ExpectProduct(weights, {5, DType::kF16, kHopper, {19, 0, 7, 7, 3}});
}

TEST(SmallMHostTest, FollowsAGroupIndex) {
  Scheme scheme = *ParseScheme("int4 asym g64 f16");
  scheme.has_group_index = true;
  std::vector<int32_t> index(320);
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int32_t>(i * 3 % 5);
  QuantizeOptions options;
  options.group_index = index;
  ExpectProduct(PlanarWeights(scheme, 35, 320, options), {3});
}

TEST(SmallMHostTest, ServesMembersInOneLaunch) {
  constexpr int kTokens = 2;
  const QuantizedTensor a = RandomWeights(Format::kQ8_0, 70, 512, 7);
  const QuantizedTensor b = RandomWeights(Format::kQ8_0, 18, 512, 8);
  const PackedOnHost packed[2] = {PackOnHost(a), PackOnHost(b)};
  const TypedValues x = RandomActivations(DType::kBF16, kTokens * 512, 9);
  std::vector<float> outs[2] = {std::vector<float>(kTokens * 70, 1.5f),
                                std::vector<float>(kTokens * 18)};
  const std::vector<float> bias = RandomValues(18, 10);
  const ProductSize sizes[2] = {{packed[0].plan.matrix.row_tiles(), kTokens},
                                {packed[1].plan.matrix.row_tiles(), kTokens}};
  SmallMArguments args = {};
  args.activations = {x.bytes.data(), DType::kBF16, kTokens, 512, 512, true};
  args.plan = PlanSmallM(TraitsOf<PackedU8>(), sizes, 4,
                         packed[0].plan.matrix.record_bytes<PackedU8>(), kHopper);
  args.members_count = 2;
  args.members[0] = {packed[0].plan.matrix, nullptr, 0,   kTokens, 0, nullptr,
                     outs[0].data(),        70,      true};
  args.members[1] = {packed[1].plan.matrix,
                     nullptr,
                     0,
                     kTokens,
                     static_cast<int32_t>(BlocksOf(TraitsOf<PackedU8>(), args.plan, sizes[0])),
                     bias.data(),
                     outs[1].data(),
                     18,
                     false};
  EmulateSmallM<PackedU8, DType::kBF16, 1>(args);
  for (float& y : outs[0]) y -= 1.5f;  // it was added to
  for (int m = 0; m < kTokens; ++m) {
    for (int n = 0; n < 18; ++n)
      outs[1][static_cast<size_t>(m * 18 + n)] -= bias[static_cast<size_t>(n)];
  }
  ExpectProducts(outs[0], x.floats, {}, a, kTokens, 0x1p-17, "first");
  ExpectProducts(outs[1], x.floats, {}, b, kTokens, 0x1p-17, "second");
}

// Every row of weights belongs to one warp and every record to one split; limits are kept.
TEST(SmallMHostTest, PlansCoverEveryShape) {
  for (int kind = 0; kind <= static_cast<int>(PackedKind::kIQ4_XS); ++kind) {
    VisitPackedFormat(static_cast<PackedKind>(kind), [&](auto format) {
      using Format = decltype(format);
      constexpr RecordTraits kTraits = TraitsOf<Format>();
      for (const DeviceLimits& limits : {kHopper, kAmpere, kConsumer}) {
        for (int64_t rows : {1, 16, 17, 1024, 4096, 11008, 152064, 1 << 24}) {
          for (int64_t cols : {1, 128, 576, 4096, 11008, 28672, 1 << 20}) {
            for (int tokens : {1, 4, 8, 16}) {
              for (bool wide : {false, true}) {
                PackedMatrix matrix;
                matrix.rows = rows;
                matrix.cols = cols;
                matrix.wide_scales = wide;
                const int64_t tiles = matrix.row_tiles();
                const int64_t records = matrix.records_per_tile<Format>();
                const ProductSize size = {tiles, tokens};
                const SmallMPlan plan =
                    PlanSmallM(kTraits, {&size, 1}, records, matrix.record_bytes<Format>(), limits);
                ASSERT_GT(plan.blocks, 0);
                const int64_t block_tiles = int64_t{plan.row_groups} * kTraits.warp_tiles;
                ASSERT_GE(plan.blocks * block_tiles, tiles);
                ASSERT_LT((plan.blocks - 1) * block_tiles, tiles);
                ASSERT_LE(plan.blocks, int64_t{0x7FFFFFFF});
                ASSERT_EQ(kWarps % plan.row_groups, 0);
                ASSERT_GE(int64_t{plan.splits} * plan.split_records, records);
                ASSERT_LE(plan.splits, limits.has_clusters ? kMostSplits : 1);
                ASSERT_GE(plan.segment_records, 1);
                ASSERT_LE(plan.shared_bytes, limits.shared_bytes);
                // The sums that take the place of the rings.
                const SmallMShared layout(plan, kTraits);
                ASSERT_LE(kWarps * kTraits.warp_tiles * kTileRows * 16 * 4,
                          kWarps * layout.ring_bytes);
                ASSERT_EQ(matrix.record_bytes<Format>() % 16, 0);
                ASSERT_EQ(layout.rings % 16, 0);
              }
            }
          }
        }
      }
    });
  }
}

}  // namespace
}  // namespace nibble::cuda
