// The C interface gives what the C++ interface gives, and turns every failure into a status.
#include "nibble/c_api.h"

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "lib/core/c_api.h"
#include "nibble/format.h"
#include "nibble/gguf.h"
#include "nibble/quantize.h"
#include "nibble/scheme.h"
#include "tests/c_api_weights.h"
#include "tests/temporary_folder.h"

namespace {

// One std::thread an index: slow, and certainly not the calling thread.
void RunOnThreads(void* context, int64_t count, nibble_task task, void* argument) {
  *static_cast<std::atomic<int64_t>*>(context) += count;
  for (int64_t i = 0; i < count; ++i) std::thread([=] { task(argument, i, 1); }).join();
}

TEST(CApi, ListsTheFormatsOfTheTable) {
  ASSERT_EQ(nibble_format_count(), nibble::AllFormats().size());
  for (size_t i = 0; i < nibble_format_count(); ++i) {
    const nibble::FormatInfo& expected = nibble::AllFormats()[i];
    nibble_format_info at, by_id, by_name;
    ASSERT_EQ(nibble_format_at(i, &at, nullptr), NIBBLE_OK);
    ASSERT_EQ(nibble_format_by_id(at.id, &by_id, nullptr), NIBBLE_OK);
    ASSERT_EQ(nibble_format_by_name(expected.name, &by_name, nullptr), NIBBLE_OK);
    for (const nibble_format_info& info : {at, by_id, by_name}) {
      EXPECT_EQ(info.id, static_cast<uint32_t>(expected.format));
      EXPECT_STREQ(info.name, expected.name);
      EXPECT_EQ(info.block_weights, expected.block_weights);
      EXPECT_EQ(info.block_bytes, expected.block_bytes);
      EXPECT_EQ(info.can_encode, expected.can_encode());
      EXPECT_EQ(info.can_decode, expected.can_decode());
    }
  }
  nibble_error error;
  nibble_format_info info;
  EXPECT_EQ(nibble_format_at(nibble_format_count(), &info, &error), NIBBLE_NOT_FOUND);
  EXPECT_EQ(nibble_format_by_id(99999, &info, &error), NIBBLE_NOT_FOUND);
  EXPECT_STREQ(error.message, "no format has number 99999");
  EXPECT_EQ(nibble_format_by_name("q9_9", &info, &error), NIBBLE_NOT_FOUND);
  EXPECT_EQ(nibble_format_by_name(nullptr, &info, &error), NIBBLE_INVALID_ARGUMENT);
}

TEST(CApi, QuantizesAsCppDoesOnTheCallersThreads) {
  const std::vector<float> weights = Weights();
  std::vector<float> importance(kCols);
  for (int64_t i = 0; i < kCols; ++i) importance[i] = 1.0f + static_cast<float>(i % 5);
  for (const nibble::FormatInfo& info : nibble::AllFormats()) {
    if (info.use != nibble::FormatUse::kWeight) continue;
    SCOPED_TRACE(info.name);
    const uint32_t id = static_cast<uint32_t>(info.format);
    nibble_error error;
    size_t bytes = 0;
    ASSERT_EQ(nibble_format_bytes(id, kRows, kCols, &bytes, &error), NIBBLE_OK);

    nibble::QuantizeOptions cpp_options;
    cpp_options.importance = importance;
    const auto expected =
        nibble::Quantize(nibble::ViewOf(weights.data(), kRows, kCols), info.format, cpp_options);
    ASSERT_TRUE(expected.ok()) << expected.status().message();
    ASSERT_EQ(expected->bytes(), bytes);

    std::atomic<int64_t> tasks = 0;
    nibble_quantize_options options = {};
    options.importance = importance.data();
    options.parallel = {RunOnThreads, &tasks, 2, nullptr};
    std::vector<std::byte> blocks(bytes);
    ASSERT_EQ(nibble_quantize(MatrixOf(weights), id, blocks.data(), bytes, &options, &error),
              NIBBLE_OK)
        << error.message;
    EXPECT_STREQ(error.message, "");
    EXPECT_EQ(std::memcmp(blocks.data(), expected->plane(nibble::Plane::kCodes).data(), bytes), 0);

    std::vector<float> decoded(weights.size()), expected_decoded(weights.size());
    ASSERT_EQ(nibble_dequantize(id, blocks.data(), bytes,
                                {decoded.data(), NIBBLE_F32, kRows, kCols, 0, NIBBLE_DEVICE_CPU},
                                &options.parallel, &error),
              NIBBLE_OK)
        << error.message;
    ASSERT_TRUE(
        nibble::Dequantize(*expected, nibble::ViewOf(expected_decoded.data(), kRows, kCols)).ok());
    EXPECT_EQ(std::memcmp(decoded.data(), expected_decoded.data(), decoded.size() * sizeof(float)),
              0);
    EXPECT_GT(tasks.load(), 0);
  }
}

TEST(CApi, HandlesHoldFormatsAndSchemesAlike) {
  const std::vector<float> weights = Weights();
  for (const char* type : {"q8_0", "int4 sym g64 f16", "int8 asym channel", "nf4 g64 double"}) {
    SCOPED_TRACE(type);
    nibble_error error;
    nibble_tensor* tensor = nullptr;
    ASSERT_EQ(nibble_tensor_quantize(MatrixOf(weights), type, nullptr, &tensor, &error), NIBBLE_OK)
        << error.message;
    EXPECT_EQ(nibble_tensor_rows(tensor), kRows);
    EXPECT_EQ(nibble_tensor_cols(tensor), kCols);

    const void* planes[NIBBLE_PLANE_COUNT];
    size_t plane_bytes[NIBBLE_PLANE_COUNT], total = 0;
    for (int i = 0; i < NIBBLE_PLANE_COUNT; ++i) {
      planes[i] = nibble_tensor_plane(tensor, static_cast<nibble_plane>(i), &plane_bytes[i]);
      total += plane_bytes[i];
    }
    EXPECT_EQ(total, nibble_tensor_bytes(tensor));

    // A handle around the same planes decodes to the same weights.
    nibble_tensor* borrowed = nullptr;
    ASSERT_EQ(nibble_tensor_borrow(type, kRows, kCols, NIBBLE_DEVICE_CPU, planes, plane_bytes,
                                   &borrowed, &error),
              NIBBLE_OK)
        << error.message;
    std::vector<float> a(weights.size()), b(weights.size(), -1);
    EXPECT_EQ(
        nibble_tensor_dequantize(tensor, {a.data(), NIBBLE_F32, kRows, kCols, 0, NIBBLE_DEVICE_CPU},
                                 nullptr, &error),
        NIBBLE_OK);
    EXPECT_EQ(
        nibble_tensor_dequantize(
            borrowed, {b.data(), NIBBLE_F32, kRows, kCols, 0, NIBBLE_DEVICE_CPU}, nullptr, &error),
        NIBBLE_OK);
    EXPECT_EQ(a, b);
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], weights[i], 0.02f);

    ++plane_bytes[0];
    nibble_tensor* refused = nullptr;
    EXPECT_EQ(nibble_tensor_borrow(type, kRows, kCols, NIBBLE_DEVICE_CPU, planes, plane_bytes,
                                   &refused, &error),
              NIBBLE_INVALID_ARGUMENT);
    EXPECT_EQ(refused, nullptr);
    nibble_tensor_free(borrowed);
    nibble_tensor_free(tensor);
  }
  nibble_tensor_free(nullptr);
}

TEST(CApi, MultipliesAsTheDecodedWeightsDo) {
  const std::vector<float> weights = Weights();
  nibble_error error;
  nibble_tensor* tensor = nullptr;
  ASSERT_EQ(nibble_tensor_quantize(MatrixOf(weights), "q8_0", nullptr, &tensor, &error), NIBBLE_OK);
  std::vector<float> decoded(weights.size());
  ASSERT_EQ(nibble_tensor_dequantize(
                tensor, {decoded.data(), NIBBLE_F32, kRows, kCols, 0, NIBBLE_DEVICE_CPU}, nullptr,
                &error),
            NIBBLE_OK);
  std::vector<float> activations(2 * kCols), out(2 * kRows, 1.0f), bias(kRows, 0.25f);
  for (size_t i = 0; i < activations.size(); ++i) {
    activations[i] = std::cos(static_cast<float>(i));
  }
  nibble_matmul_options options = {};
  options.precision = NIBBLE_PRECISION_F32;
  options.accumulate = 1;
  options.bias = bias.data();
  ASSERT_EQ(
      nibble_matmul({activations.data(), NIBBLE_F32, 2, kCols, 0, NIBBLE_DEVICE_CPU}, tensor,
                    {out.data(), NIBBLE_F32, 2, kRows, 0, NIBBLE_DEVICE_CPU}, &options, &error),
      NIBBLE_OK)
      << error.message;
  for (int64_t m = 0; m < 2; ++m) {
    for (int64_t n = 0; n < kRows; ++n) {
      double sum = 1.25, magnitude = 1.25;
      for (int64_t k = 0; k < kCols; ++k) {
        const double term = double{activations[m * kCols + k]} * decoded[n * kCols + k];
        sum += term;
        magnitude += std::fabs(term);
      }
      // Sums of f32 products: the error grows at most with the number of terms.
      EXPECT_NEAR(out[m * kRows + n], sum, magnitude * kCols * 6e-8);
    }
  }
  options.precision = static_cast<nibble_precision>(9);
  EXPECT_EQ(
      nibble_matmul({activations.data(), NIBBLE_F32, 2, kCols, 0, NIBBLE_DEVICE_CPU}, tensor,
                    {out.data(), NIBBLE_F32, 2, kRows, 0, NIBBLE_DEVICE_CPU}, &options, &error),
      NIBBLE_INVALID_ARGUMENT);
  nibble_tensor_free(tensor);
}

TEST(CApi, MultipliesGroupsOfPlainAndPackedWeights) {
  const std::vector<float> weights = Weights();
  nibble_error error;
  nibble_tensor* tensor = nullptr;
  nibble_packed *packed = nullptr, *mapped = nullptr;
  ASSERT_EQ(nibble_tensor_quantize(MatrixOf(weights), "q8_0", nullptr, &tensor, &error), NIBBLE_OK);
  ASSERT_EQ(nibble_pack(tensor, NIBBLE_PRECISION_F32, nullptr, &packed, &error), NIBBLE_OK);
  size_t bytes = 0;
  const void* data = nibble_packed_bytes(packed, &bytes);
  ASSERT_EQ(nibble_packed_borrow(data, bytes, &mapped, &error), NIBBLE_OK) << error.message;
  EXPECT_EQ(nibble_packed_borrow(data, bytes - 1, &mapped, &error), NIBBLE_CORRUPT);

  std::vector<float> activations(2 * kCols), single(2 * kRows), bias(kRows, 0.25f);
  for (size_t i = 0; i < activations.size(); ++i) {
    activations[i] = std::cos(static_cast<float>(i));
  }
  const nibble_matrix in = {activations.data(), NIBBLE_F32, 2, kCols, 0, NIBBLE_DEVICE_CPU};
  nibble_matmul_options options = {};
  options.precision = NIBBLE_PRECISION_F32;
  ASSERT_EQ(nibble_matmul(in, tensor, {single.data(), NIBBLE_F32, 2, kRows, 0, NIBBLE_DEVICE_CPU},
                          &options, &error),
            NIBBLE_OK);

  std::vector<float> first(2 * kRows), second(3 * kRows);
  const int32_t rows[] = {1, 0, 1};
  std::vector<nibble_matmul_member> members(2);
  members[0].packed = mapped;
  members[0].out = {first.data(), NIBBLE_F32, 2, kRows, 0, NIBBLE_DEVICE_CPU};
  members[0].bias = bias.data();
  members[1].weights = tensor;
  members[1].out = {second.data(), NIBBLE_F32, 3, kRows, 0, NIBBLE_DEVICE_CPU};
  members[1].rows = rows;
  ASSERT_EQ(nibble_matmul_group(in, members.data(), 2, &options, &error), NIBBLE_OK)
      << error.message;
  for (int64_t n = 0; n < kRows; ++n) {
    for (int64_t m = 0; m < 2; ++m) {
      EXPECT_EQ(first[m * kRows + n], single[m * kRows + n] + 0.25f);
    }
    for (int64_t m = 0; m < 3; ++m) EXPECT_EQ(second[m * kRows + n], single[rows[m] * kRows + n]);
  }
  members[1].packed = packed;
  EXPECT_EQ(nibble_matmul_group(in, members.data(), 2, &options, &error), NIBBLE_INVALID_ARGUMENT);
  EXPECT_STREQ(error.message, "member 1: a member needs either weights or packed weights");
  EXPECT_EQ(nibble_matmul_group(in, nullptr, 1, &options, &error), NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(nibble_matmul_group(in, nullptr, 0, nullptr, &error), NIBBLE_OK);
  nibble_packed_free(mapped);
  nibble_packed_free(packed);
  nibble_packed_free(nullptr);
  nibble_tensor_free(tensor);
}

TEST(CApi, MultipliesInt8Activations) {
  const std::vector<float> weights = Weights();
  nibble_error error;
  nibble_tensor* tensor = nullptr;
  ASSERT_EQ(
      nibble_tensor_quantize(MatrixOf(weights), "int8 sym channel f32", nullptr, &tensor, &error),
      NIBBLE_OK)
      << error.message;
  std::vector<int8_t> codes(2 * kCols);
  std::vector<float> activations(codes.size());
  const std::vector<float> scales = {0.5f, 0.25f};
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<int8_t>(i * 37 % 255 - 127);
    activations[i] = static_cast<float>(codes[i]) * scales[i / kCols];
  }
  std::vector<float> given(2 * kRows), rounded(given.size()), split(given.size());
  nibble_matmul_options options = {};
  const nibble_matrix in = {codes.data(), NIBBLE_I8, 2, kCols, 0, NIBBLE_DEVICE_CPU};
  EXPECT_EQ(nibble_matmul(in, tensor, {given.data(), NIBBLE_F32, 2, kRows, 0, NIBBLE_DEVICE_CPU},
                          &options, &error),
            NIBBLE_INVALID_ARGUMENT);
  options.activation_scales = scales.data();
  options.activation_scales_count = scales.size();
  ASSERT_EQ(nibble_matmul(in, tensor, {given.data(), NIBBLE_F32, 2, kRows, 0, NIBBLE_DEVICE_CPU},
                          &options, &error),
            NIBBLE_OK)
      << error.message;
  options = {};
  options.precision = NIBBLE_PRECISION_INT8_PER_ROW;
  const nibble_matrix floats = {activations.data(), NIBBLE_F32, 2, kCols, 0, NIBBLE_DEVICE_CPU};
  ASSERT_EQ(
      nibble_matmul(floats, tensor, {rounded.data(), NIBBLE_F32, 2, kRows, 0, NIBBLE_DEVICE_CPU},
                    &options, &error),
      NIBBLE_OK);
  ASSERT_EQ(nibble_matmul_llm_int8(floats, tensor,
                                   {split.data(), NIBBLE_F32, 2, kRows, 0, NIBBLE_DEVICE_CPU}, 6.0f,
                                   nullptr, &error),
            NIBBLE_OK)
      << error.message;
  for (size_t i = 0; i < given.size(); ++i) {
    EXPECT_NEAR(rounded[i], given[i], 1e-3f * (1 + std::fabs(given[i])));
    EXPECT_NEAR(split[i], given[i], 1e-2f * (1 + std::fabs(given[i])));
  }
  nibble_tensor_free(tensor);
}

TEST(CApi, ReadsGgufFiles) {
  nibble::TemporaryFolder folder;
  const std::string path = folder / "a.gguf";
  nibble::GgufMetadata metadata;
  metadata.Set("general.name", std::string("test"));
  metadata.Set("test.count", uint32_t{42});
  metadata.Set("test.rate", 0.5f);
  const std::vector<float> weights = Weights();
  auto writer = nibble::GgufWriter::Create(path, metadata,
                                           {{"blk.0.w", nibble::Format::kF32, {kCols, kRows}}});
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  ASSERT_TRUE(writer->Append(std::as_bytes(std::span(weights))).ok());
  ASSERT_TRUE(writer->Finish().ok());

  nibble_error error;
  nibble_gguf* file = nullptr;
  ASSERT_EQ(nibble_gguf_open(path.c_str(), &file, &error), NIBBLE_OK) << error.message;
  ASSERT_EQ(nibble_gguf_tensor_count(file), 1u);
  nibble_gguf_tensor at, found;
  ASSERT_EQ(nibble_gguf_tensor_at(file, 0, &at, &error), NIBBLE_OK);
  ASSERT_EQ(nibble_gguf_find_tensor(file, "blk.0.w", &found, &error), NIBBLE_OK);
  for (const nibble_gguf_tensor& tensor : {at, found}) {
    EXPECT_STREQ(tensor.name, "blk.0.w");
    EXPECT_EQ(tensor.format, 0u);
    EXPECT_EQ(tensor.dims_count, 2);
    EXPECT_EQ(tensor.dims[0], kCols);
    EXPECT_EQ(tensor.dims[1], kRows);
    EXPECT_EQ(tensor.dims[2], 1);
    ASSERT_EQ(tensor.bytes, weights.size() * sizeof(float));
    EXPECT_EQ(std::memcmp(tensor.data, weights.data(), tensor.bytes), 0);
  }
  EXPECT_EQ(nibble_gguf_tensor_at(file, 1, &at, &error), NIBBLE_NOT_FOUND);
  EXPECT_EQ(nibble_gguf_find_tensor(file, "x", &at, &error), NIBBLE_NOT_FOUND);

  const char* text = nullptr;
  uint64_t count = 0;
  double rate = 0;
  EXPECT_EQ(nibble_gguf_get_string(file, "general.name", &text, &error), NIBBLE_OK);
  EXPECT_STREQ(text, "test");
  EXPECT_EQ(nibble_gguf_get_uint(file, "test.count", &count, &error), NIBBLE_OK);
  EXPECT_EQ(count, 42u);
  EXPECT_EQ(nibble_gguf_get_float(file, "test.rate", &rate, &error), NIBBLE_OK);
  EXPECT_EQ(rate, 0.5);
  EXPECT_EQ(nibble_gguf_get_string(file, "test.count", &text, &error), NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(nibble_gguf_get_string(file, "nothing", &text, &error), NIBBLE_NOT_FOUND);
  bool seen = false;
  for (size_t i = 0; i < nibble_gguf_key_count(file); ++i) {
    seen |= std::string(nibble_gguf_key_at(file, i)) == "test.rate";
  }
  EXPECT_TRUE(seen);
  EXPECT_EQ(nibble_gguf_key_at(file, nibble_gguf_key_count(file)), nullptr);
  nibble_gguf_close(file);
  nibble_gguf_close(nullptr);

  nibble_gguf* missing = nullptr;
  EXPECT_NE(nibble_gguf_open((path + ".not").c_str(), &missing, &error), NIBBLE_OK);
  EXPECT_NE(std::string(error.message).find(".not"), std::string::npos);
  EXPECT_EQ(missing, nullptr);
}

TEST(CApi, SaysWhatIsWrong) {
  std::vector<float> weights = Weights();
  nibble_error error;
  std::vector<std::byte> blocks(1 << 16);
  nibble_tensor* tensor = nullptr;
  const auto quantize = [&](nibble_matrix m, size_t bytes) {
    return nibble_quantize(m, 8 /* q8_0 */, blocks.data(), bytes, nullptr, &error);
  };
  size_t bytes = 0;
  ASSERT_EQ(nibble_format_bytes(8, kRows, kCols, &bytes, &error), NIBBLE_OK);
  EXPECT_EQ(quantize(MatrixOf(weights), bytes - 1), NIBBLE_INVALID_ARGUMENT);
  EXPECT_STRNE(error.message, "");
  EXPECT_EQ(quantize({nullptr, NIBBLE_F32, kRows, kCols, 0, NIBBLE_DEVICE_CPU}, bytes),
            NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(
      quantize({weights.data(), static_cast<nibble_dtype>(77), kRows, kCols, 0, NIBBLE_DEVICE_CPU},
               bytes),
      NIBBLE_INVALID_ARGUMENT);
  EXPECT_STREQ(error.message, "no dtype has number 77");
  EXPECT_EQ(
      quantize({weights.data(), NIBBLE_F32, kRows, kCols, kCols - 1, NIBBLE_DEVICE_CPU}, bytes),
      NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(nibble_tensor_quantize(MatrixOf(weights), "int99", nullptr, &tensor, &error),
            NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(nibble_tensor_quantize(MatrixOf(weights), nullptr, nullptr, &tensor, nullptr),
            NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(nibble_format_bytes(8, 1, 33, &bytes, &error), NIBBLE_INVALID_ARGUMENT);
  EXPECT_STREQ(error.message, "q8_0 needs rows of a multiple of 32 weights, not 33");

  weights[3 * kCols + 5] = NAN;
  EXPECT_NE(quantize(MatrixOf(weights), bytes), NIBBLE_OK);
  EXPECT_NE(std::string(error.message).find("row 3"), std::string::npos) << error.message;
}

TEST(CApi, StopsExceptionsAndCutsLongMessages) {
  nibble_error error;
  EXPECT_EQ(nibble::c_api::Call(&error, []() -> nibble::Status { throw std::bad_alloc(); }),
            NIBBLE_OUT_OF_MEMORY);
  EXPECT_STREQ(error.message, "out of memory");
  EXPECT_EQ(
      nibble::c_api::Call(&error, []() -> nibble::Status { throw std::runtime_error("surprise"); }),
      NIBBLE_INTERNAL);
  EXPECT_STREQ(error.message, "surprise");
  EXPECT_EQ(nibble::c_api::Call(nullptr, []() -> nibble::Status { throw 1; }), NIBBLE_INTERNAL);
  EXPECT_EQ(
      nibble::c_api::Call(&error, [] { return nibble::InvalidArgument(std::string(10000, 'x')); }),
      NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(std::strlen(error.message), sizeof(error.message) - 1);
  EXPECT_STREQ(nibble_status_name(NIBBLE_CORRUPT), "corrupt");
  EXPECT_STREQ(nibble_status_name(static_cast<nibble_status>(99)), "unknown");
}

}  // namespace
