#include "lib/model/folder_tensors.h"

#include <array>
#include <set>
#include <string>
#include <utility>

#include "lib/model/json_file.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

// The suffixes that a layout's tensors may have; the first one marks a matrix.
std::span<const std::string_view> SuffixesOf(const HfQuantization& quantization) {
  static constexpr std::array<std::string_view, 4> kWords = {"qweight", "qzeros", "scales",
                                                             "g_idx"};
  static constexpr std::array<std::string_view, 3> kRows = {"SCB", "weight", "weight_format"};
  static constexpr std::array<std::string_view, 7> kFourBits = {
      "weight.absmax",          "weight",
      "weight.quant_map",       "weight.quant_state.bitsandbytes__nf4",
      "weight.nested_absmax",   "weight.quant_state.bitsandbytes__fp4",
      "weight.nested_quant_map"};
  static constexpr std::array<std::string_view, 2> kCompressed = {"weight_scale", "weight"};
  static constexpr std::array<std::string_view, 3> kAqlm = {"codes", "codebooks", "scales"};
  switch (quantization.layout) {
    case HfLayout::kGptq:
    case HfLayout::kAwq:
      return kWords;
    case HfLayout::kBitsAndBytes:
      if (quantization.scheme.code == Code::kUniform) return kRows;
      return kFourBits;
    case HfLayout::kAqlm:
      return kAqlm;
    case HfLayout::kCompressedTensors:
      break;
  }
  return kCompressed;
}

}  // namespace

Result<FolderTensors> FolderTensors::Make(const SafetensorsFile& file,
                                          const std::optional<HfQuantization>& quantization,
                                          const std::string& where) {
  FolderTensors result;
  std::set<const SafetensorsTensor*> used;
  if (quantization) {
    const std::span<const std::string_view> suffixes = SuffixesOf(*quantization);
    for (const SafetensorsTensor& tensor : file.tensors()) {
      if (!tensor.name.ends_with(suffixes[0])) continue;
      const std::string prefix = tensor.name.substr(0, tensor.name.size() - suffixes[0].size());
      if (!prefix.ends_with('.')) continue;
      auto packed = std::make_shared<PackedMatrix>();
      packed->quantization = *quantization;
      for (const std::string_view suffix : suffixes) {
        const SafetensorsTensor* part = file.Find(prefix + std::string(suffix));
        if (part == nullptr) continue;
        used.insert(part);
        packed->tensors.push_back(
            {std::string(suffix), part->dtype, part->shape, Buffer::Borrow(part->data)});
      }
      const Result<HfShape> shape = HfShapeOf(*quantization, packed->tensors);
      if (!shape.ok()) {
        return Status(shape.status()).WithContext(where + ": " + Printable(prefix) + "weight");
      }
      FolderTensor matrix;
      matrix.name = prefix + "weight";
      matrix.dtype = DType::kF32;
      matrix.shape = {shape->rows, shape->cols};
      matrix.packed = std::move(packed);
      result.tensors_.push_back(std::move(matrix));
    }
  }
  for (const SafetensorsTensor& tensor : file.tensors()) {
    if (!used.contains(&tensor)) result.tensors_.push_back({tensor, nullptr});
  }
  for (size_t i = 0; i < result.tensors_.size(); ++i) {
    if (result.index_.emplace(result.tensors_[i].name, i).second) continue;
    return Corrupt(where + ": " + Printable(result.tensors_[i].name) +
                   " is there as it is and quantized");
  }
  return result;
}

const FolderTensor* FolderTensors::Find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

Result<Buffer> BytesOf(const FolderTensor& tensor) {
  if (tensor.packed == nullptr) return Buffer::Borrow(tensor.data);
  const auto decode = [&]() -> Result<Buffer> {
    NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor matrix,
                            FromHfTensors(tensor.packed->quantization, tensor.packed->tensors));
    NIBBLE_ASSIGN_OR_RETURN(
        Buffer floats,
        Buffer::Allocate(static_cast<size_t>(matrix.rows() * matrix.cols()) * sizeof(float)));
    NIBBLE_RETURN_IF_ERROR(Dequantize(
        matrix, ViewOf(reinterpret_cast<float*>(floats.data()), matrix.rows(), matrix.cols())));
    return floats;
  };
  Result<Buffer> floats = decode();
  if (!floats.ok()) return std::move(floats).status().WithContext(Printable(tensor.name));
  return floats;
}

}  // namespace nibble
