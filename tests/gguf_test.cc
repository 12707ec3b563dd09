// GGUF files that are right: those of the reference package, nibble's own, shards.
#include "nibble/gguf.h"

#include <cstdlib>
#include <cstring>
#include <thread>

#include <gtest/gtest.h>

#include "tests/temporary_folder.h"

namespace nibble {
namespace {

const std::string kFiles = std::string(NIBBLE_TEST_DATA) + "/files/";

template <class T>
std::vector<T> DataOf(const GgufTensor& tensor) {
  std::vector<T> values(tensor.data.size() / sizeof(T));
  std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

GgufFile MustOpen(const std::string& path) {
  Result<GgufFile> file = GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status().message();
  return file.ok() ? *file : GgufFile();
}

template <class T>
void ExpectValue(const GgufMetadata& metadata, const char* key, const T& expected) {
  const GgufValue* value = metadata.Find(key);
  ASSERT_NE(value, nullptr) << key;
  ASSERT_TRUE(std::holds_alternative<T>(*value)) << key << " has type " << value->index();
  EXPECT_EQ(std::get<T>(*value), expected) << key;
}

// What make_files.py put into each of its files.
void ExpectReferenceContent(const GgufFile& file) {
  const GgufMetadata& m = file.metadata();
  ExpectValue<std::string>(m, "general.architecture", "llama");
  ExpectValue<uint8_t>(m, "test.u8", 200);
  ExpectValue<int8_t>(m, "test.i8", -100);
  ExpectValue<uint16_t>(m, "test.u16", 60000);
  ExpectValue<int16_t>(m, "test.i16", -30000);
  ExpectValue<uint32_t>(m, "test.u32", 4000000000u);
  ExpectValue<int32_t>(m, "test.i32", -2000000000);
  ExpectValue<float>(m, "test.f32", 1.5f);
  ExpectValue<bool>(m, "test.bool", true);
  ExpectValue<std::string>(m, "test.string", "Größe \u2713");
  ExpectValue<uint64_t>(m, "test.u64", (uint64_t{1} << 63) + 1);
  ExpectValue<int64_t>(m, "test.i64", -(int64_t{1} << 62));
  ExpectValue<double>(m, "test.f64", 0.1);
  ExpectValue<std::vector<int32_t>>(m, "test.ints", {1, -2, 3});
  ExpectValue<std::vector<float>>(m, "test.floats", {0.5f, -0.25f});
  ExpectValue<std::vector<bool>>(m, "test.bools", {true, false, true});
  ExpectValue<std::vector<std::string>>(m, "test.strings", {"a", "", "\u2581b"});
  EXPECT_EQ(m.Find("split.count"), nullptr);

  ASSERT_EQ(file.tensors().size(), 5u);
  const GgufTensor* one = file.Find("one");
  ASSERT_NE(one, nullptr);
  EXPECT_EQ(one->format, Format::kF32);
  EXPECT_EQ(one->dims, std::vector<int64_t>({3}));
  EXPECT_EQ(DataOf<float>(*one), std::vector<float>({1, 2, 3}));

  const GgufTensor* two = file.Find("two");
  ASSERT_NE(two, nullptr);
  EXPECT_EQ(two->format, Format::kF16);
  EXPECT_EQ(two->dims, std::vector<int64_t>({32, 2}));
  const std::vector<F16> halves = DataOf<F16>(*two);
  for (size_t i = 0; i < halves.size(); ++i) EXPECT_EQ(ToFloat(halves[i]), static_cast<float>(i));

  const GgufTensor* three = file.Find("three");
  ASSERT_NE(three, nullptr);
  EXPECT_EQ(three->format, Format::kI8);
  EXPECT_EQ(three->dims, std::vector<int64_t>({4, 3, 2}));
  EXPECT_EQ(three->rows(), 6);
  EXPECT_EQ(DataOf<int8_t>(*three)[23], 23);

  const GgufTensor* four = file.Find("four");
  ASSERT_NE(four, nullptr);
  EXPECT_EQ(four->dims, std::vector<int64_t>({4, 2, 1, 2}));
  EXPECT_EQ(DataOf<float>(*four)[15], 15.0f);

  const GgufTensor* quantized = file.Find("quantized");
  ASSERT_NE(quantized, nullptr);
  EXPECT_EQ(quantized->format, Format::kQ8_0);
  EXPECT_EQ(quantized->dims, std::vector<int64_t>({32, 2}));
  EXPECT_EQ(DataOf<BlockQ8_0>(*quantized).size(), 2u);

  EXPECT_EQ(file.Find("none"), nullptr);
}

TEST(GgufFile, ReadsThePythonPackagesFile) {
  const GgufFile file = MustOpen(kFiles + "python.gguf");
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.alignment(), 32u);
  EXPECT_EQ(file.paths().size(), 1u);
  EXPECT_EQ(file.file_bytes(), std::filesystem::file_size(kFiles + "python.gguf"));
  ExpectReferenceContent(file);
}

TEST(GgufFile, ReadsVersion2) {
  const GgufFile file = MustOpen(kFiles + "python-v2.gguf");
  EXPECT_EQ(file.version(), 2u);
  ExpectReferenceContent(file);
}

TEST(GgufFile, ReadsAnotherAlignment) {
  const GgufFile file = MustOpen(kFiles + "python-aligned-64.gguf");
  EXPECT_EQ(file.alignment(), 64u);
  ExpectReferenceContent(file);
  for (const GgufTensor& tensor : file.tensors()) EXPECT_EQ(tensor.file_offset % 64, 0u);
}

TEST(GgufFile, AnyShardOpensAll) {
  for (const char* name :
       {"python-split-00001-of-00003.gguf", "python-split-00003-of-00003.gguf"}) {
    const GgufFile file = MustOpen(kFiles + name);
    EXPECT_EQ(file.paths().size(), 3u);
    ExpectReferenceContent(file);
    EXPECT_EQ(file.tensors().front().name, "one");
    EXPECT_EQ(file.tensors().back().name, "quantized");
  }
}

TEST(GgufMetadata, ConvertsIntegersThatFit) {
  GgufMetadata m;
  m.Set("i8", int8_t{5});
  m.Set("minus", int64_t{-1});
  m.Set("u64", UINT64_MAX);
  m.Set("half", 0.5f);
  m.Set("yes", true);
  EXPECT_EQ(*m.GetUint("i8"), 5u);
  EXPECT_EQ(*m.GetUint("u64"), UINT64_MAX);
  EXPECT_FALSE(m.GetUint("minus").ok());
  EXPECT_FALSE(m.GetUint("half").ok());
  EXPECT_FALSE(m.GetUint("yes").ok());
  EXPECT_EQ(m.GetUint("none").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(*m.GetFloat("half"), 0.5);
  EXPECT_EQ(*m.GetFloat("minus"), -1.0);
  EXPECT_TRUE(*m.GetBool("yes"));
  EXPECT_FALSE(m.GetString("yes").ok());

  m.Set("i8", std::string("now a string"));  // in place
  EXPECT_EQ(m.entries().front().first, "i8");
  EXPECT_EQ(*m.GetString("i8"), "now a string");
  m.Erase("i8");
  m.Erase("i8");
  EXPECT_EQ(m.Find("i8"), nullptr);
  EXPECT_EQ(m.entries().size(), 4u);
}

// --- Writing ---

std::vector<GgufTensorInfo> InfosOf(const GgufFile& file) {
  return {file.tensors().begin(), file.tensors().end()};
}

Status Copy(const GgufFile& from, const std::string& to, const GgufWriteOptions& options,
            size_t piece = SIZE_MAX) {
  Result<GgufWriter> writer = GgufWriter::Create(to, from.metadata(), InfosOf(from), options);
  if (!writer.ok()) return writer.status();
  for (const GgufTensor& tensor : from.tensors()) {
    for (size_t done = 0; done < tensor.data.size(); done += piece) {
      const size_t bytes = std::min(piece, tensor.data.size() - done);
      if (Status status = writer->Append(tensor.data.subspan(done, bytes)); !status.ok())
        return status;
      if (piece == SIZE_MAX) break;
    }
  }
  return writer->Finish();
}

TEST(GgufWriter, CopiesThePythonFileByteForByte) {
  const TemporaryFolder folder;
  const GgufFile file = MustOpen(kFiles + "python.gguf");
  ASSERT_TRUE(Copy(file, folder / "copy.gguf", {}).ok());
  EXPECT_EQ(ReadWholeFile(folder / "copy.gguf"), ReadWholeFile(kFiles + "python.gguf"));
  ASSERT_TRUE(Copy(file, folder / "pieces.gguf", {}, 7).ok());
  EXPECT_EQ(ReadWholeFile(folder / "pieces.gguf"), ReadWholeFile(kFiles + "python.gguf"));
  EXPECT_EQ(*GgufWriter::TotalBytes(file.metadata(), InfosOf(file)), file.file_bytes());
  EXPECT_EQ(folder.List(), std::vector<std::string>({"copy.gguf", "pieces.gguf"}));
}

TEST(GgufWriter, StatesItsAlignment) {
  const TemporaryFolder folder;
  const GgufFile file = MustOpen(kFiles + "python.gguf");
  ASSERT_TRUE(Copy(file, folder / "a.gguf", {.alignment = 256}).ok());
  const GgufFile copy = MustOpen(folder / "a.gguf");
  EXPECT_EQ(copy.alignment(), 256u);
  ExpectReferenceContent(copy);
  for (const GgufTensor& tensor : copy.tensors()) EXPECT_EQ(tensor.file_offset % 256, 0u);
  // And back: the key that came along does not contradict the file.
  ASSERT_TRUE(Copy(copy, folder / "b.gguf", {}).ok());
  EXPECT_EQ(MustOpen(folder / "b.gguf").alignment(), 32u);
}

TEST(GgufWriter, ShardsHoldTheLimitAndOpenAsOne) {
  const TemporaryFolder folder;
  const GgufFile file = MustOpen(kFiles + "python.gguf");
  const uint64_t whole = file.file_bytes();
  for (const uint64_t limit : {uint64_t{1}, whole / 2, whole - 1}) {
    const GgufWriteOptions options{.max_shard_bytes = limit};
    ASSERT_TRUE(Copy(file, folder / "model.gguf", options).ok());
    const std::vector<std::string> names = folder.List();
    ASSERT_GT(names.size(), 1u);
    const GgufFile copy = MustOpen(folder / names.back());
    EXPECT_EQ(copy.paths().size(), names.size());
    ExpectReferenceContent(copy);
    EXPECT_EQ(copy.metadata().entries().size(), file.metadata().entries().size());
    EXPECT_EQ(*GgufWriter::TotalBytes(file.metadata(), InfosOf(file), options), copy.file_bytes());
    if (limit == 1) {
      EXPECT_EQ(names.size(), 5u);  // a tensor each
    }
    if (limit == whole - 1) {
      for (const std::string& name : names) {
        EXPECT_LE(std::filesystem::file_size(folder / name), limit);
      }
    }
    // Shards written as one file again lose every trace of the split.
    ASSERT_TRUE(Copy(copy, folder / "joined.gguf", {}).ok());
    EXPECT_EQ(ReadWholeFile(folder / "joined.gguf"), ReadWholeFile(kFiles + "python.gguf"));
    for (const std::string& name : folder.List()) std::filesystem::remove(folder / name);
  }
}

// For reference/files/check_files.py, which reads them with the packages that own the formats.
TEST(GgufWriter, WritesFilesForTheReferencePackages) {
  const char* folder = std::getenv("NIBBLE_WRITE_FILES");
  if (folder == nullptr) GTEST_SKIP() << "NIBBLE_WRITE_FILES names no folder";
  const GgufFile file = MustOpen(kFiles + "python.gguf");
  const std::string to = std::string(folder) + "/nibble";
  EXPECT_TRUE(Copy(file, to + ".gguf", {}).ok());
  EXPECT_TRUE(Copy(file, to + "-aligned-64.gguf", {.alignment = 64}).ok());
  EXPECT_TRUE(Copy(file, to + "-split.gguf", {.max_shard_bytes = 1}).ok());
}

TEST(GgufWriter, OneShardThatFitsIsAPlainFile) {
  const TemporaryFolder folder;
  const GgufFile file = MustOpen(kFiles + "python.gguf");
  ASSERT_TRUE(Copy(file, folder / "model.gguf", {.max_shard_bytes = file.file_bytes()}).ok());
  EXPECT_EQ(folder.List(), std::vector<std::string>({"model.gguf"}));
}

TEST(GgufWriter, MetadataAlone) {
  const TemporaryFolder folder;
  GgufMetadata metadata;
  metadata.Set("general.architecture", std::string("llama"));
  Result<GgufWriter> writer = GgufWriter::Create(folder / "m.gguf", metadata, {});
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  ASSERT_TRUE(writer->Finish().ok());
  const GgufFile file = MustOpen(folder / "m.gguf");
  EXPECT_TRUE(file.tensors().empty());
  EXPECT_EQ(*file.metadata().GetString("general.architecture"), "llama");
}

TEST(GgufWriter, AmendsValuesOfTheSameSize) {
  const TemporaryFolder folder;
  const GgufFile file = MustOpen(kFiles + "python.gguf");
  GgufMetadata metadata = file.metadata();
  metadata.Set("hash", std::string("0000"));
  for (const uint64_t limit : {0, 1}) {  // one file; a shard for each tensor
    Result<GgufWriter> writer =
        GgufWriter::Create(folder / "a.gguf", metadata, InfosOf(file), {.max_shard_bytes = limit});
    ASSERT_TRUE(writer.ok());
    for (const GgufTensor& tensor : file.tensors()) ASSERT_TRUE(writer->Append(tensor.data).ok());
    EXPECT_EQ(writer->Amend("none", std::string("abcd")).code(), StatusCode::kNotFound);
    EXPECT_EQ(writer->Amend("hash", std::string("abc")).code(), StatusCode::kInvalidArgument);
    ASSERT_TRUE(writer->Amend("hash", std::string("abcd")).ok());
    ASSERT_TRUE(writer->Finish().ok());
    EXPECT_FALSE(writer->Amend("hash", std::string("efgh")).ok());
    const std::string path = folder / folder.List().front();
    const GgufFile copy = MustOpen(path);
    EXPECT_EQ(*copy.metadata().GetString("hash"), "abcd");
    EXPECT_EQ(copy.metadata().entries().size(), file.metadata().entries().size() + 1);
    for (size_t i = 0; i < file.tensors().size(); ++i) {
      EXPECT_TRUE(std::ranges::equal(copy.tensors()[i].data, file.tensors()[i].data));
    }
    for (const std::string& name : folder.List()) std::filesystem::remove(folder / name);
  }
}

TEST(GgufWriter, RefusesContradictions) {
  const TemporaryFolder folder;
  const auto create = [&](std::vector<GgufTensorInfo> tensors, GgufWriteOptions options = {}) {
    return GgufWriter::Create(folder / "bad.gguf", {}, std::move(tensors), options).status();
  };
  const GgufTensorInfo good{"t", Format::kF32, {4}};
  EXPECT_EQ(create({good, good}).code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(create({{"t", Format::kF32, {}}}).ok());
  EXPECT_FALSE(create({{"t", Format::kF32, {1, 1, 1, 1, 1}}}).ok());
  EXPECT_FALSE(create({{"t", Format::kF32, {0}}}).ok());
  EXPECT_FALSE(create({{"t", Format::kF32, {-1}}}).ok());
  EXPECT_FALSE(create({{"t", Format::kQ4_0, {33}}}).ok());
  EXPECT_FALSE(create({{"t", static_cast<Format>(4), {32}}}).ok());
  EXPECT_FALSE(create({{"t", Format::kF32, {int64_t{1} << 32, int64_t{1} << 32}}}).ok());
  EXPECT_FALSE(create({good}, {.alignment = 24}).ok());
  EXPECT_FALSE(create({good}, {.alignment = 4}).ok());
  EXPECT_TRUE(folder.List().empty());
}

TEST(GgufWriter, CountsTheBytesOfEveryTensor) {
  const TemporaryFolder folder;
  const std::vector<std::byte> bytes(64);
  const auto create = [&] {
    return GgufWriter::Create(folder / "t.gguf", {},
                              {{"a", Format::kF32, {4}}, {"b", Format::kF32, {2}}});
  };
  Result<GgufWriter> writer = create();
  ASSERT_TRUE(writer.ok());
  EXPECT_FALSE(writer->Append(std::span(bytes).first(17)).ok());  // more than a
  writer = create();
  ASSERT_TRUE(writer->Append(std::span(bytes).first(16)).ok());
  EXPECT_FALSE(writer->Finish().ok());  // b is missing
  EXPECT_NE(writer->Finish().message().find("'b'"), std::string::npos);
  ASSERT_TRUE(writer->Append(std::span(bytes).first(8)).ok());
  EXPECT_FALSE(writer->Append(std::span(bytes).first(1)).ok());  // after the last
  EXPECT_TRUE(writer->Finish().ok());
  EXPECT_FALSE(writer->Finish().ok());
  EXPECT_EQ(folder.List(), std::vector<std::string>({"t.gguf"}));
}

TEST(GgufFile, ManyThreadsRead) {
  const GgufFile file = MustOpen(kFiles + "python.gguf");
  std::vector<std::thread> threads;
  std::vector<int64_t> sums(8);
  for (size_t t = 0; t < sums.size(); ++t) {
    threads.emplace_back([&, t] {
      const GgufFile copy = file;
      const Result<GgufFile> own = GgufFile::Open(kFiles + "python.gguf");
      for (const int8_t v : DataOf<int8_t>(*copy.Find("three"))) sums[t] += v;
      for (const int8_t v : DataOf<int8_t>(*own->Find("three"))) sums[t] += v;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int64_t sum : sums) EXPECT_EQ(sum, 2 * 23 * 24 / 2);
}

}  // namespace
}  // namespace nibble
