// The pages behind a KvCache.
#ifndef NIBBLE_LIB_MODEL_KV_CACHE_H_
#define NIBBLE_LIB_MODEL_KV_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "nibble/decoder_backend.h"
#include "nibble/model.h"
#include "nibble/tensor.h"

namespace nibble {

// The largest magnitude that a cache stores: what is beyond is clamped.
float LargestCached(CacheType type);

// Bytes of one head's key or value of one token.
size_t CacheRowBytes(CacheType type, int64_t dims);

// Encodes and decodes `rows` consecutive rows of `dims` floats.
void EncodeCacheRows(CacheType type, const float* values, int64_t rows, int64_t dims,
                     std::byte* out);
void DecodeCacheRows(CacheType type, const std::byte* rows_data, int64_t rows, int64_t dims,
                     float* out);

struct KvCache::Impl {
  // One page: for each layer the keys [kv_heads][page_tokens] and then the values, so that the
  // tokens of one head lie side by side.
  struct Page {
    Buffer memory;
    int owners = 0;
  };
  struct Sequence {
    std::vector<int> pages;
    int64_t length = 0;
  };

  KvCacheOptions options;
  int64_t layers = 0, kv_heads = 0, key_dims = 0, value_dims = 0;
  size_t key_row = 0, value_row = 0;  // bytes
  std::vector<Page> pages;
  std::vector<int> free_pages;
  std::map<int, Sequence> sequences;
  int next_sequence = 0;

  const DecoderBackend* decoder = nullptr;  // of the device where the pages lie; null: the host's

  size_t page_bytes() const;
  size_t layer_offset(int64_t layer) const;  // of its keys, in a page
  std::byte* Keys(int page, int64_t layer, int64_t kv_head);
  std::byte* Values(int page, int64_t layer, int64_t kv_head);

  // Makes room for `tokens` more in a sequence: takes pages, and copies a shared last page that
  // will be written. Nothing has changed when it fails.
  Status Reserve(Sequence& sequence, int64_t tokens);
  void Release(int page);
  Result<int> TakePage();
  Result<Buffer> AllocatePage() const;
  Status CopyPage(int from, int to);
};

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_KV_CACHE_H_
