// Packed weights dequantized for dense products, on emulated warps, and when that is done.
#include "cuda/dense_plan.h"

#include <cmath>

#include "cuda/scale_step.h"
#include "tests/cuda/emulate.h"
#include "tests/cuda/products.h"

namespace nibble::cuda {
namespace {

template <DType kType>
void ExpectUnpacked(const QuantizedTensor& weights) {
  const PackedOnHost packed = PackOnHost(weights);
  const PackedMatrix& matrix = packed.plan.matrix;
  const std::vector<float> want = Decoded(weights);
  const float multiplier = kType == DType::kF16 ? *packed.multiplier : 1.0f;
  VisitPackedFormat(packed.plan.kind, [&](auto format) {
    using Format = decltype(format);
    const int64_t records = matrix.records_per_tile<Format>(), stride = records * Format::kCols;
    std::vector<uint16_t> out(static_cast<size_t>(weights.rows() * stride));
    // In two parts, as where not all are dequantized at once.
    const int64_t cut = matrix.row_tiles() / 2;
    for (int64_t tile = 0; tile < matrix.row_tiles(); ++tile) {
      const int64_t first = tile < cut ? 0 : cut * kTileRows;
      for (int64_t record = 0; record < records; ++record) {
        UnpackRecord<Format, kType>(HostWarp(), matrix, tile, record, first,
                                    out.data() + first * stride, stride);
      }
    }
    for (int64_t r = 0; r < weights.rows(); ++r) {
      float largest = 0;
      for (int64_t c = 0; c < weights.cols(); ++c) {
        largest = std::max(largest, std::fabs(want[static_cast<size_t>(r * weights.cols() + c)]));
      }
      for (int64_t c = 0; c < weights.cols(); ++c) {
        const int64_t from = matrix.order == nullptr ? c : matrix.order[c];
        const float got = HalfToFloat<kType>(out[static_cast<size_t>(r * stride + c)]) / multiplier;
        ASSERT_NEAR(got, want[static_cast<size_t>(r * weights.cols() + from)],
                    largest * (kType == DType::kF16 ? 0x1p-9f : 0x1p-6f))
            << NameOf(weights) << " at " << r << ", " << c;
      }
    }
  });
}

TEST(DenseHostTest, UnpacksEveryBlockFormat) {
  for (Format format : kPackedBlockFormats) {
    ExpectUnpacked<DType::kF16>(RandomWeights(format, 37, 512, 3));
    ExpectUnpacked<DType::kBF16>(RandomWeights(format, 16, 256, 4));
  }
}

TEST(DenseHostTest, UnpacksEveryScheme) {
  for (const char* name : kPackedSchemes) {
    ExpectUnpacked<DType::kF16>(PlanarWeights(name, 37, 300));
    ExpectUnpacked<DType::kBF16>(PlanarWeights(name, 5, 320));
  }
}

TEST(DenseHostTest, UnpacksInTheOrderOfAGroupIndex) {
  Scheme scheme = *ParseScheme("int4 asym g64 f16");
  scheme.has_group_index = true;
  std::vector<int32_t> index(320);
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int32_t>(i * 3 % 5);
  QuantizeOptions options;
  options.group_index = index;
  ExpectUnpacked<DType::kF16>(PlanarWeights(scheme, 35, 320, options));
}

TEST(DenseHostTest, ManyTokensAreDense) {
  for (int kind = 0; kind <= static_cast<int>(PackedKind::kIQ4_XS); ++kind) {
    const int64_t tokens = DenseTokens(static_cast<PackedKind>(kind), 0.5);
    EXPECT_GT(tokens, 128) << kind;
    EXPECT_LT(tokens, 8192) << kind;
    // The more the weights' bytes cost, the later.
    EXPECT_GT(DenseTokens(static_cast<PackedKind>(kind), 1.0), tokens) << kind;
  }
  const int64_t before = DenseTokens(PackedKind::kU4, 0.5);
  {
    const DenseFrom always(1);
    EXPECT_EQ(DenseTokens(PackedKind::kU4, 0.5), 1);
    const DenseFrom never(INT64_MAX);
    EXPECT_EQ(DenseTokens(PackedKind::kU4, 0.5), INT64_MAX);
  }
  EXPECT_EQ(DenseTokens(PackedKind::kU4, 0.5), before);
}

TEST(DenseHostTest, RowsAtOnceAreWholeTilesAndBounded) {
  for (int64_t rows : {1, 16, 4096, 152064}) {
    for (int64_t stride : {128, 4096, 28672, 1 << 24}) {
      const int64_t some = DenseRows(rows, stride);
      EXPECT_GT(some, 0);
      EXPECT_LE(some, rows);
      EXPECT_TRUE(some == rows || some % kTileRows == 0);
      EXPECT_TRUE(some <= kTileRows || some * stride * 2 <= int64_t{256} << 20);
    }
  }
}

}  // namespace
}  // namespace nibble::cuda
