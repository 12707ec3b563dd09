// Matrices on which the search encoders are measured, made of integers so that any language makes
// the same ones (tests/reference/encode_k.py does), and slices of the reference model.
#ifndef NIBBLE_TESTS_ENCODE_K_MATRICES_H_
#define NIBBLE_TESTS_ENCODE_K_MATRICES_H_

#include <cmath>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "nibble/dtype.h"
#include "nlohmann/json.hpp"

namespace nibble {

inline constexpr int64_t kMatrixRows = 4, kMatrixCols = 1024;

// A 32-bit mix of a counter.
inline uint32_t Hash(uint32_t i) {
  i = (i ^ (i >> 16)) * 0x7FEB352Du;
  i = (i ^ (i >> 15)) * 0x846CA68Bu;
  return i ^ (i >> 16);
}

// About Gaussian, of standard deviation 1: twelve uniform numbers of 16 bits less their mean.
inline float Bell(uint32_t i) {
  int32_t sum = 0;
  for (uint32_t k = 0; k < 6; ++k) {
    const uint32_t bits = Hash(6 * i + k);
    sum += static_cast<int32_t>((bits & 0xFFFF) + (bits >> 16));
  }
  return static_cast<float>(sum - 6 * 65535) * 0x1p-16f;
}

// 2^k with probability 2^-(k+1), k at most 5: as a factor, it gives heavy tails.
inline float Burst(uint32_t i) {
  const uint32_t bits = Hash(i + 0x9E3779B9u);
  int k = 0;
  while (k < 5 && (bits >> k & 1) != 0) ++k;
  return static_cast<float>(1 << k);
}

inline constexpr const char* kMatrixNames[] = {
    "gauss",     "heavy",  "uniform",  "outliers", "constant", "zeros",  "negative",
    "one_sided", "offset", "denormal", "small",    "huge",     "attn_q", "ffn_down"};

// Weight i of a matrix of integers.
inline float MatrixWeight(const std::string& name, uint32_t i) {
  const uint32_t row = i / static_cast<uint32_t>(kMatrixCols);
  if (name == "gauss") return Bell(i) * 0x1p-5f;
  if (name == "heavy") return Bell(i) * Burst(i) * 0x1p-6f;
  if (name == "uniform") return static_cast<float>(static_cast<int32_t>(Hash(i))) * 0x1p-34f;
  if (name == "outliers") return Bell(i) * (Hash(i + 77) % 61 == 0 ? 0x1p-1f : 0x1p-5f);
  if (name == "constant") return static_cast<float>(Hash(row) >> 8) * 0x1p-26f;
  if (name == "zeros") return 0;
  if (name == "negative") return -std::fabs(Bell(i)) * 0x1p-5f;
  if (name == "one_sided") return std::fabs(Bell(i)) * 0x1p-5f;
  if (name == "offset") return Bell(i) * 0x1p-5f + 1;
  if (name == "denormal") return static_cast<float>(Hash(i) & 0xFFFF) * 0x1p-149f;
  if (name == "small") return Bell(i) * 0x1p-18f;
  return Bell(i) * 0x1p11f;  // huge
}

// The first rows of a tensor of the reference model, read as one run of weights.
inline std::vector<float> ModelSlice(const std::string& tensor) {
  std::ifstream file(NIBBLE_EXAMPLES "/reference-model/model.safetensors", std::ios::binary);
  uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof(header_bytes));
  std::string header(header_bytes, ' ');
  file.read(header.data(), static_cast<std::streamsize>(header_bytes));
  const auto offset = nlohmann::json::parse(header)[tensor]["data_offsets"][0].get<uint64_t>();
  std::vector<F16> halves(static_cast<size_t>(kMatrixRows * kMatrixCols));
  file.seekg(static_cast<std::streamoff>(8 + header_bytes + offset));
  file.read(reinterpret_cast<char*>(halves.data()),
            static_cast<std::streamsize>(halves.size() * sizeof(F16)));
  std::vector<float> weights;
  for (const F16 half : halves) weights.push_back(ToFloat(half));
  return weights;
}

inline std::vector<float> MakeMatrix(const std::string& name) {
  if (name == "attn_q") return ModelSlice("model.layers.3.self_attn.q_proj.weight");
  if (name == "ffn_down") return ModelSlice("model.layers.3.mlp.down_proj.weight");
  std::vector<float> weights;
  for (uint32_t i = 0; i < kMatrixRows * kMatrixCols; ++i) weights.push_back(MatrixWeight(name, i));
  return weights;
}

// Importance of the columns: spread over three decades.
inline std::vector<float> MakeImportance(int64_t cols) {
  std::vector<float> importance;
  for (uint32_t j = 0; j < cols; ++j) {
    const uint32_t bits = Hash(j + 0x1234567u);
    importance.push_back(static_cast<float>(256 + (bits >> 24)) *
                         std::ldexp(1.0f, -static_cast<int>(bits % 10)));
  }
  return importance;
}

}  // namespace nibble

#endif  // NIBBLE_TESTS_ENCODE_K_MATRICES_H_
