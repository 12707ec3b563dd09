// What becomes of the tensors of each architecture.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <sstream>

#include "nibble/model_source.h"
#include "tests/hf_folder.h"

namespace nibble {
namespace {

using testing::HfFolder;
using testing::MakeTinyModel;
using testing::RemoveTensors;
using testing::TestWeight;

ModelSource Open(const HfFolder& folder) {
  folder.Write();
  Result<ModelSource> source = ModelSource::Open(folder.path());
  EXPECT_TRUE(source.ok()) << source.status().message();
  return source.ok() ? *std::move(source) : ModelSource();
}

std::string Error(const HfFolder& folder) {
  folder.Write();
  const Result<ModelSource> source = ModelSource::Open(folder.path());
  return source.ok() ? "opened" : source.status().message();
}

void ExpectContains(const std::string& message, std::initializer_list<const char*> parts) {
  for (const char* part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

// "name format dims" of every tensor outside the layers and of layer 0; layer 1 must equal it.
std::set<std::string> Describe(const ModelSource& source) {
  std::set<std::string> first, second;
  for (const ModelTensor& tensor : source.tensors()) {
    std::string text = tensor.name + " " + GetFormatInfo(tensor.format).name;
    char separator = ' ';
    for (const int64_t dim : tensor.dims) {
      text.append(1, separator).append(std::to_string(dim));
      separator = 'x';
    }
    if (text.starts_with("blk.1.")) {
      second.insert(text.replace(4, 1, "0"));
    } else {
      first.insert(text);
    }
  }
  for (const std::string& text : second) EXPECT_TRUE(first.contains(text)) << text;
  for (const std::string& text : first) {
    EXPECT_TRUE(!text.starts_with("blk.") || second.contains(text)) << text;
  }
  return first;
}

std::set<std::string> Lines(const std::string& text) {
  std::istringstream stream(text);
  std::set<std::string> lines;
  for (std::string line; std::getline(stream, line);) {
    if (!line.empty()) lines.insert(line);
  }
  return lines;
}

const char kDense[] = R"(token_embd.weight f16 16x12
output_norm.weight f32 16
output.weight f16 16x12
blk.0.attn_norm.weight f32 16
blk.0.attn_q.weight f16 16x16
blk.0.attn_k.weight f16 16x8
blk.0.attn_v.weight f16 16x8
blk.0.attn_output.weight f16 16x16
blk.0.ffn_norm.weight f32 16
blk.0.ffn_gate.weight f16 16x24
blk.0.ffn_up.weight f16 16x24
blk.0.ffn_down.weight f16 24x16
)";

// What differs from that with an output that is the embedding: these more, in each layer.
std::set<std::string> TiedDense(const std::string& more) {
  std::set<std::string> lines = Lines(kDense + more);
  lines.erase("output.weight f16 16x12");
  return lines;
}

// Adds tensors to both layers, by their names behind "model.layers.#.".
void AddToLayers(HfFolder& folder,
                 std::initializer_list<std::pair<const char*, std::vector<int64_t>>> tensors,
                 const std::string& dtype = "F16") {
  for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
    for (const auto& [name, shape] : tensors) folder.Add(std::string(layer) + name, shape, dtype);
  }
}

std::vector<float> ReadFloats(const ModelSource& source, const std::string& name) {
  const ModelTensor* tensor = source.Find(name);
  EXPECT_NE(tensor, nullptr) << name;
  if (tensor == nullptr) return {};
  const Result<Buffer> data = source.Read(*tensor);
  EXPECT_TRUE(data.ok());
  std::vector<float> values;
  const size_t width = tensor->format == Format::kF32 ? 4 : 2;
  for (size_t i = 0; i < data->size() / width; ++i) {
    if (width == 4) {
      float value;
      std::memcpy(&value, data->data() + 4 * i, 4);
      values.push_back(value);
    } else {
      uint16_t bits;
      std::memcpy(&bits, data->data() + 2 * i, 2);
      values.push_back(tensor->format == Format::kF16 ? ToFloat(F16{bits}) : ToFloat(BF16{bits}));
    }
  }
  return values;
}

std::vector<float> Stored(const std::string& name, size_t size) {
  std::vector<float> values(size);
  for (size_t i = 0; i < size; ++i) values[i] = TestWeight(name, i);
  return values;
}

// MakeTinyModel's folder, which a test then changes.
struct TinyModel : HfFolder {
  TinyModel(const std::string& class_name, const std::string& type) {
    MakeTinyModel(*this, class_name, type);
  }
};

TEST(HfArchitecture, LlamaAndMistral) {
  for (const auto& [name, type] :
       {std::pair{"LlamaForCausalLM", "llama"}, std::pair{"MistralForCausalLM", "mistral"}}) {
    TinyModel folder(name, type);
    const ModelSource source = Open(folder);
    EXPECT_EQ(Describe(source), Lines(kDense));
    EXPECT_EQ(*source.metadata().GetString("general.architecture"), "llama");
    EXPECT_EQ(source.Find("blk.1.ffn_up.weight")->source_name, "model.layers.1.mlp.up_proj.weight");
    EXPECT_EQ(ReadFloats(source, "blk.1.ffn_down.weight"),
              Stored("model.layers.1.mlp.down_proj.weight", 384));
    EXPECT_EQ(ReadFloats(source, "output_norm.weight"), Stored("model.norm.weight", 16));
  }
}

TEST(HfArchitecture, KeepsTheTypeOfMatrices) {
  for (const char* dtype : {"F32", "BF16"}) {
    TinyModel folder("LlamaForCausalLM", "llama");
    folder.Add("model.layers.0.self_attn.q_proj.weight", {16, 16}, dtype);
    folder.Add("model.layers.0.input_layernorm.weight", {16}, dtype);
    const ModelSource source = Open(folder);
    EXPECT_EQ(source.Find("blk.0.attn_q.weight")->format,
              dtype[0] == 'B' ? Format::kBF16 : Format::kF32);
    EXPECT_EQ(source.Find("blk.0.attn_norm.weight")->format, Format::kF32);
    EXPECT_EQ(ReadFloats(source, "blk.0.attn_norm.weight"),
              Stored("model.layers.0.input_layernorm.weight", 16));
  }
}

// Rotary embeddings turn pairs (i, i + 2) of a head of 4 in the file's order and pairs (2i, 2i + 1)
// in GGUF's. Whatever the order, attention scores are the same: computed here both ways.
TEST(HfArchitecture, InterleavedHeadsGiveTheSameScores) {
  TinyModel folder("LlamaForCausalLM", "llama");
  const ModelSource source = Open(folder);
  const std::string attention = "model.layers.0.self_attn.";
  const std::vector<float> q = Stored(attention + "q_proj.weight", 256);
  const std::vector<float> k = Stored(attention + "k_proj.weight", 128);
  const std::vector<float> gguf_q = ReadFloats(source, "blk.0.attn_q.weight");
  const std::vector<float> gguf_k = ReadFloats(source, "blk.0.attn_k.weight");
  EXPECT_NE(q, gguf_q);
  EXPECT_NE(k, gguf_k);

  const std::vector<float> x = Stored("x", 16), y = Stored("y", 16);
  const auto rotated = [](const std::vector<float>& weight, const std::vector<float>& input,
                          int head, int position, bool halves) {
    double v[4] = {};
    for (int row = 0; row < 4; ++row) {
      for (int col = 0; col < 16; ++col) {
        v[row] += weight[static_cast<size_t>((head * 4 + row) * 16 + col)] *
                  input[static_cast<size_t>(col)];
      }
    }
    std::vector<double> result(4);
    for (int i = 0; i < 2; ++i) {
      const int a = halves ? i : 2 * i, b = halves ? i + 2 : 2 * i + 1;
      const double angle = position * std::pow(10000.0, -i / 2.0);
      result[static_cast<size_t>(a)] = v[a] * std::cos(angle) - v[b] * std::sin(angle);
      result[static_cast<size_t>(b)] = v[b] * std::cos(angle) + v[a] * std::sin(angle);
    }
    return result;
  };
  for (int head = 0; head < 4; ++head) {
    const auto score = [&](const std::vector<float>& wq, const std::vector<float>& wk,
                           bool halves) {
      const std::vector<double> a = rotated(wq, x, head, 5, halves);
      const std::vector<double> b = rotated(wk, y, head / 2, 3, halves);
      double sum = 0;
      for (size_t i = 0; i < 4; ++i) sum += a[i] * b[i];
      return sum;
    };
    EXPECT_NEAR(score(q, k, true), score(gguf_q, gguf_k, false), 1e-12) << "head " << head;
    EXPECT_GT(std::abs(score(q, k, true) - score(q, k, false)), 1e-6) << "the order matters";
  }
}

TEST(HfArchitecture, LlamaTakesBiasesWhereTheFileHasThem) {
  TinyModel folder("LlamaForCausalLM", "llama");
  AddToLayers(folder, {{"self_attn.q_proj.bias", {16}},
                       {"self_attn.k_proj.bias", {8}},
                       {"self_attn.v_proj.bias", {8}},
                       {"self_attn.o_proj.bias", {16}}});
  const ModelSource source = Open(folder);
  EXPECT_EQ(Describe(source), Lines(std::string(kDense) +
                                    "blk.0.attn_q.bias f32 16\nblk.0.attn_k.bias f32 8\n"
                                    "blk.0.attn_v.bias f32 8\nblk.0.attn_output.bias f32 16\n"));
  const std::vector<float> stored = Stored("model.layers.0.self_attn.k_proj.bias", 8);
  const std::vector<float> expected = {stored[0], stored[2], stored[1], stored[3],
                                       stored[4], stored[6], stored[5], stored[7]};
  EXPECT_EQ(ReadFloats(source, "blk.0.attn_k.bias"), expected);
}

TEST(HfArchitecture, Qwen2HasBiasesAndKeepsItsHeads) {
  TinyModel folder("Qwen2ForCausalLM", "qwen2");
  AddToLayers(folder,
              {{"self_attn.q_proj.bias", {16}},
               {"self_attn.k_proj.bias", {8}},
               {"self_attn.v_proj.bias", {8}}},
              "BF16");
  const ModelSource source = Open(folder);
  EXPECT_EQ(Describe(source),
            Lines(std::string(kDense) + "blk.0.attn_q.bias f32 16\nblk.0.attn_k.bias f32 8\n"
                                        "blk.0.attn_v.bias f32 8\n"));
  EXPECT_EQ(*source.metadata().GetString("general.architecture"), "qwen2");
  EXPECT_EQ(ReadFloats(source, "blk.0.attn_q.weight"),
            Stored("model.layers.0.self_attn.q_proj.weight", 256));
  EXPECT_EQ(ReadFloats(source, "blk.1.attn_k.bias"),
            Stored("model.layers.1.self_attn.k_proj.bias", 8));

  RemoveTensors(folder, "layers.1.self_attn.v_proj.bias");
  ExpectContains(Error(folder), {"model.layers.1.self_attn.v_proj.bias", "Qwen2ForCausalLM"});
}

TEST(HfArchitecture, Qwen3HasNormsOfHeads) {
  TinyModel folder("Qwen3ForCausalLM", "qwen3");
  folder.config["head_dim"] = 8;
  folder.config["num_attention_heads"] = 2;
  folder.config["num_key_value_heads"] = 1;
  folder.config["tie_word_embeddings"] = true;
  folder.tensors.erase("lm_head.weight");
  AddToLayers(folder, {{"self_attn.q_norm.weight", {8}}, {"self_attn.k_norm.weight", {8}}});
  const ModelSource source = Open(folder);
  EXPECT_EQ(Describe(source),
            TiedDense("blk.0.attn_q_norm.weight f32 8\nblk.0.attn_k_norm.weight f32 8\n"));
  EXPECT_EQ(*source.metadata().GetUint("qwen3.attention.key_length"), 8u);
}

TEST(HfArchitecture, GemmaNormsGainOne) {
  TinyModel folder("GemmaForCausalLM", "gemma");
  folder.config["head_dim"] = 4;
  folder.config["hidden_act"] = "gelu_pytorch_tanh";
  folder.tensors.erase("lm_head.weight");
  const ModelSource source = Open(folder);
  EXPECT_EQ(Describe(source), TiedDense(""));
  std::vector<float> norm = Stored("model.layers.1.input_layernorm.weight", 16);
  for (float& weight : norm) weight += 1;
  EXPECT_EQ(ReadFloats(source, "blk.1.attn_norm.weight"), norm);
  EXPECT_EQ(ReadFloats(source, "blk.0.attn_q.weight"),
            Stored("model.layers.0.self_attn.q_proj.weight", 256));
}

TEST(HfArchitecture, Gemma2HasNormsOnBothSides) {
  TinyModel folder("Gemma2ForCausalLM", "gemma2");
  folder.config.update({{"head_dim", 4},
                        {"hidden_activation", "gelu_pytorch_tanh"},
                        {"attn_logit_softcapping", 50.0},
                        {"final_logit_softcapping", 30.0},
                        {"sliding_window", 32}});
  folder.tensors.erase("lm_head.weight");
  AddToLayers(folder, {{"pre_feedforward_layernorm.weight", {16}},
                       {"post_feedforward_layernorm.weight", {16}}});
  const ModelSource source = Open(folder);
  EXPECT_EQ(Describe(source), TiedDense("blk.0.post_attention_norm.weight f32 16\n"
                                        "blk.0.post_ffw_norm.weight f32 16\n"));
  EXPECT_EQ(source.Find("blk.0.ffn_norm.weight")->source_name,
            "model.layers.0.pre_feedforward_layernorm.weight");
  EXPECT_EQ(*source.metadata().GetFloat("gemma2.attn_logit_softcapping"), 50.0);
  EXPECT_EQ(*source.metadata().GetUint("gemma2.attention.sliding_window"), 32u);
}

TEST(HfArchitecture, Phi3StacksItsMatrices) {
  TinyModel folder("Phi3ForCausalLM", "phi3");
  for (const char* part : {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}) {
    RemoveTensors(folder, part);
  }
  AddToLayers(folder,
              {{"self_attn.qkv_proj.weight", {32, 16}}, {"mlp.gate_up_proj.weight", {48, 16}}});
  EXPECT_EQ(Describe(Open(folder)), Lines(R"(token_embd.weight f16 16x12
output_norm.weight f32 16
output.weight f16 16x12
blk.0.attn_norm.weight f32 16
blk.0.attn_qkv.weight f16 16x32
blk.0.attn_output.weight f16 16x16
blk.0.ffn_norm.weight f32 16
blk.0.ffn_up.weight f16 16x48
blk.0.ffn_down.weight f16 24x16
)"));
}

void MakeMixtral(HfFolder& folder) {
  MakeTinyModel(folder, "MixtralForCausalLM", "mixtral");
  folder.config.update({{"num_local_experts", 3}, {"num_experts_per_tok", 2}});
  RemoveTensors(folder, "mlp");
  for (int layer = 0; layer < 2; ++layer) {
    const std::string p = "model.layers." + std::to_string(layer) + ".block_sparse_moe.";
    folder.Add(p + "gate.weight", {3, 16});
    for (int expert = 0; expert < 3; ++expert) {
      const std::string e = p + "experts." + std::to_string(expert) + ".";
      folder.Add(e + "w1.weight", {24, 16});
      folder.Add(e + "w2.weight", {16, 24});
      folder.Add(e + "w3.weight", {24, 16});
    }
  }
}

TEST(HfArchitecture, MixtralStacksItsExperts) {
  HfFolder folder;
  MakeMixtral(folder);
  const ModelSource source = Open(folder);
  EXPECT_EQ(Describe(source), Lines(R"(token_embd.weight f16 16x12
output_norm.weight f32 16
output.weight f16 16x12
blk.0.attn_norm.weight f32 16
blk.0.attn_q.weight f16 16x16
blk.0.attn_k.weight f16 16x8
blk.0.attn_v.weight f16 16x8
blk.0.attn_output.weight f16 16x16
blk.0.ffn_norm.weight f32 16
blk.0.ffn_gate_inp.weight f32 16x3
blk.0.ffn_gate_exps.weight f16 16x24x3
blk.0.ffn_up_exps.weight f16 16x24x3
blk.0.ffn_down_exps.weight f16 24x16x3
)"));
  std::vector<float> stacked;
  for (int expert = 0; expert < 3; ++expert) {
    const std::vector<float> one = Stored(
        "model.layers.1.block_sparse_moe.experts." + std::to_string(expert) + ".w2.weight", 384);
    stacked.insert(stacked.end(), one.begin(), one.end());
  }
  EXPECT_EQ(ReadFloats(source, "blk.1.ffn_down_exps.weight"), stacked);
  EXPECT_EQ(*source.metadata().GetUint("llama.expert_count"), 3u);
  EXPECT_EQ(*source.metadata().GetUint("llama.expert_used_count"), 2u);
  EXPECT_EQ(*source.metadata().GetFloat("llama.rope.freq_base"), 10000.0);

  RemoveTensors(folder, "layers.1.block_sparse_moe.experts.2.w3");
  ExpectContains(Error(folder), {"model.layers.1.block_sparse_moe.experts.2.w3.weight"});
  MakeMixtral(folder);
  folder.Add("model.layers.0.block_sparse_moe.experts.1.w1.weight", {24, 16}, "BF16");
  ExpectContains(Error(folder), {"experts.1.w1.weight", "bf16", "f16"});
}

// Frequencies of short wavelength stay, those of long ones are divided, those between blended.
TEST(HfArchitecture, Llama3ScalesRotaryFrequencies) {
  TinyModel folder("LlamaForCausalLM", "llama");
  folder.config["rope_scaling"] = {{"rope_type", "llama3"},
                                   {"factor", 8.0},
                                   {"low_freq_factor", 1.0},
                                   {"high_freq_factor", 4.0},
                                   {"original_max_position_embeddings", 20}};
  // Heads of 4 have wavelengths of 2 pi and 200 pi.
  std::vector<float> factors = ReadFloats(Open(folder), "rope_freqs.weight");
  ASSERT_EQ(factors.size(), 2u);
  const double smooth = (20 / (2 * M_PI) - 1) / 3;
  EXPECT_FLOAT_EQ(factors[0], static_cast<float>(1 / ((1 - smooth) / 8 + smooth)));
  EXPECT_EQ(factors[1], 8.0f);
  folder.config["rope_scaling"]["original_max_position_embeddings"] = 64;
  EXPECT_EQ(ReadFloats(Open(folder), "rope_freqs.weight"), (std::vector<float>{1.0f, 8.0f}));
  folder.config["rope_scaling"]["high_freq_factor"] = 1.0;
  ExpectContains(Error(folder), {"rope_scaling", "low_freq_factor"});
}

TEST(HfArchitecture, SkipsBuffersAndATiedOutput) {
  TinyModel folder("LlamaForCausalLM", "llama");
  folder.config["tie_word_embeddings"] = true;
  folder.Add("model.layers.0.self_attn.rotary_emb.inv_freq", {2}, "F32");
  const ModelSource source = Open(folder);
  EXPECT_EQ(source.Find("output.weight"), nullptr);
  EXPECT_EQ(source.tensors().size(), 20u);
  EXPECT_NE(source.notices()[0].find("lm_head.weight"), std::string::npos);
}

TEST(HfArchitecture, NamesTheTensorThatDoesNotFit) {
  TinyModel folder("LlamaForCausalLM", "llama");
  folder.Add("model.layers.1.mlp.up_proj.weight", {16, 24});
  ExpectContains(Error(folder), {folder.path().c_str(), "model.layers.1.mlp.up_proj.weight",
                                 "[16, 24]", "[24, 16]"});
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  folder.Add("model.norm.weight", {16}, "I32");
  ExpectContains(Error(folder), {"model.norm.weight", "i32"});
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  folder.tensors.erase("lm_head.weight");
  ExpectContains(Error(folder), {"lm_head.weight"});
  MakeTinyModel(folder, "LlamaForCausalLM", "llama");
  folder.Add("model.layers.0.self_attn.q_norm.weight", {4});
  ExpectContains(Error(folder), {"model.layers.0.self_attn.q_norm.weight", "LlamaForCausalLM"});
  folder.tensors.erase("model.layers.0.self_attn.q_norm.weight");
  folder.config["num_hidden_layers"] = 3;
  ExpectContains(Error(folder), {"model.layers.2.input_layernorm.weight"});
  folder.config["num_hidden_layers"] = 1;
  ExpectContains(Error(folder), {"model.layers.1."});
}

}  // namespace
}  // namespace nibble
