// What README.md shows is what the code does: its C++ snippet stands in a program that is built and
// run, and its table of formats is that of formats.def.
#include <cstdio>
#include <sstream>
#include <string>

#include "gtest/gtest.h"
#include "nibble/format.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

std::string Readme() { return ReadWholeFile(NIBBLE_EXAMPLES "/../README.md"); }

// The lines between the two "// [readme]" markers of an example, without their indentation.
std::string Snippet(const std::string& path) {
  std::istringstream source(ReadWholeFile(path));
  std::string line, snippet;
  bool inside = false;
  while (std::getline(source, line)) {
    if (line == "  // [readme]") {
      inside = !inside;
    } else if (inside) {
      snippet += (line.size() < 2 ? line : line.substr(2)) + "\n";
    }
  }
  return snippet;
}

std::string FormatTable() {
  std::string table =
      "| format | bits per weight | weights in a block | bytes of a block | quantize |\n"
      "|---|---|---|---|---|\n";
  for (const FormatInfo& info : AllFormats()) {
    if (!info.can_decode()) continue;
    char row[128];
    std::snprintf(row, sizeof(row), "| %s | %.4g | %u | %u | %s |\n", info.name,
                  info.bits_per_weight(), info.block_weights, info.block_bytes,
                  info.can_encode() ? "yes" : "decode only");
    table += row;
  }
  return table;
}

TEST(Readme, ShowsTheExample) {
  const std::string snippet = Snippet(NIBBLE_EXAMPLES "/quantize_buffer.cc");
  ASSERT_NE(snippet, "");
  EXPECT_NE(Readme().find("```cpp\n#include \"nibble/nibble.h\"\n\n" + snippet + "```\n"),
            std::string::npos)
      << "README.md should show\n"
      << snippet;
}

TEST(Readme, ListsTheFormats) {
  EXPECT_NE(Readme().find("\n\n" + FormatTable() + "\n"), std::string::npos)
      << "README.md should contain\n"
      << FormatTable();
}

}  // namespace
}  // namespace nibble
