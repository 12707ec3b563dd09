// Hugging Face folders made up by tests: a config, weights in safetensors, tokenizer files.
#ifndef NIBBLE_TESTS_HF_FOLDER_H_
#define NIBBLE_TESTS_HF_FOLDER_H_

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "nibble/dtype.h"
#include "nlohmann/json.hpp"
#include "tests/temporary_folder.h"

namespace nibble::testing {

using Json = nlohmann::ordered_json;

struct StoredTensor {
  std::string dtype = "F16";  // as the safetensors header spells it
  std::vector<int64_t> shape;
  std::string bytes;
};

// Numbers in (-1, 1) with few bits, exact in every float type; other names give other numbers.
inline float TestWeight(const std::string& name, size_t i) {
  uint64_t h = 1469598103934665603u;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211u;
  h = (h ^ i) * 0x9E3779B97F4A7C15u;
  return static_cast<float>(static_cast<int>(h >> 58) - 32) / 32.0f;
}

class HfFolder {
 public:
  const std::string& path() const { return folder_.path(); }
  std::string File(const std::string& name) const { return folder_ / name; }

  Json config;
  std::map<std::string, StoredTensor> tensors;

  void Add(const std::string& name, std::vector<int64_t> shape, const std::string& dtype = "F16") {
    StoredTensor tensor{dtype, std::move(shape), ""};
    size_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= static_cast<size_t>(size);
    for (size_t i = 0; i < elements; ++i) {
      const float value = TestWeight(name, i);
      if (dtype == "F32") {
        Append(tensor.bytes, value);
      } else if (dtype == "F16") {
        Append(tensor.bytes, ToF16(value));
      } else if (dtype == "BF16") {
        Append(tensor.bytes, ToBF16(value));
      } else {  // other types: raw bytes
        const size_t width = dtype.ends_with("64") ? 8 : dtype.ends_with("32") ? 4 : 1;
        tensor.bytes.append(width, static_cast<char>(i));
      }
    }
    tensors[name] = std::move(tensor);
  }

  void Text(const std::string& name, const std::string& text) const {
    WriteWholeFile(File(name), text);
  }

  // Writes config.json (unless empty) and model.safetensors.
  void Write() const {
    if (!config.is_null()) Text("config.json", config.dump());
    Json header;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      header[name] = {{"dtype", tensor.dtype},
                      {"shape", tensor.shape},
                      {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
      data += tensor.bytes;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    std::string file;
    Append(file, static_cast<uint64_t>(text.size()));
    Text("model.safetensors", file + text + data);
  }

 private:
  template <class T>
  static void Append(std::string& bytes, T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    bytes.append(raw, sizeof(T));
  }

  TemporaryFolder folder_;
};

// A model small enough to check by hand: hidden 16, feed-forward 24, 2 layers, 4 heads of 4 of
// which 2 for keys and values, vocabulary 12. `type` is the config's model_type.
inline void MakeTinyModel(HfFolder& folder, const std::string& class_name,
                          const std::string& type) {
  folder.config = {
      {"architectures", {class_name}}, {"model_type", type},     {"hidden_size", 16},
      {"intermediate_size", 24},       {"num_hidden_layers", 2}, {"num_attention_heads", 4},
      {"num_key_value_heads", 2},      {"vocab_size", 12},       {"max_position_embeddings", 64},
      {"rms_norm_eps", 1e-6},          {"rope_theta", 10000.0}};
  folder.Add("model.embed_tokens.weight", {12, 16});
  folder.Add("model.norm.weight", {16});
  folder.Add("lm_head.weight", {12, 16});
  for (int layer = 0; layer < 2; ++layer) {
    const std::string p = "model.layers." + std::to_string(layer) + ".";
    folder.Add(p + "input_layernorm.weight", {16});
    folder.Add(p + "self_attn.q_proj.weight", {16, 16});
    folder.Add(p + "self_attn.k_proj.weight", {8, 16});
    folder.Add(p + "self_attn.v_proj.weight", {8, 16});
    folder.Add(p + "self_attn.o_proj.weight", {16, 16});
    folder.Add(p + "post_attention_layernorm.weight", {16});
    folder.Add(p + "mlp.gate_proj.weight", {24, 16});
    folder.Add(p + "mlp.up_proj.weight", {24, 16});
    folder.Add(p + "mlp.down_proj.weight", {16, 24});
  }
}

inline void RemoveTensors(HfFolder& folder, const std::string& part) {
  std::erase_if(folder.tensors,
                [&](const auto& entry) { return entry.first.find(part) != std::string::npos; });
}

}  // namespace nibble::testing

#endif  // NIBBLE_TESTS_HF_FOLDER_H_
