// Numbers that tests/reference/gguf_vectors.py makes too, and the digests by which both compare.
#ifndef NIBBLE_TESTS_VECTORS_H_
#define NIBBLE_TESTS_VECTORS_H_

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/quantized_tensor.h"
#include "nlohmann/json.hpp"

namespace nibble {

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    state_ += 0x9E3779B97F4A7C15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// `count` random bytes. (The generator's words in little-endian order.)
inline std::vector<std::byte> RandomBytes(uint64_t seed, size_t count) {
  std::vector<std::byte> bytes(count);
  Random random(seed);
  for (size_t i = 0; i < count; i += 8) {
    const uint64_t word = random.Next();
    for (size_t j = 0; j < 8 && i + j < count; ++j) {
      bytes[i + j] = static_cast<std::byte>(word >> (8 * j));
    }
  }
  return bytes;
}

// Sum of words[i] * random[i], as 16 hexadecimal digits.
template <class Word>
std::string Digest(std::span<const Word> words) {
  Random random(0);
  uint64_t sum = 0;
  for (Word word : words) sum += static_cast<uint64_t>(word) * random.Next();
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(sum));
  return text;
}

inline std::string Digest(const std::vector<std::byte>& bytes) {
  return Digest(std::span<const std::byte>(bytes));
}

// Of all planes, one after another.
inline std::string Digest(const QuantizedTensor& tensor) {
  std::vector<std::byte> all;
  for (int p = 0; p < kPlaneCount; ++p) {
    const auto bytes = tensor.plane(static_cast<Plane>(p)).bytes();
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return Digest(all);
}

// Of the bits of floats; NaNs count as one value.
inline std::string Digest(const std::vector<float>& floats) {
  std::vector<uint32_t> bits;
  for (float x : floats) bits.push_back(std::isnan(x) ? 0x7FC00000u : std::bit_cast<uint32_t>(x));
  return Digest(std::span<const uint32_t>(bits));
}

inline constexpr const char* kCases[] = {"uniform", "ties", "zeros", "denormal",
                                         "tiny",    "wide", "powers"};
inline constexpr int kCaseWeights = 256 * 64;

// Inputs on which encoders may go wrong; all finite and within half precision's range.
inline std::vector<float> CaseFloats(std::string_view name, int count = kCaseWeights) {
  std::vector<float> x(static_cast<size_t>(count));
  Random random(1);
  for (int i = 0; i < count; ++i) {
    const uint64_t u = random.Next();
    const uint32_t sign = static_cast<uint32_t>(u >> 63) << 31;
    const uint32_t mantissa = static_cast<uint32_t>(u) & 0x7FFFFFu;
    const uint32_t pick = static_cast<uint32_t>(u >> 32) & 0xFFFFFFu;
    const auto with_exponent = [&](uint32_t e) {
      return std::bit_cast<float>(sign | e << 23 | mantissa);
    };
    float& to = x[static_cast<size_t>(i)];
    if (name == "uniform") {
      to = static_cast<float>(static_cast<int64_t>(u >> 40) - (1 << 23)) / (1 << 27);
    } else if (name == "ties") {
      to = static_cast<float>(static_cast<int64_t>(u >> 59) - 16) / 8;
    } else if (name == "zeros") {
      to = i % 128 == 77 ? -0.75f : std::bit_cast<float>(sign);
    } else if (name == "denormal") {
      to = with_exponent(0);
    } else if (name == "tiny") {
      to = with_exponent(1 + pick % 40);
    } else if (name == "wide") {
      to = with_exponent(87 + pick % 55);
    } else {  // powers
      const uint32_t block = static_cast<uint32_t>(i) / 32;
      const uint32_t top = ((27 + block % 116) << 23) - block / 116 * 13 - block % 7;
      const uint32_t rest = static_cast<uint32_t>(u & 0xFFFFFFu);
      to = std::bit_cast<float>(i % 32 == 5 ? top : top - rest);
    }
  }
  return x;
}

// A JSON file of tests/reference.
inline nlohmann::json ReadReference(const std::string& name) {
  return nlohmann::json::parse(std::ifstream(std::string(NIBBLE_TEST_DATA) + "/" + name));
}

inline std::vector<std::byte> FromHex(std::string_view hex) {
  std::vector<std::byte> bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
}

inline std::string LowerCase(std::string text) {
  for (char& c : text) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return text;
}

}  // namespace nibble

#endif  // NIBBLE_TESTS_VECTORS_H_
