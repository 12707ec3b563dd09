#include "lib/model/content_hash.h"

#include <cstdio>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace nibble {

struct ContentHash::State {
  XXH3_state_t xxh;
};

ContentHash::ContentHash() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->xxh); }

ContentHash::~ContentHash() = default;

void ContentHash::Add(std::span<const std::byte> bytes) {
  XXH3_128bits_update(&state_->xxh, bytes.data(), bytes.size());
}

void ContentHash::AddNumber(uint64_t value) {
  std::byte bytes[8];  // little-endian on every machine
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<std::byte>(value >> (8 * i));
  Add(bytes);
}

void ContentHash::AddString(std::string_view text) {
  AddNumber(text.size());
  Add(std::as_bytes(std::span(text)));
}

void ContentHash::BeginTensor(const GgufTensorInfo& info) {
  AddString(info.name);
  AddNumber(static_cast<uint64_t>(info.format));
  AddNumber(info.dims.size());
  for (const int64_t dim : info.dims) AddNumber(static_cast<uint64_t>(dim));
}

std::string ContentHash::Hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh);
  char text[33];
  std::snprintf(text, sizeof(text), "%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                static_cast<unsigned long long>(hash.low64));
  return text;
}

}  // namespace nibble
