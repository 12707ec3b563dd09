#include "lib/model/hf_architecture.h"

#include <string_view>

namespace nibble {
namespace {

using enum Dim;
using enum Presence;
using enum Change;

// Rows are repeated between the lists below so that each list is one model, read from top to
// bottom; the macros keep what every one of them shares in one place.
#define NIBBLE_EMBEDDING_AND_OUTPUT                                                      \
  {"model.embed_tokens.weight", "token_embd.weight", kVocab, kHidden},                   \
      {"model.norm.weight", "output_norm.weight", kNone, kHidden, kRequired, kAddOne}, { \
    "lm_head.weight", "output.weight", kVocab, kHidden, kUntied                          \
  }

#define NIBBLE_ATTENTION                                                                       \
  {"model.layers.#.input_layernorm.weight",                                                    \
   "blk.#.attn_norm.weight",                                                                   \
   kNone,                                                                                      \
   kHidden,                                                                                    \
   kRequired,                                                                                  \
   kAddOne},                                                                                   \
      {"model.layers.#.self_attn.q_proj.weight",                                               \
       "blk.#.attn_q.weight",                                                                  \
       kQuery,                                                                                 \
       kHidden,                                                                                \
       kRequired,                                                                              \
       kInterleaveQuery},                                                                      \
      {"model.layers.#.self_attn.k_proj.weight",                                               \
       "blk.#.attn_k.weight",                                                                  \
       kKeyValue,                                                                              \
       kHidden,                                                                                \
       kRequired,                                                                              \
       kInterleaveKey},                                                                        \
      {"model.layers.#.self_attn.v_proj.weight", "blk.#.attn_v.weight", kKeyValue, kHidden}, { \
    "model.layers.#.self_attn.o_proj.weight", "blk.#.attn_output.weight", kHidden, kQuery      \
  }

#define NIBBLE_QKV_BIAS(presence)                                                           \
  {"model.layers.#.self_attn.q_proj.bias",                                                  \
   "blk.#.attn_q.bias",                                                                     \
   kNone,                                                                                   \
   kQuery,                                                                                  \
   presence,                                                                                \
   kInterleaveQuery},                                                                       \
      {"model.layers.#.self_attn.k_proj.bias",                                              \
       "blk.#.attn_k.bias",                                                                 \
       kNone,                                                                               \
       kKeyValue,                                                                           \
       presence,                                                                            \
       kInterleaveKey},                                                                     \
  {                                                                                         \
    "model.layers.#.self_attn.v_proj.bias", "blk.#.attn_v.bias", kNone, kKeyValue, presence \
  }

#define NIBBLE_QK_NORM                                                                       \
  {"model.layers.#.self_attn.q_norm.weight", "blk.#.attn_q_norm.weight", kNone, kHeadDim}, { \
    "model.layers.#.self_attn.k_norm.weight", "blk.#.attn_k_norm.weight", kNone, kHeadDim    \
  }

#define NIBBLE_FFN_NORM(name) \
  { "model.layers.#." name ".weight", "blk.#.ffn_norm.weight", kNone, kHidden, kRequired, kAddOne }

#define NIBBLE_GATED_FFN                                                                     \
  {"model.layers.#.mlp.gate_proj.weight", "blk.#.ffn_gate.weight", kFeedForward, kHidden},   \
      {"model.layers.#.mlp.up_proj.weight", "blk.#.ffn_up.weight", kFeedForward, kHidden}, { \
    "model.layers.#.mlp.down_proj.weight", "blk.#.ffn_down.weight", kHidden, kFeedForward    \
  }

#define NIBBLE_EXPERTS(block, gate, up, down)                                                    \
  {"model.layers.#." block ".gate.weight",                                                       \
   "blk.#.ffn_gate_inp.weight",                                                                  \
   kExperts,                                                                                     \
   kHidden,                                                                                      \
   kRequired,                                                                                    \
   kKeep,                                                                                        \
   true},                                                                                        \
      {"model.layers.#." block ".experts.@." gate ".weight", "blk.#.ffn_gate_exps.weight",       \
       kExpertFeedForward, kHidden},                                                             \
      {"model.layers.#." block ".experts.@." up ".weight", "blk.#.ffn_up_exps.weight",           \
       kExpertFeedForward, kHidden},                                                             \
  {                                                                                              \
    "model.layers.#." block ".experts.@." down ".weight", "blk.#.ffn_down_exps.weight", kHidden, \
        kExpertFeedForward                                                                       \
  }

constexpr TensorRule kLlama[] = {
    NIBBLE_EMBEDDING_AND_OUTPUT,
    NIBBLE_ATTENTION,
    NIBBLE_QKV_BIAS(kOptional),
    {"model.layers.#.self_attn.o_proj.bias", "blk.#.attn_output.bias", kNone, kHidden, kOptional},
    NIBBLE_FFN_NORM("post_attention_layernorm"),
    NIBBLE_GATED_FFN,
    {"model.layers.#.mlp.gate_proj.bias", "blk.#.ffn_gate.bias", kNone, kFeedForward, kOptional},
    {"model.layers.#.mlp.up_proj.bias", "blk.#.ffn_up.bias", kNone, kFeedForward, kOptional},
    {"model.layers.#.mlp.down_proj.bias", "blk.#.ffn_down.bias", kNone, kHidden, kOptional},
};

constexpr TensorRule kMixtral[] = {
    NIBBLE_EMBEDDING_AND_OUTPUT,
    NIBBLE_ATTENTION,
    NIBBLE_FFN_NORM("post_attention_layernorm"),
    NIBBLE_EXPERTS("block_sparse_moe", "w1", "w3", "w2"),
};

constexpr TensorRule kQwen2[] = {
    NIBBLE_EMBEDDING_AND_OUTPUT,
    NIBBLE_ATTENTION,
    NIBBLE_QKV_BIAS(kRequired),
    NIBBLE_FFN_NORM("post_attention_layernorm"),
    NIBBLE_GATED_FFN,
};

constexpr TensorRule kQwen3[] = {
    NIBBLE_EMBEDDING_AND_OUTPUT,
    NIBBLE_ATTENTION,
    NIBBLE_QK_NORM,
    NIBBLE_FFN_NORM("post_attention_layernorm"),
    NIBBLE_GATED_FFN,
};

constexpr TensorRule kQwen3Moe[] = {
    NIBBLE_EMBEDDING_AND_OUTPUT,
    NIBBLE_ATTENTION,
    NIBBLE_QK_NORM,
    NIBBLE_FFN_NORM("post_attention_layernorm"),
    NIBBLE_EXPERTS("mlp", "gate_proj", "up_proj", "down_proj"),
};

constexpr TensorRule kGemma[] = {
    NIBBLE_EMBEDDING_AND_OUTPUT,
    NIBBLE_ATTENTION,
    NIBBLE_FFN_NORM("post_attention_layernorm"),
    NIBBLE_GATED_FFN,
};

// Gemma 2 has norms on both sides of each block.
constexpr TensorRule kGemma2[] = {
    NIBBLE_EMBEDDING_AND_OUTPUT,
    NIBBLE_ATTENTION,
    {"model.layers.#.post_attention_layernorm.weight", "blk.#.post_attention_norm.weight", kNone,
     kHidden, kRequired, kAddOne},
    NIBBLE_FFN_NORM("pre_feedforward_layernorm"),
    NIBBLE_GATED_FFN,
    {"model.layers.#.post_feedforward_layernorm.weight", "blk.#.post_ffw_norm.weight", kNone,
     kHidden, kRequired, kAddOne},
};

constexpr TensorRule kPhi3[] = {
    NIBBLE_EMBEDDING_AND_OUTPUT,
    {"model.layers.#.input_layernorm.weight", "blk.#.attn_norm.weight", kNone, kHidden},
    {"model.layers.#.self_attn.qkv_proj.weight", "blk.#.attn_qkv.weight", kQueryKeyValue, kHidden},
    {"model.layers.#.self_attn.o_proj.weight", "blk.#.attn_output.weight", kHidden, kQuery},
    NIBBLE_FFN_NORM("post_attention_layernorm"),
    {"model.layers.#.mlp.gate_up_proj.weight", "blk.#.ffn_up.weight", kTwiceFeedForward, kHidden},
    {"model.layers.#.mlp.down_proj.weight", "blk.#.ffn_down.weight", kHidden, kFeedForward},
};

constexpr Architecture kArchitectures[] = {
    {.name = "llama",
     .class_name = "LlamaForCausalLM",
     .model_type = "llama",
     .rules = kLlama,
     .interleaved_rope = true,
     .writes_vocab_size = true,
     .writes_rope_dimensions = true},
    {.name = "llama",
     .class_name = "MistralForCausalLM",
     .model_type = "mistral",
     .rules = kLlama,
     .interleaved_rope = true,
     .writes_vocab_size = true,
     .writes_rope_dimensions = true},
    {.name = "llama",
     .class_name = "MixtralForCausalLM",
     .model_type = "mixtral",
     .rules = kMixtral,
     .interleaved_rope = true,
     .writes_vocab_size = true,
     .writes_rope_dimensions = true,
     .rope_theta = 1e6},
    {.name = "qwen2", .class_name = "Qwen2ForCausalLM", .model_type = "qwen2", .rules = kQwen2},
    {.name = "qwen3", .class_name = "Qwen3ForCausalLM", .model_type = "qwen3", .rules = kQwen3},
    {.name = "qwen3moe",
     .class_name = "Qwen3MoeForCausalLM",
     .model_type = "qwen3_moe",
     .rules = kQwen3Moe},
    {.name = "gemma",
     .class_name = "GemmaForCausalLM",
     .model_type = "gemma",
     .rules = kGemma,
     .norms_add_one = true,
     .tied_by_default = true,
     .explicit_head_dim = true,
     .dummy_prefix = false,
     .gelu = true},
    {.name = "gemma2",
     .class_name = "Gemma2ForCausalLM",
     .model_type = "gemma2",
     .rules = kGemma2,
     .norms_add_one = true,
     .tied_by_default = true,
     .explicit_head_dim = true,
     .dummy_prefix = false,
     .gelu = true,
     .soft_caps = true},
    {.name = "phi3",
     .class_name = "Phi3ForCausalLM",
     .model_type = "phi3",
     .rules = kPhi3,
     .writes_rope_dimensions = true,
     .partial_rotary = true},
};

}  // namespace

const Architecture* FindArchitecture(const JsonObject& config) {
  // The class decides where it is given: a classifier of the same model type has other tensors.
  const nlohmann::json* classes = config.Find("architectures");
  const bool has_class =
      classes != nullptr && classes->is_array() && !classes->empty() && (*classes)[0].is_string();
  const nlohmann::json* type = config.Find("model_type");
  const std::string wanted = has_class ? (*classes)[0].get<std::string>()
                             : type != nullptr && type->is_string() ? type->get<std::string>()
                                                                    : "";
  for (const Architecture& row : kArchitectures) {
    if (wanted == (has_class ? row.class_name : row.model_type)) return &row;
  }
  return nullptr;
}

}  // namespace nibble
