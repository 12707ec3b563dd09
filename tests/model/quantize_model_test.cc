#include "nibble/quantize_model.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/synthetic_model.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

ModelRecipe RecipeOf(const std::string& type) {
  ModelRecipe recipe;
  recipe.type = type;
  return recipe;
}

ModelSource MustOpen(const std::string& path) {
  Result<ModelSource> source = ModelSource::Open(path);
  EXPECT_TRUE(source.ok()) << source.status().message();
  return *std::move(source);
}

ModelPlan MustPlan(const ModelSource& source, const ModelRecipe& recipe) {
  Result<ModelPlan> plan = PlanModel(source, recipe);
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return *std::move(plan);
}

// Quantizes `in` to `out` and opens it.
GgufFile MustMake(const std::string& in, const std::string& out, const ModelRecipe& recipe) {
  const ModelSource source = MustOpen(in);
  const Result<ModelHashes> made = WriteModel(source, MustPlan(source, recipe), out);
  EXPECT_TRUE(made.ok()) << made.status().message();
  Result<GgufFile> file = GgufFile::Open(out);
  EXPECT_TRUE(file.ok()) << file.status().message();
  return *std::move(file);
}

std::vector<std::byte> Bytes(std::span<const std::byte> data) { return {data.begin(), data.end()}; }

TEST(QuantizeModel, EveryTensorIsWhatQuantizeMakesOfIt) {
  const TemporaryFolder folder;
  const std::vector<SyntheticTensor> tensors = SmallLlama();
  WriteSyntheticModel(folder / "in.gguf", tensors);
  const GgufFile file = MustMake(folder / "in.gguf", folder / "out.gguf", RecipeOf("mxfp4"));
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const GgufTensor& made = file.tensors()[i];
    const std::vector<float> weights = SyntheticWeights(tensors[i]);
    std::vector<std::byte> bytes = SyntheticBytes(tensors[i], weights);
    EXPECT_EQ(made.name, tensors[i].name);
    EXPECT_EQ(made.dims, tensors[i].dims);
    if (tensors[i].dims.size() == 1) {
      EXPECT_EQ(made.format, Format::kF32);
      EXPECT_EQ(Bytes(made.data), bytes);
      continue;
    }
    EXPECT_EQ(made.format, Format::kMXFP4);
    const TensorView view = {bytes.data(), DType::kF16, made.rows(), made.cols(), made.cols()};
    const auto direct = Quantize(view, Format::kMXFP4);
    ASSERT_TRUE(direct.ok());
    EXPECT_EQ(Bytes(made.data), Bytes(direct->plane(Plane::kCodes).bytes()));
  }
}

TEST(QuantizeModel, ThePlannedSizeIsTheFiles) {
  const TemporaryFolder folder;
  WriteSyntheticModel(folder / "in.gguf", SmallLlama());
  const ModelSource source = MustOpen(folder / "in.gguf");
  const ModelPlan plan = MustPlan(source, RecipeOf("q5_1"));
  for (const uint64_t limit : {0, 100000}) {
    const GgufWriteOptions files = {.max_shard_bytes = limit};
    const std::string target = folder / ("out" + std::to_string(limit) + ".gguf");
    ASSERT_TRUE(WriteModel(source, plan, target, files).ok());
    uint64_t bytes = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
      if (entry.path().filename().string().starts_with("out" + std::to_string(limit))) {
        bytes += entry.file_size();
      }
    }
    EXPECT_EQ(*PlannedBytes(plan, files), bytes);
  }
}

TEST(QuantizeModel, TheFileTellsItsRecipe) {
  const TemporaryFolder folder;
  WriteSyntheticModel(folder / "in.gguf", SmallLlama());
  ModelRecipe recipe = RecipeOf("Q8_0");
  recipe.pure = true;
  recipe.non_finite = NonFinite::kClamp;
  recipe.tensor_types = {*ParseTensorTypeRule("ffn_down=q5_0")};
  const GgufFile file = MustMake(folder / "in.gguf", folder / "out.gguf", recipe);
  EXPECT_EQ(*file.metadata().GetUint("general.file_type"), 7u);
  EXPECT_EQ(*file.metadata().GetUint("general.quantization_version"), 2u);
  EXPECT_EQ(*file.metadata().GetString("general.architecture"), "llama");
  EXPECT_NE(*file.metadata().GetString("nibble.source_hash"),
            *file.metadata().GetString("nibble.content_hash"));
  bool has_importance = true;
  const auto read = ReadRecipe(file.metadata(), &has_importance);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->type, "q8_0");
  EXPECT_TRUE(read->pure);
  EXPECT_EQ(read->non_finite, NonFinite::kClamp);
  ASSERT_EQ(read->tensor_types.size(), 1u);
  EXPECT_EQ(read->tensor_types[0].pattern, "ffn_down");
  EXPECT_FALSE(has_importance);
  EXPECT_EQ(file.Find("blk.1.ffn_down.weight")->format, Format::kQ5_0);
}

TEST(QuantizeModel, VerifiesAndRederives) {
  const TemporaryFolder folder;
  WriteSyntheticModel(folder / "in.gguf", SmallLlama());
  const GgufFile file = MustMake(folder / "in.gguf", folder / "out.gguf", RecipeOf("q4_1"));
  const auto verified = VerifyModel(file);
  ASSERT_TRUE(verified.ok()) << verified.status().message();
  EXPECT_TRUE(*verified);
  const Status same = RederiveModel(file, MustOpen(folder / "in.gguf"));
  EXPECT_TRUE(same.ok()) << same.message();

  // Another source.
  WriteSyntheticModel(folder / "other.gguf", SmallLlama(),
                      [](const std::string& name, std::vector<float>& weights) {
                        if (name == "blk.1.attn_k.weight") weights[70] += 0.5f;
                      });
  const Status other = RederiveModel(file, MustOpen(folder / "other.gguf"));
  EXPECT_EQ(other.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(other.message().find("another source"), std::string::npos) << other.message();

  // One bit of a code.
  std::string bytes = ReadWholeFile(folder / "out.gguf");
  const GgufTensor* tensor = file.Find("blk.0.attn_v.weight");
  bytes[tensor->file_offset + 1000] ^= 1;
  WriteWholeFile(folder / "damaged.gguf", bytes);
  const auto damaged = GgufFile::Open(folder / "damaged.gguf");
  ASSERT_TRUE(damaged.ok());
  const auto bad = VerifyModel(*damaged);
  ASSERT_FALSE(bad.ok());
  EXPECT_NE(bad.status().message().find("hash"), std::string::npos) << bad.status().message();
  const Status differs = RederiveModel(*damaged, MustOpen(folder / "in.gguf"));
  EXPECT_EQ(differs.code(), StatusCode::kCorrupt);
  EXPECT_NE(differs.message().find("blk.0.attn_v.weight: differs from byte 1000 "),
            std::string::npos)
      << differs.message();
}

TEST(QuantizeModel, VerifyNamesAScaleThatIsNotFinite) {
  const TemporaryFolder folder;
  WriteSyntheticModel(folder / "in.gguf", SmallLlama());
  const GgufFile file = MustMake(folder / "in.gguf", folder / "out.gguf", RecipeOf("q8_0"));
  std::string bytes = ReadWholeFile(folder / "out.gguf");
  const GgufTensor* tensor = file.Find("blk.0.attn_q.weight");
  const uint64_t block = tensor->file_offset + (3 * 8 + 2) * 34;  // row 3, columns 64 to 95
  bytes[block] = 0x00;
  bytes[block + 1] = 0x7C;  // infinity
  WriteWholeFile(folder / "bad.gguf", bytes);
  const auto result = VerifyModel(*GgufFile::Open(folder / "bad.gguf"));
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.status().message().find("blk.0.attn_q.weight: row 3, column 64"),
            std::string::npos)
      << result.status().message();
  EXPECT_NE(result.status().message().find("offset " + std::to_string(block)), std::string::npos);
}

TEST(QuantizeModel, NonFiniteWeightsAreNamedByTheirRow) {
  const TemporaryFolder folder;
  // More rows than one piece of work holds.
  const std::vector<SyntheticTensor> tensors = {{"blk.0.ffn_up.weight", {1024, 2500}}};
  WriteSyntheticModel(folder / "in.gguf", tensors,
                      [](const std::string&, std::vector<float>& weights) {
                        weights[2400 * 1024 + 77] = std::numeric_limits<float>::quiet_NaN();
                      });
  const ModelSource source = MustOpen(folder / "in.gguf");
  ModelRecipe recipe = RecipeOf("q8_0");
  const auto made = WriteModel(source, MustPlan(source, recipe), folder / "out.gguf");
  ASSERT_FALSE(made.ok());
  EXPECT_NE(made.status().message().find("blk.0.ffn_up.weight"), std::string::npos);
  EXPECT_NE(made.status().message().find("row 2400, column 77"), std::string::npos)
      << made.status().message();
  EXPECT_EQ(folder.List(), std::vector<std::string>({"in.gguf"}));

  recipe.non_finite = NonFinite::kClamp;
  EXPECT_TRUE(WriteModel(source, MustPlan(source, recipe), folder / "out.gguf").ok());
  const Status same = RederiveModel(*GgufFile::Open(folder / "out.gguf"), source);
  EXPECT_TRUE(same.ok()) << same.message();
}

TEST(QuantizeModel, ExpertsHaveImportanceOfTheirOwn) {
  const TemporaryFolder folder;
  const SyntheticTensor tensor = {"blk.0.ffn_up_exps.weight", {256, 16, 3}};
  WriteSyntheticModel(folder / "in.gguf", {tensor});
  // Expert 1 saw no token.
  ImportanceMatrix matrix;
  LayerStatistics& layer = matrix.layers[tensor.name];
  layer.cols = 256;
  layer.counts = {4, 0, 2};
  for (int i = 0; i < 3 * 256; ++i) {
    layer.sum_squares.push_back(i / 256 == 1 ? 0 : static_cast<float>(i % 37 * (i % 11) + 1));
  }
  ModelRecipe recipe = RecipeOf("iq4_nl");
  recipe.pure = true;
  recipe.importance = &matrix;
  const GgufFile file = MustMake(folder / "in.gguf", folder / "out.gguf", recipe);

  const std::vector<std::byte> bytes = SyntheticBytes(tensor, SyntheticWeights(tensor));
  std::vector<std::byte> expected;
  for (int64_t m = 0; m < 3; ++m) {
    const TensorView view = {bytes.data() + m * 16 * 256 * 2, DType::kF16, 16, 256, 256};
    const std::vector<float> importance = layer.MeanSquares(m);
    QuantizeOptions options;
    options.importance = importance;
    const auto direct = Quantize(view, Format::kIQ4_NL, options);
    ASSERT_TRUE(direct.ok()) << direct.status().message();
    const auto blocks = direct->plane(Plane::kCodes).bytes();
    expected.insert(expected.end(), blocks.begin(), blocks.end());
  }
  EXPECT_EQ(Bytes(file.tensors()[0].data), expected);
  EXPECT_FALSE(RederiveModel(file, MustOpen(folder / "in.gguf")).ok());
  EXPECT_TRUE(RederiveModel(file, MustOpen(folder / "in.gguf"), &matrix).ok());

  // The older format stacks the experts in one row and cannot tell that one saw nothing.
  ASSERT_TRUE(matrix.SaveDat(folder / "m.dat").ok());
  const auto stacked = ImportanceMatrix::Load(folder / "m.dat");
  ASSERT_TRUE(stacked.ok());
  recipe.importance = &*stacked;
  const GgufFile again = MustMake(folder / "in.gguf", folder / "again.gguf", recipe);
  const size_t expert = expected.size() / 3;
  EXPECT_EQ(std::memcmp(again.tensors()[0].data.data(), expected.data(), expert), 0);
  EXPECT_EQ(std::memcmp(&again.tensors()[0].data[2 * expert], &expected[2 * expert], expert), 0);
  // Another importance matrix is told from the first one.
  EXPECT_FALSE(RederiveModel(file, MustOpen(folder / "in.gguf"), &*stacked).ok());
}

// What one token whose inputs are all 1 leaves.
LayerStatistics Ones(int64_t cols) {
  LayerStatistics ones(cols, 1);
  EXPECT_TRUE(ones.Add(ViewOf(std::vector<float>(cols, 1.0f).data(), 1, cols)).ok());
  return ones;
}

TEST(QuantizeModel, ImportanceMustFit) {
  const TemporaryFolder folder;
  WriteSyntheticModel(folder / "in.gguf", SmallLlama());
  const ModelSource source = MustOpen(folder / "in.gguf");
  ImportanceMatrix matrix;
  for (const ModelTensor& tensor : source.tensors()) {
    if (tensor.dims.size() < 2 || tensor.name == "token_embd.weight") continue;
    matrix.layers[tensor.name] = Ones(256);
  }
  ModelRecipe recipe = RecipeOf("q8_0");
  recipe.importance = &matrix;
  EXPECT_TRUE(PlanModel(source, recipe).ok());  // embeddings need none

  matrix.layers.erase("blk.1.attn_k.weight");
  const auto lacking = PlanModel(source, recipe);
  ASSERT_FALSE(lacking.ok());
  EXPECT_NE(lacking.status().message().find("blk.1.attn_k.weight"), std::string::npos);
  EXPECT_TRUE(PlanModel(source, recipe, {.missing_importance = true}).ok());

  matrix.layers["blk.1.attn_k.weight"] = Ones(255);
  const auto wrong = PlanModel(source, recipe, {.missing_importance = true});
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.status().message().find("255"), std::string::npos);
}

TEST(QuantizeModel, RefusesWhatWasNotPermitted) {
  const TemporaryFolder folder;
  std::vector<SyntheticTensor> tensors = SmallLlama();
  tensors.push_back({"blk.2.ffn_up.weight", {96, 8}});
  WriteSyntheticModel(folder / "in.gguf", tensors);
  const ModelSource source = MustOpen(folder / "in.gguf");

  const auto fallback = PlanModel(source, RecipeOf("iq4_xs"), {.fallback = false});
  EXPECT_EQ(fallback.status().code(), StatusCode::kInvalidArgument);
  const ModelPlan plan = MustPlan(source, RecipeOf("iq4_xs"));
  ASSERT_EQ(plan.notices.size(), 1u);
  EXPECT_NE(plan.notices[0].find("iq4_nl instead of iq4_xs"), std::string::npos);

  ModelRecipe unmatched = RecipeOf("q8_0");
  unmatched.tensor_types = {*ParseTensorTypeRule("ffn_dwon=q4_0")};
  EXPECT_EQ(PlanModel(source, unmatched).status().code(), StatusCode::kInvalidArgument);
  unmatched.tensor_types = {*ParseTensorTypeRule("attn_norm=q4_0")};  // no matrix
  EXPECT_EQ(PlanModel(source, unmatched).status().code(), StatusCode::kInvalidArgument);

  MustMake(folder / "in.gguf", folder / "q8_0.gguf", RecipeOf("q8_0"));
  const ModelSource quantized = MustOpen(folder / "q8_0.gguf");
  const auto again = PlanModel(quantized, RecipeOf("q4_0"));
  EXPECT_EQ(again.status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(PlanModel(quantized, RecipeOf("q4_0"), {.requantize = true}).ok());
  EXPECT_TRUE(PlanModel(quantized, RecipeOf("q8_0")).ok());  // nothing changes
}

TEST(QuantizeModel, CancellingLeavesNothing) {
  const TemporaryFolder folder;
  WriteSyntheticModel(folder / "in.gguf", SmallLlama());
  const ModelSource source = MustOpen(folder / "in.gguf");
  ModelRunOptions options;
  uint64_t last = 0;
  options.progress = [&](const ModelProgress& progress) {
    EXPECT_GE(progress.weights_done, last);
    last = progress.weights_done;
    return progress.index < 5;
  };
  const auto made =
      WriteModel(source, MustPlan(source, RecipeOf("q4_0")), folder / "out.gguf", {}, options);
  EXPECT_EQ(made.status().code(), StatusCode::kCancelled);
  EXPECT_GT(last, 0u);
  EXPECT_EQ(folder.List(), std::vector<std::string>({"in.gguf"}));
}

TEST(QuantizeModel, TheBytesDoNotDependOnThreads) {
  const TemporaryFolder folder;
  WriteSyntheticModel(folder / "in.gguf", SmallLlama());
  const ModelSource source = MustOpen(folder / "in.gguf");
  const ModelPlan plan = MustPlan(source, RecipeOf("Q5_1"));
  ThreadPool pool(3);
  ModelRunOptions options;
  options.parallel = pool.parallel_for();
  ASSERT_TRUE(WriteModel(source, plan, folder / "one.gguf").ok());
  ASSERT_TRUE(WriteModel(source, plan, folder / "three.gguf", {}, options).ok());
  EXPECT_EQ(ReadWholeFile(folder / "one.gguf"), ReadWholeFile(folder / "three.gguf"));
}

TEST(QuantizeModel, SafetensorsHoldTheSameFloats) {
  const TemporaryFolder folder;
  WriteSyntheticModel(folder / "in.gguf", SmallLlama());
  MustMake(folder / "in.gguf", folder / "q8_0.gguf", RecipeOf("q8_0"));
  const ModelSource source = MustOpen(folder / "q8_0.gguf");
  const ModelPermissions all = {.requantize = true};
  const auto blocks = PlanModel(source, RecipeOf(kCopyType), all);
  ASSERT_TRUE(blocks.ok());
  EXPECT_EQ(WriteModelSafetensors(source, *blocks, folder / "x.safetensors").code(),
            StatusCode::kInvalidArgument);
  const auto plan = PlanModel(source, RecipeOf("f32"), all);
  ASSERT_TRUE(plan.ok());
  const Status written = WriteModelSafetensors(source, *plan, folder / "x.safetensors");
  ASSERT_TRUE(written.ok()) << written.message();
  const ModelSource back = MustOpen(folder / "x.safetensors");
  const GgufFile floats = MustMake(folder / "q8_0.gguf", folder / "same.gguf", RecipeOf("q8_0"));
  ASSERT_EQ(back.tensors().size(), source.tensors().size());
  for (const ModelTensor& tensor : back.tensors()) {
    const GgufTensor* q = floats.Find(tensor.name);
    ASSERT_NE(q, nullptr) << tensor.name;
    EXPECT_EQ(tensor.dims, q->dims);
    std::vector<float> decoded(static_cast<size_t>(q->rows() * q->cols()));
    ASSERT_TRUE(Dequantize(q->format, q->data, ViewOf(decoded.data(), q->rows(), q->cols())).ok());
    const auto read = back.Read(tensor);
    ASSERT_TRUE(read.ok());
    ASSERT_EQ(read->size(), decoded.size() * sizeof(float));
    EXPECT_EQ(std::memcmp(read->data(), decoded.data(), read->size()), 0) << tensor.name;
  }
}

// 640 MB of weights in tensors of 16 MB pass through a small part of that memory.
TEST(QuantizeModel, MemoryIsBoundedByTheLargestTensor) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers keep memory of their own";
#endif
  constexpr int kTensors = 40;
  constexpr int64_t kRows = 4096, kCols = 2048;
  constexpr int64_t kTensorBytes = kRows * kCols * 2;
  const TemporaryFolder folder;
  WriteHollowModel(folder / "in.gguf", kTensors, kRows, kCols);
  const auto peak = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return int64_t{usage.ru_maxrss} * 1024;
  };
  const int64_t before = peak();
  MustMake(folder / "in.gguf", folder / "out.gguf", RecipeOf("q4_0"));
  EXPECT_GT(std::filesystem::file_size(folder / "out.gguf"), kTensors * kTensorBytes / 4);
  EXPECT_LT(peak() - before, 3 * kTensorBytes);
}

}  // namespace
}  // namespace nibble
