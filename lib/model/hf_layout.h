// The parts of nibble/hf_layout.h, one layout each, and what config.json says of them.
#ifndef NIBBLE_LIB_MODEL_HF_LAYOUT_H_
#define NIBBLE_LIB_MODEL_HF_LAYOUT_H_

#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lib/model/json_file.h"
#include "nibble/hf_layout.h"
#include "nlohmann/json.hpp"

namespace nibble {

// --- Of a layout: whether it holds a scheme, and the functions of nibble/hf_layout.h. ---

Status CheckGptqScheme(const Scheme& scheme);
Status CheckAwqScheme(const Scheme& scheme);
Status CheckBitsAndBytesScheme(const Scheme& scheme);
Status CheckCompressedScheme(const Scheme& scheme);
Status CheckAqlmScheme(const Scheme& scheme);

using HfTensorList = Result<std::vector<HfTensor>>;
HfTensorList WordTensors(const HfQuantization& quantization, int64_t rows, int64_t cols);
HfTensorList BitsAndBytesTensors(const HfQuantization& quantization, int64_t rows, int64_t cols);
HfTensorList CompressedTensors(const HfQuantization& quantization, int64_t rows, int64_t cols);
HfTensorList AqlmTensors(const HfQuantization& quantization, int64_t rows, int64_t cols);

// Fill the data of what those give.
Status FillWords(const HfQuantization& quantization, const QuantizedTensor& matrix, DType dtype,
                 std::span<HfTensor> tensors);
Status FillBitsAndBytes(const HfQuantization& quantization, const QuantizedTensor& matrix,
                        DType dtype, std::span<HfTensor> tensors);
Status FillCompressed(const HfQuantization& quantization, const QuantizedTensor& matrix,
                      DType dtype, std::span<HfTensor> tensors);
Status FillAqlm(const HfQuantization& quantization, const QuantizedTensor& matrix, DType dtype,
                std::span<HfTensor> tensors);

Result<HfShape> WordsShape(const HfQuantization& quantization, std::span<const HfTensor> tensors);
Result<HfShape> BitsAndBytesShape(const HfQuantization& quantization,
                                  std::span<const HfTensor> tensors);
Result<HfShape> CompressedShape(const HfQuantization& quantization,
                                std::span<const HfTensor> tensors);
Result<HfShape> AqlmShape(const HfQuantization& quantization, std::span<const HfTensor> tensors);

Result<QuantizedTensor> ReadWords(const HfQuantization& quantization,
                                  std::span<const HfTensor> tensors);
Result<QuantizedTensor> ReadBitsAndBytes(const HfQuantization& quantization,
                                         std::span<const HfTensor> tensors);
Result<QuantizedTensor> ReadCompressed(const HfQuantization& quantization,
                                       std::span<const HfTensor> tensors);
Result<QuantizedTensor> ReadAqlm(const HfQuantization& quantization,
                                 std::span<const HfTensor> tensors);

// --- For them. ---

// The tensor of that suffix; null where there is none.
const HfTensor* FindHfTensor(std::span<const HfTensor> tensors, std::string_view suffix);
// The same, of a dtype and shape, or an error.
Result<const HfTensor*> NeedHfTensor(std::span<const HfTensor> tensors, std::string_view suffix,
                                     DType dtype, const std::vector<int64_t>& shape);

// Elements of a tensor of any alignment.
template <class T>
std::vector<T> ElementsOf(const HfTensor& tensor) {
  std::vector<T> values(tensor.data.size() / sizeof(T));
  std::memcpy(values.data(), tensor.data.data(), values.size() * sizeof(T));
  return values;
}

// --- config.json. ---

// The object "quantization_config".
struct HfConfigDetails {
  double damping = 0.01;  // of GPTQ
  bool static_groups = false;
};
nlohmann::json WriteHfQuantization(const HfQuantization& quantization,
                                   const HfConfigDetails& details);

// None where the config has no such object. Fails where it tells of a layout that is not known
// here, or of values that the layout cannot have.
Result<std::optional<HfQuantization>> ReadHfQuantization(const JsonObject& config);

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_HF_LAYOUT_H_
