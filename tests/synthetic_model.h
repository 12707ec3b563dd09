// Small models written for a test.
#ifndef NIBBLE_TESTS_SYNTHETIC_MODEL_H_
#define NIBBLE_TESTS_SYNTHETIC_MODEL_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nibble/dtype.h"
#include "nibble/gguf.h"

namespace nibble {

struct SyntheticTensor {
  std::string name;
  std::vector<int64_t> dims;  // fastest first
  Format format = Format::kF16;
};

// The same weights for the same name: normal, the scale of a row depending on its number.
inline std::vector<float> SyntheticWeights(const SyntheticTensor& tensor) {
  int64_t count = 1;
  for (const int64_t dim : tensor.dims) count *= dim;
  std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>()(tensor.name)));
  std::vector<float> weights(static_cast<size_t>(count));
  for (size_t i = 0; i < weights.size(); ++i) {
    float sum = -6;  // of twelve uniform numbers: nearly normal, the same on every machine
    for (int k = 0; k < 12; ++k) sum += static_cast<float>(random() >> 8) * 0x1p-24f;
    const auto row = static_cast<int64_t>(i) / tensor.dims[0];
    weights[i] = 0.02f * sum * (1.0f + 0.1f * static_cast<float>(row % 7));
  }
  return weights;
}

inline std::vector<std::byte> SyntheticBytes(const SyntheticTensor& tensor,
                                             const std::vector<float>& weights) {
  std::vector<std::byte> bytes(weights.size() * (tensor.format == Format::kF32 ? 4 : 2));
  for (size_t i = 0; i < weights.size(); ++i) {
    if (tensor.format == Format::kF32) {
      std::memcpy(&bytes[4 * i], &weights[i], 4);
    } else {
      const uint16_t bits =
          tensor.format == Format::kF16 ? ToF16(weights[i]).bits : ToBF16(weights[i]).bits;
      std::memcpy(&bytes[2 * i], &bits, 2);
    }
  }
  return bytes;
}

// A llama-like model of two layers with matrices of 256 columns.
inline std::vector<SyntheticTensor> SmallLlama() {
  std::vector<SyntheticTensor> tensors = {{"token_embd.weight", {256, 64}},
                                          {"output_norm.weight", {256}, Format::kF32}};
  for (const std::string layer : {"blk.0.", "blk.1."}) {
    tensors.push_back({layer + "attn_norm.weight", {256}, Format::kF32});
    for (const char* part : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"}) {
      tensors.push_back({layer + part + ".weight", {256, 256}});
    }
  }
  return tensors;
}

// `edit` may change a tensor's weights before they are written.
using EditWeights = std::function<void(const std::string& name, std::vector<float>& weights)>;

inline void WriteSyntheticModel(const std::string& path,
                                const std::vector<SyntheticTensor>& tensors,
                                const EditWeights& edit = nullptr) {
  GgufMetadata metadata;
  metadata.Set("general.architecture", std::string("llama"));
  metadata.Set("llama.block_count", uint32_t{2});
  metadata.Set("llama.attention.head_count", uint32_t{8});
  metadata.Set("llama.attention.head_count_kv", uint32_t{2});
  std::vector<GgufTensorInfo> infos;
  for (const SyntheticTensor& tensor : tensors) {
    GgufTensorInfo info;
    info.name = tensor.name;
    info.format = tensor.format;
    info.dims = tensor.dims;
    infos.push_back(std::move(info));
  }
  Result<GgufWriter> writer = GgufWriter::Create(path, metadata, infos);
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  for (const SyntheticTensor& tensor : tensors) {
    std::vector<float> weights = SyntheticWeights(tensor);
    if (edit) edit(tensor.name, weights);
    ASSERT_TRUE(writer->Append(SyntheticBytes(tensor, weights)).ok());
  }
  const Status finished = writer->Finish();
  ASSERT_TRUE(finished.ok()) << finished.message();
}

// A model whose f16 tensors of zeros take no disk: `count` matrices of [rows, cols].
inline void WriteHollowModel(const std::string& path, int count, int64_t rows, int64_t cols) {
  const auto put = [](std::string& out, const auto& value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  const auto put_string = [&](std::string& out, const std::string& text) {
    put(out, uint64_t{text.size()});
    out += text;
  };
  std::string header = "GGUF";
  put(header, uint32_t{3});
  put(header, uint64_t{static_cast<uint64_t>(count)});
  put(header, uint64_t{1});
  put_string(header, "general.architecture");
  put(header, uint32_t{8});
  put_string(header, "llama");
  const uint64_t bytes = static_cast<uint64_t>(rows * cols) * 2;
  for (int i = 0; i < count; ++i) {
    put_string(header, "blk." + std::to_string(i) + ".ffn_up.weight");
    put(header, uint32_t{2});
    put(header, cols);
    put(header, rows);
    put(header, static_cast<uint32_t>(Format::kF16));
    put(header, bytes * static_cast<uint64_t>(i));
  }
  header.resize((header.size() + 31) / 32 * 32);
  std::FILE* file = std::fopen(path.c_str(), "wb");
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(std::fwrite(header.data(), 1, header.size(), file), header.size());
  ASSERT_EQ(ftruncate(fileno(file),
                      static_cast<off_t>(header.size() + bytes * static_cast<uint64_t>(count))),
            0);
  std::fclose(file);
}

}  // namespace nibble

#endif  // NIBBLE_TESTS_SYNTHETIC_MODEL_H_
