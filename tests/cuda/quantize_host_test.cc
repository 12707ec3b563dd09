// Quantizing and dequantizing as the kernels do, on emulated warps, against the CPU's bytes.
#include <cmath>
#include <memory>

#include "cuda/quantize_row.h"
#include "cuda/weights.h"
#include "tests/cuda/emulate.h"
#include "tests/cuda/products.h"
#include "tests/vectors.h"

namespace nibble::cuda {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// A matrix of a type, its rows at multiples of 16 bytes or not.
struct Matrix {
  TensorView view;
  AlignedBytes memory;
};
Matrix MatrixOf(const std::vector<float>& values, int64_t rows, int64_t cols, DType dtype,
                bool aligned) {
  const int64_t stride = (cols + 7) / 8 * 8 + (aligned ? 0 : 1);
  Matrix matrix;
  matrix.memory = AlignedBytes(static_cast<size_t>(rows * stride + 1) * DTypeBytes(dtype));
  uint8_t* data = matrix.memory.data() + (aligned ? 0 : DTypeBytes(dtype));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      StoreElement(data, dtype, r * stride + c, values[static_cast<size_t>(r * cols + c)]);
    }
  }
  matrix.view = {data, dtype, rows, cols, stride, Device::kCpu};
  EXPECT_EQ(IsAlignedTo16Bytes(matrix.view), aligned);
  return matrix;
}

Weights SourceOf(const TensorView& view, bool clamp, Findings* findings) {
  *findings = {kNone, kNone};
  const float largest = view.dtype == DType::kF16    ? 65504.0f
                        : view.dtype == DType::kBF16 ? ToFloat(BF16{0x7F7F})
                                                     : 3.40282347e38f;
  return {view.data,      view.dtype, view.rows, view.cols, view.row_stride,
          3.40282347e38f, largest,    clamp,     findings};
}

std::vector<std::byte> BytesOf(const Buffer& buffer) {
  return {buffer.bytes().begin(), buffer.bytes().end()};
}

template <class Block>
void ExpectBlocks(const TensorView& view, Format format, const char* what) {
  auto want = Quantize(view, format);
  ASSERT_TRUE(want.ok()) << want.status().message();
  Findings findings;
  const Weights source = SourceOf(view, false, &findings);
  std::vector<Block> blocks(static_cast<size_t>(view.rows * view.cols / 32));
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int64_t col = 0; col < (view.cols + 511) / 512 * 512; col += 128) {
      EncodeWeights(HostWarp(), source, row, col, IsAlignedTo16Bytes(view), blocks.data());
    }
  }
  const auto bytes = std::as_bytes(std::span<const Block>(blocks));
  EXPECT_EQ(std::vector<std::byte>(bytes.begin(), bytes.end()), BytesOf(want->plane(Plane::kCodes)))
      << GetFormatInfo(format).name << ", " << what;
}

TEST(QuantizeHostTest, EncodesBlocksAsTheCpuDoes) {
  for (const char* input : kCases) {
    const std::vector<float> w = CaseFloats(input);
    for (const auto& [cols, dtype] : {std::pair<int64_t, DType>{512, DType::kF32},
                                      {32, DType::kF32},
                                      {160, DType::kF16},
                                      {1024, DType::kBF16}}) {
      const int64_t rows = std::min<int64_t>(kCaseWeights / cols, 9);
      for (const bool aligned : {true, false}) {
        const Matrix matrix = MatrixOf(w, rows, cols, dtype, aligned);
        ExpectBlocks<BlockQ8_0>(matrix.view, Format::kQ8_0, input);
        ExpectBlocks<BlockQ4_0>(matrix.view, Format::kQ4_0, input);
      }
    }
  }
}

// All planes of a scheme, by the kernels' phases.
std::array<std::vector<uint8_t>, kPlaneCount> QuantizePlanes(const TensorView& view,
                                                             const Scheme& scheme, bool clamp,
                                                             Findings* findings) {
  const HostWarp warp;
  std::array<std::vector<uint8_t>, kPlaneCount> planes;
  for (int p = 0; p < kPlaneCount; ++p) {
    planes[static_cast<size_t>(p)].resize(
        *PlaneBytes(scheme, static_cast<Plane>(p), view.rows, view.cols));
  }
  const auto plane = [&](Plane p) { return planes[static_cast<size_t>(p)].data(); };
  const int64_t groups = GroupsPerRow(scheme, view.cols);
  const bool one_scale = scheme.granularity == Granularity::kTensor;
  const int64_t scale_count = one_scale ? 1 : view.rows * groups;
  std::vector<float> exact(static_cast<size_t>(scale_count));
  const PlanarOut out = {
      scheme,
      groups,
      scheme.granularity == Granularity::kGroup ? scheme.group_size : view.cols,
      plane(Plane::kCodes),
      scheme.double_quant ? reinterpret_cast<uint8_t*>(exact.data()) : plane(Plane::kScales),
      plane(Plane::kZeros)};
  const Weights source = SourceOf(view, clamp, findings);
  const PlanarCodebook book = MakePlanarCodebook(scheme, nullptr);
  std::vector<Range> ranges;
  const auto of_row = [&](int64_t row) {
    constexpr int kParts = 8;
    Range parts[kParts];
    for (int w = 0; w < kParts; ++w) {
      parts[w] = RangeOfPart(warp, source, row, 0, view.cols, w, kParts);
    }
    return RangeOfAll(parts, 0, kParts, 1);
  };
  for (int64_t at = 0; at < view.rows * groups; ++at) {
    const Range range =
        groups == 1 ? of_row(at) : RangeOfGroup(warp, source, out, at / groups, at % groups);
    one_scale ? ranges.push_back(range) : FitAndStore(out, book, range, at, findings);
  }
  if (one_scale) {
    Range parts[4];
    for (int t = 0; t < 4; ++t) parts[t] = RangeOfAll(ranges.data(), t, view.rows, 4);
    FitAndStore(out, book, RangeOfAll(parts, 0, 4, 1), 0, findings);
  }
  Ranks ranks;
  for (int t = 0; t < 256; ++t) ranks.Fill(t, 256, book);
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int64_t col = 0; col < view.cols; col += 8) {
      ChooseEight(source, out, book, ranks, row, col, IsAlignedTo16Bytes(view));
    }
  }
  if (!scheme.double_quant) return planes;

  constexpr int kBlock = kScalesPerSuperBlock;
  ScaleCoder coder = {exact.data(), scale_count, nullptr, plane(Plane::kScales),
                      plane(Plane::kSuperScales)};
  std::vector<double> sums(static_cast<size_t>(coder.super_blocks()));
  coder.sums = sums.data();
  double lanes[kBlock];
  for (int64_t block = 0; block < coder.super_blocks(); ++block) {
    for (int t = 0; t < kBlock; ++t) lanes[t] = coder.ScaleOf(block, t);
    SumLanes(lanes);
    sums[static_cast<size_t>(block)] = lanes[0];
  }
  for (int t = 0; t < kBlock; ++t) lanes[t] = coder.SumsOf(t);
  SumLanes(lanes);
  coder.StoreMean(lanes[0]);
  for (int64_t block = 0; block < coder.super_blocks(); ++block) {
    float midpoints[256], maxima[ScaleCoder::kSuperBlockWarps];
    for (int w = 0; w < ScaleCoder::kSuperBlockWarps; ++w) {
      coder.FindMaximum(warp, w, block, midpoints, maxima);
    }
    for (int t = 0; t < kBlock; ++t) coder.Write(t, block, midpoints, maxima);
  }
  return planes;
}

constexpr const char* kSchemes[] = {
    "int4 sym g64 f16", "int4 asym g128 f16", "int8 sym channel",  "int8 asym channel",
    "int3 sym g32",     "int5 asym g64",      "int2 asym g64 f16", "int8 sym tensor",
    "int4 asym g20",    "int6 sym g12 bf16",  "int7 asym channel", "int1 asym g64",
    "nf4 g64",          "nf4 g64 double",     "fp4 g64",           "fp4 g64 double",
    "f8_e4m3 channel",  "f8_e5m2 tensor",     "f8_e4m3 g64"};

void ExpectPlanes(const TensorView& view, const char* name, const char* what) {
  const Scheme scheme = *ParseScheme(name);
  auto want = Quantize(view, scheme);
  ASSERT_TRUE(want.ok()) << want.status().message();
  Findings findings;
  const auto got = QuantizePlanes(view, scheme, false, &findings);
  EXPECT_EQ(findings.bad_weight, kNone);
  EXPECT_EQ(findings.bad_scale, kNone);
  for (int p = 0; p < kPlaneCount; ++p) {
    const auto bytes = want->plane(static_cast<Plane>(p)).bytes();
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
    EXPECT_EQ(got[static_cast<size_t>(p)], std::vector<uint8_t>(data, data + bytes.size()))
        << name << ", plane " << p << ", " << view.rows << " x " << view.cols << " "
        << DTypeName(view.dtype) << ", " << what;
  }
}

TEST(QuantizeHostTest, QuantizesPlanarSchemesAsTheCpuDoes) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{9, 512}, {5, 389}, {1, 7}}) {
    const std::vector<float> w = RandomValues(rows * cols, 5);
    for (const DType dtype : kTypes) {
      for (const bool aligned : {true, false}) {
        const Matrix matrix = MatrixOf(w, rows, cols, dtype, aligned);
        for (const char* name : kSchemes) ExpectPlanes(matrix.view, name, "random");
      }
    }
  }
  for (const char* input : kCases) {
    const std::vector<float> w = CaseFloats(input);
    const Matrix matrix = MatrixOf(w, 32, 512, DType::kF32, true);
    for (const char* name : kSchemes) ExpectPlanes(matrix.view, name, input);
  }
}

// Blocks' groups cover a row, and codes of each begin at bytes.
TEST(QuantizeHostTest, BlocksTakeWholeBytes) {
  for (int64_t group_size : {1, 12, 20, 32, 64, 128, 1000, 4096}) {
    const int64_t groups = GroupsOfBlock(group_size, 256);
    EXPECT_EQ(groups * group_size % 8, 0);
    EXPECT_GE(groups * group_size, 8 * 256);
    EXPECT_GE(groups, 8);
  }
}

// More scales than one turn of the block that sums the super-blocks' sums takes.
TEST(QuantizeHostTest, CodesManyScalesAsTheCpuDoes) {
  const int64_t rows = 70, cols = 64 * 1024;
  std::vector<float> w = RandomValues(1 << 16, 9);
  w.resize(static_cast<size_t>(rows * cols));
  for (size_t i = 1 << 16; i < w.size(); ++i) {
    w[i] = w[i & 0xFFFF] * std::ldexp(1.0f, static_cast<int>(i >> 16) % 40 - 30);
  }
  Scheme scheme = *ParseScheme("nf4 g64 double");
  scheme.group_size = 64;
  const TensorView view = ViewOf(std::as_const(w).data(), rows, cols);
  const auto want = Quantize(view, scheme);
  ASSERT_TRUE(want.ok());
  Findings findings;
  const auto got = QuantizePlanes(view, scheme, false, &findings);
  for (const Plane p : {Plane::kScales, Plane::kSuperScales}) {
    const auto* data = reinterpret_cast<const uint8_t*>(want->plane(p).data());
    EXPECT_EQ(got[static_cast<size_t>(p)],
              std::vector<uint8_t>(data, data + want->plane(p).size()));
  }
}

TEST(QuantizeHostTest, FindsTheFirstThatCannotBeQuantizedOrClamps) {
  std::vector<float> w = RandomValues(4 * 64, 6);
  w[2 * 64 + 9] = NAN;
  w[3 * 64] = INFINITY;
  const TensorView view = ViewOf(std::as_const(w).data(), 4, 64);
  for (const char* name : {"int8 sym channel", "nf4 g64", "f8_e4m3 tensor"}) {
    const Scheme scheme = *ParseScheme(name);
    Findings findings;
    QuantizePlanes(view, scheme, false, &findings);
    EXPECT_EQ(findings.bad_weight, 2u * 64 + 9) << name;
    QuantizeOptions options;
    options.non_finite = NonFinite::kClamp;
    const auto want = Quantize(view, scheme, options);
    ASSERT_TRUE(want.ok()) << want.status().message();
    const auto got = QuantizePlanes(view, scheme, true, &findings);
    EXPECT_EQ(findings.bad_weight, kNone);
    const auto* data = reinterpret_cast<const uint8_t*>(want->plane(Plane::kCodes).data());
    EXPECT_EQ(got[0], std::vector<uint8_t>(data, data + want->plane(Plane::kCodes).size())) << name;
  }
  for (float& x : w) x = 1e9f;
  Findings findings;
  QuantizePlanes(view, *ParseScheme("int4 sym g64 f16"), false, &findings);
  EXPECT_EQ(findings.bad_scale, 0u);
}

// --- Dequantizing --------------------------------------------------------------------------------

template <class Source>
void ExpectDecoded(Source source, const QuantizedTensor& tensor) {
  std::vector<float> shared(Source::kSharedBytes / sizeof(float) + 1);
  for (int t = 0; t < 256; ++t) source.Prepare(t, 256, shared.data());
  for (const DType dtype : kTypes) {
    Tensor want = *Tensor::Allocate(dtype, tensor.rows(), tensor.cols());
    ASSERT_TRUE(Dequantize(tensor, want.mutable_view()).ok());
    for (const bool aligned : {true, false}) {
      const int64_t stride = (tensor.cols() + 7) / 8 * 8 + (aligned ? 0 : 1);
      AlignedBytes out(static_cast<size_t>(tensor.rows() * stride) * DTypeBytes(dtype));
      for (int64_t row = 0; row < tensor.rows(); ++row) {
        for (int64_t col = 0; col < tensor.cols(); col += 8) {
          if (col + 8 <= tensor.cols()) {
            float eight[8];
            source.Eight(row, col, eight);
            StoreEight(out.data(), dtype, row * stride + col, eight, aligned);
          }
          for (int64_t c = col; c < std::min(col + 8, tensor.cols()); ++c) {
            const float got = col + 8 <= tensor.cols()
                                  ? LoadElement(out.data(), dtype, row * stride + c)
                                  : RoundTo(dtype, source.Weight(row, c));
            const float expected = LoadElement(want.view().Row(row), dtype, c);
            const float alone = RoundTo(dtype, source.Weight(row, c));
            ASSERT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected)))
                << NameOf(tensor) << " at " << row << ", " << c << ": " << got << " for "
                << expected;
            ASSERT_TRUE(alone == expected || (std::isnan(alone) && std::isnan(expected)))
                << NameOf(tensor) << " alone at " << row << ", " << c;
          }
        }
      }
    }
  }
}

TEST(DequantizeHostTest, DecodesBlocksAsTheCpuDoes) {
  for (const FormatInfo& info : AllFormats()) {
    if (!info.can_decode()) continue;
    QuantizedTensor tensor = *QuantizedTensor::Allocate(info.format, 2, info.block_weights * 9);
    const auto bytes = RandomBytes(7, tensor.bytes());
    std::memcpy(tensor.plane(Plane::kCodes).data(), bytes.data(), bytes.size());
    const auto* blocks = tensor.plane(Plane::kCodes).data();
    const bool known = VisitCodec(info.format, [&](auto codec) {
      using Codec = decltype(codec);
      ExpectDecoded(BlockSource<Codec>{reinterpret_cast<const typename Codec::Block*>(blocks),
                                       tensor.cols() / Codec::kWeights},
                    tensor);
    });
    EXPECT_TRUE(known || info.block_weights == 1) << info.name;
  }
}

TEST(DequantizeHostTest, DecodesPlanarSchemesAsTheCpuDoes) {
  for (const char* name : kSchemes) {
    const QuantizedTensor tensor = PlanarWeights(name, 7, 389);
    PlanarSource source = {};
    source.planes = PlanesOf(tensor);
    ExpectDecoded(source, tensor);
  }
  Scheme scheme = *ParseScheme("int4 asym g64 f16");
  scheme.has_group_index = true;
  std::vector<int32_t> index(192);
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int32_t>(i * 7 % 3);
  QuantizeOptions options;
  options.group_index = index;
  const QuantizedTensor indexed = PlanarWeights(scheme, 3, 192, options);
  PlanarSource source = {};
  source.planes = PlanesOf(indexed);
  ExpectDecoded(source, indexed);
}

TEST(DequantizeHostTest, DecodesAdditiveCodebooksAsTheCpuDoes) {
  for (const char* name : {"1x8g8 f16", "2x8g8 f16", "3x8g16 bf16", "1x16g8 f16", "2x8g32 f32"}) {
    const Scheme scheme = *ParseScheme(name);
    for (const int64_t cols : {256, 261}) {
      QuantizedTensor tensor = *QuantizedTensor::Allocate(scheme, 5, cols);
      for (const Plane p : {Plane::kCodes, Plane::kScales, Plane::kTable}) {
        Buffer& plane = tensor.plane(p);
        if (p == Plane::kCodes) {
          const auto bytes = RandomBytes(3, plane.size());
          std::memcpy(plane.data(), bytes.data(), bytes.size());
          continue;
        }
        const int64_t count = static_cast<int64_t>(plane.size() / DTypeBytes(scheme.scale_dtype));
        const std::vector<float> values = RandomValues(count, 11);
        for (int64_t i = 0; i < count; ++i) {
          StoreElement(plane.data(), scheme.scale_dtype, i, values[static_cast<size_t>(i)]);
        }
      }
      ExpectDecoded(AdditiveSource{PlanesOf(tensor)}, tensor);
    }
  }
}

}  // namespace
}  // namespace nibble::cuda
