#include "lib/model/device_run.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace nibble {
namespace {

// The parts of a description, one after the other, the widest elements first.
class Layout {
 public:
  template <class T>
  size_t Add(int64_t count) {
    return std::exchange(bytes_, bytes_ + static_cast<size_t>(count) * sizeof(T));
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

// As few different numbers as do not waste much: what was recorded serves longer.
int64_t RoundedPages(int64_t pages) {
  int64_t rounded = 8;
  while (rounded < pages) rounded *= 2;
  return rounded;
}

}  // namespace

DeviceRun::DeviceRun(const Model& model, void* stream)
    : config_(model.config()),
      weights_(*model.device_weights()),
      decoder_(*weights_.decoder),
      stream_(stream) {
  if (stream != nullptr) return;
  Result<std::shared_ptr<void>> own = decoder_.make_stream();
  status_ = own.status();
  if (!own.ok()) return;
  own_stream_ = *std::move(own);
  stream_ = own_stream_.get();
}

// Memory goes back behind the work that uses it; a recorded step must have ended.
DeviceRun::~DeviceRun() {
  if (stream_ != nullptr) (void)decoder_.synchronize(stream_);
}

Status DeviceRun::Reserve(Buffer& part, size_t bytes) {
  if (part.size() >= bytes) return OkStatus();
  last_step_.reset();  // it would use the old memory
  recorded_.reset();
  part = Buffer();
  NIBBLE_ASSIGN_OR_RETURN(part, weights_.backend->allocate(bytes, stream_));
  return OkStatus();
}

Status DeviceRun::Begin(size_t floats, const RopeTable& rope, const KvCache::Impl& cache,
                        const std::vector<Span>& spans, int64_t rows) {
  NIBBLE_RETURN_IF_ERROR(Take());
  if (stream_ == nullptr) return InternalError("a runner without a stream");
  NIBBLE_RETURN_IF_ERROR(Reserve(activations_, floats * sizeof(float)));
  const int64_t sequences = static_cast<int64_t>(spans.size()), pairs = rope.pairs();
  int64_t most_pages = 0;
  kept_count_ = 0;
  for (const Span& span : spans) {
    most_pages = std::max(most_pages, static_cast<int64_t>(span.sequence->pages.size()));
    kept_count_ += span.outputs;
  }
  most_pages = RoundedPages(most_pages);
  const bool keeps_all = kept_count_ == rows;
  Layout layout;
  const size_t pages = layout.Add<std::byte*>(sequences * most_pages);
  const size_t cosines = layout.Add<float>(rows * pairs);
  const size_t sines = layout.Add<float>(rows * pairs);
  const size_t tokens = layout.Add<int32_t>(rows);
  const size_t row_sequences = layout.Add<int32_t>(rows);
  const size_t positions = layout.Add<int32_t>(rows);
  const size_t kept = layout.Add<int32_t>(keeps_all ? 0 : kept_count_);
  staged_.assign(layout.bytes(), std::byte{0});
  const auto floats_at = [&](size_t part) {
    return reinterpret_cast<float*>(staged_.data() + part);
  };
  const auto ints_at = [&](size_t part) {
    return reinterpret_cast<int32_t*>(staged_.data() + part);
  };
  int32_t* next_kept = ints_at(kept);
  for (int64_t s = 0; s < sequences; ++s) {
    const Span& span = spans[static_cast<size_t>(s)];
    auto* sequence_pages =
        reinterpret_cast<const std::byte**>(staged_.data() + pages) + s * most_pages;
    for (const int page : span.sequence->pages) {
      *sequence_pages++ = cache.pages[static_cast<size_t>(page)].memory.data();
    }
    for (int64_t i = 0; i < span.count; ++i) {
      const int64_t row = span.begin + i, position = span.position + i;
      rope.Fill(position, floats_at(cosines) + row * pairs, floats_at(sines) + row * pairs);
      ints_at(tokens)[row] = span.tokens[static_cast<size_t>(i)];
      ints_at(row_sequences)[row] = static_cast<int32_t>(s);
      ints_at(positions)[row] = static_cast<int32_t>(position);
      if (!keeps_all && i >= span.count - span.outputs) *next_kept++ = static_cast<int32_t>(row);
    }
  }
  NIBBLE_RETURN_IF_ERROR(Reserve(description_, staged_.size()));
  std::byte* const there = description_.data();
  NIBBLE_RETURN_IF_ERROR(decoder_.copy(there, staged_.data(), staged_.size(), stream_));
  batch_.rows = rows;
  batch_.tokens = reinterpret_cast<const int32_t*>(there + tokens);
  batch_.sequences = reinterpret_cast<const int32_t*>(there + row_sequences);
  batch_.positions = reinterpret_cast<const int32_t*>(there + positions);
  batch_.pages = reinterpret_cast<std::byte* const*>(there + pages);
  batch_.most_pages = most_pages;
  batch_.cosines = reinterpret_cast<const float*>(there + cosines);
  batch_.sines = reinterpret_cast<const float*>(there + sines);
  kept_ = keeps_all ? nullptr : reinterpret_cast<const int32_t*>(there + kept);
  return OkStatus();
}

Status DeviceRun::RunStep(const KvCache::Impl& cache, const std::function<Status()>& queue) {
  const StepKey key = {batch_.rows, batch_.most_pages, cache.options.page_tokens,
                       cache.options.keys, cache.options.values};
  if (last_step_ != key) {
    // Once as it is, so that all that a first call prepares is there when a second one is recorded.
    recorded_.reset();
    last_step_ = key;
    return queue();
  }
  if (recorded_ == nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(recorded_, decoder_.record(stream_, queue));
  }
  return decoder_.replay(recorded_.get(), stream_);
}

Status DeviceRun::Take() { return std::exchange(status_, OkStatus()); }

void DeviceRun::Embed(int64_t rows, float scale, float* out) {
  Queue(
      [&] { return decoder_.embed(weights_.embedding, batch_.tokens, rows, scale, out, stream_); });
}

void DeviceRun::NormRows(const std::vector<float>& weight, const float* input, int64_t rows,
                         float* out) {
  Queue([&] {
    return decoder_.rms_norm(input, weights_.Of(weight), rows, config_.width, config_.norm_eps, out,
                             stream_);
  });
}

void DeviceRun::Gate(float* gate, const float* up, int64_t count) {
  Queue([&] { return decoder_.gate(config_.activation, gate, up, count, stream_); });
}

void DeviceRun::Add(float* x, const float* y, int64_t count) {
  Queue([&] { return decoder_.add(x, y, count, stream_); });
}

void DeviceRun::SoftCap(float* x, int64_t count, float cap) {
  Queue([&] { return decoder_.soft_cap(x, count, cap, stream_); });
}

AttentionLayer DeviceRun::LayerOf(const KvCache::Impl& cache, int64_t layer_index) const {
  AttentionLayer layer;
  layer.heads = config_.heads;
  layer.kv_heads = config_.kv_heads;
  layer.head_dim = config_.head_dim;
  layer.value_dim = config_.value_dim;
  layer.pairs = config_.rope.dims / 2;
  layer.half_split = config_.rope.half_split;
  layer.norm_eps = config_.norm_eps;
  layer.query_scale = config_.query_scale;
  layer.soft_cap = config_.attention_soft_cap;
  layer.window = config_.WindowOf(layer_index);
  layer.keys = cache.options.keys;
  layer.values = cache.options.values;
  layer.largest_key = LargestCached(layer.keys);
  layer.largest_value = LargestCached(layer.values);
  layer.page_tokens = cache.options.page_tokens;
  layer.offset = cache.layer_offset(layer_index);
  layer.key_row = cache.key_row;
  layer.value_row = cache.value_row;
  return layer;
}

void DeviceRun::TurnAndStore(const KvCache::Impl& cache, const DecoderLayer& layer,
                             int64_t layer_index, float* query, float* key, const float* value) {
  AttentionLayer attention = LayerOf(cache, layer_index);
  attention.query_norm = weights_.Of(layer.query_norm);
  attention.key_norm = weights_.Of(layer.key_norm);
  Queue([&] { return decoder_.store(batch_, attention, query, key, value, stream_); });
}

void DeviceRun::Attend(const KvCache::Impl& cache, int64_t layer_index, const float* query,
                       float* out) {
  Queue([&] { return decoder_.attend(batch_, LayerOf(cache, layer_index), query, out, stream_); });
}

void DeviceRun::KeepOutputs(int64_t width, float* x) {
  if (kept_ == nullptr || kept_count_ == 0) return;
  Queue([&] { return decoder_.keep_rows(kept_, kept_count_, width, x, stream_); });
}

void DeviceRun::Likeliest(const float* logits, int64_t rows, int32_t* out) {
  Queue([&] { return decoder_.likeliest(logits, rows, config_.vocab_size, out, stream_); });
}

Result<float*> DeviceRun::Logits(int64_t rows) {
  NIBBLE_RETURN_IF_ERROR(
      Reserve(logits_, static_cast<size_t>(rows * config_.vocab_size) * sizeof(float)));
  return reinterpret_cast<float*>(logits_.data());
}

Result<int32_t*> DeviceRun::Chosen(int64_t rows) {
  NIBBLE_RETURN_IF_ERROR(Reserve(chosen_, static_cast<size_t>(rows) * sizeof(int32_t)));
  return reinterpret_cast<int32_t*>(chosen_.data());
}

Result<float*> DeviceRun::Hidden(int64_t rows) {
  NIBBLE_RETURN_IF_ERROR(
      Reserve(hidden_, static_cast<size_t>(rows * config_.width) * sizeof(float)));
  return reinterpret_cast<float*>(hidden_.data());
}

Status DeviceRun::Fetch(void* to, const void* from, size_t bytes) {
  NIBBLE_RETURN_IF_ERROR(Take());
  NIBBLE_RETURN_IF_ERROR(decoder_.copy(to, from, bytes, stream_));
  return decoder_.synchronize(stream_);
}

Status DeviceRun::Send(void* to, const void* from, size_t bytes) {
  NIBBLE_RETURN_IF_ERROR(Take());
  return decoder_.copy(to, from, bytes, stream_);
}

}  // namespace nibble
