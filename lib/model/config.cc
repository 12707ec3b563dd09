#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>

#include "nibble/model.h"

namespace nibble {
namespace {

// Reads keys under an architecture's prefix.
class ConfigReader {
 public:
  ConfigReader(const GgufMetadata& metadata, const std::string& architecture)
      : metadata_(metadata), prefix_(architecture + ".") {}

  bool Has(const char* key) const { return metadata_.Find(prefix_ + key) != nullptr; }

  // A count in [1, limit]; `otherwise` when the key is absent, an error when that is 0.
  Status Count(const char* key, int64_t* out, int64_t otherwise = 0,
               int64_t limit = 1 << 24) const {
    if (!Has(key)) {
      if (otherwise == 0) return NotFound("metadata key " + prefix_ + key + " is missing");
      *out = otherwise;
      return OkStatus();
    }
    NIBBLE_ASSIGN_OR_RETURN(const uint64_t value, metadata_.GetUint(prefix_ + key));
    if (value < 1 || value > static_cast<uint64_t>(limit)) {
      return Corrupt(prefix_ + key + " is " + std::to_string(value) + ", outside [1, " +
                     std::to_string(limit) + "]");
    }
    *out = static_cast<int64_t>(value);
    return OkStatus();
  }

  Status Number(const char* key, float* out, float otherwise) const {
    *out = otherwise;
    if (!Has(key)) return OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const double value, metadata_.GetFloat(prefix_ + key));
    if (!std::isfinite(value) || value < 0)
      return Corrupt(prefix_ + key + " is not a finite number >= 0");
    *out = static_cast<float>(value);
    return OkStatus();
  }

  std::string String(const char* key) const {
    Result<std::string> value = metadata_.GetString(prefix_ + key);
    return value.ok() ? *value : std::string();
  }

 private:
  const GgufMetadata& metadata_;
  std::string prefix_;
};

constexpr int64_t kGemma2LargeLayers = 46;

Status ReadRope(const ConfigReader& reader, ModelConfig* config) {
  RopeConfig& rope = config->rope;
  NIBBLE_RETURN_IF_ERROR(reader.Count("rope.dimension_count", &rope.dims, config->head_dim));
  if (rope.dims > config->head_dim || rope.dims % 2 != 0) {
    return Corrupt("rope.dimension_count " + std::to_string(rope.dims) +
                   " does not suit heads of " + std::to_string(config->head_dim));
  }
  NIBBLE_RETURN_IF_ERROR(reader.Number("rope.freq_base", &rope.base, 10000.0f));
  rope.half_split = config->architecture != "llama";
  const std::string type = reader.String("rope.scaling.type");
  float factor = 1.0f;
  NIBBLE_RETURN_IF_ERROR(reader.Number("rope.scaling.factor", &factor, 1.0f));
  if (!reader.Has("rope.scaling.factor")) {
    float old_key = 0.0f;  // files of before rope.scaling.*
    NIBBLE_RETURN_IF_ERROR(reader.Number("rope.scale_linear", &old_key, 1.0f));
    if (old_key > 0) rope.scale = 1.0f / old_key;
  }
  if (type == "linear" && factor > 0) rope.scale = 1.0f / factor;
  if (type == "yarn" && factor > 1) {
    rope.yarn_factor = factor;
    NIBBLE_RETURN_IF_ERROR(
        reader.Number("rope.scaling.yarn_beta_fast", &rope.yarn_beta_fast, 32.0f));
    NIBBLE_RETURN_IF_ERROR(
        reader.Number("rope.scaling.yarn_beta_slow", &rope.yarn_beta_slow, 1.0f));
    NIBBLE_RETURN_IF_ERROR(
        reader.Number("rope.scaling.attn_factor", &rope.yarn_attention_factor, 1.0f));
    NIBBLE_RETURN_IF_ERROR(reader.Count("rope.scaling.original_context_length",
                                        &rope.yarn_original_context, config->context));
  } else if (!type.empty() && type != "none" && type != "linear" && type != "yarn") {
    return Unsupported("rope.scaling.type '" + type + "' is not known");
  }
  return OkStatus();
}

}  // namespace

Result<ModelConfig> ModelConfig::FromMetadata(const GgufMetadata& metadata) {
  ModelConfig config;
  NIBBLE_ASSIGN_OR_RETURN(config.architecture, metadata.GetString("general.architecture"));
  const std::string& name = config.architecture;
  constexpr std::string_view kKnown[] = {"llama", "qwen2", "qwen3", "gemma", "gemma2"};
  if (std::ranges::find(kKnown, name) == std::end(kKnown)) {
    return Unsupported("architecture '" + name +
                       "' cannot be run: llama, qwen2, qwen3, gemma and gemma2 can");
  }
  const ConfigReader reader(metadata, name);
  NIBBLE_RETURN_IF_ERROR(reader.Count("embedding_length", &config.width));
  NIBBLE_RETURN_IF_ERROR(reader.Count("block_count", &config.layers, 0, 4096));
  NIBBLE_RETURN_IF_ERROR(reader.Count("attention.head_count", &config.heads, 0, 1 << 16));
  NIBBLE_RETURN_IF_ERROR(
      reader.Count("attention.head_count_kv", &config.kv_heads, config.heads, 1 << 16));
  NIBBLE_RETURN_IF_ERROR(reader.Count("feed_forward_length", &config.ffn_width));
  NIBBLE_RETURN_IF_ERROR(reader.Count("context_length", &config.context, 0, int64_t{1} << 31));
  if (config.heads % config.kv_heads != 0) {
    return Corrupt(name + ": " + std::to_string(config.heads) + " heads cannot share " +
                   std::to_string(config.kv_heads) + " key/value heads");
  }
  const int64_t head_dim = config.width % config.heads == 0 ? config.width / config.heads : 0;
  NIBBLE_RETURN_IF_ERROR(reader.Count("attention.key_length", &config.head_dim, head_dim, 1 << 12));
  NIBBLE_RETURN_IF_ERROR(
      reader.Count("attention.value_length", &config.value_dim, config.head_dim, 1 << 12));
  if (reader.Has("attention.sliding_window")) {
    // 0 is written by some converters for "none".
    NIBBLE_ASSIGN_OR_RETURN(const uint64_t window,
                            metadata.GetUint(name + ".attention.sliding_window"));
    config.sliding_window = static_cast<int64_t>(std::min<uint64_t>(window, uint64_t{1} << 31));
  }
  NIBBLE_RETURN_IF_ERROR(
      reader.Number("attention.layer_norm_rms_epsilon", &config.norm_eps, 1e-5f));
  if (reader.Has("expert_count")) {
    NIBBLE_ASSIGN_OR_RETURN(const uint64_t experts, metadata.GetUint(name + ".expert_count"));
    if (experts > 0) return Unsupported("mixtures of experts can be quantized, but not run");
  }
  float query_dims = static_cast<float>(config.head_dim);
  if (name == "gemma" || name == "gemma2") {
    config.activation = Activation::kGelu;
    config.embedding_scale = std::sqrt(static_cast<float>(config.width));
  }
  if (name == "gemma2") {
    // Files that leave them out mean the published models' values.
    if (!reader.Has("attention.sliding_window")) config.sliding_window = 4096;
    config.window_period = 2;
    NIBBLE_RETURN_IF_ERROR(
        reader.Number("attn_logit_softcapping", &config.attention_soft_cap, 50.0f));
    NIBBLE_RETURN_IF_ERROR(
        reader.Number("final_logit_softcapping", &config.output_soft_cap, 30.0f));
    // The 27B model, which no key tells apart, divides by the root of another size.
    if (config.layers == kGemma2LargeLayers) {
      query_dims = static_cast<float>(config.width) / static_cast<float>(config.heads);
    }
  }
  NIBBLE_RETURN_IF_ERROR(
      reader.Number("attention.scale", &config.query_scale, 1.0f / std::sqrt(query_dims)));
  NIBBLE_RETURN_IF_ERROR(ReadRope(reader, &config));
  const auto* tokens = metadata.Find("tokenizer.ggml.tokens");
  if (tokens != nullptr && std::holds_alternative<std::vector<std::string>>(*tokens)) {
    config.vocab_size = static_cast<int64_t>(std::get<std::vector<std::string>>(*tokens).size());
  }
  return config;
}

}  // namespace nibble
