// Changes to a model's weights that leave its function as it is: factors that move from one tensor
// to the next, as AWQ and SmoothQuant use them. The result is a model of the same kind.
#ifndef NIBBLE_EQUIVALENT_H_
#define NIBBLE_EQUIVALENT_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nibble/model_source.h"
#include "nibble/status.h"

namespace nibble {

// Channels between two layers of a Llama-family model. Each may be divided by a factor where it is
// made and multiplied by it where it is used.
struct ChannelPair {
  std::string producer;                // a norm's vector, or a matrix that makes a channel by row
  std::string producer_bias;           // of a matrix; empty: none
  std::vector<std::string> consumers;  // matrices that use a channel by column
  bool is_norm = false;                // the producer
  int64_t channels = 0;
  // The channel of each of a consumer's columns: heads that share a value head use its channels
  // again. Empty: the column itself.
  std::vector<int32_t> channel_of;

  int64_t Channel(int64_t column) const {
    return channel_of.empty() ? column : channel_of[static_cast<size_t>(column)];
  }
};

// All of a model's, layer by layer: attention norm to query, key and value; value to attention
// output; feed-forward norm to gate and up; up to down. Fails on architectures that nibble does not
// run.
Result<std::vector<ChannelPair>> ChannelPairs(const ModelSource& source);

// Adds to `edits`: the consumers' columns times `factors`, the producer divided by them. `factors`:
// one for each channel, finite and > 0.
Status MoveFactors(const ChannelPair& pair, std::span<const float> factors, ModelEdits& edits);

}  // namespace nibble

#endif  // NIBBLE_EQUIVALENT_H_
