#include <cstring>
#include <string>
#include <vector>

#include "kernels/planar.h"
#include "nibble/gptq_folder.h"

namespace nibble {

Status CheckGptqScheme(const Scheme& scheme) {
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  const bool bits = scheme.bits == 2 || scheme.bits == 4 || scheme.bits == 8;
  const bool zeros = scheme.symmetric || scheme.zero_dtype == DType::kU8;
  if (scheme.code != Code::kUniform || !bits || scheme.granularity == Granularity::kTensor ||
      scheme.scale_dtype != DType::kF16 || !zeros || scheme.double_quant) {
    return Unsupported(SchemeName(scheme) +
                       ": GPTQ checkpoints hold integers of 2, 4 or 8 bits by group or channel, "
                       "scales in f16 and zeros that are codes");
  }
  return OkStatus();
}

Result<GptqTensors> ToGptqTensors(const QuantizedTensor& matrix) {
  if (matrix.is_block_format()) return Unsupported("a block format has no planes");
  const Scheme& scheme = matrix.scheme();
  NIBBLE_RETURN_IF_ERROR(CheckGptqScheme(scheme));
  const int64_t rows = matrix.rows(), cols = matrix.cols();
  const int64_t groups = GroupsPerRow(scheme, cols);
  const int bits = scheme.bits, in_word = 32 / bits;
  if (rows % in_word != 0 || cols % in_word != 0) {
    return Unsupported(std::to_string(rows) + " x " + std::to_string(cols) +
                       " weights: GPTQ checkpoints need multiples of " + std::to_string(in_word));
  }
  const auto bytes_of = [&](Plane plane) {
    return reinterpret_cast<const uint8_t*>(matrix.plane(plane).data());
  };
  // An unsigned code from one in two's complement, and what stands for the zero in the file.
  const uint32_t middle = scheme.symmetric ? 1u << (bits - 1) : 0u, mask = (1u << bits) - 1;
  GptqTensors out;
  std::vector<uint32_t> words(static_cast<size_t>(cols / in_word * rows));
  std::vector<uint8_t> codes(static_cast<size_t>(cols));
  const int64_t row_bytes = PlanarRowBytes(bits, cols);
  for (int64_t r = 0; r < rows; ++r) {
    UnpackCodes(bytes_of(Plane::kCodes) + r * row_bytes, bits, cols, codes.data());
    for (int64_t j = 0; j < cols; ++j) {
      const uint32_t code = (codes[static_cast<size_t>(j)] + middle) & mask;
      words[static_cast<size_t>(j / in_word * rows + r)] |= code << (bits * (j % in_word));
    }
  }
  out.qweight.assign(words.begin(), words.end());

  words.assign(static_cast<size_t>(groups * rows / in_word), 0);
  out.scales.resize(static_cast<size_t>(groups * rows));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = r * groups + g;
      const uint32_t zero = scheme.symmetric ? middle - 1 : bytes_of(Plane::kZeros)[at];
      words[static_cast<size_t>((g * rows + r) / in_word)] |= zero << (bits * (r % in_word));
      std::memcpy(&out.scales[static_cast<size_t>(g * rows + r)], bytes_of(Plane::kScales) + 2 * at,
                  2);
    }
  }
  out.qzeros.assign(words.begin(), words.end());

  out.g_idx.resize(static_cast<size_t>(cols));
  if (scheme.has_group_index) {
    std::memcpy(out.g_idx.data(), bytes_of(Plane::kGroupIndex), out.g_idx.size() * 4);
  } else {
    const int64_t size = scheme.granularity == Granularity::kGroup ? scheme.group_size : cols;
    for (int64_t j = 0; j < cols; ++j) {
      out.g_idx[static_cast<size_t>(j)] = static_cast<int32_t>(j / size);
    }
  }
  return out;
}

}  // namespace nibble
