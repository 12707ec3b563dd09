// safetensors files that are right: those of the reference package, nibble's own, shards.
#include "nibble/safetensors.h"

#include <cstdlib>
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

// --- Writing ---

Status Copy(const SafetensorsFile& from, const std::string& to,
            const SafetensorsWriteOptions& options, size_t piece = SIZE_MAX) {
  Result<SafetensorsWriter> writer =
      SafetensorsWriter::Create(to, {from.tensors().begin(), from.tensors().end()}, options);
  if (!writer.ok()) return writer.status();
  for (const SafetensorsTensor& tensor : from.tensors()) {
    for (size_t done = 0; done < tensor.data.size();) {
      const size_t bytes = std::min(piece, tensor.data.size() - done);
      Status status = writer->Append(tensor.data.subspan(done, bytes));
      if (!status.ok()) return status;
      done += bytes;
    }
  }
  return writer->Finish();
}

TEST(SafetensorsWriter, CopiesThePythonFileByteForByte) {
  const TemporaryFolder folder;
  const SafetensorsFile file = MustOpen(kFiles + "python.safetensors");
  const SafetensorsWriteOptions options{.metadata = file.metadata()};
  ASSERT_TRUE(Copy(file, folder / "copy.safetensors", options).ok());
  EXPECT_EQ(ReadWholeFile(folder / "copy.safetensors"),
            ReadWholeFile(kFiles + "python.safetensors"));
  ASSERT_TRUE(Copy(file, folder / "pieces.safetensors", options, 5).ok());
  EXPECT_EQ(ReadWholeFile(folder / "pieces.safetensors"),
            ReadWholeFile(kFiles + "python.safetensors"));
  EXPECT_EQ(folder.List(), std::vector<std::string>({"copy.safetensors", "pieces.safetensors"}));
}

TEST(SafetensorsWriter, ShardsHoldTheLimitAndOpenAsOne) {
  const SafetensorsFile file = MustOpen(kFiles + "python.safetensors");
  for (const uint64_t limit : {uint64_t{1}, uint64_t{400}, file.file_bytes() - 1}) {
    const TemporaryFolder folder;
    const SafetensorsWriteOptions options{.metadata = file.metadata(), .max_shard_bytes = limit};
    ASSERT_TRUE(Copy(file, folder / "model.safetensors", options).ok());
    const std::vector<std::string> names = folder.List();
    EXPECT_EQ(names.back(), "model.safetensors.index.json");
    ASSERT_GT(names.size(), 2u);
    if (limit == 1) {
      EXPECT_EQ(names.size(), 7u + 1);  // a tensor each
    } else {
      for (const std::string& name : names) {
        if (name == names.back()) continue;  // the index
        EXPECT_LE(std::filesystem::file_size(folder / name), limit);
      }
    }
    for (const std::string& path : {folder.path(), folder / names.back()}) {
      const SafetensorsFile copy = MustOpen(path);
      ExpectReferenceContent(copy);
      EXPECT_EQ(copy.paths().size(), names.size() - 1);
    }
  }
}

// For reference/files/check_files.py, which reads them with the packages that own the formats.
TEST(SafetensorsWriter, WritesFilesForTheReferencePackages) {
  const char* folder = std::getenv("NIBBLE_WRITE_FILES");
  if (folder == nullptr) GTEST_SKIP() << "NIBBLE_WRITE_FILES names no folder";
  const SafetensorsFile file = MustOpen(kFiles + "python.safetensors");
  const std::string to = std::string(folder) + "/nibble";
  EXPECT_TRUE(Copy(file, to + ".safetensors", {.metadata = file.metadata()}).ok());
  EXPECT_TRUE(
      Copy(file, to + "-split.safetensors", {.metadata = file.metadata(), .max_shard_bytes = 1})
          .ok());
}

TEST(SafetensorsWriter, OneShardThatFitsIsAPlainFile) {
  const TemporaryFolder folder;
  const SafetensorsFile file = MustOpen(kFiles + "python.safetensors");
  const SafetensorsWriteOptions options{.metadata = file.metadata(),
                                        .max_shard_bytes = file.file_bytes()};
  ASSERT_TRUE(Copy(file, folder / "model.safetensors", options).ok());
  EXPECT_EQ(folder.List(), std::vector<std::string>({"model.safetensors"}));
}

TEST(SafetensorsWriter, NamesAreEscapedAndSurvive) {
  const TemporaryFolder folder;
  const std::string name = "quote \" slash \\ line\n gr\u00FC\u00DFe";
  Result<SafetensorsWriter> writer =
      SafetensorsWriter::Create(folder / "n.safetensors", {{name, DType::kU8, {0}}});
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_NE(MustOpen(folder / "n.safetensors").Find(name), nullptr);
}

TEST(SafetensorsWriter, RefusesContradictions) {
  const TemporaryFolder folder;
  const auto create = [&](std::vector<SafetensorsInfo> tensors) {
    return SafetensorsWriter::Create(folder / "bad.safetensors", std::move(tensors)).status();
  };
  const SafetensorsInfo good{"t", DType::kF32, {4}};
  EXPECT_EQ(create({good, good}).code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(create({{"t", DType::kF32, {-1}}}).ok());
  EXPECT_FALSE(create({{"t", DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}}}).ok());
  EXPECT_FALSE(create({{"\xff", DType::kF32, {4}}}).ok());
  EXPECT_FALSE(create({{"__metadata__", DType::kF32, {4}}}).ok());
  EXPECT_TRUE(folder.List().empty());

  Result<SafetensorsWriter> writer = SafetensorsWriter::Create(folder / "t.safetensors", {good});
  const std::vector<std::byte> bytes(17);
  EXPECT_FALSE(writer->Append(bytes).ok());
  EXPECT_FALSE(writer->Finish().ok());
}

}  // namespace
}  // namespace nibble
