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

// Tokens that run side by side.
struct Batch {
  std::vector<Span> spans;
  int64_t rows = 0;
};

// Cuts `rows` tokens into as few batches of about equal size as hold at most `most` each; a batch's
// spans are stretches of the given ones, in order.
std::vector<Batch> Batches(const std::vector<Span>& spans, int64_t rows, int64_t most) {
  const int64_t parts = (rows + std::max<int64_t>(1, most) - 1) / std::max<int64_t>(1, most);
  std::vector<Batch> batches;
  int64_t begun = 0;  // rows that stand in batches
  for (Span rest : spans) {
    while (rest.count > 0) {
      const int64_t end = rows * static_cast<int64_t>(batches.size()) / parts;
      if (begun == end) {
        batches.emplace_back();
        continue;
      }
      Batch& batch = batches.back();
      Span part = rest;
      part.begin = batch.rows;
      part.count = std::min(rest.count, end - begun);
      part.tokens = rest.tokens.first(static_cast<size_t>(part.count));
      part.outputs = std::max<int64_t>(0, part.count - (rest.count - rest.outputs));
      batch.spans.push_back(part);
      batch.rows += part.count;
      begun += part.count;
      rest.tokens = rest.tokens.subspan(static_cast<size_t>(part.count));
      rest.count -= part.count;
      rest.position += part.count;
      rest.outputs -= part.outputs;
    }
  }
  return batches;
}

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
      for (int64_t j = 0; j < c.heads * c.head_dim; ++j) q[j] *= c.query_scale;
      const int64_t position = span.position + i;
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
  const int64_t window = c.WindowOf(layer_index);
  scratch.resize(static_cast<size_t>(std::max(1, options.parallel.workers)));
  options.parallel(static_cast<int64_t>(tasks.size()), [&](int64_t index, int worker) {
    const Task& task = tasks[static_cast<size_t>(index)];
    const int64_t rows = task.count * group;
    auto& [floats, first, last, states] = scratch[static_cast<size_t>(worker)];
    const auto make_room = [rows](auto& v, int64_t size) {
      if (static_cast<int64_t>(v.size()) < size) v.resize(static_cast<size_t>(size));
    };
    make_room(floats, (rows + per_page) * (c.head_dim + c.value_dim) + AttendScratch(c.head_dim));
    make_room(first, rows);
    make_room(last, rows);
    states.assign(static_cast<size_t>(rows), {-std::numeric_limits<float>::infinity(), 0.0f});
    float* queries = floats.data();
    float* outputs = queries + rows * c.head_dim;
    float* keys = outputs + rows * c.value_dim;
    float* values = keys + per_page * c.head_dim;
    float* work = values + per_page * c.value_dim;
    std::fill_n(outputs, rows * c.value_dim, 0.0f);
    const int64_t base = task.span->position + task.first;  // position of the first token
    for (int64_t t = 0; t < task.count; ++t) {
      const float* q =
          query.data() +
          ((task.span->begin + task.first + t) * c.heads + task.kv_head * group) * c.head_dim;
      std::copy(q, q + group * c.head_dim, queries + t * group * c.head_dim);
    }
    // Row r of the block sees positions (position - window, position].
    const auto oldest = [&](int64_t position) {
      return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
    };
    for (int64_t page = oldest(base) / per_page; page * per_page < base + task.count; ++page) {
      const int64_t begin = page * per_page;
      const int64_t count = std::min(per_page, base + task.count - begin);
      const int id = task.span->sequence->pages[static_cast<size_t>(page)];
      DecodeCacheRows(cache.options.keys, cache.Keys(id, layer_index, task.kv_head), count,
                      c.head_dim, keys);
      DecodeCacheRows(cache.options.values, cache.Values(id, layer_index, task.kv_head), count,
                      c.value_dim, values);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t position = base + r / group;
        first[static_cast<size_t>(r)] =
            static_cast<int32_t>(std::max<int64_t>(0, oldest(position) - begin));
        last[static_cast<size_t>(r)] = static_cast<int32_t>(std::min(count, position + 1 - begin));
      }
      AttendTile(queries, rows, keys, values, count, c.head_dim, c.value_dim, first.data(),
                 last.data(), c.attention_soft_cap, work, states.data(), outputs);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float inverse = 1.0f / states[static_cast<size_t>(r)].sum;
      const int64_t row = task.span->begin + task.first + r / group;
      float* out =
          attended.data() + (row * c.heads + task.kv_head * group + r % group) * c.value_dim;
      for (int64_t i = 0; i < c.value_dim; ++i) out[i] = outputs[r * c.value_dim + i] * inverse;
    }
  });
}

void Runner::Impl::Prepare(const std::vector<Span>& spans, int64_t rows) {
  const ModelConfig& c = model.config();
  const int64_t queries = c.heads * c.head_dim, attends = c.heads * c.value_dim;
  const int64_t keys = c.kv_heads * c.head_dim, values = c.kv_heads * c.value_dim;
  const int64_t shared = std::max(queries + keys + values + attends, 2 * c.ffn_width);
  const size_t size = static_cast<size_t>(rows * (2 * c.width + 2 * rope.pairs() + shared));
  if (memory.size() < size) {
    memory = {};  // nothing is copied, nor held twice
    memory.resize(size);
  }
  float* next = memory.data();
  const auto take = [&](int64_t width) {
    const std::span<float> part(next, static_cast<size_t>(rows * width));
    next += part.size();
    return part;
  };
  x = take(c.width);
  normed = take(c.width);
  cosines = take(rope.pairs());
  sines = take(rope.pairs());
  float* const begin = next;
  query = take(queries);
  key = take(keys);
  value = take(values);
  attended = take(attends);
  next = begin;
  gate = take(c.ffn_width);
  up = take(c.ffn_width);
  for (const Span& span : spans) {
    for (int64_t i = 0; i < span.count; ++i) {
      const int64_t row = span.begin + i;
      rope.Fill(span.position + i, cosines.data() + row * rope.pairs(),
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

Status Runner::Impl::Add(const Linear& linear, const std::vector<float>& norm, const float* input,
                         int64_t rows) {
  if (norm.empty()) return Multiply({{linear, x.data()}}, input, rows, /*accumulate=*/true);
  NIBBLE_RETURN_IF_ERROR(Multiply({{linear, normed.data()}}, input, rows));
  NormRows(norm, normed.data(), rows, normed.data());
  AddTo(x.data(), normed.data(), rows * model.config().width);
  return OkStatus();
}

Status Runner::Impl::AllLayers(KvCache::Impl& cache, const std::vector<Span>& spans, int64_t rows,
                               float** out) {
  const ModelConfig& c = model.config();
  Prepare(spans, rows);
  for (const Span& span : spans) {
    NIBBLE_RETURN_IF_ERROR(
        Embed(model.weights().embedding, span.tokens, x.data() + span.begin * c.width));
  }
  for (int64_t l = 0; l < c.layers; ++l) {
    const DecoderLayer& layer = model.weights().layers[static_cast<size_t>(l)];
    NIBBLE_RETURN_IF_ERROR(Attention(cache, layer, l, spans, rows));
    if (l == c.layers - 1) {
      // Nobody attends to what follows: only the wanted rows go on.
      int64_t kept = 0;
      for (const Span& span : spans) {
        for (int64_t i = span.count - span.outputs; i < span.count; ++i, ++kept) {
          const int64_t row = span.begin + i;
          std::copy_n(x.data() + row * c.width, c.width, x.data() + kept * c.width);
          std::copy_n(attended.data() + row * c.heads * c.value_dim, c.heads * c.value_dim,
                      attended.data() + kept * c.heads * c.value_dim);
        }
      }
      rows = kept;
      if (rows == 0) return OkStatus();
    }
    NIBBLE_RETURN_IF_ERROR(
        Add(layer.attention_output, layer.post_attention_norm, attended.data(), rows));
    NIBBLE_RETURN_IF_ERROR(FeedForward(layer, rows));
    NIBBLE_RETURN_IF_ERROR(Add(layer.down, layer.post_ffn_norm, gate.data(), rows));
  }
  NormRows(model.weights().output_norm, x.data(), rows, *out);
  *out += rows * c.width;
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
  std::vector<Span> spans;  // of all new tokens, as if they ran at once
  std::set<int> seen;
  int64_t rows = 0, outputs = 0;
  for (const SequenceInput& input : inputs) {
    const std::string name = "sequence " + std::to_string(input.sequence);
    const auto it = pages.sequences.find(input.sequence);
    if (it == pages.sequences.end()) return InvalidArgument("there is no " + name);
    if (!seen.insert(input.sequence).second) return InvalidArgument(name + " appears twice");
    if (input.tokens.empty()) return InvalidArgument(name + " has no new tokens");
    const int64_t count = static_cast<int64_t>(input.tokens.size());
    const int64_t length = it->second.length;
    if (length + count > config.context) {
      return InvalidArgument(name + ": " + std::to_string(length + count) +
                             " tokens are more than the model's context of " +
                             std::to_string(config.context));
    }
    for (const int32_t token : input.tokens) {
      if (token < 0 || token >= config.vocab_size) {
        return InvalidArgument(name + ": token " + std::to_string(token) + " is not one of " +
                               std::to_string(config.vocab_size));
      }
    }
    spans.push_back(
        {&it->second, rows, count, length, input.tokens, input.all_outputs ? count : 1});
    rows += count;
    outputs += spans.back().outputs;
  }
  if (rows == 0) return InvalidArgument("nothing to run");
  Status status;
  for (const Span& span : spans) {
    if (status.ok()) status = pages.Reserve(*span.sequence, span.count);
  }
  hidden->resize(static_cast<size_t>(outputs * config.width));
  float* out = hidden->data();
  const int64_t most = impl_->options.observer ? rows : impl_->options.batch_tokens;
  for (const Batch& batch : Batches(spans, rows, most)) {
    if (status.ok()) status = impl_->AllLayers(pages, batch.spans, batch.rows, &out);
  }
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
  NIBBLE_RETURN_IF_ERROR(Matmul(hidden, head.weight, out, matmul).WithContext(head.name));
  if (const float cap = impl_->model.config().output_soft_cap; cap > 0) {
    impl_->options.parallel(
        out.rows, [&](int64_t r, int) { SoftCap(static_cast<float*>(out.Row(r)), out.cols, cap); });
  }
  return OkStatus();
}

}  // namespace nibble
