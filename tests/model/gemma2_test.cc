// Gemma 2 against its definition in double precision: norms on both sides, soft caps, and a window
// on every other layer.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "nibble/gguf.h"
#include "nibble/model.h"
#include "tests/temporary_folder.h"

namespace nibble {
namespace {

constexpr int64_t kWidth = 32, kHeads = 4, kKvHeads = 2, kHeadDim = 32, kFfn = 48, kVocab = 24;
constexpr int64_t kLayers = 2, kWindow = 6, kTokens = 20;
constexpr double kAttentionCap = 2.0, kOutputCap = 3.0, kEps = 1e-6;

using Numbers = std::vector<double>;

struct Weights {
  std::vector<GgufTensorInfo> infos;
  std::map<std::string, std::vector<float>> values;
};

Weights MakeWeights() {
  Weights weights;
  std::mt19937 random(5);
  const auto add = [&](const std::string& name, std::vector<int64_t> dims, float mean = 0) {
    const int64_t size = dims[0] * (dims.size() > 1 ? dims[1] : 1);
    std::normal_distribution<float> normal(mean, dims.size() > 1 ? 0.25f : 0.3f);
    std::vector<float>& values = weights.values[name];
    for (int64_t i = 0; i < size; ++i) values.push_back(normal(random));
    weights.infos.push_back({name, Format::kF32, std::move(dims)});
  };
  add("token_embd.weight", {kWidth, kVocab});
  add("output_norm.weight", {kWidth}, 1);
  for (int64_t l = 0; l < kLayers; ++l) {
    const std::string p = "blk." + std::to_string(l) + ".";
    for (const char* norm : {"attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"}) {
      add(p + norm + ".weight", {kWidth}, 1);
    }
    add(p + "attn_q.weight", {kWidth, kHeads * kHeadDim});
    add(p + "attn_k.weight", {kWidth, kKvHeads * kHeadDim});
    add(p + "attn_v.weight", {kWidth, kKvHeads * kHeadDim});
    add(p + "attn_output.weight", {kHeads * kHeadDim, kWidth});
    add(p + "ffn_gate.weight", {kWidth, kFfn});
    add(p + "ffn_up.weight", {kWidth, kFfn});
    add(p + "ffn_down.weight", {kFfn, kWidth});
  }
  return weights;
}

GgufMetadata MakeMetadata() {
  GgufMetadata metadata;
  metadata.Set("general.architecture", std::string("gemma2"));
  const auto set = [&](const char* key, int64_t value) {
    metadata.Set(std::string("gemma2.") + key, static_cast<uint32_t>(value));
  };
  set("embedding_length", kWidth);
  set("block_count", kLayers);
  set("attention.head_count", kHeads);
  set("attention.head_count_kv", kKvHeads);
  set("attention.key_length", kHeadDim);
  set("attention.value_length", kHeadDim);
  set("attention.sliding_window", kWindow);
  set("feed_forward_length", kFfn);
  set("context_length", 64);
  metadata.Set("gemma2.attention.layer_norm_rms_epsilon", static_cast<float>(kEps));
  metadata.Set("gemma2.attn_logit_softcapping", static_cast<float>(kAttentionCap));
  metadata.Set("gemma2.final_logit_softcapping", static_cast<float>(kOutputCap));
  std::vector<std::string> tokens;
  for (int64_t i = 0; i < kVocab; ++i) tokens.emplace_back(1, static_cast<char>('a' + i));
  metadata.Set("tokenizer.ggml.model", std::string("llama"));
  metadata.Set("tokenizer.ggml.tokens", tokens);
  metadata.Set("tokenizer.ggml.scores", std::vector<float>(kVocab, 0.0f));
  return metadata;
}

std::vector<int32_t> Tokens() {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < kTokens; ++i) tokens.push_back(i * 7 % static_cast<int32_t>(kVocab));
  return tokens;
}

// The definition, token by token; x W^T and the norms over rows of any width.
class Oracle {
 public:
  explicit Oracle(const Weights& weights) : weights_(weights) {}

  std::vector<Numbers> Logits(const std::vector<int32_t>& tokens) const {
    std::vector<Numbers> x;
    for (const int32_t token : tokens) {
      Numbers row;
      for (int64_t i = 0; i < kWidth; ++i) {
        row.push_back(std::sqrt(kWidth) * At("token_embd", token * kWidth + i));
      }
      x.push_back(row);
    }
    for (int64_t l = 0; l < kLayers; ++l) {
      const std::string p = "blk." + std::to_string(l) + ".";
      std::vector<Numbers> q, k, v;
      for (size_t t = 0; t < x.size(); ++t) {
        const Numbers normed = Norm(x[t], p + "attn_norm");
        q.push_back(Turn(Product(normed, p + "attn_q"), t));
        k.push_back(Turn(Product(normed, p + "attn_k"), t));
        v.push_back(Product(normed, p + "attn_v"));
      }
      for (size_t t = 0; t < x.size(); ++t) {
        const size_t oldest = l % 2 == 0 && t + 1 > kWindow ? t + 1 - kWindow : 0;
        const Numbers seen = Attend(q[t], k, v, oldest, t);
        Add(x[t], Norm(Product(seen, p + "attn_output"), p + "post_attention_norm"));
        const Numbers normed = Norm(x[t], p + "ffn_norm");
        Numbers gate = Product(normed, p + "ffn_gate");
        const Numbers up = Product(normed, p + "ffn_up");
        for (size_t i = 0; i < gate.size(); ++i) {
          const double g = gate[i];
          gate[i] =
              0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g))) * up[i];
        }
        Add(x[t], Norm(Product(gate, p + "ffn_down"), p + "post_ffw_norm"));
      }
    }
    for (Numbers& row : x) {
      row = Product(Norm(row, "output_norm"), "token_embd");
      for (double& logit : row) logit = kOutputCap * std::tanh(logit / kOutputCap);
    }
    return x;
  }

 private:
  double At(const std::string& name, int64_t i) const {
    return weights_.values.at(name + ".weight")[static_cast<size_t>(i)];
  }
  static void Add(Numbers& x, const Numbers& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  Numbers Norm(const Numbers& x, const std::string& name) const {
    double squares = 0;
    for (const double value : x) squares += value * value;
    Numbers out;
    for (size_t i = 0; i < x.size(); ++i) {
      out.push_back(x[i] / std::sqrt(squares / static_cast<double>(x.size()) + kEps) *
                    At(name, static_cast<int64_t>(i)));
    }
    return out;
  }
  Numbers Product(const Numbers& x, const std::string& name) const {
    const int64_t cols = static_cast<int64_t>(x.size());
    const int64_t rows = static_cast<int64_t>(weights_.values.at(name + ".weight").size()) / cols;
    Numbers out(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < cols; ++i) {
        out[static_cast<size_t>(r)] += At(name, r * cols + i) * x[static_cast<size_t>(i)];
      }
    }
    return out;
  }
  static Numbers Turn(Numbers heads, size_t position) {
    for (size_t h = 0; h < heads.size(); h += kHeadDim) {
      for (size_t i = 0; i < kHeadDim / 2; ++i) {
        const double angle = static_cast<double>(position) *
                             std::pow(10000.0, -2.0 * static_cast<double>(i) / kHeadDim);
        double &a = heads[h + i], &b = heads[h + i + kHeadDim / 2];
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = turned;
      }
    }
    return heads;
  }
  static Numbers Attend(const Numbers& q, const std::vector<Numbers>& k,
                        const std::vector<Numbers>& v, size_t oldest, size_t newest) {
    Numbers out(kHeads * kHeadDim);
    for (size_t h = 0; h < kHeads; ++h) {
      const size_t from = h * kHeadDim, shared = h / (kHeads / kKvHeads) * kHeadDim;
      double sum = 0;
      for (size_t t = oldest; t <= newest; ++t) {
        double score = 0;
        for (size_t i = 0; i < kHeadDim; ++i) score += q[from + i] * k[t][shared + i];
        score = kAttentionCap * std::tanh(score / std::sqrt(kHeadDim) / kAttentionCap);
        const double weight = std::exp(score);
        sum += weight;
        for (size_t i = 0; i < kHeadDim; ++i) out[from + i] += weight * v[t][shared + i];
      }
      for (size_t i = 0; i < kHeadDim; ++i) out[from + i] /= sum;
    }
    return out;
  }

  const Weights& weights_;
};

// The largest difference from the oracle's logits; the metadata may lie.
double Error(const Weights& weights, const GgufMetadata& metadata) {
  TemporaryFolder folder;
  const std::string path = folder / "gemma2.gguf";
  Result<GgufWriter> writer = GgufWriter::Create(path, metadata, weights.infos);
  EXPECT_TRUE(writer.ok()) << writer.status().message();
  for (const GgufTensorInfo& info : weights.infos) {
    EXPECT_TRUE(writer->Append(std::as_bytes(std::span(weights.values.at(info.name)))).ok());
  }
  EXPECT_TRUE(writer->Finish().ok());
  const Result<Model> model = Model::Load(path);
  if (!model.ok()) {
    ADD_FAILURE() << model.status().message();
    return -1;
  }
  Result<KvCache> cache = KvCache::Create(model->config());
  RunnerOptions options;
  options.precision = Precision::kF32;
  Runner runner(*model, options);
  const std::vector<int32_t> tokens = Tokens();
  const SequenceInput input{cache->AddSequence(), tokens, true};
  std::vector<float> hidden, logits(kTokens * kVocab);
  EXPECT_TRUE(runner.Forward(*cache, {&input, 1}, &hidden).ok());
  EXPECT_TRUE(runner
                  .Logits(ViewOf(std::as_const(hidden).data(), kTokens, kWidth),
                          ViewOf(logits.data(), kTokens, kVocab))
                  .ok());
  const std::vector<Numbers> wanted = Oracle(weights).Logits(tokens);
  double error = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    error = std::max(error, std::abs(logits[i] - wanted[i / kVocab][i % kVocab]));
  }
  return error;
}

TEST(Gemma2, IsItsDefinition) {
  const Weights weights = MakeWeights();
  const GgufMetadata metadata = MakeMetadata();
  constexpr double kTolerance = 0.01;  // keys and values are rounded to f16
  EXPECT_LT(Error(weights, metadata), kTolerance);
  // Each of its pieces matters here.
  const std::pair<const char*, GgufValue> others[] = {
      {"gemma2.attention.sliding_window", uint32_t{7}},
      {"gemma2.attn_logit_softcapping", 50.0f},
      {"gemma2.final_logit_softcapping", 30.0f},
      {"gemma2.attention.scale", 0.25f}};
  for (const auto& [key, value] : others) {
    GgufMetadata other = metadata;
    other.Set(key, value);
    EXPECT_GT(Error(weights, other), 2 * kTolerance) << key;
  }
}

TEST(Gemma2, TakesThePublishedValuesWhereAFileHasNone) {
  GgufMetadata metadata = MakeMetadata();
  for (const char* key :
       {"attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"}) {
    metadata.Erase(std::string("gemma2.") + key);
  }
  Result<ModelConfig> config = ModelConfig::FromMetadata(metadata);
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->WindowOf(0), 4096);
  EXPECT_EQ(config->WindowOf(1), 0);
  EXPECT_EQ(config->WindowOf(2), 4096);
  EXPECT_EQ(config->attention_soft_cap, 50.0f);
  EXPECT_EQ(config->output_soft_cap, 30.0f);
  EXPECT_FLOAT_EQ(config->query_scale, 1 / std::sqrt(static_cast<float>(kHeadDim)));
  metadata.Set("gemma2.block_count", uint32_t{46});  // the 27B model
  config = ModelConfig::FromMetadata(metadata);
  ASSERT_TRUE(config.ok());
  EXPECT_FLOAT_EQ(config->query_scale, 1 / std::sqrt(static_cast<float>(kWidth / kHeads)));
}

}  // namespace
}  // namespace nibble
