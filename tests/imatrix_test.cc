#include <cstring>
#include <limits>
#include <utility>

#include "gtest/gtest.h"
#include "nibble/calibration.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

std::string Int(int32_t value) {
  std::string bytes(4, '\0');
  std::memcpy(bytes.data(), &value, 4);
  return bytes;
}

std::string Floats(std::vector<float> values) {
  std::string bytes(values.size() * 4, '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::string Entry(const std::string& name, int32_t chunks, const std::vector<float>& values) {
  return Int(static_cast<int32_t>(name.size())) + name + Int(chunks) +
         Int(static_cast<int32_t>(values.size())) + Floats(values);
}

LayerStatistics Layer(int64_t cols, std::vector<float> sums, std::vector<int64_t> counts) {
  LayerStatistics layer;
  layer.cols = cols;
  layer.sum_squares = std::move(sums);
  layer.counts = std::move(counts);
  return layer;
}

// Laid out by hand, byte for byte, as the description of the format has it.
std::string SmallDat() {
  return Int(2) + Entry("blk.0.attn_q.weight", 4, {4, 8, 0, 2}) +
         Entry("blk.0.ffn_down.weight", 2, {1, 3}) + Int(4) + Int(8) + "text.raw";
}

TEST(ImportanceMatrix, ReadsTheOlderFormat) {
  const TemporaryFolder folder;
  WriteWholeFile(folder / "a.dat", SmallDat());
  const auto matrix = ImportanceMatrix::Load(folder / "a.dat");
  ASSERT_TRUE(matrix.ok()) << matrix.status().message();
  ASSERT_EQ(matrix->layers.size(), 2u);
  EXPECT_EQ(matrix->chunks, 4);
  EXPECT_EQ(matrix->datasets, std::vector<std::string>{"text.raw"});
  const LayerStatistics* q = matrix->Find("blk.0.attn_q.weight");
  ASSERT_NE(q, nullptr);
  EXPECT_EQ(q->cols, 4);
  EXPECT_EQ(q->MeanSquares(), (std::vector<float>{1, 2, 0, 0.5}));
  EXPECT_EQ(matrix->Find("blk.0.ffn_down.weight")->MeanSquares(), (std::vector<float>{0.5, 1.5}));
  EXPECT_EQ(matrix->Find("blk.0"), nullptr);
}

TEST(ImportanceMatrix, TheTailOfTheOlderFormatIsOptional) {
  const TemporaryFolder folder;
  WriteWholeFile(folder / "a.dat", Int(1) + Entry("w", 1, {1, 2}));
  EXPECT_TRUE(ImportanceMatrix::Load(folder / "a.dat").ok());
  WriteWholeFile(folder / "b.dat", Int(1) + Entry("w", 1, {1, 2}) + Int(7));
  const auto matrix = ImportanceMatrix::Load(folder / "b.dat");
  ASSERT_TRUE(matrix.ok());
  EXPECT_EQ(matrix->chunks, 7);
}

TEST(ImportanceMatrix, EveryTruncationIsRefused) {
  const TemporaryFolder folder;
  const std::string whole = SmallDat();
  const size_t tail = whole.size() - 16;  // from here on the file may end
  for (size_t size = 0; size < whole.size(); ++size) {
    if (size == tail || size == tail + 4) continue;
    WriteWholeFile(folder / "cut.dat", whole.substr(0, size));
    const auto matrix = ImportanceMatrix::Load(folder / "cut.dat");
    EXPECT_FALSE(matrix.ok()) << size;
  }
}

TEST(ImportanceMatrix, HostileFilesAreRefused) {
  const TemporaryFolder folder;
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::string bad[] = {
      Int(0),
      Int(-1) + Entry("w", 1, {1}),
      Int(1) + Int(0x7fffffff) + "w",
      Int(1) + Int(-4) + "w",
      Int(1) + Int(1) + "w" + Int(1) + Int(0x40000001) + Floats({1}),
      Int(1) + Int(1) + "w" + Int(1) + Int(-1) + Floats({1}),
      Int(1) + Int(1) + "w" + Int(1) + Int(0),
      Int(1) + Entry("w", -3, {1}),
      Int(1) + Entry("w", 1, {inf}),
      Int(1) + Entry("w", 1, {nan}),
      Int(1) + Entry("w", 1, {-1}),
      Int(2) + Entry("w", 1, {1}) + Entry("w", 1, {1}),
      "GGUF",
  };
  for (const std::string& bytes : bad) {
    WriteWholeFile(folder / "bad.dat", bytes);
    const auto matrix = ImportanceMatrix::Load(folder / "bad.dat");
    ASSERT_FALSE(matrix.ok());
    EXPECT_EQ(matrix.status().code(), StatusCode::kCorrupt) << matrix.status().message();
    EXPECT_NE(matrix.status().message().find("bad.dat"), std::string::npos);
  }
  EXPECT_EQ(ImportanceMatrix::Load(folder / "none").status().code(), StatusCode::kNotFound);
}

ImportanceMatrix Experts() {
  ImportanceMatrix matrix;
  matrix.layers["blk.0.ffn_down_exps.weight"] =
      Layer(3, {2, 4, 6, 0, 0, 0, 30, 60, 90}, {2, 0, 30});
  matrix.layers["blk.0.attn_q.weight"] = Layer(2, {512, 1024}, {1024});
  matrix.datasets = {"a.txt", "b.txt"};
  matrix.chunks = 2;
  matrix.chunk_tokens = 512;
  return matrix;
}

TEST(ImportanceMatrix, GgufKeepsEverything) {
  const TemporaryFolder folder;
  const ImportanceMatrix matrix = Experts();
  ASSERT_TRUE(matrix.SaveGguf(folder / "a.gguf").ok());
  const auto read = ImportanceMatrix::Load(folder / "a.gguf");
  ASSERT_TRUE(read.ok()) << read.status().message();
  ASSERT_EQ(read->layers.size(), 2u);
  for (const auto& [name, layer] : matrix.layers) {
    const LayerStatistics* other = read->Find(name);
    ASSERT_NE(other, nullptr) << name;
    EXPECT_EQ(other->cols, layer.cols);
    EXPECT_EQ(other->sum_squares, layer.sum_squares);
    EXPECT_EQ(other->counts, layer.counts);
  }
  EXPECT_EQ(read->datasets, matrix.datasets);
  EXPECT_EQ(read->chunks, 2);
  EXPECT_EQ(read->chunk_tokens, 512);
  EXPECT_EQ(read->Find("blk.0.ffn_down_exps.weight")->MeanSquares(0),
            (std::vector<float>{1, 2, 3}));
  EXPECT_TRUE(read->Find("blk.0.ffn_down_exps.weight")->MeanSquares(1).empty());
}

TEST(ImportanceMatrix, TheOlderFormatKeepsMeans) {
  const TemporaryFolder folder;
  ASSERT_TRUE(Experts().SaveDat(folder / "a.dat").ok());
  const auto read = ImportanceMatrix::Load(folder / "a.dat");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->Find("blk.0.ffn_down_exps.weight")->MeanSquares(),
            (std::vector<float>{1, 2, 3, 1, 1, 1, 1, 2, 3}));
  EXPECT_EQ(read->Find("blk.0.attn_q.weight")->MeanSquares(), (std::vector<float>{0.5, 1}));
  EXPECT_EQ(read->chunks, 2);
  // And once more, to the same bytes.
  ASSERT_TRUE(read->SaveDat(folder / "b.dat").ok());
  const auto again = ImportanceMatrix::Load(folder / "b.dat");
  ASSERT_TRUE(again.ok());
  ASSERT_TRUE(again->SaveDat(folder / "c.dat").ok());
  EXPECT_EQ(ReadWholeFile(folder / "b.dat"), ReadWholeFile(folder / "c.dat"));
}

TEST(ImportanceMatrix, MergesByTokens) {
  const TemporaryFolder folder;
  ImportanceMatrix a = Experts(), b = Experts();
  b.layers["only.weight"] = Layer(1, {5}, {5});
  ASSERT_TRUE(a.Merge(b).ok());
  EXPECT_EQ(a.chunks, 4);
  EXPECT_EQ(a.Find("blk.0.ffn_down_exps.weight")->counts, (std::vector<int64_t>{4, 0, 60}));
  EXPECT_EQ(a.Find("blk.0.ffn_down_exps.weight")->MeanSquares(2), (std::vector<float>{1, 2, 3}));
  EXPECT_NE(a.Find("only.weight"), nullptr);

  b.layers["blk.0.attn_q.weight"] = Layer(3, {1, 2, 3}, {1});
  const ImportanceMatrix before = a;
  EXPECT_EQ(a.Merge(b).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(a.Find("only.weight")->counts, before.Find("only.weight")->counts);
}

}  // namespace
}  // namespace nibble
