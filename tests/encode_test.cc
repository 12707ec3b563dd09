// Encoders of the formats with one scale for a block: the bytes of the `gguf` package.
#include "kernels/encode.h"

#include "gtest/gtest.h"
#include "tests/vectors.h"

namespace nibble {
namespace {

std::vector<std::byte> Encode(Format format, const std::vector<float>& x) {
  std::vector<std::byte> out(*FormatBytes(format, 1, static_cast<int64_t>(x.size())));
  EncodeRow(format, x.data(), static_cast<int64_t>(x.size()), nullptr, out.data());
  return out;
}

TEST(EncodeTest, SimpleFormatsHaveTheBytesOfGguf) {
  const auto expected = ReadReference("gguf_vectors.json")["encode"];
  int compared = 0;
  for (const FormatInfo& info : AllFormats()) {
    for (const char* name : kCases) {
      const auto found = expected.find(std::string(info.name) + "/" + name);
      if (found == expected.end()) continue;
      EXPECT_EQ(Digest(Encode(info.format, CaseFloats(name))), *found) << info.name << " " << name;
      ++compared;
    }
  }
  EXPECT_EQ(compared, static_cast<int>(expected.size()));
}

}  // namespace
}  // namespace nibble
