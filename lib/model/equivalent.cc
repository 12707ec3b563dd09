#include "nibble/equivalent.h"

#include <cmath>
#include <memory>
#include <utility>

#include "nibble/model.h"

namespace nibble {
namespace {

float* RowOf(const MutableTensorView& weights, int64_t row) {
  return static_cast<float*>(weights.Row(row));
}

}  // namespace

Result<std::vector<ChannelPair>> ChannelPairs(const ModelSource& source) {
  NIBBLE_ASSIGN_OR_RETURN(const ModelConfig c, ModelConfig::FromMetadata(source.metadata()));
  std::vector<int32_t> value_channels;  // of the attention output's columns
  for (int64_t head = 0; head < c.heads; ++head) {
    const int64_t first = head / (c.heads / c.kv_heads) * c.value_dim;
    for (int64_t i = 0; i < c.value_dim; ++i) {
      value_channels.push_back(static_cast<int32_t>(first + i));
    }
  }
  std::vector<ChannelPair> pairs;
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const auto name = [&](const char* part) {
      return "blk." + std::to_string(layer) + "." + part + ".weight";
    };
    const auto bias = [&](const char* part) {
      const std::string full = "blk." + std::to_string(layer) + "." + part + ".bias";
      return source.Find(full) != nullptr ? full : std::string();
    };
    pairs.push_back({name("attn_norm"),
                     "",
                     {name("attn_q"), name("attn_k"), name("attn_v")},
                     true,
                     c.width,
                     {}});
    pairs.push_back({name("attn_v"),
                     bias("attn_v"),
                     {name("attn_output")},
                     false,
                     c.kv_heads * c.value_dim,
                     c.heads == c.kv_heads ? std::vector<int32_t>() : value_channels});
    pairs.push_back({name("ffn_norm"), "", {name("ffn_gate"), name("ffn_up")}, true, c.width, {}});
    pairs.push_back({name("ffn_up"), bias("ffn_up"), {name("ffn_down")}, false, c.ffn_width, {}});
  }
  for (const ChannelPair& pair : pairs) {
    if (source.Find(pair.producer) == nullptr) return NotFound("no tensor " + pair.producer);
    for (const std::string& consumer : pair.consumers) {
      if (source.Find(consumer) == nullptr) return NotFound("no tensor " + consumer);
    }
  }
  return pairs;
}

Status MoveFactors(const ChannelPair& pair, std::span<const float> factors, ModelEdits& edits) {
  if (static_cast<int64_t>(factors.size()) != pair.channels) {
    return InvalidArgument(pair.producer + ": " + std::to_string(factors.size()) + " factors for " +
                           std::to_string(pair.channels) + " channels");
  }
  for (const float factor : factors) {
    if (!(factor > 0) || !std::isfinite(factor)) {
      return InvalidArgument(pair.producer + ": a factor that is not finite and positive");
    }
  }
  const auto shared = std::make_shared<const std::vector<float>>(factors.begin(), factors.end());
  const auto divide = [shared](MutableTensorView weights) -> Status {
    const std::vector<float>& f = *shared;
    const bool vector = weights.rows == 1;
    if ((vector ? weights.cols : weights.rows) != static_cast<int64_t>(f.size())) {
      return InvalidArgument("factors for " + std::to_string(f.size()) + " channels");
    }
    for (int64_t r = 0; r < weights.rows; ++r) {
      float* row = RowOf(weights, r);
      for (int64_t j = 0; j < weights.cols; ++j) {
        row[j] /= f[static_cast<size_t>(vector ? j : r)];
      }
    }
    return OkStatus();
  };
  const auto multiply = [shared, pair](MutableTensorView weights) -> Status {
    for (int64_t r = 0; r < weights.rows; ++r) {
      float* row = RowOf(weights, r);
      for (int64_t j = 0; j < weights.cols; ++j) {
        row[j] *= (*shared)[static_cast<size_t>(pair.Channel(j))];
      }
    }
    return OkStatus();
  };
  edits.edits[pair.producer].push_back(divide);
  if (!pair.producer_bias.empty()) edits.edits[pair.producer_bias].push_back(divide);
  for (const std::string& consumer : pair.consumers) edits.edits[consumer].push_back(multiply);
  return OkStatus();
}

}  // namespace nibble
