// Statistics of what a model's matrices see.
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/calibrate.h"
#include "nibble/quantize.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

const std::string kFolder = std::string(NIBBLE_EXAMPLES) + "/reference-model";

TEST(GatherStatistics, AreThoseOfTheInputs) {
  const auto model = Model::Load(kFolder);
  ASSERT_TRUE(model.ok()) << model.status().message();
  const auto text = CutCalibrationText(*model, ReadWholeFile(kFolder + "/calibration.txt"),
                                       /*context=*/64, /*max_windows=*/5);
  ASSERT_TRUE(text.ok()) << text.status().message();
  EXPECT_EQ(text->windows(), 5);
  for (int64_t w = 0; w < 5; ++w) {
    EXPECT_EQ(text->tokens[static_cast<size_t>(w * 64)], model->tokenizer().bos());
  }
  StatisticsOptions options;
  options.output = true;
  options.batch_tokens = 128;  // the last batch is smaller
  std::vector<int64_t> told;
  options.progress = [&](int64_t done, int64_t windows) {
    told.push_back(done);
    return windows == 5;
  };
  const auto seen = GatherStatistics(*model, *text, "a text", options);
  ASSERT_TRUE(seen.ok()) << seen.status().message();
  EXPECT_EQ(told, (std::vector<int64_t>{2, 4, 5}));
  EXPECT_EQ(seen->chunks, 5);
  EXPECT_EQ(seen->chunk_tokens, 64);
  EXPECT_EQ(seen->layers.size(), static_cast<size_t>(7 * model->config().layers + 1));

  // The first layer's inputs are normed embeddings.
  const auto source = ModelSource::Open(kFolder);
  const auto floats = [&](const std::string& name) {
    const ModelTensor& tensor = *source->Find(name);
    std::vector<float> values(static_cast<size_t>(tensor.rows() * tensor.cols()));
    EXPECT_TRUE(Dequantize(tensor.format, source->Read(tensor)->bytes(),
                           ViewOf(values.data(), tensor.rows(), tensor.cols()))
                    .ok());
    return values;
  };
  const std::vector<float> table = floats("token_embd.weight");
  const std::vector<float> norm = floats("blk.0.attn_norm.weight");
  const size_t width = norm.size();
  std::vector<double> sums(width), maxima(width);
  for (const int32_t token : text->tokens) {
    const float* row = table.data() + static_cast<size_t>(token) * width;
    double square = 0;
    for (size_t j = 0; j < width; ++j) square += static_cast<double>(row[j]) * row[j];
    const double scale =
        1 / std::sqrt(square / static_cast<double>(width) + model->config().norm_eps);
    for (size_t j = 0; j < width; ++j) {
      const double x = row[j] * scale * norm[j];
      sums[j] += x * x;
      maxima[j] = std::max(maxima[j], std::abs(x));
    }
  }
  for (const char* name : {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"}) {
    const LayerStatistics* layer = seen->Find(name);
    ASSERT_NE(layer, nullptr) << name;
    EXPECT_EQ(layer->counts, std::vector<int64_t>{320});
    for (size_t j = 0; j < width; ++j) {
      EXPECT_NEAR(layer->sum_squares[j], sums[j], 1e-4 * sums[j]) << name << " " << j;
      EXPECT_NEAR(layer->maxima[j], maxima[j], 1e-5 * maxima[j]) << name << " " << j;
    }
  }

  // Both formats give the means back; GGUF the maxima, too.
  const TemporaryFolder folder;
  ASSERT_TRUE(seen->SaveGguf(folder / "a.gguf").ok());
  ASSERT_TRUE(seen->SaveDat(folder / "a.dat").ok());
  const auto gguf = ImportanceMatrix::Load(folder / "a.gguf");
  const auto dat = ImportanceMatrix::Load(folder / "a.dat");
  ASSERT_TRUE(gguf.ok() && dat.ok());
  for (const auto& [name, layer] : seen->layers) {
    EXPECT_EQ(gguf->Find(name)->sum_squares, layer.sum_squares) << name;
    EXPECT_EQ(gguf->Find(name)->maxima, layer.maxima) << name;
    const std::vector<float> means = layer.MeanSquares(), from_dat = dat->Find(name)->MeanSquares();
    for (size_t j = 0; j < means.size(); ++j) EXPECT_NEAR(from_dat[j], means[j], 1e-6 * means[j]);
  }
}

TEST(LayerStatistics, CountsExpertsApartAndMerges) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  LayerStatistics layer(2, 3);
  const std::vector<float> x = {1, -2, 3, 4}, bad = {1, nan};
  ASSERT_TRUE(layer.Add(ViewOf(x.data(), 2, 2), 1).ok());
  EXPECT_EQ(layer.counts, (std::vector<int64_t>{0, 2, 0}));
  EXPECT_EQ(layer.MeanSquares(1), (std::vector<float>{5, 10}));
  EXPECT_TRUE(layer.MeanSquares(0).empty());
  EXPECT_EQ(layer.maxima, (std::vector<float>{0, 0, 3, 4, 0, 0}));
  EXPECT_NE(layer.Add(ViewOf(bad.data(), 1, 2), 1).message().find("token 0, column 1"),
            std::string::npos);
  EXPECT_EQ(layer.MeanSquares(1), (std::vector<float>{5, 10}));
  EXPECT_FALSE(layer.Add(ViewOf(x.data(), 2, 2), 3).ok());
  EXPECT_FALSE(layer.Add(ViewOf(x.data(), 1, 4), 0).ok());

  ImportanceMatrix a, b;
  a.layers["w"] = layer;
  ASSERT_TRUE(layer.Add(ViewOf(x.data(), 1, 2), 2).ok());
  b.layers["w"] = layer;
  ASSERT_TRUE(a.Merge(b).ok());
  EXPECT_EQ(a.Find("w")->counts, (std::vector<int64_t>{0, 4, 1}));
  EXPECT_EQ(a.Find("w")->maxima, (std::vector<float>{0, 0, 3, 4, 1, 2}));
  EXPECT_EQ(a.Find("w")->MeanSquares(1), (std::vector<float>{5, 10}));
  b.layers["w"].maxima.clear();
  ASSERT_TRUE(a.Merge(b).ok());
  EXPECT_TRUE(a.Find("w")->maxima.empty());
}

}  // namespace
}  // namespace nibble
