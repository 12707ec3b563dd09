// How quantized matrices lie in Hugging Face folders: the layouts that the public libraries read.
// docs/files.md draws each of them.
#ifndef NIBBLE_HF_LAYOUT_H_
#define NIBBLE_HF_LAYOUT_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/dtype.h"
#include "nibble/quantized_tensor.h"
#include "nibble/scheme.h"
#include "nibble/status.h"
#include "nibble/tensor.h"

namespace nibble {

enum class HfLayout : uint8_t {
  kGptq,               // GPTQModel, AutoGPTQ: integers of 2, 3, 4 or 8 bits in words of 32
  kAwq,                // AutoAWQ's "gemm": integers of 4 bits in words of 32, in its own order
  kBitsAndBytes,       // NF4 and FP4 in blocks, scales doubly quantized or not; int8 rows
  kCompressedTensors,  // int8 and f8_e4m3 for activations of the same type (W8A8)
  kAqlm,               // additive codebooks
};

struct HfLayoutInfo {
  HfLayout layout;
  const char* name;     // as config.json's "quant_method" has it
  const char* summary;  // a line for people
};

std::span<const HfLayoutInfo> AllHfLayouts();
const HfLayoutInfo& GetHfLayoutInfo(HfLayout layout);
// In any letter case.
Result<HfLayout> ParseHfLayout(std::string_view name);

// Whether matrices of a scheme can lie so. kUnsupported tells what can.
Status CheckHfLayout(HfLayout layout, const Scheme& scheme);
// The first layout that can hold the scheme.
Result<HfLayout> FindHfLayout(const Scheme& scheme);

// What config.json says of how matrices lie.
struct HfQuantization {
  HfLayout layout = HfLayout::kGptq;
  Scheme scheme;
  // Of kGptq: zeros are stored less one, as checkpoints of the first version have them.
  bool zeros_less_one = false;
};

// How nibble writes a scheme: zeros less one only where they are the middle of symmetric codes;
// less one, an asymmetric zero of 0 would be no code.
HfQuantization HfQuantizationOf(HfLayout layout, const Scheme& scheme);

// One of the tensors that stand in the place of a matrix called "PREFIX.weight".
struct HfTensor {
  std::string suffix;  // its own name is "PREFIX." and this
  DType dtype = DType::kU8;
  std::vector<int64_t> shape;
  Buffer data;  // of any alignment
};

// What ToHfTensors gives for a matrix of rows x cols, without data. Fails where the layout has no
// place for such a shape.
Result<std::vector<HfTensor>> HfTensorsOf(const HfQuantization& quantization, int64_t rows,
                                          int64_t cols);

// `dtype`: what the weights were, which bitsandbytes keeps.
Result<std::vector<HfTensor>> ToHfTensors(const HfQuantization& quantization,
                                          const QuantizedTensor& matrix, DType dtype);

// The shape of the matrix that such tensors hold, from theirs alone.
struct HfShape {
  int64_t rows = 0, cols = 0;
};
Result<HfShape> HfShapeOf(const HfQuantization& quantization, std::span<const HfTensor> tensors);

// The inverse of ToHfTensors, of tensors in any order; all that they say is checked, against each
// other and against `quantization`. A group index that is the plain one is left out; zeros of a
// "symmetric" matrix that are not all the middle make it asymmetric; types of scales, and the
// blocks and codes of bitsandbytes, are the tensors' own.
Result<QuantizedTensor> FromHfTensors(const HfQuantization& quantization,
                                      std::span<const HfTensor> tensors);

}  // namespace nibble

#endif  // NIBBLE_HF_LAYOUT_H_
