// A loaded model's tensors.
#ifndef NIBBLE_LIB_MODEL_WEIGHTS_H_
#define NIBBLE_LIB_MODEL_WEIGHTS_H_

#include <string>
#include <vector>

#include "nibble/model.h"
#include "nibble/model_source.h"
#include "nibble/quantized_tensor.h"

namespace nibble {

// y = x W^T + bias
struct Linear {
  std::string name;  // of the weight in the file
  QuantizedTensor weight;
  std::vector<float> bias;  // empty: none
};

struct DecoderLayer {
  std::vector<float> attention_norm, ffn_norm;
  std::vector<float> query_norm, key_norm;  // over each head (qwen3); empty: none
  // Of what attention and the feed-forward add (gemma2); empty: none.
  std::vector<float> post_attention_norm, post_ffn_norm;
  Linear query, key, value, attention_output;
  Linear gate, up, down;
};

struct Model::Weights {
  QuantizedTensor embedding;
  Linear head;  // shares the embedding's memory where the file has no "output.weight"
  std::vector<float> output_norm;
  std::vector<float> rope_divisors;  // [rope.dims / 2], frequencies are divided by them; or empty
  std::vector<DecoderLayer> layers;
};

// Finds every tensor that `config` asks for and checks its shape.
Result<Model::Weights> LoadWeights(const ModelSource& source, const ModelConfig& config);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_WEIGHTS_H_
