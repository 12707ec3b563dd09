// Layouts of quantized Hugging Face folders, against packings written here from the layouts' own
// descriptions, and back to the bit.
#include "nibble/hf_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "nibble/quantize.h"
#include "nibble/safetensors.h"
#include "nlohmann/json.hpp"

namespace nibble {
namespace {

std::vector<float> Weights(int64_t rows, int64_t cols) {
  std::vector<float> w(static_cast<size_t>(rows * cols));
  uint32_t state = 7;
  for (float& x : w) {
    state = state * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return w;
}

QuantizedTensor Made(const std::string& scheme, int64_t rows, int64_t cols) {
  const std::vector<float> w = Weights(rows, cols);
  const Scheme parsed = *ParseScheme(scheme);
  QuantizeOptions options;
  std::vector<int32_t> index(static_cast<size_t>(cols));
  if (parsed.has_group_index) {  // every third column in the next group
    for (size_t j = 0; j < index.size(); ++j) {
      index[j] = static_cast<int32_t>(j * 3 % index.size()) / parsed.group_size;
    }
    options.group_index = index;
  }
  Result<QuantizedTensor> made = Quantize(ViewOf(w.data(), rows, cols), parsed, options);
  EXPECT_TRUE(made.ok()) << made.status().message();
  return *std::move(made);
}

std::vector<float> Decoded(const QuantizedTensor& matrix) {
  std::vector<float> w(static_cast<size_t>(matrix.rows() * matrix.cols()));
  EXPECT_TRUE(Dequantize(matrix, ViewOf(w.data(), matrix.rows(), matrix.cols())).ok());
  return w;
}

std::vector<HfTensor> Laid(HfLayout layout, const QuantizedTensor& matrix) {
  Result<std::vector<HfTensor>> tensors =
      ToHfTensors(HfQuantizationOf(layout, matrix.scheme()), matrix, DType::kF16);
  EXPECT_TRUE(tensors.ok()) << tensors.status().message();
  return *std::move(tensors);
}

template <class T>
std::vector<T> Values(const std::vector<HfTensor>& tensors, const std::string& suffix,
                      const std::vector<int64_t>& shape) {
  const auto it = std::ranges::find(tensors, suffix, &HfTensor::suffix);
  EXPECT_NE(it, tensors.end()) << suffix;
  if (it == tensors.end()) return {};
  EXPECT_EQ(it->shape, shape) << suffix;
  std::vector<T> values(it->data.size() / sizeof(T));
  std::memcpy(values.data(), it->data.data(), it->data.size());
  return values;
}

void ExpectSameBits(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(a[i]), std::bit_cast<uint32_t>(b[i])) << i;
  }
}

// The 32 codes of three words, as the kernels for 3 bits take them apart: ten whole codes in the
// first word and two bits of the next; its last bit, ten codes and one bit of the next; its last
// two bits and ten codes.
std::vector<int> ThreeBits(uint32_t a, uint32_t b, uint32_t c) {
  std::vector<int> codes;
  for (int i = 0; i < 10; ++i) codes.push_back(static_cast<int>(a >> (3 * i) & 7));
  codes.push_back(static_cast<int>((a >> 30 & 3) | (b & 1) << 2));
  for (int i = 0; i < 10; ++i) codes.push_back(static_cast<int>(b >> (3 * i + 1) & 7));
  codes.push_back(static_cast<int>((b >> 31 & 1) | (c & 3) << 1));
  for (int i = 0; i < 10; ++i) codes.push_back(static_cast<int>(c >> (3 * i + 2) & 7));
  return codes;
}

TEST(HfLayout, ThreeBitGptqLiesAsItsKernelsReadIt) {
  constexpr int64_t kRows = 64, kCols = 128, kGroups = 2;
  for (const char* name :
       {"int3 asym g64 f16", "int3 sym g64 f16", "int3 asym g64 f16 act-order"}) {
    const QuantizedTensor matrix = Made(name, kRows, kCols);
    const bool symmetric = matrix.scheme().symmetric;
    const auto tensors = Laid(HfLayout::kGptq, matrix);
    const auto words = Values<uint32_t>(tensors, "qweight", {kCols * 3 / 32, kRows});
    const auto zero_words = Values<uint32_t>(tensors, "qzeros", {kGroups, kRows * 3 / 32});
    const auto scales = Values<uint16_t>(tensors, "scales", {kGroups, kRows});
    const auto index = Values<int32_t>(tensors, "g_idx", {kCols});
    std::vector<float> decoded(kRows * kCols);
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t first = 0; first < kCols; first += 32) {
        const auto word = [&](int64_t k) {
          return words[static_cast<size_t>((first / 32 * 3 + k) * kRows + r)];
        };
        const std::vector<int> codes = ThreeBits(word(0), word(1), word(2));
        for (int64_t j = 0; j < 32; ++j) {
          const int32_t g = index[static_cast<size_t>(first + j)];
          const auto zero_word = [&](int64_t k) {
            return zero_words[static_cast<size_t>(g * (kRows * 3 / 32) + r / 32 * 3 + k)];
          };
          const int zero =
              ThreeBits(zero_word(0), zero_word(1), zero_word(2))[static_cast<size_t>(r % 32)] +
              (symmetric ? 1 : 0);
          const float scale = ToFloat(F16{scales[static_cast<size_t>(g * kRows + r)]});
          decoded[static_cast<size_t>(r * kCols + first + j)] =
              scale * static_cast<float>(codes[static_cast<size_t>(j)] - zero);
        }
      }
    }
    ExpectSameBits(decoded, Decoded(matrix));
  }
}

// AutoAWQ packs the rows of each eight in the order 0 2 4 6 1 3 5 7, and lays codes out by column.
TEST(HfLayout, AwqLiesInItsOwnOrder) {
  constexpr int64_t kRows = 24, kCols = 96, kGroups = 3;
  constexpr int kOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  for (const char* name : {"int4 asym g32 f16", "int4 sym g32 f16"}) {
    const QuantizedTensor matrix = Made(name, kRows, kCols);
    const auto tensors = Laid(HfLayout::kAwq, matrix);
    EXPECT_EQ(tensors.size(), 3u);
    const auto words = Values<uint32_t>(tensors, "qweight", {kCols, kRows / 8});
    const auto zero_words = Values<uint32_t>(tensors, "qzeros", {kGroups, kRows / 8});
    const auto scales = Values<uint16_t>(tensors, "scales", {kGroups, kRows});
    std::vector<float> decoded(kRows * kCols);
    for (int64_t j = 0; j < kCols; ++j) {
      for (int64_t w = 0; w < kRows / 8; ++w) {
        for (int i = 0; i < 8; ++i) {
          const int64_t r = w * 8 + kOrder[i], g = j / 32;
          const int code = static_cast<int>(words[static_cast<size_t>(j * 3 + w)] >> (4 * i) & 15);
          const int zero =
              static_cast<int>(zero_words[static_cast<size_t>(g * 3 + w)] >> (4 * i) & 15);
          const float scale = ToFloat(F16{scales[static_cast<size_t>(g * kRows + r)]});
          decoded[static_cast<size_t>(r * kCols + j)] = scale * static_cast<float>(code - zero);
        }
      }
    }
    ExpectSameBits(decoded, Decoded(matrix));
  }
}

TEST(HfLayout, BitsAndBytesKeepsItsState) {
  constexpr int64_t kRows = 10, kCols = 128;
  for (const char* name : {"nf4 g64", "fp4 g32", "nf4 g64 double", "fp4 g64 double"}) {
    const QuantizedTensor matrix = Made(name, kRows, kCols);
    const Scheme& scheme = matrix.scheme();
    const int64_t blocks = kRows * kCols / scheme.group_size;
    const auto tensors = Laid(HfLayout::kBitsAndBytes, matrix);
    const auto codes = Values<uint8_t>(tensors, "weight", {kRows * kCols / 2, 1});
    const auto map = Values<float>(tensors, "weight.quant_map", {16});
    const std::string type = scheme.code == Code::kNf4 ? "nf4" : "fp4";
    const auto it =
        std::ranges::find(tensors, "weight.quant_state.bitsandbytes__" + type, &HfTensor::suffix);
    ASSERT_NE(it, tensors.end());
    const auto state = nlohmann::json::parse(
        std::string(reinterpret_cast<const char*>(it->data.data()), it->data.size()));
    EXPECT_EQ(state["quant_type"], type);
    EXPECT_EQ(state["blocksize"], scheme.group_size);
    EXPECT_EQ(state["dtype"], "float16");
    EXPECT_EQ(state["shape"], (std::vector<int64_t>{kRows, kCols}));
    std::vector<float> scales;
    if (scheme.double_quant) {
      const auto absmax = Values<uint8_t>(tensors, "weight.absmax", {blocks});
      const auto nested = Values<float>(tensors, "weight.nested_absmax", {1});
      const auto dynamic = Values<float>(tensors, "weight.nested_quant_map", {256});
      EXPECT_EQ(state["nested_blocksize"], 256);
      for (const uint8_t code : absmax) {
        scales.push_back(dynamic[code] * nested[0] + state["nested_offset"].get<float>());
      }
    } else {
      scales = Values<float>(tensors, "weight.absmax", {blocks});
      EXPECT_FALSE(state.contains("nested_offset"));
    }
    std::vector<float> decoded(kRows * kCols);
    for (size_t i = 0; i < decoded.size(); ++i) {  // the high half of a byte first
      const int code = i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
      decoded[i] =
          scales[i / static_cast<size_t>(scheme.group_size)] * map[static_cast<size_t>(code)];
    }
    ExpectSameBits(decoded, Decoded(matrix));
  }
}

TEST(HfLayout, RowsOfInt8) {
  constexpr int64_t kRows = 6, kCols = 32;
  const QuantizedTensor matrix = Made("int8 sym channel", kRows, kCols);
  const std::vector<float> w = Weights(kRows, kCols), exact = Decoded(matrix);
  const auto rows = Laid(HfLayout::kBitsAndBytes, matrix);
  const auto codes = Values<int8_t>(rows, "weight", {kRows, kCols});
  const auto maxima = Values<float>(rows, "SCB", {kRows});
  EXPECT_EQ(Values<uint8_t>(rows, "weight_format", {}), std::vector<uint8_t>{0});
  const auto tokens = Laid(HfLayout::kCompressedTensors, matrix);
  EXPECT_EQ(Values<int8_t>(tokens, "weight", {kRows, kCols}), codes);
  const auto scales = Values<float>(tokens, "weight_scale", {kRows, 1});
  for (int64_t r = 0; r < kRows; ++r) {
    float largest = 0;
    for (int64_t j = 0; j < kCols; ++j) {
      const size_t i = static_cast<size_t>(r * kCols + j);
      largest = std::max(largest, std::fabs(w[i]));
      EXPECT_EQ(scales[static_cast<size_t>(r)] * codes[i], exact[i]);
      EXPECT_NEAR(maxima[static_cast<size_t>(r)] * codes[i] / 127, exact[i], 2e-7);
    }
    EXPECT_NEAR(maxima[static_cast<size_t>(r)], largest, 2e-7);
  }
}

TEST(HfLayout, ComesBackToTheBit) {
  const auto check = [](HfLayout layout, const char* name, int64_t rows, int64_t cols) {
    SCOPED_TRACE(std::string(GetHfLayoutInfo(layout).name) + " " + name);
    const QuantizedTensor matrix = Made(name, rows, cols);
    const HfQuantization quantization = HfQuantizationOf(layout, matrix.scheme());
    const auto tensors = Laid(layout, matrix);
    const auto shape = HfShapeOf(quantization, tensors);
    ASSERT_TRUE(shape.ok()) << shape.status().message();
    EXPECT_EQ(shape->rows, rows);
    EXPECT_EQ(shape->cols, cols);
    const auto back = FromHfTensors(quantization, tensors);
    ASSERT_TRUE(back.ok()) << back.status().message();
    ExpectSameBits(Decoded(*back), Decoded(matrix));
    if (layout == HfLayout::kAwq) return;  // has no symmetric codes
    EXPECT_EQ(SchemeName(back->scheme()), name);
    for (int p = 0; p < kPlaneCount; ++p) {
      EXPECT_TRUE(std::ranges::equal(back->plane(static_cast<Plane>(p)).bytes(),
                                     matrix.plane(static_cast<Plane>(p)).bytes()))
          << p;
    }
  };
  for (const char* name :
       {"int2 sym g64 f16", "int3 sym g64 f16", "int4 sym g64 f16", "int8 sym g64 f16",
        "int2 asym g64 f16", "int3 asym g64 f16", "int4 asym g64 f16", "int8 asym g64 f16",
        "int3 asym channel f16", "int4 sym channel f16", "int4 asym g64 f16 act-order",
        "int3 sym g64 f16 act-order", "int4 asym g96 f16"}) {
    check(HfLayout::kGptq, name, 32, 256);
  }
  for (const char* name : {"int4 asym g64 f16", "int4 sym g64 f16", "int4 asym channel f16"}) {
    check(HfLayout::kAwq, name, 24, 128);
  }
  for (const char* name : {"nf4 g64", "nf4 g64 double", "fp4 g128", "fp4 g32 double"}) {
    check(HfLayout::kBitsAndBytes, name, 40, 512);
  }
  for (const char* name : {"int8 sym channel", "int8 sym tensor", "int8 sym channel bf16",
                           "f8_e4m3 channel", "f8_e4m3 tensor"}) {
    check(HfLayout::kCompressedTensors, name, 12, 40);
  }
  for (const char* name : {"2x8g8 channel f16", "1x8g16 channel bf16", "3x8g32 channel"}) {
    check(HfLayout::kAqlm, name, 12, 96);
  }
}

// What bitsandbytes itself saved and read back: see reference/bitsandbytes_layout.py.
TEST(HfLayout, IsWhatBitsAndBytesSaves) {
  constexpr int64_t kRows = 4, kCols = 256;
  const auto file = SafetensorsFile::Open(NIBBLE_TEST_DATA "/bitsandbytes_layout.safetensors");
  ASSERT_TRUE(file.ok()) << file.status().message();
  const std::vector<float> w = Weights(kRows, kCols);
  for (const char* name :
       {"nf4 g64", "nf4 g64 double", "fp4 g64", "fp4 g64 double", "int8 sym channel"}) {
    SCOPED_TRACE(name);
    const Scheme scheme = *ParseScheme(name);
    std::string prefix = std::string(name).substr(0, 3) + (scheme.double_quant ? "_nested." : ".");
    if (scheme.bits == 8) prefix = "int8.";
    std::vector<HfTensor> saved;
    std::vector<float> exact;
    for (const SafetensorsTensor& tensor : file->tensors()) {
      if (!tensor.name.starts_with(prefix)) continue;
      const std::string suffix = tensor.name.substr(prefix.size());
      if (suffix == "exact") {
        exact.resize(kRows * kCols);
        ASSERT_EQ(tensor.data.size(), exact.size() * sizeof(float));
        std::memcpy(exact.data(), tensor.data.data(), tensor.data.size());
      } else {
        saved.push_back({suffix, tensor.dtype, tensor.shape, Buffer::Borrow(tensor.data)});
      }
    }
    const HfQuantization quantization = HfQuantizationOf(HfLayout::kBitsAndBytes, scheme);
    const auto read = FromHfTensors(quantization, saved);
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(SchemeName(read->scheme()), name);
    const std::vector<float> decoded = Decoded(*read);
    if (scheme.bits == 8) {  // 127 times the scale is what lies there: rounded once more
      for (size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(decoded[i], exact[i], 2e-7) << i;
      continue;  // codes of weights in f16: not those of ours
    }
    ExpectSameBits(decoded, exact);

    const auto made = Quantize(ViewOf(w.data(), kRows, kCols), scheme);
    ASSERT_TRUE(made.ok());
    const auto ours = ToHfTensors(quantization, *made, DType::kF32);
    ASSERT_TRUE(ours.ok());
    ASSERT_EQ(ours->size(), saved.size());
    for (const HfTensor& tensor : *ours) {
      const auto it = std::ranges::find(saved, tensor.suffix, &HfTensor::suffix);
      ASSERT_NE(it, saved.end()) << tensor.suffix;
      EXPECT_EQ(it->dtype, tensor.dtype) << tensor.suffix;
      const auto json = [](const HfTensor& t) {
        return nlohmann::json::parse(
            std::string(reinterpret_cast<const char*>(t.data.data()), t.data.size()));
      };
      if (tensor.suffix.starts_with("weight.quant_state")) {
        EXPECT_EQ(json(tensor), json(*it));
      } else {
        EXPECT_EQ(it->shape, tensor.shape) << tensor.suffix;
        EXPECT_TRUE(std::ranges::equal(it->data.bytes(), tensor.data.bytes())) << tensor.suffix;
      }
    }
  }
}

// As AQLM's own layers decode: the sum of the entries that a vector's codes name, times the scale
// of the row.
TEST(HfLayout, AqlmLiesAsItsLayersHaveIt) {
  constexpr int64_t kRows = 24, kCols = 48;
  const QuantizedTensor matrix = Made("2x8g8 f16", kRows, kCols);
  const auto tensors = Laid(HfLayout::kAqlm, matrix);
  const auto codes = Values<int8_t>(tensors, "codes", {kRows, kCols / 8, 2});
  const auto books = Values<F16>(tensors, "codebooks", {2, 256, 1, 8});
  const auto scales = Values<F16>(tensors, "scales", {kRows, 1, 1, 1});
  std::vector<float> decoded(kRows * kCols);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t j = 0; j < kCols; ++j) {
      const auto entry = [&](int64_t c) {
        const int64_t code = codes[static_cast<size_t>((r * (kCols / 8) + j / 8) * 2 + c)] & 255;
        return ToFloat(books[static_cast<size_t>((c * 256 + code) * 8 + j % 8)]);
      };
      decoded[static_cast<size_t>(r * kCols + j)] =
          (entry(0) + entry(1)) * ToFloat(scales[static_cast<size_t>(r)]);
    }
  }
  ExpectSameBits(decoded, Decoded(matrix));
}

TEST(HfLayout, TellsWhichSchemesItHolds) {
  const auto found = [](const char* scheme) { return FindHfLayout(*ParseScheme(scheme)); };
  EXPECT_EQ(*found("int4 sym g128 f16"), HfLayout::kGptq);
  EXPECT_EQ(*found("nf4 g64 double"), HfLayout::kBitsAndBytes);
  EXPECT_EQ(*found("int8 sym channel"), HfLayout::kBitsAndBytes);
  EXPECT_EQ(*found("int8 sym tensor"), HfLayout::kCompressedTensors);
  EXPECT_EQ(*found("2x8g8 f16"), HfLayout::kAqlm);
  const Status none = found("int5 sym g128").status();
  EXPECT_EQ(none.code(), StatusCode::kUnsupported);
  for (const HfLayoutInfo& info : AllHfLayouts()) {
    EXPECT_NE(none.message().find(info.name), std::string::npos) << none.message();
    EXPECT_EQ(*ParseHfLayout(info.name), info.layout);
  }
  EXPECT_EQ(*ParseHfLayout("AWQ"), HfLayout::kAwq);
  EXPECT_FALSE(ParseHfLayout("exl2").ok());
  const auto refuses = [](HfLayout layout, const char* scheme) {
    return CheckHfLayout(layout, *ParseScheme(scheme)).code() == StatusCode::kUnsupported;
  };
  EXPECT_TRUE(refuses(HfLayout::kGptq, "int5 sym g128 f16"));
  EXPECT_TRUE(refuses(HfLayout::kGptq, "int4 sym g128"));
  EXPECT_TRUE(refuses(HfLayout::kGptq, "int4 asym g128 f16 zf16"));
  EXPECT_TRUE(refuses(HfLayout::kGptq, "int4 sym tensor f16"));
  EXPECT_TRUE(refuses(HfLayout::kAwq, "int3 asym g128 f16"));
  EXPECT_TRUE(refuses(HfLayout::kAwq, "int4 asym g128 f16 act-order"));
  EXPECT_TRUE(refuses(HfLayout::kBitsAndBytes, "nf4 g48"));
  EXPECT_TRUE(refuses(HfLayout::kBitsAndBytes, "nf4 channel"));
  EXPECT_TRUE(refuses(HfLayout::kBitsAndBytes, "int8 asym channel"));
  EXPECT_TRUE(refuses(HfLayout::kCompressedTensors, "int8 sym g128"));
  EXPECT_TRUE(refuses(HfLayout::kCompressedTensors, "f8_e5m2 channel"));
}

TEST(HfLayout, RefusesShapesWithoutAPlace) {
  const auto fits = [](HfLayout layout, const char* scheme, int64_t rows, int64_t cols) {
    return HfTensorsOf(HfQuantizationOf(layout, *ParseScheme(scheme)), rows, cols).ok();
  };
  EXPECT_TRUE(fits(HfLayout::kGptq, "int4 sym g128 f16", 8, 8));
  EXPECT_FALSE(fits(HfLayout::kGptq, "int4 sym g128 f16", 12, 8));
  EXPECT_FALSE(fits(HfLayout::kGptq, "int3 sym g128 f16", 32, 48));
  EXPECT_TRUE(fits(HfLayout::kAwq, "int4 asym g32 f16", 8, 32));
  EXPECT_FALSE(fits(HfLayout::kAwq, "int4 asym g32 f16", 8, 48));
  EXPECT_FALSE(fits(HfLayout::kBitsAndBytes, "nf4 g64", 8, 96));
  EXPECT_FALSE(fits(HfLayout::kCompressedTensors, "int8 sym channel", 0, 96));
  EXPECT_TRUE(fits(HfLayout::kAqlm, "1x16g8 f16", 3, 24));
  EXPECT_FALSE(fits(HfLayout::kAqlm, "1x16g8 f16", 3, 20));
}

// What a damaged file's tensors say of each other.
TEST(HfLayout, RefusesDamage) {
  const auto code = [](HfLayout layout, const char* scheme,
                       const std::function<void(std::vector<HfTensor>&)>& damage) {
    const QuantizedTensor matrix = Made(scheme, 32, 128);
    auto tensors = Laid(layout, matrix);
    damage(tensors);
    return FromHfTensors(HfQuantizationOf(layout, matrix.scheme()), tensors).status().code();
  };
  const auto resized = [](size_t i, std::vector<int64_t> shape) {
    return [=](std::vector<HfTensor>& tensors) {
      tensors[i].shape = shape;
      size_t bytes = DTypeBytes(tensors[i].dtype);
      for (const int64_t size : shape) bytes *= static_cast<size_t>(size);
      tensors[i].data = *Buffer::Allocate(bytes);
    };
  };
  using Tensors = std::vector<HfTensor>;
  for (const HfLayout layout : {HfLayout::kGptq, HfLayout::kAwq}) {
    const char* scheme = "int4 asym g64 f16";
    EXPECT_EQ(code(layout, scheme, [](Tensors&) {}), StatusCode::kOk);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(code(layout, scheme, [i](Tensors& t) { t.erase(t.begin() + static_cast<int>(i)); }),
                StatusCode::kCorrupt);
      EXPECT_EQ(code(layout, scheme, resized(i, {3, 5})), StatusCode::kCorrupt);
      EXPECT_EQ(code(layout, scheme, resized(i, {7})), StatusCode::kCorrupt);
      EXPECT_EQ(code(layout, scheme, [i](Tensors& t) { t[i].dtype = DType::kI16; }),
                StatusCode::kCorrupt);
      EXPECT_EQ(code(layout, scheme, [i](Tensors& t) { t[i].shape[0] = INT64_MAX; }),
                StatusCode::kCorrupt);
      EXPECT_EQ(code(layout, scheme, [i](Tensors& t) { t[i].shape[0] = -1; }),
                StatusCode::kCorrupt);
    }
  }
  const auto index = [](int32_t value) {
    return [value](Tensors& t) { std::memcpy(t[3].data.data() + 8, &value, 4); };
  };
  EXPECT_EQ(code(HfLayout::kGptq, "int4 asym g64 f16", index(2)), StatusCode::kCorrupt);
  EXPECT_EQ(code(HfLayout::kGptq, "int4 asym g64 f16", index(-1)), StatusCode::kCorrupt);
  EXPECT_EQ(code(HfLayout::kGptq, "int4 asym g64 f16", index(1)), StatusCode::kOk);
  EXPECT_EQ(code(HfLayout::kGptq, "int4 asym channel f16", index(1)), StatusCode::kCorrupt);

  const char* nested = "nf4 g64 double";
  EXPECT_EQ(code(HfLayout::kBitsAndBytes, nested, [](Tensors&) {}), StatusCode::kOk);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_NE(code(HfLayout::kBitsAndBytes, nested,
                   [i](Tensors& t) { t.erase(t.begin() + static_cast<int>(i)); }),
              StatusCode::kOk)
        << i;
    EXPECT_NE(code(HfLayout::kBitsAndBytes, nested, resized(i, {5})), StatusCode::kOk) << i;
  }
  for (const size_t map : {size_t{2}, size_t{5}}) {
    EXPECT_EQ(code(HfLayout::kBitsAndBytes, nested,
                   [map](Tensors& t) {
                     const float other = 0.3f;
                     std::memcpy(t[map].data.data() + 8, &other, 4);
                   }),
              StatusCode::kUnsupported);
  }
  const auto state = [](const std::string& text) {
    return [text](Tensors& t) {
      t[3].shape = {static_cast<int64_t>(text.size())};
      t[3].data = *Buffer::Allocate(text.size());
      std::memcpy(t[3].data.data(), text.data(), text.size());
    };
  };
  const std::string head = R"({"quant_type":"nf4","dtype":"float16",)";
  const std::string tail = R"(,"nested_blocksize":256,"nested_offset":0.5})";
  EXPECT_EQ(code(HfLayout::kBitsAndBytes, nested,
                 state(head + R"("blocksize":64,"shape":[32,128])" + tail)),
            StatusCode::kOk);
  for (const char* middle :
       {R"("blocksize":64)", R"("blocksize":64,"shape":[32])",
        R"("blocksize":64,"shape":[-32,128])", R"("blocksize":64,"shape":[32,0])",
        R"("blocksize":64,"shape":[4096,4294967296])", R"("blocksize":64,"shape":[64,128])",
        R"("blocksize":0,"shape":[32,128])", R"("blocksize":48,"shape":[32,128])",
        R"("shape":[32,128])", R"("blocksize":"a","shape":[32,128])"}) {
    EXPECT_NE(code(HfLayout::kBitsAndBytes, nested, state(head + middle + tail)), StatusCode::kOk)
        << middle;
  }
  EXPECT_NE(code(HfLayout::kBitsAndBytes, nested, state("[]")), StatusCode::kOk);
  EXPECT_NE(code(HfLayout::kBitsAndBytes, nested, state("{")), StatusCode::kOk);

  const char* books = "2x8g8 f16";
  EXPECT_EQ(code(HfLayout::kAqlm, books, [](Tensors&) {}), StatusCode::kOk);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(
        code(HfLayout::kAqlm, books, [i](Tensors& t) { t.erase(t.begin() + static_cast<int>(i)); }),
        StatusCode::kCorrupt);
    for (const std::vector<int64_t>& shape :
         {std::vector<int64_t>{3, 5}, {32, 16, 3}, {31, 16, 2}, {0, 16, 2}, {2, 256, 1, 4}}) {
      EXPECT_EQ(code(HfLayout::kAqlm, books, resized(i, shape)), StatusCode::kCorrupt) << i;
    }
    EXPECT_NE(code(HfLayout::kAqlm, books, [i](Tensors& t) { t[i].dtype = DType::kI16; }),
              StatusCode::kOk);
    for (const int64_t size : {INT64_MAX, int64_t{-1}}) {
      EXPECT_EQ(code(HfLayout::kAqlm, books, [=](Tensors& t) { t[i].shape[1] = size; }),
                StatusCode::kCorrupt);
    }
  }

  const char* rows = "int8 sym channel";
  EXPECT_EQ(code(HfLayout::kBitsAndBytes, rows, resized(1, {31})), StatusCode::kCorrupt);
  EXPECT_EQ(
      code(HfLayout::kBitsAndBytes, rows, [](Tensors& t) { t[2].data.data()[0] = std::byte{2}; }),
      StatusCode::kUnsupported);
  EXPECT_NE(code(HfLayout::kCompressedTensors, rows, resized(1, {31, 1})), StatusCode::kOk);
  EXPECT_NE(code(HfLayout::kCompressedTensors, rows, [](Tensors& t) { t.pop_back(); }),
            StatusCode::kOk);
  EXPECT_NE(code(HfLayout::kCompressedTensors, rows, [](Tensors& t) { t[0].dtype = DType::kU8; }),
            StatusCode::kOk);
}

}  // namespace
}  // namespace nibble
