// safetensors files that are right: those of the reference package, nibble's own, shards.
#include "nibble/safetensors.h"

#include <cstring>

#include <gtest/gtest.h>

#include "tests/temporary_folder.h"

namespace nibble {
namespace {

const std::string kFiles = std::string(NIBBLE_TEST_DATA) + "/files/";

template <class T>
std::vector<T> DataOf(const SafetensorsTensor& tensor) {
  std::vector<T> values(tensor.data.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

SafetensorsFile MustOpen(const std::string& path) {
  Result<SafetensorsFile> file = SafetensorsFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status().message();
  return file.ok() ? *file : SafetensorsFile();
}

// What make_files.py put into its file.
void ExpectReferenceContent(const SafetensorsFile& file) {
  const std::map<std::string, std::string> metadata = {{"format", "np"}};
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.tensors().size(), 7u);
  const SafetensorsTensor* one = file.Find("one");
  ASSERT_NE(one, nullptr);
  EXPECT_EQ(one->dtype, DType::kF32);
  EXPECT_EQ(one->shape, std::vector<int64_t>({3}));
  EXPECT_EQ(DataOf<float>(*one), std::vector<float>({1, 2, 3}));
  const SafetensorsTensor* two = file.Find("two");
  ASSERT_NE(two, nullptr);
  EXPECT_EQ(two->dtype, DType::kF16);
  EXPECT_EQ(two->shape, std::vector<int64_t>({2, 32}));
  EXPECT_EQ(two->elements(), 64);
  EXPECT_EQ(ToFloat(DataOf<F16>(*two)[63]), 63.0f);
  const SafetensorsTensor* three = file.Find("three");
  ASSERT_NE(three, nullptr);
  EXPECT_EQ(three->dtype, DType::kI8);
  EXPECT_EQ(three->shape, std::vector<int64_t>({2, 3, 4}));
  EXPECT_EQ(DataOf<int8_t>(*three)[23], 23);
  const SafetensorsTensor* scalar = file.Find("scalar");
  ASSERT_NE(scalar, nullptr);
  EXPECT_EQ(scalar->dtype, DType::kF64);
  EXPECT_TRUE(scalar->shape.empty());
  EXPECT_EQ(scalar->elements(), 1);
  EXPECT_EQ(DataOf<double>(*scalar), std::vector<double>({2.5}));
  const SafetensorsTensor* empty = file.Find("empty");
  ASSERT_NE(empty, nullptr);
  EXPECT_EQ(empty->shape, std::vector<int64_t>({0, 3}));
  EXPECT_TRUE(empty->data.empty());
  const SafetensorsTensor* flags = file.Find("flags");
  ASSERT_NE(flags, nullptr);
  EXPECT_EQ(flags->dtype, DType::kBool);
  EXPECT_EQ(DataOf<uint8_t>(*flags), std::vector<uint8_t>({1, 0}));
  EXPECT_EQ(file.Find("none"), nullptr);
}

TEST(SafetensorsFile, ReadsThePythonPackagesFile) {
  const SafetensorsFile file = MustOpen(kFiles + "python.safetensors");
  ExpectReferenceContent(file);
  EXPECT_EQ(file.file_bytes(), std::filesystem::file_size(kFiles + "python.safetensors"));
}

TEST(SafetensorsFile, OpensAFolder) {
  const std::string folder = std::string(NIBBLE_EXAMPLES) + "/reference-model";
  const SafetensorsFile file = MustOpen(folder);
  ASSERT_EQ(file.paths().size(), 1u);
  EXPECT_EQ(file.paths()[0], folder + "/model.safetensors");
  const SafetensorsTensor* embedding = file.Find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->dtype, DType::kF16);
  EXPECT_EQ(embedding->shape.size(), 2u);
}

}  // namespace
}  // namespace nibble
