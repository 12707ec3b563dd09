// What nibble knows of the Llama family: one table row an architecture, one a kind of tensor.
#ifndef NIBBLE_LIB_MODEL_HF_ARCHITECTURE_H_
#define NIBBLE_LIB_MODEL_HF_ARCHITECTURE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lib/model/json_file.h"
#include "nibble/gguf.h"
#include "nibble/status.h"

namespace nibble {

// Sizes by which the config determines every tensor's shape.
enum class Dim : uint8_t {
  kNone,  // the tensor is a vector: no rows
  kVocab,
  kHidden,
  kFeedForward,
  kExpertFeedForward,
  kExperts,
  kHeadDim,
  kQuery,             // heads * head_dim
  kKeyValue,          // key-value heads * head_dim
  kQueryKeyValue,     // the three stacked
  kTwiceFeedForward,  // gate and up stacked
};

// How a tensor's stored numbers become GGUF's.
enum class Change : uint8_t {
  kKeep,
  kInterleaveQuery,  // rotary pairs (i, i + head_dim / 2) become neighbours (2i, 2i + 1)
  kInterleaveKey,
  kAddOne,  // norms that multiply by 1 + weight
};

enum class Presence : uint8_t {
  kRequired,
  kUntied,    // required unless the output shares the embedding's matrix
  kOptional,  // taken where the file has it
};

struct TensorRule {
  const char* source;  // the Hugging Face name; '#' stands for the layer, '@' for the expert
  const char* target;  // the GGUF name
  Dim rows = Dim::kNone;
  Dim cols = Dim::kHidden;
  Presence presence = Presence::kRequired;
  Change change = Change::kKeep;
  bool as_f32 = false;  // vectors are always kept in f32; so are the matrices marked here
};

struct Architecture {
  const char* name;        // general.architecture
  const char* class_name;  // as config.json's "architectures" has it
  const char* model_type;  // as config.json's "model_type" has it
  std::span<const TensorRule> rules;

  // Where GGUF's and the model's conventions differ, and the defaults of an absent config key.
  bool interleaved_rope = false;  // apply kInterleave*
  bool norms_add_one = false;     // apply kAddOne
  bool tied_by_default = false;
  bool explicit_head_dim = false;  // always written as attention.key_length and value_length
  bool writes_vocab_size = false;
  bool writes_rope_dimensions = false;
  bool dummy_prefix = true;     // the tokenizer puts a space before the text
  bool gelu = false;            // the activation; else SiLU
  bool soft_caps = false;       // of logits, with a sliding window
  bool partial_rotary = false;  // part of a head may stay unrotated
  double rope_theta = 10000.0;
};

// The row of a config; nullptr where the model is none that nibble knows.
const Architecture* FindArchitecture(const JsonObject& config);

enum class RopeScaling : uint8_t { kNone, kLinear, kYarn, kLlama3 };

// What of config.json determines tensors and metadata, checked.
struct HfConfig {
  const Architecture* architecture = nullptr;
  int64_t hidden = 0, layers = 0, heads = 0, key_value_heads = 0, head_dim = 0, feed_forward = 0;
  int64_t vocab = 0, context = 0;
  int64_t experts = 0, experts_used = 0, expert_feed_forward = 0;  // 0: no experts
  int64_t rotary_dim = 0;                                          // of head_dim
  bool has_head_dim = false;  // given, not derived from hidden / heads
  bool tied = false;
  double rms_epsilon = 0;
  std::optional<double> rope_theta;
  RopeScaling rope_scaling = RopeScaling::kNone;
  JsonObject rope;  // the scaling's own parameters

  int64_t Size(Dim dim) const;  // 1 for kNone
};

// Reads and checks the config of a model of `architecture`.
Result<HfConfig> ReadHfConfig(const Architecture& architecture, const JsonObject& config);

// The hyperparameters as GGUF keys, in llama.cpp's order.
Status AddHyperparameters(const HfConfig& config, const JsonObject& json, GgufMetadata& metadata);

// The factors by which Llama 3's long-context scaling divides each rotary frequency: head_dim / 2
// of them, GGUF's rope_freqs.weight.
Result<std::vector<float>> Llama3RopeFactors(const HfConfig& config);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_HF_ARCHITECTURE_H_
