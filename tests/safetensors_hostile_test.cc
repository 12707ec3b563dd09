// safetensors files that are wrong, each in one way: every one is refused with one line, and
// nothing crashes or takes memory that the file cannot justify.
#include <cstring>

#include <gtest/gtest.h>

#include "lib/io/safetensors_reader.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

std::string File(const std::string& header, size_t data_bytes = 0) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header +
         std::string(data_bytes, '\0');
}

Result<ParsedSafetensors> Parse(std::string_view text) {
  // Exactly sized heap memory: AddressSanitizer sees a read beyond it.
  const std::vector<char> copy(text.begin(), text.end());
  Result<ParsedSafetensors> parsed =
      ParseSafetensors(std::as_bytes(std::span(copy)), "hostile.safetensors");
  if (parsed.ok()) {
    for (SafetensorsTensor& tensor : parsed->tensors) {
      EXPECT_LE(tensor.data.data() + tensor.data.size(),
                reinterpret_cast<const std::byte*>(copy.data()) + copy.size());
      tensor.data = {};
    }
  }
  return parsed;
}

void ExpectLine(const Status& status, const std::string& file, const std::string& part) {
  EXPECT_TRUE(status.message().starts_with(file + ": ")) << status.message();
  EXPECT_EQ(status.message().find('\n'), std::string::npos) << status.message();
  EXPECT_NE(status.message().find(part), std::string::npos) << part << " in: " << status.message();
}

void ExpectError(const std::string& text, const std::string& part,
                 StatusCode code = StatusCode::kCorrupt) {
  const Result<ParsedSafetensors> parsed = Parse(text);
  ASSERT_FALSE(parsed.ok()) << part;
  EXPECT_EQ(parsed.status().code(), code);
  ExpectLine(parsed.status(), "hostile.safetensors", part);
}

// One tensor 't' with these members.
std::string One(const std::string& members) { return "{\"t\":{" + members + "}}"; }

TEST(HostileSafetensors, TheBaseIsRight) {
  EXPECT_TRUE(Parse(File("{}")).ok());
  EXPECT_TRUE(Parse(File("{\"__metadata__\":{\"a\":\"b\"}}   ")).ok());
  EXPECT_TRUE(Parse(File(One(R"("shape":[2,2],"data_offsets":[0,16],"dtype":"F32")"), 16)).ok());
}

TEST(HostileSafetensors, HeaderLength) {
  ExpectError("", "under 8 bytes");
  ExpectError("1234567", "under 8 bytes");
  for (const uint64_t length : {uint64_t{100'000'001}, UINT64_MAX, UINT64_MAX - 7}) {
    std::string file = File("{}");
    std::memcpy(file.data(), &length, 8);
    ExpectError(file, "a header of " + std::to_string(length) + " bytes, more than 100000000");
  }
  std::string file = File("{}");
  file[0] = 3;
  ExpectError(file, "a header of 3 bytes in a file of 10");
  file[0] = 0;
  ExpectError(file, "not a JSON object");
}

TEST(HostileSafetensors, Json) {
  for (const char* text : {"[]", " {}", "\xEF\xBB\xBF{}", "null", "1"}) {
    ExpectError(File(text), "not a JSON object");
  }
  for (const char* text :
       {"{", "{}}", "{} x", "{\"a\"}", "{'a':1}", "{\"a\":}", "{\"\xff\":{}}",
        "{\"a\":{\"dtype\":\"\xc3\"}}", "{/**/}", "{\"t\":{\"shape\":[1e999]}}"}) {
    ExpectError(File(text), "header: ");
  }
  ExpectError(File(std::string("{}\0\0", 4)), "a zero byte");
}

TEST(HostileSafetensors, DeepNesting) {
  const std::string deep(1'000'000, '[');
  ExpectError(File("{\"t\":" + deep), "'t'");
  std::string objects;
  for (int i = 0; i < 200'000; ++i) objects += "{\"a\":";
  ExpectError(File(objects), "'a'");
  EXPECT_FALSE(ParseSafetensorsIndex("{\"x\":" + deep, "i").ok());
  EXPECT_FALSE(ParseSafetensorsIndex(objects, "i").ok());
}

TEST(HostileSafetensors, Members) {
  ExpectError(File(One(R"("shape":[4],"data_offsets":[0,16])"), 16), "'t': has no dtype");
  ExpectError(File(One(R"("dtype":"F32","data_offsets":[0,16])"), 16), "'t': has no shape");
  ExpectError(File(One(R"("dtype":"F32","shape":[4])"), 16), "'t': has no data_offsets");
  ExpectError(File(One("")), "has no dtype");
  const std::string good = R"("dtype":"F32","shape":[4],"data_offsets":[0,16])";
  for (const std::string more :
       {R"(,"dtype":"F32")", R"(,"shape":[4])", R"(,"data_offsets":[0,16])", R"(,"x":1)",
        R"(,"x":[])", R"(,"x":{})", R"(,"x":"y")", R"(,"shape":null)"}) {
    ExpectError(File(One(good + more), 16), "tensor 't': ");
  }
  ExpectError(File(R"({"t":1})"), "'t'");
  ExpectError(File(R"({"t":[]})"), "'t'");
  ExpectError(File(One(R"("dtype":"F32","shape":[[4]],"data_offsets":[0,16])"), 16), "'shape'");
  ExpectError(File(One(R"("dtype":"F32","shape":["4"],"data_offsets":[0,16])"), 16), "'shape'");
  ExpectError(File(One(R"("dtype":"F32","shape":[4],"data_offsets":[16])"), 16), "1 numbers");
  ExpectError(File(One(R"("dtype":"F32","shape":[4],"data_offsets":[0,8,16])"), 16), "3 numbers");
}

TEST(HostileSafetensors, Duplicates) {
  const std::string t = R"("t":{"dtype":"F32","shape":[],"data_offsets":[0,4]})";
  ExpectError(File("{" + t + "," + t + "}", 4), "two tensors 't'");
  ExpectError(File(R"({"__metadata__":{},"__metadata__":{}})"), "two entries __metadata__");
  ExpectError(File(R"({"__metadata__":{"a":"1","a":"2"}})"), "two metadata entries 'a'");
  ExpectError(File(R"({"__metadata__":{"a":1}})"), "'a'");
  ExpectError(File(R"({"__metadata__":{"a":{}}})"), "'a'");
  ExpectError(File(R"({"__metadata__":[]})"), "__metadata__");
  ExpectError(File(R"({"__metadata__":"x"})"), "__metadata__");
}

TEST(HostileSafetensors, TypesAndShapes) {
  const auto tensor = [](const std::string& dtype, const std::string& shape) {
    return File(
        One("\"dtype\":\"" + dtype + "\",\"shape\":[" + shape + "],\"data_offsets\":[0,16]"), 16);
  };
  ExpectError(tensor("F12", "4"), "unknown dtype 'F12'", StatusCode::kUnsupported);
  ExpectError(tensor("f32", "4"), "unknown dtype 'f32'", StatusCode::kUnsupported);
  ExpectError(tensor("F32", "-4"), "a negative number");
  ExpectError(tensor("F32", "4.0"), "a fraction");
  ExpectError(tensor("F32", "9223372036854775808"), "a dimension of 9223372036854775808");
  ExpectError(tensor("F32", "18446744073709551616"), "'shape'");
  ExpectError(tensor("F32", "4294967296,4294967296"), "overflows");
  ExpectError(tensor("U8", "9223372036854775807,2"), "overflows");
  ExpectError(tensor("F32", "5"), "do not hold the 20 bytes");
  ExpectError(tensor("F16", "4"), "do not hold the 8 bytes");
}

TEST(HostileSafetensors, Offsets) {
  const auto bytes = [](const std::string& name, int count, uint64_t begin, uint64_t end) {
    return "\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(count) +
           "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
  };
  const auto two = [&](const std::string& a, const std::string& b) {
    return "{" + a + "," + b + "}";
  };
  EXPECT_TRUE(Parse(File(two(bytes("a", 4, 4, 8), bytes("b", 4, 0, 4)), 8)).ok());  // in any order
  ExpectError(File(two(bytes("a", 4, 0, 4), bytes("b", 4, 5, 9)), 9),
              "'b': data_offsets [5, 9] leave a hole");
  ExpectError(File(two(bytes("a", 4, 0, 4), bytes("b", 4, 3, 7)), 7),
              "'b': data_offsets [3, 7] overlap");
  ExpectError(File(two(bytes("a", 4, 0, 4), bytes("b", 4, 0, 4)), 4), "overlap");
  ExpectError(File("{" + bytes("a", 4, 1, 5) + "}", 5), "leave a hole after 0");
  ExpectError(File("{" + bytes("a", 4, 4, 0) + "}", 4), "do not hold");
  ExpectError(File("{" + bytes("a", 4, UINT64_MAX - 1, 2) + "}", 4), "do not hold");  // wraps to 4
  ExpectError(File("{" + bytes("a", 4, 0, 4) + "}", 3), "beyond the end of the file");
  ExpectError(File("{" + bytes("a", 4, 0, 4) + "}", 5), "1 bytes after the data");
  ExpectError(File("{}", 1), "1 bytes after the data");
}

TEST(HostileSafetensors, TruncatedAtEveryByte) {
  const std::string whole =
      ReadWholeFile(std::string(NIBBLE_TEST_DATA) + "/files/python.safetensors");
  ASSERT_TRUE(Parse(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    const Result<ParsedSafetensors> parsed = Parse(whole.substr(0, size));
    ASSERT_FALSE(parsed.ok()) << size;
    EXPECT_EQ(parsed.status().code(), StatusCode::kCorrupt) << size;
  }
}

TEST(HostileSafetensors, EveryByteCorrupted) {
  const std::string whole =
      ReadWholeFile(std::string(NIBBLE_TEST_DATA) + "/files/python.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, whole.data(), 8);
  size_t refused = 0;
  for (size_t i = 0; i < 8 + header; ++i) {
    for (const int change : {0x01, 0x80, 0xFF}) {
      std::string corrupt = whole;
      corrupt[i] = static_cast<char>(corrupt[i] ^ change);
      const Result<ParsedSafetensors> parsed = Parse(corrupt);
      if (parsed.ok()) continue;
      ++refused;
      EXPECT_EQ(parsed.status().message().find('\n'), std::string::npos);
    }
  }
  EXPECT_GT(refused, 2 * header);  // all but names and values of the metadata
}

// --- Indices ---

TEST(HostileSafetensorsIndex, Text) {
  const auto expect = [](const std::string& text, const std::string& part) {
    const auto parsed = ParseSafetensorsIndex(text, "index");
    ASSERT_FALSE(parsed.ok()) << text;
    ExpectLine(parsed.status(), "index", part);
  };
  const auto good = ParseSafetensorsIndex(
      R"({"metadata":{"total_size":1,"more":[{}]},"weight_map":{"a":"f"},"other":null})", "index");
  ASSERT_TRUE(good.ok()) << good.status().message();
  EXPECT_EQ(good->size(), 1u);
  expect("", "not a JSON object");
  expect("[]", "not a JSON object");
  expect("{", "not valid JSON");
  expect("{}", "has no weight_map");
  expect(R"({"weight_map":[]})", "weight_map");
  expect(R"({"weight_map":"x"})", "weight_map");
  expect(R"({"weight_map":{"a":1}})", "'a'");
  expect(R"({"weight_map":{"a":{}}})", "'a'");
  expect(R"({"weight_map":{"a":["f"]}})", "'a'");
  expect(R"({"weight_map":{},"weight_map":{}})", "two entries weight_map");
  expect(R"({"weight_map":{"a":"f","a":"g"}})", "two entries 'a'");
  for (const char* file : {"", ".", "..", "../f", "/etc/passwd", "a/b", "a\\\\b", "f\\u0000g"}) {
    expect(std::string(R"({"weight_map":{"a":")") + file + "\"}}",
           "not the name of a file in the same folder");
  }
}

TEST(HostileSafetensorsIndex, IndexAndFilesDisagree) {
  const TemporaryFolder folder;
  const std::string t = R"("dtype":"U8","shape":[1],"data_offsets":[0,1])";
  WriteWholeFile(folder / "a.safetensors", File("{\"a\":{" + t + "}}", 1));
  WriteWholeFile(folder / "b.safetensors", File("{\"b\":{" + t + "}}", 1));
  const std::string index = folder / "m.safetensors.index.json";
  const auto open = [&](const std::string& map) {
    WriteWholeFile(index, "{\"weight_map\":{" + map + "}}");
    return SafetensorsFile::Open(folder.path()).status();
  };
  EXPECT_TRUE(open(R"("a":"a.safetensors","b":"b.safetensors")").ok());
  ExpectLine(open(R"("a":"b.safetensors","b":"a.safetensors")"), index, "does not list tensor 'a'");
  ExpectLine(open(R"("a":"a.safetensors","c":"b.safetensors")"), index, "does not list tensor 'b'");
  ExpectLine(open(R"("a":"a.safetensors","b":"b.safetensors","c":"a.safetensors")"), index,
             "tensor 'c' is not in 'a.safetensors'");
  ExpectLine(open(R"("a":"none.safetensors")"), index, "No such file");
}

TEST(SafetensorsFileErrors, WhatCannotBeOpened) {
  const TemporaryFolder folder;
  EXPECT_EQ(SafetensorsFile::Open(folder / "none").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(folder.path()).status().code(), StatusCode::kNotFound);
  WriteWholeFile(folder / "x.safetensors", File("{}"));
  EXPECT_TRUE(SafetensorsFile::Open(folder.path()).ok());
  WriteWholeFile(folder / "y.safetensors", File("{}"));
  ExpectLine(SafetensorsFile::Open(folder.path()).status(), folder.path(),
             "holds 2 safetensors files");
  WriteWholeFile(folder / "model.safetensors", File("{}"));
  const Result<SafetensorsFile> file = SafetensorsFile::Open(folder.path());
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->paths()[0], folder / "model.safetensors");
}

}  // namespace
}  // namespace nibble
