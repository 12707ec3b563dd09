// Folders in the layouts of other libraries: GPTQ's taken apart by its own rule, all of them opened
// again, in every method.
#include "nibble/quantized_folder.h"

#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "nibble/rotate.h"
#include "nibble/safetensors.h"
#include "nlohmann/json.hpp"
#include "tests/method_fixture.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

const std::string kFolder = std::string(NIBBLE_EXAMPLES) + "/reference-model";

template <class T>
std::vector<T> Values(const SafetensorsFile& file, const std::string& name,
                      const std::vector<int64_t>& shape) {
  const SafetensorsTensor* tensor = file.Find(name);
  EXPECT_NE(tensor, nullptr) << name;
  if (tensor == nullptr) return {};
  EXPECT_EQ(tensor->shape, shape) << name;
  std::vector<T> values(tensor->data.size() / sizeof(T));
  std::memcpy(values.data(), tensor->data.data(), tensor->data.size());
  return values;
}

// As a loader decodes: w = scale[g_idx[j]] * (code - zero[g_idx[j]]), zeros plus one in the layout
// without a version.
std::vector<float> Decoded(const SafetensorsFile& file, const std::string& prefix, int64_t rows,
                           int64_t cols, int64_t groups, int bits, bool less_one) {
  const int64_t in_word = 32 / bits;
  const auto qweight = Values<uint32_t>(file, prefix + "qweight", {cols / in_word, rows});
  const auto qzeros = Values<uint32_t>(file, prefix + "qzeros", {groups, rows / in_word});
  const auto scales = Values<uint16_t>(file, prefix + "scales", {groups, rows});
  const auto g_idx = Values<int32_t>(file, prefix + "g_idx", {cols});
  const auto field = [&](const std::vector<uint32_t>& words, int64_t at, int64_t place) {
    return words[static_cast<size_t>(at)] >> (bits * place) & ((1u << bits) - 1);
  };
  std::vector<float> out;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t g = g_idx[static_cast<size_t>(j)];
      const int code = static_cast<int>(field(qweight, j / in_word * rows + r, j % in_word));
      const int zero =
          static_cast<int>(field(qzeros, g * (rows / in_word) + r / in_word, r % in_word)) +
          (less_one ? 1 : 0);
      const float scale = ToFloat(F16{scales[static_cast<size_t>(g * rows + r)]});
      out.push_back(scale * static_cast<float>(code - zero));
    }
  }
  return out;
}

class QuantizedFolderTest : public MethodTest {
 protected:
  // |decoded - w|^2 / |w|^2 of a matrix by its name in the source's folder.
  double Nmse(const std::string& target, const std::string& name, int64_t rows, int64_t cols,
              int64_t groups, int bits, bool less_one) {
    const auto made = SafetensorsFile::Open(target), given = SafetensorsFile::Open(kFolder);
    EXPECT_TRUE(made.ok() && given.ok());
    EXPECT_EQ(made->Find(name + "weight"), nullptr);
    const auto decoded = Decoded(*made, name, rows, cols, groups, bits, less_one);
    const auto exact = Values<uint16_t>(*given, name + "weight", {rows, cols});
    double error = 0, energy = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      const double w = ToFloat(F16{exact[i]}), e = w - static_cast<double>(decoded[i]);
      error += e * e;
      energy += w * w;
    }
    return error / energy;
  }

  // Writes a folder of its own and opens it.
  ModelSource Write(const ModelSource& source, const Scheme& scheme, QuantizedFolderOptions options,
                    QuantizedFolderReport* report = nullptr) {
    ++written_;
    options.gptq.parallel = options.inputs.parallel = inputs_.parallel;
    const auto made = WriteQuantizedFolder(source, kFolder, Last(), scheme, options);
    EXPECT_TRUE(made.ok()) << made.status().message();
    if (report != nullptr) *report = *made;
    Result<ModelSource> opened = ModelSource::Open(Last());
    EXPECT_TRUE(opened.ok()) << opened.status().message();
    return *std::move(opened);
  }
  std::string Last() const { return folder_ / ("folder" + std::to_string(written_)); }

  // A matrix, f32 or as it is stored.
  static Tensor MatrixOf(const ModelSource& source, const std::string& name) {
    const ModelTensor& tensor = *source.Find(name);
    const Result<Buffer> bytes = source.Read(tensor);
    EXPECT_TRUE(bytes.ok()) << bytes.status().message();
    Result<Tensor> floats = Tensor::Allocate(DType::kF32, tensor.rows(), tensor.cols());
    EXPECT_TRUE(Dequantize(tensor.format, bytes->bytes(), floats->mutable_view()).ok());
    return *std::move(floats);
  }

  static void ExpectMatrix(const ModelSource& made, const std::string& name,
                           const QuantizedTensor& expected, double tolerance) {
    const Tensor found = MatrixOf(made, name);
    Result<Tensor> wanted = Tensor::Allocate(DType::kF32, expected.rows(), expected.cols());
    ASSERT_TRUE(Dequantize(expected, wanted->mutable_view()).ok());
    const auto* a = static_cast<const float*>(found.view().data);
    const auto* b = static_cast<const float*>(wanted->view().data);
    for (int64_t i = 0; i < expected.rows() * expected.cols(); ++i) {
      ASSERT_NEAR(a[i], b[i], tolerance * std::fabs(b[i])) << name << " " << i;
    }
  }

  TemporaryFolder folder_;
  int written_ = 0;
};

TEST_F(QuantizedFolderTest, LoadersOfTheLayoutFindTheWeights) {
  QuantizedFolderOptions options;
  options.gptq.parallel = inputs_.parallel;
  const std::string target = folder_ / "out";
  const std::string down = "model.layers.7.mlp.down_proj.",
                    query = "model.layers.0.self_attn.q_proj.";
  for (const char* name : {"int4 sym g128 f16", "int4 asym g64 f16", "int8 sym channel f16"}) {
    const Scheme scheme = *ParseScheme(name);
    const auto planned =
        WriteQuantizedFolder(*source_, kFolder, target, scheme, options, /*dry_run=*/true);
    const auto made = WriteQuantizedFolder(*source_, kFolder, target, scheme, options);
    ASSERT_TRUE(made.ok()) << made.status().message();
    EXPECT_EQ(made->matrices, 56u);
    EXPECT_EQ(made->bytes, planned->bytes);
    EXPECT_EQ(made->bytes, fs::file_size(target + "/model.safetensors"));
    EXPECT_TRUE(fs::exists(target + "/tokenizer.model"));
    const double most = scheme.bits == 4 ? 0.02 : 1e-3;
    const int64_t in_row = scheme.granularity == Granularity::kGroup ? 256 / scheme.group_size : 1;
    EXPECT_LT(Nmse(target, query, 256, 256, in_row, scheme.bits, scheme.symmetric), most) << name;
    EXPECT_LT(
        Nmse(target, down, 256, 768, scheme.granularity == Granularity::kGroup ? 3 * in_row : 1,
             scheme.bits, scheme.symmetric),
        most)
        << name;
    const auto config = nlohmann::json::parse(ReadWholeFile(target + "/config.json"));
    const auto& told = config["quantization_config"];
    EXPECT_EQ(told["quant_method"], "gptq");
    EXPECT_EQ(told["bits"], scheme.bits);
    EXPECT_EQ(told["sym"], scheme.symmetric);
    EXPECT_EQ(told["checkpoint_format"], scheme.symmetric ? "gptq" : "gptq_v2");
    EXPECT_EQ(config["hidden_size"], 256);
    // What stays is as it was.
    const auto before = SafetensorsFile::Open(kFolder), after = SafetensorsFile::Open(target);
    for (const char* kept : {"model.embed_tokens.weight", "model.norm.weight"}) {
      const SafetensorsTensor* a = before->Find(kept);
      const SafetensorsTensor* b = after->Find(kept);
      ASSERT_TRUE(a != nullptr && b != nullptr) << kept;
      EXPECT_TRUE(std::ranges::equal(a->data, b->data)) << kept;
    }
    EXPECT_FALSE(WriteQuantizedFolder(*source_, kFolder, target, scheme, {}).ok());  // exists
    options.overwrite = true;
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()), 1);
}

TEST_F(QuantizedFolderTest, FeedbackWithAndWithoutActOrder) {
  QuantizedFolderOptions options;
  options.gptq.parallel = options.inputs.parallel = inputs_.parallel;
  options.method = Method::kGptq;
  options.model = &*model_;
  options.text = &calibration_;
  for (const char* name : {"int4 sym g128 f16", "int4 sym g128 f16 act-order", "static"}) {
    const bool fixed = name == std::string("static");
    options.gptq.act_order = options.gptq.static_groups = fixed;
    const std::string target = folder_ / (name + std::string("x"));
    const Scheme scheme = *ParseScheme(fixed ? "int4 sym g128 f16" : name);
    const auto made = WriteQuantizedFolder(*source_, kFolder, target, scheme, options);
    ASSERT_TRUE(made.ok()) << made.status().message();
    ASSERT_EQ(made->reports.size(), 56u);
    for (const MatrixReport& report : made->reports) {
      EXPECT_LT(report.gptq.output_error, 0.02 * report.gptq.weight_energy) << report.name;
    }
    const double nmse =
        Nmse(target, "model.layers.3.mlp.down_proj.", 256, 768, 6, 4, /*less_one=*/true);
    EXPECT_LT(nmse, 0.03) << name;  // farther from the weights, nearer to the outputs
    const auto config = nlohmann::json::parse(ReadWholeFile(target + "/config.json"));
    EXPECT_EQ(config["quantization_config"]["desc_act"], scheme.has_group_index);
    EXPECT_EQ(config["quantization_config"]["static_groups"], fixed);
  }
  EXPECT_EQ(WriteQuantizedFolder(*source_, kFolder, folder_ / "both",
                                 *ParseScheme("int4 sym g128 f16 act-order"), options)
                .status()
                .code(),
            StatusCode::kInvalidArgument);
}

// Each layer fitted to what the quantized ones before it give: on the text itself nearer to the
// model than every matrix by itself, which shows too that the rows are in the file's order.
TEST_F(QuantizedFolderTest, LayerAfterLayerFitsTheText) {
  const auto first = calibration_.tokens.begin();
  evaluation_.assign(first, first + 6 * kContext);
  const auto divergence = [&](bool sequential) {
    QuantizedFolderOptions options = {.method = Method::kGptq,
                                      .model = &*model_,
                                      .text = &calibration_,
                                      .sequential = sequential};
    size_t last = 0;
    options.progress = [&](size_t done, size_t matrices) {
      EXPECT_EQ(matrices, 56u);
      EXPECT_GE(done, last);
      last = done;
      return true;
    };
    const Scheme scheme = *ParseScheme("int3 sym g64 f16");
    const double kl = Compare(Loaded(Write(*source_, scheme, options))).kl.value;
    EXPECT_EQ(last, sequential ? 56u : 0u);
    return kl;
  };
  const double apart = divergence(false), after = divergence(true);
  RecordProperty("apart", std::to_string(apart));
  RecordProperty("after", std::to_string(after));
  EXPECT_LT(after, apart);
  QuantizedFolderOptions stopped = {
      .method = Method::kGptq, .model = &*model_, .text = &calibration_, .sequential = true};
  stopped.progress = [](size_t, size_t) { return false; };
  EXPECT_EQ(WriteQuantizedFolder(*source_, kFolder, folder_ / "stopped",
                                 *ParseScheme("int4 sym g128 f16"), stopped)
                .status()
                .code(),
            StatusCode::kCancelled);
  EXPECT_FALSE(fs::exists(folder_ / "stopped"));
}

// Written and opened again: every matrix is what Quantize makes of it, in GGUF's order of rows.
TEST_F(QuantizedFolderTest, EveryLayoutOpensAsAModel) {
  struct Case {
    HfLayout layout;
    const char* scheme;
  };
  for (const Case& c :
       {Case{HfLayout::kGptq, "int3 asym g64 f16"}, Case{HfLayout::kGptq, "int2 sym g32 f16"},
        Case{HfLayout::kAwq, "int4 asym g64 f16"}, Case{HfLayout::kBitsAndBytes, "nf4 g64 double"},
        Case{HfLayout::kBitsAndBytes, "fp4 g64"}, Case{HfLayout::kBitsAndBytes, "int8 sym channel"},
        Case{HfLayout::kCompressedTensors, "int8 sym channel"},
        Case{HfLayout::kCompressedTensors, "f8_e4m3 channel"},
        Case{HfLayout::kAqlm, "1x8g8 f16"}}) {
    SCOPED_TRACE(std::string(GetHfLayoutInfo(c.layout).name) + " " + c.scheme);
    const Scheme scheme = *ParseScheme(c.scheme);
    const ModelSource made = Write(*source_, scheme, {.layout = c.layout});
    const double tolerance = c.layout == HfLayout::kBitsAndBytes && scheme.bits == 8 ? 1e-7 : 0;
    for (const char* name :
         {"blk.0.attn_q.weight", "blk.3.attn_k.weight", "blk.7.ffn_down.weight"}) {
      const Tensor weights = MatrixOf(*source_, name);
      // What all rows share depends on their order, which is another in the file.
      const bool shares = scheme.double_quant || scheme.code == Code::kAdditive;
      if (shares && name != std::string("blk.7.ffn_down.weight")) continue;
      ExpectMatrix(made, name, *Quantize(weights.view(), scheme, {}), tolerance);
    }
    const Divergence divergence = Compare(Loaded(made));
    const bool few_bits = SchemeBitsPerWeight(scheme, 256, 256) < 4;
    EXPECT_LT(divergence.kl.value, few_bits ? 3 : 0.06) << divergence.kl.value;
    EXPECT_GT(divergence.kl.value, 0);
  }
}

TEST_F(QuantizedFolderTest, HqqAndImportanceChooseTheScales) {
  const char* name = "blk.5.ffn_up.weight";
  const Tensor weights = MatrixOf(*source_, name);
  const Scheme zeros = *ParseScheme("int3 asym g64 f16");
  const ModelSource hqq = Write(*source_, zeros, {.method = Method::kHqq});
  ExpectMatrix(hqq, name, *Quantize(weights.view(), zeros, {.scales = ScaleChoice::kHalfQuadratic}),
               0);

  ImportanceMatrix importance;
  ForMatrices(*model_, [&](const std::string& matrix, const Tensor& w) {
    LayerStatistics layer(w.cols(), 1);
    for (size_t i = 0; i < layer.sum_squares.size(); ++i) {
      layer.sum_squares[i] = static_cast<float>(1 + i % 7);
    }
    layer.counts[0] = 2;
    importance.layers[matrix] = layer;
  });
  const std::vector<float> means = importance.Find(name)->MeanSquares();
  const Scheme nf4 = *ParseScheme("nf4 g64");
  const QuantizedFolderOptions options = {.layout = HfLayout::kBitsAndBytes,
                                          .importance = &importance};
  const ModelSource weighed = Write(*source_, nf4, options);
  ExpectMatrix(weighed, name, *Quantize(weights.view(), nf4, {.importance = means}), 0);

  importance.layers.erase("blk.6.attn_v.weight");
  const Status missing =
      WriteQuantizedFolder(*source_, kFolder, folder_ / "x", nf4, options).status();
  EXPECT_EQ(missing.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(missing.message().find("blk.6.attn_v.weight"), std::string::npos);
}

TEST_F(QuantizedFolderTest, FeedbackFromAFileOfHessians) {
  const std::string path = folder_ / "hessians";
  auto writer = HessianWriter::Create(path, InputsOf(*model_), {});
  ASSERT_TRUE(writer.ok());
  StatisticsOptions run;
  run.parallel = inputs_.parallel;
  ASSERT_TRUE(
      VisitHessians(*model_, calibration_, run, [&](const SharedInputs&, const Hessian& hessian) {
        return writer->Append(hessian);
      }).ok());
  ASSERT_TRUE(writer->Finish().ok());
  const HessianFile hessians = *HessianFile::Open(path);
  const Scheme scheme = *ParseScheme("int3 sym g64 f16 act-order");
  QuantizedFolderReport report;
  const ModelSource made =
      Write(*source_, scheme, {.method = Method::kGptq, .hessians = &hessians}, &report);
  ASSERT_EQ(report.reports.size(), 56u);
  const double fed = Compare(Loaded(made)).kl.value;
  const double rounded =
      Compare(Loaded(Write(*source_, *ParseScheme("int3 sym g64 f16"), {}))).kl.value;
  EXPECT_LT(fed, 0.6 * rounded) << fed << " of " << rounded;
}

// Edits go into the file's own order and types; the output parts from the embeddings.
TEST_F(QuantizedFolderTest, PreparedModelsKeepTheirFunction) {
  const ModelSource outliers = WithOutliers(30);
  const Scheme int4 = *ParseScheme("int4 asym g128 f16");
  const QuantizedFolderOptions awq = {.layout = HfLayout::kAwq};
  const double rounded = Compare(Loaded(Write(outliers, int4, awq))).kl.value;
  AwqOptions options;
  options.target = [&](std::string_view) { return int4; };
  options.inputs = inputs_;
  options.steps = 5;
  const auto edits = Awq(outliers, Loaded(outliers), calibration_, options);
  ASSERT_TRUE(edits.ok()) << edits.status().message();
  const double prepared = Compare(Loaded(Write(Edited(outliers, *edits), int4, awq))).kl.value;
  EXPECT_LT(prepared, 0.4 * rounded) << prepared << " of " << rounded;

  const auto rotated = Rotate(*source_, {});
  ASSERT_TRUE(rotated.ok());
  const ModelSource made = Write(Edited(*source_, *rotated), *ParseScheme("int8 sym channel"),
                                 {.layout = HfLayout::kCompressedTensors});
  EXPECT_LT(Compare(Loaded(made)).kl.value, 0.002);
  const auto config = nlohmann::json::parse(ReadWholeFile(Last() + "/config.json"));
  EXPECT_EQ(config["tie_word_embeddings"], false);
  EXPECT_EQ(config["quantization_config"]["format"], "int-quantized");
}

TEST_F(QuantizedFolderTest, QuantizingAgainNeedsPermission) {
  const ModelSource made = Write(*source_, *ParseScheme("int4 sym g128 f16"), {});
  EXPECT_TRUE(made.Find("blk.0.attn_q.weight")->was_quantized);
  EXPECT_FALSE(made.Find("token_embd.weight")->was_quantized);
  ModelRecipe recipe;
  recipe.type = "Q4_K_M";
  EXPECT_EQ(PlanModel(made, recipe).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(PlanModel(made, recipe, {.requantize = true}).ok());
  recipe.type = "f16";
  EXPECT_TRUE(PlanModel(made, recipe).ok());
  const Status again = WriteQuantizedFolder(made, Last(), folder_ / "x", *ParseScheme("nf4 g64"),
                                            {.layout = HfLayout::kBitsAndBytes})
                           .status();
  EXPECT_NE(again.message().find("quantized already"), std::string::npos) << again.message();
}

TEST_F(QuantizedFolderTest, ConfigAndTensorsMustAgree) {
  Write(*source_, *ParseScheme("int4 sym g128 f16"), {});
  const std::string path = Last() + "/config.json";
  const auto config = nlohmann::json::parse(ReadWholeFile(path));
  const auto open = [&](const std::function<void(nlohmann::json&)>& damage) {
    nlohmann::json changed = config;
    damage(changed["quantization_config"]);
    WriteWholeFile(path, changed.dump());
    const auto source = ModelSource::Open(Last());
    if (!source.ok()) return source.status();
    return source->Read(*source->Find("blk.0.attn_q.weight")).status();
  };
  EXPECT_TRUE(open([](nlohmann::json&) {}).ok());
  for (const char* key : {"bits", "group_size"}) {
    EXPECT_FALSE(open([&](nlohmann::json& q) { q.erase(key); }).ok()) << key;
    EXPECT_FALSE(open([&](nlohmann::json& q) { q[key] = "4"; }).ok()) << key;
    EXPECT_FALSE(open([&](nlohmann::json& q) { q[key] = 2; }).ok()) << key;
  }
  EXPECT_FALSE(open([](nlohmann::json& q) { q["bits"] = 5; }).ok());
  EXPECT_FALSE(open([](nlohmann::json& q) { q["checkpoint_format"] = "marlin"; }).ok());
  EXPECT_FALSE(open([](nlohmann::json& q) { q["quant_method"] = "awq"; }).ok());
  // Without the object the tensors are none of a Llama.
  EXPECT_FALSE(open([](nlohmann::json& q) { q = nullptr; }).ok());
}

TEST_F(QuantizedFolderTest, RefusesWhatTheLayoutCannotHold) {
  const auto code = [&](const std::string& from, const char* scheme) {
    return WriteQuantizedFolder(*source_, from, folder_ / "x", *ParseScheme(scheme), {})
        .status()
        .code();
  };
  for (const char* scheme : {"int5 sym g128 f16", "nf4 g64", "int4 sym g128",
                             "int4 asym g128 f16 zf16", "int4 sym tensor f16"}) {
    const auto parsed = ParseScheme(scheme);
    if (!parsed.ok()) continue;
    EXPECT_EQ(code(kFolder, scheme), StatusCode::kUnsupported) << scheme;
  }
  EXPECT_EQ(code(kFolder, "int4 sym g128 f16 act-order"), StatusCode::kInvalidArgument);
  EXPECT_FALSE(WriteQuantizedFolder(*source_, kFolder + "/model.safetensors", folder_ / "x",
                                    *ParseScheme("int4 sym g128 f16"), {})
                   .ok());
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

}  // namespace
}  // namespace nibble
