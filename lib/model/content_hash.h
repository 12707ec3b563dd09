// A fingerprint of tensors: tells damage and mix-ups, not forgeries.
#ifndef NIBBLE_LIB_MODEL_CONTENT_HASH_H_
#define NIBBLE_LIB_MODEL_CONTENT_HASH_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "nibble/gguf.h"

namespace nibble {

// XXH3 of 128 bits over a stream of tensors, whatever files hold them.
class ContentHash {
 public:
  ContentHash();
  ~ContentHash();

  void BeginTensor(const GgufTensorInfo& info);  // its name, format and shape
  void Add(std::span<const std::byte> bytes);
  void AddNumber(uint64_t value);
  void AddString(std::string_view text);

  std::string Hex() const;  // 32 digits

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Zeros in the place of a hash that is not known yet: as long as one.
inline constexpr const char* kBlankHash = "00000000000000000000000000000000";

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_CONTENT_HASH_H_
