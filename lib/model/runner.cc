#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <utility>

#include "kernels/transformer.h"
#include "lib/model/runner_impl.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

// Query rows (tokens, times the heads that share keys) that at least share one pass over the keys,
// whose decoding and turning they pay for; and tokens.
constexpr int64_t kQueryRows = 64;
constexpr int64_t kQueryTokens = 16;

// Rows whose logits are held at once.
constexpr int64_t kLogitRows = 64;

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
  TensorView activations = ViewOf(input, rows, outputs.begin()->linear.weight.cols());
  activations.device = model.device();
  for (const auto& [linear, out] : outputs) {
    if (options.observer) options.observer(linear.name, activations);
    members.push_back({&linear.weight, ViewOf(out, rows, linear.weight.rows()), linear.bias, {}});
    if (device) {
      MatmulMember& member = members.back();
      member.weights = &device->weights().Of(linear);
      member.out.device = model.device();
      member.bias = {device->weights().Of(linear.bias), linear.bias.size()};
    }
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
  if (device) return device->NormRows(weight, input, rows, out);
  const int64_t width = model.config().width;
  options.parallel(rows, [&](int64_t r, int) {
    RmsNorm(input + r * width, weight.data(), width, model.config().norm_eps, out + r * width);
  });
}

void Runner::Impl::TurnAndStore(KvCache::Impl& cache, const DecoderLayer& layer,
                                int64_t layer_index, const std::vector<Span>& spans) {
  if (device) {
    return device->TurnAndStore(cache, layer, layer_index, query.data(), key.data(), value.data());
  }
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
  if (device) return device->Attend(cache, layer_index, query.data(), attended.data());
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

int64_t Runner::Impl::FloatsOf(int64_t rows) const {
  const ModelConfig& c = model.config();
  const int64_t queries = c.heads * c.head_dim, attends = c.heads * c.value_dim;
  const int64_t keys = c.kv_heads * c.head_dim, values = c.kv_heads * c.value_dim;
  const int64_t shared = std::max(queries + keys + values + attends, 2 * c.ffn_width);
  return rows * (2 * c.width + 2 * rope.pairs() + shared);
}

void Runner::Impl::LayOut(float* floats, int64_t rows) {
  const ModelConfig& c = model.config();
  float* next = floats;
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
  query = take(c.heads * c.head_dim);
  key = take(c.kv_heads * c.head_dim);
  value = take(c.kv_heads * c.value_dim);
  attended = take(c.heads * c.value_dim);
  next = begin;
  gate = take(c.ffn_width);
  up = take(c.ffn_width);
}

void Runner::Impl::Prepare(const std::vector<Span>& spans, int64_t rows) {
  const size_t size = static_cast<size_t>(FloatsOf(rows));
  if (memory.size() < size) {
    memory = {};  // nothing is copied, nor held twice
    memory.resize(size);
  }
  LayOut(memory.data(), rows);
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
  if (device) {
    device->Gate(gate.data(), up.data(), rows * c.ffn_width);
    return OkStatus();
  }
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
  const int64_t count = rows * model.config().width;
  if (device) {
    device->Add(x.data(), normed.data(), count);
  } else {
    AddTo(x.data(), normed.data(), count);
  }
  return OkStatus();
}

int64_t Runner::Impl::KeepOutputs(const std::vector<Span>& spans) {
  const int64_t width = model.config().width;
  const int64_t attends = model.config().heads * model.config().value_dim;
  int64_t kept = 0;
  for (const Span& span : spans) {
    if (!device) {
      for (int64_t i = 0; i < span.outputs; ++i) {
        const int64_t row = span.begin + span.count - span.outputs + i;
        std::copy_n(x.data() + row * width, width, x.data() + (kept + i) * width);
        std::copy_n(attended.data() + row * attends, attends,
                    attended.data() + (kept + i) * attends);
      }
    }
    kept += span.outputs;
  }
  if (device) {
    device->KeepOutputs(width, x.data());
    device->KeepOutputs(attends, attended.data());
  }
  return kept;
}

Status Runner::Impl::AllLayers(KvCache::Impl& cache, const std::vector<Span>& spans, int64_t rows,
                               float* out) {
  const ModelConfig& c = model.config();
  for (int64_t l = 0; l < c.layers; ++l) {
    const DecoderLayer& layer = model.weights().layers[static_cast<size_t>(l)];
    NIBBLE_RETURN_IF_ERROR(Attention(cache, layer, l, spans, rows));
    if (l == c.layers - 1) {
      // Nobody attends to what follows: only the wanted rows go on.
      rows = KeepOutputs(spans);
      if (rows == 0) return OkStatus();
    }
    NIBBLE_RETURN_IF_ERROR(
        Add(layer.attention_output, layer.post_attention_norm, attended.data(), rows));
    NIBBLE_RETURN_IF_ERROR(FeedForward(layer, rows));
    NIBBLE_RETURN_IF_ERROR(Add(layer.down, layer.post_ffn_norm, gate.data(), rows));
  }
  NormRows(model.weights().output_norm, x.data(), rows, out);
  return OkStatus();
}

Status Runner::Impl::Head(TensorView hidden, MutableTensorView out) {
  const ModelConfig& c = model.config();
  const Linear& head = model.weights().head;
  hidden.device = out.device = model.device();
  MatmulOptions matmul;
  matmul.precision = options.precision;
  matmul.parallel = options.parallel;
  const float cap = c.output_soft_cap;
  if (device) {
    matmul.bias = {device->weights().Of(head.bias), head.bias.size()};
    NIBBLE_RETURN_IF_ERROR(
        Matmul(hidden, device->weights().Of(head), out, matmul).WithContext(head.name));
    if (cap > 0) device->SoftCap(static_cast<float*>(out.data), out.rows * out.cols, cap);
    return OkStatus();
  }
  if (options.observer) options.observer(head.name, hidden);
  matmul.bias = head.bias;
  NIBBLE_RETURN_IF_ERROR(Matmul(hidden, head.weight, out, matmul).WithContext(head.name));
  if (cap > 0) {
    options.parallel(
        out.rows, [&](int64_t r, int) { SoftCap(static_cast<float*>(out.Row(r)), out.cols, cap); });
  }
  return OkStatus();
}

Status Runner::Impl::RunBatchOnDevice(KvCache::Impl& cache, const std::vector<Span>& spans,
                                      int64_t rows, Wanted* wanted) {
  const ModelConfig& c = model.config();
  int64_t outputs = 0;
  bool is_step = true;  // one token of each sequence
  for (const Span& span : spans) {
    outputs += span.outputs;
    is_step = is_step && span.count == 1 && span.outputs == 1;
  }
  NIBBLE_RETURN_IF_ERROR(
      device->Begin(static_cast<size_t>(FloatsOf(rows)), rope, cache, spans, rows));
  LayOut(device->activations(), rows);
  float *hidden = nullptr, *logits = nullptr;
  int32_t* chosen = nullptr;
  if (outputs > 0) {
    NIBBLE_ASSIGN_OR_RETURN(hidden, device->Hidden(outputs));
    if (wanted->tokens != nullptr) {
      NIBBLE_ASSIGN_OR_RETURN(logits, device->Logits(outputs));
      NIBBLE_ASSIGN_OR_RETURN(chosen, device->Chosen(outputs));
    }
  }
  const auto queue = [&]() -> Status {
    device->Embed(rows, c.embedding_scale, x.data());
    NIBBLE_RETURN_IF_ERROR(AllLayers(cache, spans, rows, hidden));
    if (chosen != nullptr) {
      NIBBLE_RETURN_IF_ERROR(Head(ViewOf(static_cast<const float*>(hidden), outputs, c.width),
                                  ViewOf(logits, outputs, c.vocab_size)));
      device->Likeliest(logits, outputs, chosen);
    }
    return device->Take();
  };
  if (is_step && chosen != nullptr) {
    NIBBLE_RETURN_IF_ERROR(device->RunStep(cache, queue));
  } else {
    NIBBLE_RETURN_IF_ERROR(queue());
  }
  const size_t count = static_cast<size_t>(outputs), width = static_cast<size_t>(c.width);
  if (wanted->tokens != nullptr) {
    NIBBLE_RETURN_IF_ERROR(device->Fetch(wanted->tokens, chosen, count * sizeof(int32_t)));
    wanted->tokens += outputs;
  } else {
    NIBBLE_RETURN_IF_ERROR(device->Fetch(wanted->hidden, hidden, count * width * sizeof(float)));
    wanted->hidden += outputs * c.width;
  }
  return OkStatus();
}

Status Runner::Impl::RunBatch(KvCache::Impl& cache, const std::vector<Span>& spans, int64_t rows,
                              Wanted* wanted) {
  if (device) return RunBatchOnDevice(cache, spans, rows, wanted);
  const ModelConfig& c = model.config();
  Prepare(spans, rows);
  int64_t outputs = 0;
  for (const Span& span : spans) {
    outputs += span.outputs;
    NIBBLE_RETURN_IF_ERROR(
        Embed(model.weights().embedding, span.tokens, x.data() + span.begin * c.width));
  }
  if (wanted->tokens == nullptr) {
    float* const out = wanted->hidden;
    wanted->hidden += outputs * c.width;
    return AllLayers(cache, spans, rows, out);
  }
  host_hidden.resize(static_cast<size_t>(outputs * c.width));
  NIBBLE_RETURN_IF_ERROR(AllLayers(cache, spans, rows, host_hidden.data()));
  for (int64_t first = 0; first < outputs; first += kLogitRows) {
    const int64_t count = std::min(kLogitRows, outputs - first);
    host_logits.resize(static_cast<size_t>(count * c.vocab_size));
    NIBBLE_RETURN_IF_ERROR(
        Head(ViewOf(std::as_const(host_hidden).data() + first * c.width, count, c.width),
             ViewOf(host_logits.data(), count, c.vocab_size)));
    for (int64_t r = 0; r < count; ++r) {
      const float* row = host_logits.data() + r * c.vocab_size;
      *wanted->tokens++ = static_cast<int32_t>(std::max_element(row, row + c.vocab_size) - row);
    }
  }
  return OkStatus();
}

Runner::Runner(const Model& model, RunnerOptions options)
    : impl_(std::make_unique<Impl>(model, std::move(options))) {}
Runner::~Runner() = default;

Status Runner::Forward(KvCache& cache, std::span<const SequenceInput> inputs,
                       std::vector<float>* hidden) {
  return impl_->Run(cache, inputs, hidden, nullptr);
}

Status Runner::NextTokens(KvCache& cache, std::span<const SequenceInput> inputs,
                          std::vector<int32_t>* tokens) {
  return impl_->Run(cache, inputs, nullptr, tokens);
}

Status Runner::Impl::Run(KvCache& cache, std::span<const SequenceInput> inputs,
                         std::vector<float>* hidden, std::vector<int32_t>* tokens) {
  const ModelConfig& config = model.config();
  KvCache::Impl& pages = cache.impl();
  if (pages.options.device != model.device()) {
    return InvalidArgument("the cache and the model's weights lie on different devices");
  }
  if (device && options.observer) {
    return Unsupported("the inputs of matrices can be looked at in host memory only");
  }
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
  Wanted wanted;
  if (hidden != nullptr) {
    hidden->resize(static_cast<size_t>(outputs * config.width));
    wanted.hidden = hidden->data();
  } else {
    tokens->resize(static_cast<size_t>(outputs));
    wanted.tokens = tokens->data();
  }
  const int64_t most = options.observer ? rows : options.batch_tokens;
  for (const Batch& batch : Batches(spans, rows, most)) {
    if (status.ok()) status = RunBatch(pages, batch.spans, batch.rows, &wanted);
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
  Impl& impl = *impl_;
  const ModelConfig& c = impl.model.config();
  if (!impl.device) return impl.Head(hidden, out);
  NIBBLE_RETURN_IF_ERROR(CheckView(hidden, "hidden states"));
  NIBBLE_RETURN_IF_ERROR(CheckView(out, "logits"));
  if (hidden.dtype != DType::kF32 || hidden.cols != c.width || hidden.row_stride != c.width ||
      out.dtype != DType::kF32 || out.cols != c.vocab_size || out.row_stride != c.vocab_size ||
      hidden.rows != out.rows || hidden.device != Device::kCpu || out.device != Device::kCpu) {
    return InvalidArgument("logits: f32 rows in host memory, without gaps, that fit the model");
  }
  NIBBLE_ASSIGN_OR_RETURN(float* const there, impl.device->Hidden(hidden.rows));
  NIBBLE_ASSIGN_OR_RETURN(float* const logits, impl.device->Logits(hidden.rows));
  const size_t rows = static_cast<size_t>(hidden.rows);
  const size_t width = static_cast<size_t>(c.width), vocab = static_cast<size_t>(c.vocab_size);
  NIBBLE_RETURN_IF_ERROR(impl.device->Send(there, hidden.data, rows * width * sizeof(float)));
  const float* const from = there;
  NIBBLE_RETURN_IF_ERROR(
      impl.Head(ViewOf(from, hidden.rows, c.width), ViewOf(logits, hidden.rows, c.vocab_size)));
  return impl.device->Fetch(out.data, logits, rows * vocab * sizeof(float));
}

}  // namespace nibble
