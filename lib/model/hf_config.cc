// Reading config.json of a known architecture, and what of it goes into GGUF metadata.
#include <cmath>
#include <limits>

#include "lib/model/hf_architecture.h"

namespace nibble {
namespace {

// Sizes that any tensor of 2^40 elements or fewer can have; their products fit 64 bits.
constexpr int64_t kMaxSize = int64_t{1} << 30;
constexpr int64_t kMaxLayers = 1 << 16;
constexpr int64_t kMaxHeads = 1 << 16;
constexpr int64_t kMaxExperts = 1 << 12;

Status ReadSizes(const JsonObject& json, HfConfig& config) {
  NIBBLE_ASSIGN_OR_RETURN(config.vocab, json.Integer("vocab_size", 1, kMaxSize));
  NIBBLE_ASSIGN_OR_RETURN(config.hidden, json.Integer("hidden_size", 1, kMaxSize));
  NIBBLE_ASSIGN_OR_RETURN(config.layers, json.Integer("num_hidden_layers", 1, kMaxLayers));
  NIBBLE_ASSIGN_OR_RETURN(config.heads, json.Integer("num_attention_heads", 1, kMaxHeads));
  NIBBLE_ASSIGN_OR_RETURN(config.key_value_heads,
                          json.IntegerOr("num_key_value_heads", 1, config.heads, config.heads));
  NIBBLE_ASSIGN_OR_RETURN(config.feed_forward, json.Integer("intermediate_size", 1, kMaxSize));
  NIBBLE_ASSIGN_OR_RETURN(config.context, json.Integer("max_position_embeddings", 1,
                                                       std::numeric_limits<uint32_t>::max()));
  NIBBLE_ASSIGN_OR_RETURN(config.rms_epsilon, json.Positive("rms_norm_eps"));
  if (config.heads % config.key_value_heads != 0) {
    return Corrupt(json.name() + ": " + std::to_string(config.heads) +
                   " attention heads are not a multiple of " +
                   std::to_string(config.key_value_heads) + " key-value heads");
  }
  config.has_head_dim = json.Has("head_dim");
  if (!config.has_head_dim && config.hidden % config.heads != 0) {
    return Corrupt(json.name() + ": no \"head_dim\", and hidden_size " +
                   std::to_string(config.hidden) + " is not a multiple of " +
                   std::to_string(config.heads) + " heads");
  }
  NIBBLE_ASSIGN_OR_RETURN(config.head_dim,
                          json.IntegerOr("head_dim", 1, 1 << 16, config.hidden / config.heads));
  if (config.head_dim % 2 != 0) {
    return Corrupt(json.name() + ": heads of " + std::to_string(config.head_dim) +
                   " have no rotary pairs");
  }
  return OkStatus();
}

bool HasExperts(const Architecture& architecture) {
  for (const TensorRule& rule : architecture.rules) {
    if (rule.rows == Dim::kExperts) return true;
  }
  return false;
}

Status ReadExperts(const JsonObject& json, HfConfig& config) {
  const char* count = json.Has("num_local_experts") ? "num_local_experts" : "num_experts";
  NIBBLE_ASSIGN_OR_RETURN(config.experts, json.Integer(count, 1, kMaxExperts));
  NIBBLE_ASSIGN_OR_RETURN(config.experts_used,
                          json.Integer("num_experts_per_tok", 1, config.experts));
  NIBBLE_ASSIGN_OR_RETURN(
      config.expert_feed_forward,
      json.IntegerOr("moe_intermediate_size", 1, kMaxSize, config.feed_forward));
  // Mixtral always normalises the weights of the chosen experts; Qwen says whether it does.
  NIBBLE_ASSIGN_OR_RETURN(const bool normalised, json.BoolOr("norm_topk_prob", true));
  if (!normalised) {
    return Unsupported(json.name() + ": \"norm_topk_prob\" is false; GGUF's " +
                       config.architecture->name + " always normalises");
  }
  return OkStatus();
}

// "rope_scaling" with "rope_theta" beside it, or the newer "rope_parameters" that holds both.
Status ReadRope(const JsonObject& json, HfConfig& config) {
  const bool newer = json.Has("rope_parameters");
  NIBBLE_ASSIGN_OR_RETURN(config.rope, json.ObjectOr(newer ? "rope_parameters" : "rope_scaling"));
  const JsonObject& theta = config.rope.Has("rope_theta") ? config.rope : json;
  if (theta.Has("rope_theta")) {
    NIBBLE_ASSIGN_OR_RETURN(config.rope_theta, theta.Positive("rope_theta"));
  } else if (config.architecture->rope_theta != 10000.0) {
    config.rope_theta = config.architecture->rope_theta;
  }
  const JsonObject& partial = config.rope.Has("partial_rotary_factor") ? config.rope : json;
  NIBBLE_ASSIGN_OR_RETURN(const double fraction, partial.PositiveOr("partial_rotary_factor", 1));
  if (fraction > 1 || (fraction != 1 && !config.architecture->partial_rotary)) {
    return Unsupported(json.name() + ": \"partial_rotary_factor\" is not supported for " +
                       config.architecture->name);
  }
  config.rotary_dim = static_cast<int64_t>(fraction * static_cast<double>(config.head_dim));
  const char* key = config.rope.Has("rope_type") ? "rope_type" : "type";
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, config.rope.StringOr(key, "default"));
  if (type == "default") {
    config.rope_scaling = RopeScaling::kNone;
  } else if (type == "linear") {
    config.rope_scaling = RopeScaling::kLinear;
  } else if (type == "yarn") {
    config.rope_scaling = RopeScaling::kYarn;
  } else if (type == "llama3" && config.architecture->interleaved_rope) {
    config.rope_scaling = RopeScaling::kLlama3;
  } else {
    return Unsupported(config.rope.name() + ": scaling of type \"" + Printable(type) +
                       "\" is not supported for " + config.architecture->name);
  }
  return OkStatus();
}

Status CheckActivation(const JsonObject& json, const Architecture& architecture) {
  const char* key = json.Has("hidden_activation") ? "hidden_activation" : "hidden_act";
  const std::string usual = architecture.gelu ? "gelu" : "silu";
  NIBBLE_ASSIGN_OR_RETURN(const std::string activation, json.StringOr(key, usual));
  const bool matches = architecture.gelu ? activation.starts_with("gelu") : activation == usual;
  if (matches) return OkStatus();
  return Unsupported(json.name() + ": \"" + key + "\" is \"" + Printable(activation) +
                     "\"; GGUF's " + architecture.name + " is computed with " + usual);
}

}  // namespace

int64_t HfConfig::Size(Dim dim) const {
  switch (dim) {
    case Dim::kNone:
      return 1;
    case Dim::kVocab:
      return vocab;
    case Dim::kHidden:
      return hidden;
    case Dim::kFeedForward:
      return feed_forward;
    case Dim::kExpertFeedForward:
      return expert_feed_forward;
    case Dim::kExperts:
      return experts;
    case Dim::kHeadDim:
      return head_dim;
    case Dim::kQuery:
      return heads * head_dim;
    case Dim::kKeyValue:
      return key_value_heads * head_dim;
    case Dim::kQueryKeyValue:
      return (heads + 2 * key_value_heads) * head_dim;
    case Dim::kTwiceFeedForward:
      return 2 * feed_forward;
  }
  return 0;
}

Result<HfConfig> ReadHfConfig(const Architecture& architecture, const JsonObject& json) {
  HfConfig config;
  config.architecture = &architecture;
  NIBBLE_RETURN_IF_ERROR(ReadSizes(json, config));
  if (HasExperts(architecture)) NIBBLE_RETURN_IF_ERROR(ReadExperts(json, config));
  NIBBLE_RETURN_IF_ERROR(ReadRope(json, config));
  NIBBLE_RETURN_IF_ERROR(CheckActivation(json, architecture));
  NIBBLE_ASSIGN_OR_RETURN(config.tied,
                          json.BoolOr("tie_word_embeddings", architecture.tied_by_default));
  return config;
}

Status AddHyperparameters(const HfConfig& config, const JsonObject& json, GgufMetadata& metadata) {
  const Architecture& architecture = *config.architecture;
  const std::string prefix = std::string(architecture.name) + ".";
  const auto set = [&](const char* key, int64_t value) {
    metadata.Set(prefix + key, static_cast<uint32_t>(value));
  };
  const auto set_float = [&](const char* key, double value) {
    metadata.Set(prefix + key, static_cast<float>(value));
  };
  set("block_count", config.layers);
  set("context_length", config.context);
  set("embedding_length", config.hidden);
  set("feed_forward_length", config.feed_forward);
  set("attention.head_count", config.heads);
  set("attention.head_count_kv", config.key_value_heads);

  const JsonObject& rope = config.rope;
  if (config.rope_scaling == RopeScaling::kLinear || config.rope_scaling == RopeScaling::kYarn) {
    const bool yarn = config.rope_scaling == RopeScaling::kYarn;
    NIBBLE_ASSIGN_OR_RETURN(const double factor, rope.Positive("factor"));
    metadata.Set(prefix + "rope.scaling.type", std::string(yarn ? "yarn" : "linear"));
    set_float("rope.scaling.factor", factor);
    if (yarn) {
      NIBBLE_ASSIGN_OR_RETURN(const int64_t original,
                              rope.Integer("original_max_position_embeddings", 1,
                                           std::numeric_limits<uint32_t>::max()));
      set("rope.scaling.original_context_length", original);
      constexpr const char* kOptional[][2] = {
          {"extrapolation_factor", "rope.scaling.yarn_ext_factor"},
          {"attention_factor", "rope.scaling.yarn_attn_factor"},
          {"beta_fast", "rope.scaling.yarn_beta_fast"},
          {"beta_slow", "rope.scaling.yarn_beta_slow"}};
      for (const auto& [key, gguf_key] : kOptional) {
        if (!rope.Has(key)) continue;
        NIBBLE_ASSIGN_OR_RETURN(const double value, rope.Positive(key));
        set_float(gguf_key, value);
      }
    }
  }
  if (config.rope_theta) set_float("rope.freq_base", *config.rope_theta);
  set_float("attention.layer_norm_rms_epsilon", config.rms_epsilon);
  if (config.experts > 0) {
    set("expert_count", config.experts);
    set("expert_used_count", config.experts_used);
    if (json.Has("moe_intermediate_size")) {
      set("expert_feed_forward_length", config.expert_feed_forward);
    }
  }
  if (config.has_head_dim || architecture.explicit_head_dim) {
    set("attention.key_length", config.head_dim);
    set("attention.value_length", config.head_dim);
  }
  if (architecture.writes_vocab_size) set("vocab_size", config.vocab);
  if (architecture.writes_rope_dimensions) set("rope.dimension_count", config.rotary_dim);
  if (architecture.soft_caps) {
    NIBBLE_ASSIGN_OR_RETURN(const double attention, json.Positive("attn_logit_softcapping"));
    NIBBLE_ASSIGN_OR_RETURN(const double final_cap, json.Positive("final_logit_softcapping"));
    NIBBLE_ASSIGN_OR_RETURN(
        const int64_t window,
        json.IntegerOr("sliding_window", 1, std::numeric_limits<uint32_t>::max(), 4096));
    set_float("attn_logit_softcapping", attention);
    set_float("final_logit_softcapping", final_cap);
    set("attention.sliding_window", window);
  }
  if (architecture.partial_rotary) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t original,
                            json.IntegerOr("original_max_position_embeddings", 1,
                                           std::numeric_limits<uint32_t>::max(), config.context));
    NIBBLE_ASSIGN_OR_RETURN(
        const int64_t window,
        json.IntegerOr("sliding_window", 0, std::numeric_limits<uint32_t>::max(), 0));
    set("rope.scaling.original_context_length", original);
    set("attention.sliding_window", window);
  }
  return OkStatus();
}

Result<std::vector<float>> Llama3RopeFactors(const HfConfig& config) {
  constexpr double kPi = 3.14159265358979323846;
  const JsonObject& rope = config.rope;
  NIBBLE_ASSIGN_OR_RETURN(const double factor, rope.PositiveOr("factor", 8));
  NIBBLE_ASSIGN_OR_RETURN(const double low, rope.PositiveOr("low_freq_factor", 1));
  NIBBLE_ASSIGN_OR_RETURN(const double high, rope.PositiveOr("high_freq_factor", 4));
  NIBBLE_ASSIGN_OR_RETURN(const double original,
                          rope.PositiveOr("original_max_position_embeddings", 8192));
  if (!(low < high)) {
    return Corrupt(rope.name() + ": \"low_freq_factor\" is not below \"high_freq_factor\"");
  }
  std::vector<float> factors;
  const double base = config.rope_theta.value_or(config.architecture->rope_theta);
  for (int64_t i = 0; i < config.head_dim; i += 2) {
    const double wavelength =
        2 * kPi * std::pow(base, static_cast<double>(i) / static_cast<double>(config.head_dim));
    if (wavelength < original / high) {
      factors.push_back(1.0f);
    } else if (wavelength > original / low) {
      factors.push_back(static_cast<float>(factor));
    } else {  // between the two the frequency is blended
      const double smooth = (original / wavelength - low) / (high - low);
      factors.push_back(static_cast<float>(1 / ((1 - smooth) / factor + smooth)));
    }
  }
  return factors;
}

}  // namespace nibble
