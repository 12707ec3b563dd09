// Calibration by a caller's own engine in C: Hessians, files of them, error feedback.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "lib/core/c_api.h"
#include "nibble/c_api.h"
#include "nibble/gptq.h"
#include "nibble/hessian_file.h"
#include "nibble/quantize.h"
#include "nibble/scheme.h"
#include "tests/c_api_weights.h"
#include "tests/temporary_folder.h"

namespace {

TEST(CApi, CalibratesAsCppDoes) {
  const std::vector<float> weights = Weights();
  std::vector<float> inputs(300 * kCols);
  for (size_t i = 0; i < inputs.size(); ++i) {
    inputs[i] = std::sin(0.11f * static_cast<float>(i * i % 9973)) + (i % kCols % 50 == 3 ? 2 : 0);
  }
  nibble_error error;
  nibble_hessian *hessian = nullptr, *rest = nullptr;
  ASSERT_EQ(nibble_hessian_create(kCols, &hessian, &error), NIBBLE_OK);
  ASSERT_EQ(nibble_hessian_create(kCols, &rest, &error), NIBBLE_OK);
  const nibble_matrix first = {inputs.data(), NIBBLE_F32, 200, kCols, 0, NIBBLE_DEVICE_CPU};
  const nibble_matrix second = {
      inputs.data() + 200 * kCols, NIBBLE_F32, 100, kCols, 0, NIBBLE_DEVICE_CPU};
  ASSERT_EQ(nibble_hessian_add(hessian, first, nullptr, &error), NIBBLE_OK) << error.message;
  ASSERT_EQ(nibble_hessian_add(rest, second, nullptr, &error), NIBBLE_OK) << error.message;
  ASSERT_EQ(nibble_hessian_merge(hessian, rest, &error), NIBBLE_OK) << error.message;
  EXPECT_EQ(nibble_hessian_tokens(hessian), 300);
  std::vector<float> means(kCols);
  ASSERT_EQ(nibble_hessian_mean_squares(hessian, means.data(), &error), NIBBLE_OK);

  nibble::Hessian expected(kCols), other(kCols);
  ASSERT_TRUE(expected.Add(nibble::ViewOf(inputs.data(), 200, kCols)).ok());
  ASSERT_TRUE(other.Add(nibble::ViewOf(inputs.data() + 200 * kCols, 100, kCols)).ok());
  ASSERT_TRUE(expected.Merge(other).ok());
  EXPECT_EQ(means, expected.MeanSquares());
  const nibble::TensorView view = nibble::ViewOf(weights.data(), kRows, kCols);
  for (const char* type : {"q4_K", "int3 asym g64 f16"}) {
    const auto same = std::string(type) == "q4_K"
                          ? nibble::QuantizeGptq(view, nibble::Format::kQ4_K, expected)
                          : nibble::QuantizeGptq(view, *nibble::ParseScheme(type), expected);
    ASSERT_TRUE(same.ok());
    nibble_tensor* tensor = nullptr;
    nibble_gptq_report report;
    ASSERT_EQ(nibble_tensor_quantize_gptq(MatrixOf(weights), type, hessian, nullptr, &report,
                                          &tensor, &error),
              NIBBLE_OK)
        << error.message;
    size_t bytes = 0;
    const void* codes = nibble_tensor_plane(tensor, NIBBLE_PLANE_CODES, &bytes);
    const nibble::Buffer& plane = same->plane(nibble::Plane::kCodes);
    ASSERT_EQ(bytes, plane.size());
    EXPECT_EQ(std::memcmp(codes, plane.data(), bytes), 0) << type;
    EXPECT_GT(report.weight_energy, report.output_error);
    EXPECT_GE(report.damping, nibble::GptqOptions().damping);
    nibble_tensor_free(tensor);
  }
  nibble_tensor* none = nullptr;
  EXPECT_EQ(nibble_tensor_quantize_gptq(MatrixOf(weights), "tq2_0", hessian, nullptr, nullptr,
                                        &none, &error),
            NIBBLE_UNSUPPORTED);
  EXPECT_EQ(nibble_hessian_create(-3, &rest, &error), NIBBLE_INVALID_ARGUMENT);
  nibble_hessian_free(rest);
  nibble_hessian_free(hessian);
}

// Every option reaches the quantizer.
TEST(CApi, ErrorFeedbackHasTheOptionsOfCpp) {
  const std::vector<float> weights = Weights();
  std::vector<float> inputs(300 * kCols);
  for (size_t i = 0; i < inputs.size(); ++i) {
    inputs[i] = std::sin(0.13f * static_cast<float>(i * i % 9973)) * (i % kCols % 7 == 1 ? 3 : 1);
  }
  nibble::Hessian expected(kCols);
  ASSERT_TRUE(expected.Add(nibble::ViewOf(inputs.data(), 300, kCols)).ok());
  nibble_error error;
  nibble_hessian* hessian = nullptr;
  ASSERT_EQ(nibble_hessian_create(kCols, &hessian, &error), NIBBLE_OK);
  ASSERT_EQ(
      nibble_hessian_add(hessian, {inputs.data(), NIBBLE_F32, 300, kCols, 0, NIBBLE_DEVICE_CPU},
                         nullptr, &error),
      NIBBLE_OK);
  std::vector<std::vector<std::byte>> all;
  const auto expect_same = [&](const char* type, const nibble_gptq_options& options,
                               const nibble::GptqOptions& cpp) {
    nibble_tensor* tensor = nullptr;
    ASSERT_EQ(nibble_tensor_quantize_gptq(MatrixOf(weights), type, hessian, &options, nullptr,
                                          &tensor, &error),
              NIBBLE_OK)
        << error.message;
    const auto same = nibble::QuantizeGptq(nibble::ViewOf(weights.data(), kRows, kCols),
                                           *nibble::ParseScheme(type), expected, cpp);
    ASSERT_TRUE(same.ok());
    all.emplace_back();
    for (int p = 0; p < NIBBLE_PLANE_COUNT; ++p) {
      size_t bytes = 0;
      const auto* data = static_cast<const std::byte*>(
          nibble_tensor_plane(tensor, static_cast<nibble_plane>(p), &bytes));
      const nibble::Buffer& plane = same->plane(static_cast<nibble::Plane>(p));
      ASSERT_EQ(bytes, plane.size());
      if (bytes == 0) continue;
      EXPECT_EQ(std::memcmp(data, plane.data(), bytes), 0) << type << " " << p;
      all.back().insert(all.back().end(), data, data + bytes);
    }
    nibble_tensor_free(tensor);
  };
  const char* plain = "int3 sym g64 f16";
  expect_same(plain, {}, {});
  nibble_gptq_options options = {};
  nibble::GptqOptions cpp;
  options.range_scales = 1;
  cpp.search_scales = false;
  expect_same(plain, options, cpp);
  options = {};
  cpp = {};
  options.static_groups = 1;
  cpp.static_groups = true;
  expect_same(plain, options, cpp);
  options.act_order = 1;
  cpp.act_order = true;
  expect_same(plain, options, cpp);
  options = {};
  cpp = {};
  cpp.damping = options.damping = 1;
  expect_same(plain, options, cpp);
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(all[i], all[j]) << i << " and " << j;
  }
  options = {};
  cpp = {};
  options.act_order = 1;
  cpp.act_order = true;
  expect_same("int3 sym g64 f16 act-order", options, cpp);
  options = {};
  cpp = {};
  options.sweeps = -1;
  cpp.sweeps = 0;
  expect_same("1x8g8 f16", options, cpp);
  cpp.sweeps = options.sweeps = 1;
  expect_same("1x8g8 f16", options, cpp);
  EXPECT_NE(all[all.size() - 2], all.back());
  nibble_hessian_free(hessian);
}

std::vector<float> Tokens(int64_t tokens, int64_t cols, float seed) {
  std::vector<float> inputs(static_cast<size_t>(tokens * cols));
  for (size_t i = 0; i < inputs.size(); ++i) {
    inputs[i] = std::sin(seed * static_cast<float>(i + 1) * static_cast<float>(i % 11 + 1));
  }
  return inputs;
}

// What a caller's engine feeds is saved, read by C and C++, merged, and used.
TEST(CApi, KeepsHessiansInFiles) {
  nibble::TemporaryFolder folder;
  nibble_error error;
  const char* const attention[] = {"blk.0.attn_q.weight", "blk.0.attn_k.weight"};
  const char* const down[] = {"blk.0.ffn_down.weight"};
  const nibble_shared_inputs inputs[] = {{attention, 2, kCols}, {down, 1, 64}};
  const auto write = [&](const std::string& path, float seed) {
    const nibble_calibration_note note = {"a text", "00ff", 128, 3};
    nibble_hessian_writer* writer = nullptr;
    ASSERT_EQ(nibble_hessian_writer_create(path.c_str(), inputs, 2, &note, 1, &writer, &error),
              NIBBLE_OK)
        << error.message;
    for (const nibble_shared_inputs& shared : inputs) {
      nibble_hessian* hessian = nullptr;
      ASSERT_EQ(nibble_hessian_create(shared.cols, &hessian, &error), NIBBLE_OK);
      const std::vector<float> tokens = Tokens(20, shared.cols, seed);
      ASSERT_EQ(nibble_hessian_add(
                    hessian, {tokens.data(), NIBBLE_F32, 20, shared.cols, 0, NIBBLE_DEVICE_CPU},
                    nullptr, &error),
                NIBBLE_OK);
      ASSERT_EQ(nibble_hessian_writer_append(writer, hessian, &error), NIBBLE_OK) << error.message;
      nibble_hessian_free(hessian);
    }
    ASSERT_EQ(nibble_hessian_writer_finish(writer, &error), NIBBLE_OK) << error.message;
    nibble_hessian_writer_free(writer);
  };
  const std::string a = folder / "a", b = folder / "b", both = folder / "both";
  write(a, 0.37f);
  write(b, 0.91f);

  std::vector<nibble_hessian_file*> files(2);
  ASSERT_EQ(nibble_hessian_file_open(a.c_str(), &files[0], &error), NIBBLE_OK) << error.message;
  ASSERT_EQ(nibble_hessian_file_open(b.c_str(), &files[1], &error), NIBBLE_OK) << error.message;
  ASSERT_EQ(nibble_hessian_file_count(files[0]), 2u);
  nibble_shared_inputs found;
  ASSERT_EQ(nibble_hessian_file_at(files[0], 0, &found, &error), NIBBLE_OK);
  EXPECT_EQ(found.cols, kCols);
  ASSERT_EQ(found.matrix_count, 2u);
  EXPECT_STREQ(found.matrices[0], attention[0]);
  EXPECT_STREQ(found.matrices[1], attention[1]);
  size_t index = 7;
  EXPECT_EQ(nibble_hessian_file_find(files[0], attention[1], &index, &error), NIBBLE_OK);
  EXPECT_EQ(index, 0u);
  EXPECT_EQ(nibble_hessian_file_find(files[0], down[0], &index, &error), NIBBLE_OK);
  EXPECT_EQ(index, 1u);
  EXPECT_EQ(nibble_hessian_file_find(files[0], "blk.9", &index, &error), NIBBLE_NOT_FOUND);
  EXPECT_EQ(nibble_hessian_file_at(files[0], 2, &found, &error), NIBBLE_NOT_FOUND);
  EXPECT_STREQ(error.message, "no Hessian 2 among 2");

  // Merged: the sums of both, read again by C++ and C, and taken by the quantizer.
  ASSERT_EQ(nibble_hessian_files_merge(files.data(), 2, both.c_str(), &error), NIBBLE_OK)
      << error.message;
  EXPECT_EQ(nibble_hessian_files_merge(files.data(), 2, a.c_str(), &error),
            NIBBLE_INVALID_ARGUMENT);
  const auto read = nibble::HessianFile::Open(both);
  ASSERT_TRUE(read.ok()) << read.status().message();
  const auto sums = read->Read(read->inputs()[0]);
  ASSERT_TRUE(sums.ok());
  nibble::Hessian expected(kCols), second(kCols);
  const std::vector<float> first_tokens = Tokens(20, kCols, 0.37f);
  const std::vector<float> second_tokens = Tokens(20, kCols, 0.91f);
  ASSERT_TRUE(expected.Add(nibble::ViewOf(first_tokens.data(), 20, kCols)).ok());
  ASSERT_TRUE(second.Add(nibble::ViewOf(second_tokens.data(), 20, kCols)).ok());
  ASSERT_TRUE(expected.Merge(second).ok());
  EXPECT_EQ(sums->sums(), expected.sums());
  nibble_hessian_file* merged = nullptr;
  ASSERT_EQ(nibble_hessian_file_open(both.c_str(), &merged, &error), NIBBLE_OK);
  ASSERT_EQ(nibble_hessian_file_text_count(merged), 2u);
  nibble_calibration_note note;
  ASSERT_EQ(nibble_hessian_file_text_at(merged, 1, &note, &error), NIBBLE_OK);
  EXPECT_STREQ(note.text, "a text");
  EXPECT_STREQ(note.hash, "00ff");
  EXPECT_EQ(note.context, 128);
  EXPECT_EQ(note.windows, 3);
  EXPECT_EQ(nibble_hessian_file_text_at(merged, 2, &note, &error), NIBBLE_NOT_FOUND);
  nibble_hessian* hessian = nullptr;
  ASSERT_EQ(nibble_hessian_file_read(merged, 0, &hessian, &error), NIBBLE_OK) << error.message;
  EXPECT_EQ(nibble_hessian_cols(hessian), kCols);
  EXPECT_EQ(nibble_hessian_tokens(hessian), 40);
  EXPECT_TRUE(
      std::equal(expected.sums().begin(), expected.sums().end(), nibble_hessian_sums(hessian)));
  const std::vector<float> weights = Weights();
  nibble_tensor* tensor = nullptr;
  EXPECT_EQ(nibble_tensor_quantize_gptq(MatrixOf(weights), "q3_K", hessian, nullptr, nullptr,
                                        &tensor, &error),
            NIBBLE_OK)
      << error.message;
  nibble_tensor_free(tensor);
  EXPECT_EQ(nibble_hessian_file_read(merged, 5, &hessian, &error), NIBBLE_NOT_FOUND);
  nibble_hessian_free(hessian);
  for (nibble_hessian_file* file : files) nibble_hessian_file_close(file);
  nibble_hessian_file_close(merged);
  nibble_hessian_file_close(nullptr);
}

TEST(CApi, RefusesHessiansThatDoNotFit) {
  nibble::TemporaryFolder folder;
  nibble_error error;
  const std::string path = folder / "h";
  const char* const names[] = {"w", nullptr};
  nibble_shared_inputs inputs = {names, 1, 8};
  nibble_hessian_writer* writer = nullptr;
  ASSERT_EQ(nibble_hessian_writer_create(path.c_str(), &inputs, 1, nullptr, 0, &writer, &error),
            NIBBLE_OK)
      << error.message;
  nibble_hessian* hessian = nullptr;
  ASSERT_EQ(nibble_hessian_create(9, &hessian, &error), NIBBLE_OK);
  EXPECT_EQ(nibble_hessian_writer_append(writer, hessian, &error), NIBBLE_INVALID_ARGUMENT);
  EXPECT_NE(nibble_hessian_writer_finish(writer, &error), NIBBLE_OK);  // one is missing
  nibble_hessian_writer_free(writer);
  nibble_hessian_writer_free(nullptr);
  nibble_hessian_file* file = nullptr;
  EXPECT_NE(nibble_hessian_file_open(path.c_str(), &file, &error), NIBBLE_OK);
  EXPECT_EQ(file, nullptr);

  const auto create = [&](const nibble_shared_inputs* shared, size_t count,
                          const nibble_calibration_note* notes, size_t notes_count) {
    return nibble_hessian_writer_create(path.c_str(), shared, count, notes, notes_count, &writer,
                                        &error);
  };
  EXPECT_EQ(create(&inputs, 0, nullptr, 0), NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(create(nullptr, 1, nullptr, 0), NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(create(&inputs, 1, nullptr, 1), NIBBLE_INVALID_ARGUMENT);
  inputs.matrix_count = 2;
  EXPECT_EQ(create(&inputs, 1, nullptr, 0), NIBBLE_INVALID_ARGUMENT);
  EXPECT_STREQ(error.message, "a matrix's name is a null pointer");
  inputs.matrix_count = 1;
  const nibble_calibration_note note = {"text", nullptr, -1, 3};
  EXPECT_EQ(create(&inputs, 1, &note, 1), NIBBLE_INVALID_ARGUMENT);

  const float nan = std::nanf("");
  const std::vector<float> sums = {2, 1, 3}, bad = {2, nan, 3}, negative = {-2, 1, 3};
  nibble_hessian* given = nullptr;
  const auto from = [&](const std::vector<float>& s, size_t count) {
    return nibble_hessian_from_triangle(2, 4, s.data(), count, &given, &error);
  };
  EXPECT_EQ(from(sums, 2), NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(from(bad, 3), NIBBLE_INVALID_ARGUMENT);
  EXPECT_EQ(from(negative, 3), NIBBLE_INVALID_ARGUMENT);
  ASSERT_EQ(from(sums, 3), NIBBLE_OK) << error.message;
  const float* square = nibble_hessian_sums(given);
  EXPECT_EQ(std::vector<float>(square, square + 4), (std::vector<float>{2, 1, 1, 3}));
  nibble_hessian_free(given);
  nibble_hessian_free(hessian);
}

}  // namespace
