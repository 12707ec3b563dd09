// Folders in the layout of GPTQ checkpoints, taken apart by the layout's own rule.
#include "nibble/gptq_folder.h"

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

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

class GptqFolderTest : public MethodTest {
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

  TemporaryFolder folder_;
};

TEST_F(GptqFolderTest, LoadersOfTheLayoutFindTheWeights) {
  GptqFolderOptions options;
  options.gptq.parallel = inputs_.parallel;
  const std::string target = folder_ / "out";
  const std::string down = "model.layers.7.mlp.down_proj.",
                    query = "model.layers.0.self_attn.q_proj.";
  for (const char* name : {"int4 sym g128 f16", "int4 asym g64 f16", "int8 sym channel f16"}) {
    const Scheme scheme = *ParseScheme(name);
    const auto planned = WriteGptqFolder(kFolder, target, scheme, options, /*dry_run=*/true);
    const auto made = WriteGptqFolder(kFolder, target, scheme, options);
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
    EXPECT_FALSE(WriteGptqFolder(kFolder, target, scheme, {}).ok());  // exists
    options.overwrite = true;
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), fs::directory_iterator()), 1);
}

TEST_F(GptqFolderTest, FeedbackWithAndWithoutActOrder) {
  GptqFolderOptions options;
  options.gptq.parallel = options.inputs.parallel = inputs_.parallel;
  options.model = &*model_;
  options.text = &calibration_;
  for (const char* name : {"int4 sym g128 f16", "int4 sym g128 f16 act-order"}) {
    const std::string target = folder_ / (name + std::string("x"));
    const auto made = WriteGptqFolder(kFolder, target, *ParseScheme(name), options);
    ASSERT_TRUE(made.ok()) << made.status().message();
    ASSERT_EQ(made->reports.size(), 56u);
    for (const MatrixReport& report : made->reports) {
      EXPECT_LT(report.gptq.output_error, 0.02 * report.gptq.weight_energy) << report.name;
    }
    const double nmse =
        Nmse(target, "model.layers.3.mlp.down_proj.", 256, 768, 6, 4, /*less_one=*/true);
    EXPECT_LT(nmse, 0.03) << name;  // farther from the weights, nearer to the outputs
    const auto config = nlohmann::json::parse(ReadWholeFile(target + "/config.json"));
    EXPECT_EQ(config["quantization_config"]["desc_act"], ParseScheme(name)->has_group_index);
  }
}

TEST_F(GptqFolderTest, RefusesWhatTheLayoutCannotHold) {
  const auto code = [&](const std::string& from, const char* scheme) {
    return WriteGptqFolder(from, folder_ / "x", *ParseScheme(scheme), {}).status().code();
  };
  for (const char* scheme : {"int3 sym g128 f16", "nf4 g64 f16", "int4 sym g128",
                             "int4 asym g128 f16 zf16", "int4 sym tensor f16"}) {
    const auto parsed = ParseScheme(scheme);
    if (!parsed.ok()) continue;
    EXPECT_EQ(code(kFolder, scheme), StatusCode::kUnsupported) << scheme;
  }
  EXPECT_EQ(code(kFolder, "int4 sym g128 f16 act-order"), StatusCode::kInvalidArgument);
  EXPECT_FALSE(WriteGptqFolder(kFolder + "/model.safetensors", folder_ / "x",
                               *ParseScheme("int4 sym g128 f16"), {})
                   .ok());
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

}  // namespace
}  // namespace nibble
