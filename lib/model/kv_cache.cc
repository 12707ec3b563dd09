#include "lib/model/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/dequantize.h"
#include "kernels/encode.h"
#include "nibble/backend.h"
#include "nibble/format.h"

namespace nibble {
namespace {

// The block format behind a cache type; kInt8 has none.
Format BlockFormatOf(CacheType type) {
  switch (type) {
    case CacheType::kQ8_0:
      return Format::kQ8_0;
    case CacheType::kQ4_0:
      return Format::kQ4_0;
    default:
      return Format::kF16;
  }
}

}  // namespace

float LargestCached(CacheType type) { return LargestMagnitude(BlockFormatOf(type)); }

size_t CacheRowBytes(CacheType type, int64_t dims) {
  if (type == CacheType::kInt8) return sizeof(float) + static_cast<size_t>(dims);
  const FormatInfo& info = GetFormatInfo(BlockFormatOf(type));
  return static_cast<size_t>(dims) / info.block_weights * info.block_bytes;
}

void EncodeCacheRows(CacheType type, const float* values, int64_t rows, int64_t dims,
                     std::byte* out) {
  const size_t row_bytes = CacheRowBytes(type, dims);
  if (type != CacheType::kInt8) {
    const Format format = BlockFormatOf(type);
    const float limit = LargestCached(type);
    std::vector<float> row(static_cast<size_t>(dims));
    for (int64_t r = 0; r < rows; ++r, values += dims, out += row_bytes) {
      // A model that overflows what the cache can hold degrades, as elsewhere.
      for (int64_t i = 0; i < dims; ++i) {
        row[static_cast<size_t>(i)] =
            std::isnan(values[i]) ? 0 : std::clamp(values[i], -limit, limit);
      }
      EncodeRow(format, row.data(), dims, nullptr, out);
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r, values += dims, out += row_bytes) {
    float largest = 0.0f;
    for (int64_t i = 0; i < dims; ++i) largest = std::max(largest, std::abs(values[i]));
    const float scale = largest / 127.0f;
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    std::memcpy(out, &scale, sizeof(scale));
    auto* codes = reinterpret_cast<int8_t*>(out + sizeof(scale));
    for (int64_t i = 0; i < dims; ++i) {
      codes[i] = static_cast<int8_t>(std::lrintf(std::clamp(values[i] * inverse, -127.0f, 127.0f)));
    }
  }
}

void DecodeCacheRows(CacheType type, const std::byte* data, int64_t rows, int64_t dims,
                     float* out) {
  const size_t row_bytes = CacheRowBytes(type, dims);
  if (type != CacheType::kInt8) {
    DecodeRow(BlockFormatOf(type), data, rows * dims, out);
    return;
  }
  for (int64_t r = 0; r < rows; ++r, data += row_bytes, out += dims) {
    float scale;
    std::memcpy(&scale, data, sizeof(scale));
    const auto* codes = reinterpret_cast<const int8_t*>(data + sizeof(scale));
    for (int64_t i = 0; i < dims; ++i) out[i] = scale * static_cast<float>(codes[i]);
  }
}

size_t KvCache::Impl::page_bytes() const {
  return static_cast<size_t>(layers * kv_heads * options.page_tokens) * (key_row + value_row);
}

size_t KvCache::Impl::layer_offset(int64_t layer) const {
  return static_cast<size_t>(layer * kv_heads * options.page_tokens) * (key_row + value_row);
}

std::byte* KvCache::Impl::Keys(int page, int64_t layer, int64_t kv_head) {
  return pages[page].memory.data() + layer_offset(layer) +
         static_cast<size_t>(kv_head * options.page_tokens) * key_row;
}

std::byte* KvCache::Impl::Values(int page, int64_t layer, int64_t kv_head) {
  const size_t tokens = static_cast<size_t>(options.page_tokens);
  return Keys(page, layer, 0) + static_cast<size_t>(kv_heads) * tokens * key_row +
         static_cast<size_t>(kv_head) * tokens * value_row;
}

Result<Buffer> KvCache::Impl::AllocatePage() const {
  if (decoder == nullptr) return Buffer::Allocate(page_bytes());
  NIBBLE_ASSIGN_OR_RETURN(const Backend* backend, FindBackend(options.device));
  NIBBLE_ASSIGN_OR_RETURN(Buffer memory, backend->allocate(page_bytes(), nullptr));
  // Runners use it in streams of their own.
  NIBBLE_RETURN_IF_ERROR(decoder->synchronize(nullptr));
  return memory;
}

Status KvCache::Impl::CopyPage(int from, int to) {
  std::byte* const destination = pages[to].memory.data();
  if (decoder == nullptr) {
    std::memcpy(destination, pages[from].memory.data(), page_bytes());
    return OkStatus();
  }
  NIBBLE_RETURN_IF_ERROR(
      decoder->copy(destination, pages[from].memory.data(), page_bytes(), nullptr));
  return decoder->synchronize(nullptr);
}

Result<int> KvCache::Impl::TakePage() {
  if (free_pages.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(Buffer memory, AllocatePage());
    pages.push_back({std::move(memory), 0});
    free_pages.push_back(static_cast<int>(pages.size()) - 1);
  }
  const int page = free_pages.back();
  free_pages.pop_back();
  pages[page].owners = 1;
  return page;
}

void KvCache::Impl::Release(int page) {
  if (--pages[page].owners == 0) free_pages.push_back(page);
}

Status KvCache::Impl::Reserve(Sequence& sequence, int64_t tokens) {
  const int64_t per_page = options.page_tokens;
  const int64_t needed = (sequence.length + tokens + per_page - 1) / per_page;
  const bool writes_last = tokens > 0 && sequence.length % per_page != 0;
  const bool copies = writes_last && pages[sequence.pages.back()].owners > 1;
  std::vector<int> taken;
  const int64_t wanted = needed - static_cast<int64_t>(sequence.pages.size()) + (copies ? 1 : 0);
  const int64_t in_use = static_cast<int64_t>(pages.size() - free_pages.size());
  Status status;
  if (options.max_tokens > 0 && (in_use + wanted) * per_page > options.max_tokens + per_page - 1) {
    status = OutOfMemory("the cache holds " + std::to_string(options.max_tokens) +
                         " tokens and has no room for " + std::to_string(tokens) + " more");
  }
  while (status.ok() && static_cast<int64_t>(taken.size()) < wanted) {
    Result<int> page = TakePage();
    if (page.ok())
      taken.push_back(*page);
    else
      status = std::move(page).status();
  }
  if (status.ok() && copies) status = CopyPage(sequence.pages.back(), taken.back());
  if (!status.ok()) {
    for (const int page : taken) Release(page);
    return status;
  }
  if (copies) {
    const int fresh = taken.back();
    taken.pop_back();
    int& last = sequence.pages.back();
    Release(last);
    last = fresh;
  }
  sequence.pages.insert(sequence.pages.end(), taken.begin(), taken.end());
  return OkStatus();
}

KvCache::KvCache() : impl_(std::make_unique<Impl>()) {}
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

Result<KvCache> KvCache::Create(const ModelConfig& config, const KvCacheOptions& options) {
  for (const auto& [type, dims, what] : {std::tuple(options.keys, config.head_dim, "keys"),
                                         std::tuple(options.values, config.value_dim, "values")}) {
    const uint32_t block = GetFormatInfo(BlockFormatOf(type)).block_weights;
    if (dims % block != 0) {
      return InvalidArgument(std::string("cached ") + what + ": heads of " + std::to_string(dims) +
                             " do not divide into blocks of " + std::to_string(block));
    }
  }
  if (options.page_tokens < 1 || options.page_tokens > 4096 || options.max_tokens < 0) {
    return InvalidArgument("cache: page_tokens must be in [1, 4096] and max_tokens at least 0");
  }
  KvCache cache;
  Impl& impl = *cache.impl_;
  if (options.device != Device::kCpu) {
    NIBBLE_ASSIGN_OR_RETURN(impl.decoder, FindDecoder(options.device));
    if (config.head_dim % 8 != 0 || config.value_dim % 8 != 0) {
      return Unsupported("cache on a GPU: heads of " + std::to_string(config.head_dim) + " and " +
                         std::to_string(config.value_dim) + " dimensions, no multiples of 8");
    }
  }
  impl.options = options;
  impl.layers = config.layers;
  impl.kv_heads = config.kv_heads;
  impl.key_dims = config.head_dim;
  impl.value_dims = config.value_dim;
  impl.key_row = CacheRowBytes(options.keys, config.head_dim);
  impl.value_row = CacheRowBytes(options.values, config.value_dim);
  return cache;
}

int KvCache::AddSequence() {
  const int id = impl_->next_sequence++;
  impl_->sequences[id];
  return id;
}

Result<int> KvCache::Fork(int sequence) {
  const auto it = impl_->sequences.find(sequence);
  if (it == impl_->sequences.end()) {
    return InvalidArgument("there is no sequence " + std::to_string(sequence));
  }
  const Impl::Sequence copy = it->second;
  for (const int page : copy.pages) ++impl_->pages[page].owners;
  const int id = AddSequence();
  impl_->sequences[id] = copy;
  return id;
}

Status KvCache::Truncate(int sequence, int64_t tokens) {
  const auto it = impl_->sequences.find(sequence);
  if (it == impl_->sequences.end() || tokens < 0 || tokens > it->second.length) {
    return InvalidArgument("cannot cut sequence " + std::to_string(sequence) + " to " +
                           std::to_string(tokens) + " tokens");
  }
  Impl::Sequence& s = it->second;
  const int64_t per_page = impl_->options.page_tokens;
  while (static_cast<int64_t>(s.pages.size()) > (tokens + per_page - 1) / per_page) {
    impl_->Release(s.pages.back());
    s.pages.pop_back();
  }
  s.length = tokens;
  return OkStatus();
}

Status KvCache::Remove(int sequence) {
  NIBBLE_RETURN_IF_ERROR(Truncate(sequence, 0));
  impl_->sequences.erase(sequence);
  return OkStatus();
}

int64_t KvCache::Length(int sequence) const {
  const auto it = impl_->sequences.find(sequence);
  return it == impl_->sequences.end() ? -1 : it->second.length;
}

size_t KvCache::used_bytes() const {
  return (impl_->pages.size() - impl_->free_pages.size()) * impl_->page_bytes();
}

size_t KvCache::allocated_bytes() const { return impl_->pages.size() * impl_->page_bytes(); }

size_t KvCache::bytes_per_token() const {
  return static_cast<size_t>(impl_->layers * impl_->kv_heads) * (impl_->key_row + impl_->value_row);
}

}  // namespace nibble
