#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>

#include "kernels/transformer.h"
#include "lib/model/runner_impl.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

// Query rows (tokens, times the heads that share keys) that at least share one pass over the keys,
// whose decoding and turning they pay for; and tokens.
constexpr int64_t kQueryRows = 64;
constexpr int64_t kQueryTokens = 16;

}  // namespace

Status Runner::Impl::Multiply(std::initializer_list<Output> outputs, const float* input,
                              int64_t rows, bool accumulate) {
  std::vector<MatmulMember> members;
  const TensorView activations = ViewOf(input, rows, outputs.begin()->linear.weight.cols());
  for (const auto& [linear, out] : outputs) {
    if (options.observer) options.observer(linear.name, activations);
    members.push_back({&linear.weight, ViewOf(out, rows, linear.weight.rows()), linear.bias, {}});
  }
  MatmulOptions matmul;
  matmul.precision = options.precision;
  matmul.accumulate = accumulate;
  matmul.parallel = options.parallel;
  return MatmulGroup(activations, members, matmul).WithContext(outputs.begin()->linear.name);
}

Status Runner::Impl::Embed(const QuantizedTensor& table, std::span<const int32_t> tokens,
                           float* out) const {
  const int64_t width = model.config().width;
  const size_t row_bytes = table.bytes() / static_cast<size_t>(table.rows());
  const float scale = model.config().embedding_scale;
  for (const int32_t token : tokens) {
    const auto row = table.plane(Plane::kCodes)
                         .bytes()
                         .subspan(static_cast<size_t>(token) * row_bytes, row_bytes);
    NIBBLE_RETURN_IF_ERROR(Dequantize(table.format(), row, ViewOf(out, 1, width)));
    if (scale != 1.0f) {
      for (int64_t i = 0; i < width; ++i) out[i] *= scale;
    }
    out += width;
  }
  return OkStatus();
}

void Runner::Impl::NormRows(const std::vector<float>& weight, const float* input, int64_t rows,
                            float* out) {
  const int64_t width = model.config().width;
  options.parallel(rows, [&](int64_t r, int) {
    RmsNorm(input + r * width, weight.data(), width, model.config().norm_eps, out + r * width);
  });
}

void Runner::Impl::TurnAndStore(KvCache::Impl& cache, const DecoderLayer& layer,
                                int64_t layer_index, const std::vector<Span>& spans) {
  const ModelConfig& c = model.config();
  const int64_t pairs = rope.pairs(), per_page = cache.options.page_tokens;
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  for (const Span& span : spans) {
    options.parallel(span.count, [&](int64_t i, int) {
      const int64_t row = span.begin + i;
      const float* cosine = cosines.data() + row * pairs;
      const float* sine = sines.data() + row * pairs;
      const auto turn = [&](float* head, const std::vector<float>& norm) {
        if (!norm.empty()) RmsNorm(head, norm.data(), c.head_dim, c.norm_eps, head);
        Rope(head, cosine, sine, pairs, c.rope.half_split);
      };
      float* q = query.data() + row * c.heads * c.head_dim;
      for (int64_t h = 0; h < c.heads; ++h) turn(q + h * c.head_dim, layer.query_norm);
      for (int64_t j = 0; j < c.heads * c.head_dim; ++j) q[j] *= scale;
      const int64_t position = span.sequence->length + i;
      const int page = span.sequence->pages[static_cast<size_t>(position / per_page)];
      const int64_t slot = position % per_page;
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        float* k = key.data() + (row * c.kv_heads + h) * c.head_dim;
        turn(k, layer.key_norm);
        EncodeCacheRows(
            cache.options.keys, k, 1, c.head_dim,
            cache.Keys(page, layer_index, h) + static_cast<size_t>(slot) * cache.key_row);
        EncodeCacheRows(
            cache.options.values, value.data() + (row * c.kv_heads + h) * c.value_dim, 1,
            c.value_dim,
            cache.Values(page, layer_index, h) + static_cast<size_t>(slot) * cache.value_row);
      }
    });
  }
}

void Runner::Impl::Attend(KvCache::Impl& cache, int64_t layer_index,
                          const std::vector<Span>& spans) {
  const ModelConfig& c = model.config();
  const int64_t per_page = cache.options.page_tokens;
  const int64_t group = c.heads / c.kv_heads;
  struct Task {
    const Span* span;
    int64_t first, count;  // tokens of the span
    int64_t kv_head;
  };
  std::vector<Task> tasks;
  const int64_t block = std::max(kQueryTokens, kQueryRows / group);
  for (const Span& span : spans) {
    for (int64_t first = 0; first < span.count; first += block) {
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        tasks.push_back({&span, first, std::min(block, span.count - first), h});
      }
    }
  }
  options.parallel(static_cast<int64_t>(tasks.size()), [&](int64_t index, int) {
    const Task& task = tasks[static_cast<size_t>(index)];
    const int64_t rows = task.count * group;
    std::vector<float> queries(static_cast<size_t>(rows * c.head_dim));
    std::vector<float> outputs(static_cast<size_t>(rows * c.value_dim));
    std::vector<float> keys(static_cast<size_t>(per_page * c.head_dim));
    std::vector<float> values(static_cast<size_t>(per_page * c.value_dim));
    std::vector<float> scratch(static_cast<size_t>(AttendScratch(c.head_dim)));
    std::vector<int32_t> first(static_cast<size_t>(rows)), last(static_cast<size_t>(rows));
    std::vector<AttentionState> states(static_cast<size_t>(rows),
                                       {-std::numeric_limits<float>::infinity(), 0.0f});
    const int64_t base = task.span->sequence->length + task.first;  // position of the first token
    for (int64_t t = 0; t < task.count; ++t) {
      const float* q =
          query.data() +
          ((task.span->begin + task.first + t) * c.heads + task.kv_head * group) * c.head_dim;
      std::copy(q, q + group * c.head_dim, queries.data() + t * group * c.head_dim);
    }
    // Row r of the block sees positions (position - window, position].
    const auto oldest = [&](int64_t position) {
      return c.sliding_window > 0 ? std::max<int64_t>(0, position - c.sliding_window + 1) : 0;
    };
    for (int64_t page = oldest(base) / per_page; page * per_page < base + task.count; ++page) {
      const int64_t begin = page * per_page;
      const int64_t count = std::min(per_page, base + task.count - begin);
      const int id = task.span->sequence->pages[static_cast<size_t>(page)];
      DecodeCacheRows(cache.options.keys, cache.Keys(id, layer_index, task.kv_head), count,
                      c.head_dim, keys.data());
      DecodeCacheRows(cache.options.values, cache.Values(id, layer_index, task.kv_head), count,
                      c.value_dim, values.data());
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t position = base + r / group;
        first[static_cast<size_t>(r)] =
            static_cast<int32_t>(std::max<int64_t>(0, oldest(position) - begin));
        last[static_cast<size_t>(r)] = static_cast<int32_t>(std::min(count, position + 1 - begin));
      }
      AttendTile(queries.data(), rows, keys.data(), values.data(), count, c.head_dim, c.value_dim,
                 first.data(), last.data(), scratch.data(), states.data(), outputs.data());
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float inverse = 1.0f / states[static_cast<size_t>(r)].sum;
      const int64_t row = task.span->begin + task.first + r / group;
      float* out =
          attended.data() + (row * c.heads + task.kv_head * group + r % group) * c.value_dim;
      for (int64_t i = 0; i < c.value_dim; ++i)
        out[i] = outputs[static_cast<size_t>(r * c.value_dim + i)] * inverse;
    }
  });
}

void Runner::Impl::Prepare(const std::vector<Span>& spans, int64_t rows) {
  const ModelConfig& c = model.config();
  const auto room = [rows](std::vector<float>& v, int64_t width) {
    v.resize(static_cast<size_t>(rows * width));
  };
  room(x, c.width);
  room(normed, c.width);
  room(query, c.heads * c.head_dim);
  room(key, c.kv_heads * c.head_dim);
  room(value, c.kv_heads * c.value_dim);
  room(attended, c.heads * c.value_dim);
  room(gate, c.ffn_width);
  room(up, c.ffn_width);
  room(cosines, rope.pairs());
  room(sines, rope.pairs());
  for (const Span& span : spans) {
    for (int64_t i = 0; i < span.count; ++i) {
      const int64_t row = span.begin + i;
      rope.Fill(span.sequence->length + i, cosines.data() + row * rope.pairs(),
                sines.data() + row * rope.pairs());
    }
  }
}

Status Runner::Impl::Attention(KvCache::Impl& cache, const DecoderLayer& layer, int64_t layer_index,
                               const std::vector<Span>& spans, int64_t rows) {
  NormRows(layer.attention_norm, x.data(), rows, normed.data());
  NIBBLE_RETURN_IF_ERROR(
      Multiply({{layer.query, query.data()}, {layer.key, key.data()}, {layer.value, value.data()}},
               normed.data(), rows));
  TurnAndStore(cache, layer, layer_index, spans);
  Attend(cache, layer_index, spans);
  return OkStatus();
}

Status Runner::Impl::FeedForward(const DecoderLayer& layer, int64_t rows) {
  const ModelConfig& c = model.config();
  NormRows(layer.ffn_norm, x.data(), rows, normed.data());
  NIBBLE_RETURN_IF_ERROR(
      Multiply({{layer.gate, gate.data()}, {layer.up, up.data()}}, normed.data(), rows));
  options.parallel(rows, [&](int64_t r, int) {
    float* g = gate.data() + r * c.ffn_width;
    const float* u = up.data() + r * c.ffn_width;
    if (c.activation == Activation::kSilu)
      SiluMultiply(g, u, c.ffn_width, g);
    else
      GeluMultiply(g, u, c.ffn_width, g);
  });
  return OkStatus();
}

Status Runner::Impl::AllLayers(KvCache::Impl& cache, std::span<const SequenceInput> inputs,
                               const std::vector<Span>& spans, int64_t rows,
                               std::vector<float>* hidden) {
  const ModelConfig& c = model.config();
  Prepare(spans, rows);
  for (size_t s = 0; s < spans.size(); ++s) {
    NIBBLE_RETURN_IF_ERROR(
        Embed(model.weights().embedding, inputs[s].tokens, x.data() + spans[s].begin * c.width));
  }
  for (int64_t l = 0; l < c.layers; ++l) {
    const DecoderLayer& layer = model.weights().layers[static_cast<size_t>(l)];
    NIBBLE_RETURN_IF_ERROR(Attention(cache, layer, l, spans, rows));
    if (l == c.layers - 1) {
      // Nobody attends to what follows: only the wanted rows go on.
      int64_t kept = 0;
      for (size_t s = 0; s < spans.size(); ++s) {
        const int64_t from = inputs[s].all_outputs ? 0 : spans[s].count - 1;
        for (int64_t i = from; i < spans[s].count; ++i, ++kept) {
          const int64_t row = spans[s].begin + i;
          std::copy_n(x.data() + row * c.width, c.width, x.data() + kept * c.width);
          std::copy_n(attended.data() + row * c.heads * c.value_dim, c.heads * c.value_dim,
                      attended.data() + kept * c.heads * c.value_dim);
        }
      }
      rows = kept;
    }
    NIBBLE_RETURN_IF_ERROR(
        Multiply({{layer.attention_output, x.data()}}, attended.data(), rows, /*accumulate=*/true));
    NIBBLE_RETURN_IF_ERROR(FeedForward(layer, rows));
    NIBBLE_RETURN_IF_ERROR(
        Multiply({{layer.down, x.data()}}, gate.data(), rows, /*accumulate=*/true));
  }
  hidden->resize(static_cast<size_t>(rows * c.width));
  NormRows(model.weights().output_norm, x.data(), rows, hidden->data());
  return OkStatus();
}

Runner::Runner(const Model& model, RunnerOptions options)
    : impl_(std::make_unique<Impl>(model, std::move(options))) {}
Runner::~Runner() = default;

Status Runner::Forward(KvCache& cache, std::span<const SequenceInput> inputs,
                       std::vector<float>* hidden) {
  const ModelConfig& config = impl_->model.config();
  KvCache::Impl& pages = cache.impl();
  if (pages.layers != config.layers || pages.kv_heads != config.kv_heads ||
      pages.key_dims != config.head_dim || pages.value_dims != config.value_dim) {
    return InvalidArgument("the cache was made for another model");
  }
  std::vector<Span> spans;
  std::set<int> seen;
  int64_t rows = 0;
  for (const SequenceInput& input : inputs) {
    const std::string name = "sequence " + std::to_string(input.sequence);
    const auto it = pages.sequences.find(input.sequence);
    if (it == pages.sequences.end()) return InvalidArgument("there is no " + name);
    if (!seen.insert(input.sequence).second) return InvalidArgument(name + " appears twice");
    if (input.tokens.empty()) return InvalidArgument(name + " has no new tokens");
    const int64_t count = static_cast<int64_t>(input.tokens.size());
    if (it->second.length + count > config.context) {
      return InvalidArgument(name + ": " + std::to_string(it->second.length + count) +
                             " tokens are more than the model's context of " +
                             std::to_string(config.context));
    }
    for (const int32_t token : input.tokens) {
      if (token < 0 || token >= config.vocab_size) {
        return InvalidArgument(name + ": token " + std::to_string(token) + " is not one of " +
                               std::to_string(config.vocab_size));
      }
    }
    spans.push_back({&it->second, rows, count});
    rows += count;
  }
  if (rows == 0) return InvalidArgument("nothing to run");
  Status status;
  for (const Span& span : spans) {
    if (status.ok()) status = pages.Reserve(*span.sequence, span.count);
  }
  if (status.ok()) status = impl_->AllLayers(pages, inputs, spans, rows, hidden);
  for (size_t i = 0; i < spans.size(); ++i) {
    if (status.ok()) {
      spans[i].sequence->length += spans[i].count;
    } else {  // gives back the pages beyond the old length
      (void)cache.Truncate(inputs[i].sequence, spans[i].sequence->length);
    }
  }
  return status;
}

Status Runner::Logits(TensorView hidden, MutableTensorView out) {
  const Linear& head = impl_->model.weights().head;
  if (impl_->options.observer) impl_->options.observer(head.name, hidden);
  MatmulOptions matmul;
  matmul.precision = impl_->options.precision;
  matmul.bias = head.bias;
  matmul.parallel = impl_->options.parallel;
  return Matmul(hidden, head.weight, out, matmul).WithContext(head.name);
}

}  // namespace nibble
