// GGUF files that are wrong, each in one way: every one is refused with one line that says where,
// and nothing crashes or takes memory that the file cannot justify.
#include <cstring>

#include <gtest/gtest.h>

#include "lib/io/gguf_reader.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

// Builds files that GgufWriter would refuse to write.
struct Bytes {
  std::string text;

  template <class T>
  Bytes& Put(T value) {
    text.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  Bytes& PutString(std::string_view value) {
    Put(uint64_t{value.size()});
    text.append(value);
    return *this;
  }
  Bytes& PutKey(std::string_view key, GgufType type) {
    return PutString(key).Put(static_cast<uint32_t>(type));
  }
  Bytes& PutTensor(std::string_view name, std::vector<int64_t> dims, uint32_t format,
                   uint64_t offset) {
    PutString(name).Put(static_cast<uint32_t>(dims.size()));
    for (const int64_t dim : dims) Put(dim);
    return Put(format).Put(offset);
  }
  Bytes& PutData(size_t bytes, size_t alignment = 32) {
    text.resize((text.size() + alignment - 1) / alignment * alignment + bytes);
    return *this;
  }
};

Bytes Header(uint64_t tensors, uint64_t pairs, uint32_t version = 3) {
  Bytes bytes;
  bytes.text = "GGUF";
  bytes.Put(version).Put(tensors).Put(pairs);
  return bytes;
}

Result<ParsedGguf> Parse(std::string_view text) {
  // Exactly sized heap memory: AddressSanitizer sees a read beyond it.
  const std::vector<char> copy(text.begin(), text.end());
  Result<ParsedGguf> parsed = ParseGguf(std::as_bytes(std::span(copy)), "hostile.gguf");
  if (parsed.ok()) {
    for (GgufTensor& tensor : parsed->tensors) {
      EXPECT_EQ(tensor.data.data(),
                reinterpret_cast<const std::byte*>(copy.data()) + tensor.file_offset);
      EXPECT_LE(tensor.file_offset + tensor.data.size(), copy.size());
      tensor.data = {};
    }
  }
  return parsed;
}

// One line that begins with the file, has a byte offset and says all of `parts`.
void ExpectError(const Bytes& bytes, const std::vector<std::string>& parts,
                 StatusCode code = StatusCode::kCorrupt) {
  const Result<ParsedGguf> parsed = Parse(bytes.text);
  ASSERT_FALSE(parsed.ok()) << parts.front();
  const std::string& message = parsed.status().message();
  EXPECT_EQ(parsed.status().code(), code) << message;
  EXPECT_TRUE(message.starts_with("hostile.gguf: ")) << message;
  EXPECT_NE(message.find("(byte "), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
}

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ4_0 = 2;

TEST(HostileGguf, TheBaseIsRight) {
  EXPECT_TRUE(Parse(Header(0, 0).text).ok());
  EXPECT_TRUE(Parse(Header(1, 0).PutTensor("t", {4, 2}, kF32, 0).PutData(32).text).ok());
  // A scalar, as numpy writes one: no dimensions.
  const Result<ParsedGguf> scalar = Parse(Header(1, 0).PutTensor("t", {}, kF32, 0).PutData(4).text);
  ASSERT_TRUE(scalar.ok());
  EXPECT_EQ(scalar->tensors[0].dims, std::vector<int64_t>({1}));
}

TEST(HostileGguf, MagicAndVersion) {
  ExpectError(Bytes{""}, {"not a GGUF file"});
  ExpectError(Bytes{"GGU"}, {"not a GGUF file"});
  ExpectError(Bytes{"ggml and more"}, {"not a GGUF file"});
  ExpectError(Header(0, 0, 1), {"GGUF version 1"}, StatusCode::kUnsupported);
  ExpectError(Header(0, 0, 4), {"GGUF version 4"}, StatusCode::kUnsupported);
  ExpectError(Header(0, 0, 3u << 24), {"big-endian"}, StatusCode::kUnsupported);
}

TEST(HostileGguf, CountsBeyondTheFile) {
  ExpectError(Header(UINT64_MAX, 0), {"18446744073709551615 tensors", "(byte 8)"});
  ExpectError(Header(0, UINT64_MAX), {"18446744073709551615 metadata pairs", "(byte 16)"});
  ExpectError(Header(UINT64_MAX / 24 + 2, 0), {"tensors cannot fit"});  // wraps when multiplied
  ExpectError(Header(1, 0), {"1 tensors cannot fit"});
  ExpectError(Header(0, 1), {"1 metadata pairs cannot fit"});
}

TEST(HostileGguf, Strings) {
  for (const uint64_t length : {uint64_t{1000}, uint64_t{1} << 40, UINT64_MAX, UINT64_MAX - 31}) {
    ExpectError(Header(0, 1).PutKey("key", GgufType::kString).Put(length).PutData(32),
                {"metadata 'key'", "a string of " + std::to_string(length) + " bytes"});
  }
  ExpectError(Header(0, 1).Put(uint64_t{20}).Put(uint64_t{0}), {"metadata pair 0", "string of 20"});
  ExpectError(Header(0, 1).PutKey(std::string(65536, 'k'), GgufType::kU8).Put(uint8_t{1}),
              {"a name of 65536 bytes"});
  ExpectError(Header(0, 1).PutKey("", GgufType::kU8).PutData(32), {"an empty key"});
  ExpectError(Header(1, 0).PutTensor(std::string(70000, 't'), {1}, kF32, 0).PutData(4),
              {"tensor 0", "a name of 70000 bytes"});
  // A name is quoted so that it cannot break the line.
  ExpectError(Header(1, 0).PutTensor("a\nb\x1b[", {1}, 99, 0).PutData(4), {"'a\\x0ab\\x1b['"},
              StatusCode::kUnsupported);
}

TEST(HostileGguf, ValuesAndArrays) {
  ExpectError(Header(0, 1).PutString("key").Put(uint32_t{13}).PutData(32),
              {"metadata 'key'", "unknown value type 13"});
  ExpectError(Header(0, 1).PutKey("key", GgufType::kBool).Put(uint8_t{2}), {"a bool of value 2"});
  const auto array = [](uint32_t type, uint64_t count) {
    return Header(0, 1).PutKey("key", GgufType::kArray).Put(type).Put(count).PutData(32);
  };
  ExpectError(array(9, 1), {"an array of arrays"}, StatusCode::kUnsupported);
  ExpectError(array(13, 1), {"unknown element type 13"});
  for (const uint32_t type : {0u, 2u, 4u, 7u, 8u, 10u, 12u}) {
    for (const uint64_t count :
         {uint64_t{1} << 61, (uint64_t{1} << 61) + 1, UINT64_MAX, uint64_t{100}}) {
      ExpectError(array(type, count), {"an array of " + std::to_string(count) + " elements"});
    }
  }
}

TEST(HostileGguf, Alignment) {
  const auto aligned = [](uint32_t alignment) {
    return Header(1, 1)
        .PutKey("general.alignment", GgufType::kU32)
        .Put(alignment)
        .PutTensor("t", {1}, kF32, 0)
        .PutData(64, 64);
  };
  EXPECT_TRUE(Parse(aligned(64).text).ok());
  for (const uint32_t bad : {0u, 1u, 4u, 24u, 33u, UINT32_MAX}) {
    ExpectError(aligned(bad),
                {"general.alignment", std::to_string(bad) + " is not a power of two"});
  }
  ExpectError(aligned(1u << 31), {"tensor data", "the file ends before it"});
  ExpectError(Header(0, 1).PutKey("general.alignment", GgufType::kString).PutString("32"),
              {"not an unsigned integer"});
}

TEST(HostileGguf, Dimensions) {
  const auto tensor = [](std::vector<int64_t> dims, uint32_t format = kF32) {
    return Header(1, 0).PutTensor("t", std::move(dims), format, 0).PutData(64);
  };
  ExpectError(tensor({1, 1, 1, 1, 1}), {"tensor 't'", "5 dimensions"});
  ExpectError(tensor({0}), {"a dimension of 0"});
  ExpectError(tensor({4, -1}), {"a dimension of -1"});
  ExpectError(tensor({INT64_MIN}), {"a dimension of -9223372036854775808"});
  ExpectError(tensor({INT64_MAX, 2}), {"overflows"});
  ExpectError(tensor({int64_t{1} << 32, int64_t{1} << 32}), {"overflows"});  // the product is 0
  ExpectError(tensor({int64_t{1} << 21, int64_t{1} << 21, int64_t{1} << 21, 3}), {"overflows"});
  ExpectError(tensor({INT64_MAX}), {"too large"});  // elements fit, bytes do not
  ExpectError(tensor({INT64_MAX / 2}), {"its size overflows"});
  ExpectError(tensor({33}, kQ4_0), {"multiple of 32"});
  ExpectError(tensor({17}), {"'t'", "lies beyond the end of the file"});
  ExpectError(Header(1, 0).PutString("t").Put(UINT32_MAX).PutData(64), {"4294967295 dimensions"});
}

TEST(HostileGguf, TensorTypes) {
  for (const uint32_t type : {4u, 5u, 31u, 36u, 1000u, UINT32_MAX}) {
    ExpectError(Header(1, 0).PutTensor("t", {32}, type, 0).PutData(128),
                {"tensor 't'", "unknown tensor type " + std::to_string(type)},
                StatusCode::kUnsupported);
  }
}

TEST(HostileGguf, Offsets) {
  const auto at = [](uint64_t offset) {
    return Header(1, 0).PutTensor("t", {8}, kF32, offset).PutData(64);
  };
  EXPECT_TRUE(Parse(at(32).text).ok());
  ExpectError(at(1), {"'t'", "offset 1 is not a multiple of the alignment 32"});
  ExpectError(at(64), {"'t'", "lies beyond the end"});
  ExpectError(at(uint64_t{1} << 40), {"lies beyond the end"});
  ExpectError(at(UINT64_MAX - 31), {"lies beyond the end"});  // wraps when the size is added
  const auto two = [](uint64_t a, uint64_t b) {
    return Header(2, 0).PutTensor("a", {8}, kF32, a).PutTensor("b", {16}, kF32, b).PutData(128);
  };
  EXPECT_TRUE(Parse(two(0, 32).text).ok());
  EXPECT_TRUE(Parse(two(64, 0).text).ok());  // in any order
  ExpectError(two(0, 0), {"overlaps that of"});
  ExpectError(two(32, 0), {"'a'", "overlaps that of 'b'"});
}

TEST(HostileGguf, Duplicates) {
  ExpectError(Header(2, 0).PutTensor("t", {8}, kF32, 0).PutTensor("t", {8}, kF32, 32).PutData(64),
              {"tensor 't'", "twice"});
  ExpectError(Header(0, 2)
                  .PutKey("key", GgufType::kU8)
                  .Put(uint8_t{1})
                  .PutKey("key", GgufType::kU8)
                  .Put(uint8_t{1}),
              {"metadata 'key'", "twice"});
}

// --- Every byte of the header of a right file ---

std::string ReferenceFile() {
  return ReadWholeFile(std::string(NIBBLE_TEST_DATA) + "/files/python.gguf");
}

TEST(HostileGguf, TruncatedAtEveryByte) {
  const std::string whole = ReferenceFile();
  ASSERT_TRUE(Parse(whole).ok());
  const size_t last = Parse(whole)->tensors.back().file_offset + 2 * 34;  // q8_0 rows
  ASSERT_LE(last, whole.size());
  for (size_t size = 0; size < last; ++size) {
    const Result<ParsedGguf> parsed = Parse(whole.substr(0, size));
    ASSERT_FALSE(parsed.ok()) << size;
    EXPECT_EQ(parsed.status().code(), StatusCode::kCorrupt);
    EXPECT_NE(parsed.status().message().find("byte"), std::string::npos) << size;
  }
  EXPECT_TRUE(Parse(whole.substr(0, last)).ok());  // the padding of the last tensor may lack
}

TEST(HostileGguf, EveryByteCorrupted) {
  const std::string whole = ReferenceFile();
  const size_t header = Parse(whole)->tensors.front().file_offset;
  size_t refused = 0;
  for (size_t i = 0; i < header; ++i) {
    for (const int change : {0x01, 0x80, 0xFF}) {
      std::string corrupt = whole;
      corrupt[i] = static_cast<char>(corrupt[i] ^ change);
      const Result<ParsedGguf> parsed = Parse(corrupt);
      if (parsed.ok()) continue;
      ++refused;
      EXPECT_EQ(parsed.status().message().find('\n'), std::string::npos);
    }
  }
  EXPECT_GT(refused, header);  // lengths, types and offsets are most of a header
}

// --- Shards ---

class HostileShards : public ::testing::Test {
 protected:
  void SetUp() override {
    for (int i = 1; i <= 3; ++i) {
      const std::string name = "python-split-0000" + std::to_string(i) + "-of-00003.gguf";
      std::filesystem::copy(std::string(NIBBLE_TEST_DATA) + "/files/" + name, folder_ / Name(i));
    }
    ASSERT_TRUE(GgufFile::Open(folder_ / Name(2)).ok());
  }

  static std::string Name(int i, int of = 3) {
    return "m-0000" + std::to_string(i) + "-of-0000" + std::to_string(of) + ".gguf";
  }

  void Rename(const std::string& from, const std::string& to) {
    std::filesystem::rename(folder_ / from, folder_ / to);
  }

  void ExpectError(const std::string& name, const std::string& part, StatusCode code) {
    const Result<GgufFile> file = GgufFile::Open(folder_ / name);
    ASSERT_FALSE(file.ok());
    EXPECT_NE(file.status().message().find(part), std::string::npos) << file.status().message();
    EXPECT_EQ(file.status().code(), code) << file.status().message();
  }

  TemporaryFolder folder_;
};

TEST_F(HostileShards, OneIsMissing) {
  std::filesystem::remove(folder_ / Name(2));
  ExpectError(Name(1), Name(2), StatusCode::kNotFound);
}

TEST_F(HostileShards, RenamedShards) {
  std::filesystem::copy(folder_ / Name(1), folder_ / "alone.gguf");
  ExpectError("alone.gguf", "holds shard 1 of 3", StatusCode::kCorrupt);
  std::filesystem::copy(folder_ / Name(1), folder_ / Name(1, 2));
  ExpectError(Name(1, 2), "has the name of shard 1 of 2", StatusCode::kCorrupt);
  Rename(Name(2), "x");
  Rename(Name(3), Name(2));
  Rename("x", Name(3));
  ExpectError(Name(1), "do not agree", StatusCode::kCorrupt);
}

TEST_F(HostileShards, AnUnsplitFileUnderAShardsName) {
  std::filesystem::copy(std::string(NIBBLE_TEST_DATA) + "/files/python.gguf", folder_ / Name(2, 9));
  ExpectError(Name(2, 9), "has the name of shard 2 of 9", StatusCode::kCorrupt);
}

TEST_F(HostileShards, AShardTwiceUnderTwoNumbers) {
  // The bytes of shard 2 with the number of shard 3: the tensors come twice, the count disagrees.
  std::string bytes = ReadWholeFile(folder_ / Name(2));
  const size_t key = bytes.find("split.no");
  ASSERT_NE(key, std::string::npos);
  bytes[key + 8 + 4] = 2;  // after the key and the type
  WriteWholeFile(folder_ / Name(3), bytes);
  ExpectError(Name(1), "the shards hold 6 tensors, not the 5", StatusCode::kCorrupt);
}

TEST_F(HostileShards, SplitKeysThatAreNoNumbers) {
  std::string bytes = ReadWholeFile(folder_ / Name(1));
  const size_t key = bytes.find("split.no");
  bytes[key + 8] = 3;  // i16
  bytes[key + 8 + 5] = static_cast<char>(0x80);
  WriteWholeFile(folder_ / Name(1), bytes);
  ExpectError(Name(1), "split.no' is not a non-negative integer", StatusCode::kCorrupt);
}

TEST(GgufFileErrors, WhatCannotBeOpened) {
  const TemporaryFolder folder;
  EXPECT_EQ(GgufFile::Open(folder / "none.gguf").status().code(), StatusCode::kNotFound);
  const Status is_folder = GgufFile::Open(folder.path()).status();
  EXPECT_NE(is_folder.message().find("is a folder"), std::string::npos) << is_folder.message();
  EXPECT_FALSE(GgufFile::Open("/dev/null").ok());
  WriteWholeFile(folder / "empty.gguf", "");
  EXPECT_NE(GgufFile::Open(folder / "empty.gguf").status().message().find("not a GGUF file"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble
