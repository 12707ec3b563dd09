#include "lib/model/hf_layout.h"

#include <algorithm>
#include <array>
#include <cctype>

namespace nibble {
namespace {

struct Row {
  HfLayoutInfo info;
  decltype(&CheckGptqScheme) check;
  decltype(&WordTensors) tensors;
  decltype(&FillWords) fill;
  decltype(&WordsShape) shape;
  decltype(&ReadWords) read;
};

// In the order of the enum.
constexpr std::array kLayouts = {
    Row{{HfLayout::kGptq, "gptq", "integers of 2, 3, 4 or 8 bits by group or channel"},
        CheckGptqScheme,
        WordTensors,
        FillWords,
        WordsShape,
        ReadWords},
    Row{{HfLayout::kAwq, "awq", "integers of 4 bits by group or channel, in AutoAWQ's order"},
        CheckAwqScheme,
        WordTensors,
        FillWords,
        WordsShape,
        ReadWords},
    Row{{HfLayout::kBitsAndBytes, "bitsandbytes",
         "nf4 and fp4 by group, with or without 'double'; 'int8 sym channel', for LLM.int8()"},
        CheckBitsAndBytesScheme,
        BitsAndBytesTensors,
        FillBitsAndBytes,
        BitsAndBytesShape,
        ReadBitsAndBytes},
    Row{{HfLayout::kCompressedTensors, "compressed-tensors",
         "'int8 sym' and 'f8_e4m3' by channel or tensor, for activations of the same type"},
        CheckCompressedScheme,
        CompressedTensors,
        FillCompressed,
        CompressedShape,
        ReadCompressed},
    Row{{HfLayout::kAqlm, "aqlm", "additive codebooks, such as '2x8g8 f16'"},
        CheckAqlmScheme,
        AqlmTensors,
        FillAqlm,
        AqlmShape,
        ReadAqlm},
};

const Row& RowOf(HfLayout layout) { return kLayouts[static_cast<size_t>(layout)]; }

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text.append(" ").append(std::to_string(size));
  return text;
}

bool SameLetters(std::string_view a, std::string_view b) {
  return std::ranges::equal(
      a, b, [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

}  // namespace

std::span<const HfLayoutInfo> AllHfLayouts() {
  static const auto kInfos = [] {
    std::array<HfLayoutInfo, kLayouts.size()> infos{};
    std::ranges::transform(kLayouts, infos.begin(), &Row::info);
    return infos;
  }();
  return kInfos;
}

const HfLayoutInfo& GetHfLayoutInfo(HfLayout layout) { return RowOf(layout).info; }

Result<HfLayout> ParseHfLayout(std::string_view name) {
  std::string message = "no layout is called '";
  message.append(name).append("'; there are");
  for (const Row& row : kLayouts) {
    if (SameLetters(row.info.name, name)) return row.info.layout;
    message.append(" ").append(row.info.name);
  }
  return InvalidArgument(message);
}

Status CheckHfLayout(HfLayout layout, const Scheme& scheme) {
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  return RowOf(layout).check(scheme).WithContext(SchemeName(scheme));
}

Result<HfLayout> FindHfLayout(const Scheme& scheme) {
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  std::string message = SchemeName(scheme) + ": no layout of Hugging Face folders holds it:";
  for (const Row& row : kLayouts) {
    const Status status = row.check(scheme);
    if (status.ok()) return row.info.layout;
    message += std::string(row.info.layout == HfLayout::kGptq ? " " : "; ") + status.message();
  }
  return Unsupported(message);
}

HfQuantization HfQuantizationOf(HfLayout layout, const Scheme& scheme) {
  return {layout, scheme, layout == HfLayout::kGptq && scheme.symmetric};
}

Result<std::vector<HfTensor>> HfTensorsOf(const HfQuantization& quantization, int64_t rows,
                                          int64_t cols) {
  NIBBLE_RETURN_IF_ERROR(CheckHfLayout(quantization.layout, quantization.scheme));
  if (rows < 1 || cols < 1) return InvalidArgument("a matrix of no weights");
  return RowOf(quantization.layout).tensors(quantization, rows, cols);
}

Result<std::vector<HfTensor>> ToHfTensors(const HfQuantization& quantization,
                                          const QuantizedTensor& matrix, DType dtype) {
  if (matrix.is_block_format()) return Unsupported("a block format has no planes");
  if (matrix.device() != Device::kCpu || matrix.scheme() != quantization.scheme) {
    return InvalidArgument("a matrix in " + SchemeName(matrix.scheme()) + ", not " +
                           SchemeName(quantization.scheme) + " in host memory");
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<HfTensor> tensors,
                          HfTensorsOf(quantization, matrix.rows(), matrix.cols()));
  for (HfTensor& tensor : tensors) {
    size_t bytes = DTypeBytes(tensor.dtype);
    for (const int64_t size : tensor.shape) bytes *= static_cast<size_t>(size);
    NIBBLE_ASSIGN_OR_RETURN(tensor.data, Buffer::Allocate(bytes));
  }
  NIBBLE_RETURN_IF_ERROR(RowOf(quantization.layout).fill(quantization, matrix, dtype, tensors));
  return tensors;
}

Result<HfShape> HfShapeOf(const HfQuantization& quantization, std::span<const HfTensor> tensors) {
  for (const HfTensor& tensor : tensors) {
    size_t bytes = DTypeBytes(tensor.dtype);
    for (const int64_t size : tensor.shape) {
      if (size < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) {
        return Corrupt(tensor.suffix + ": a shape that cannot be");
      }
    }
    if (bytes != tensor.data.size()) {
      return Corrupt(tensor.suffix + ": " + std::to_string(tensor.data.size()) + " bytes where " +
                     std::to_string(bytes) + " are needed");
    }
  }
  return RowOf(quantization.layout).shape(quantization, tensors);
}

Result<QuantizedTensor> FromHfTensors(const HfQuantization& quantization,
                                      std::span<const HfTensor> tensors) {
  NIBBLE_RETURN_IF_ERROR(HfShapeOf(quantization, tensors).status());
  return RowOf(quantization.layout).read(quantization, tensors);
}

const HfTensor* FindHfTensor(std::span<const HfTensor> tensors, std::string_view suffix) {
  const auto it = std::ranges::find(tensors, suffix, &HfTensor::suffix);
  return it == tensors.end() ? nullptr : &*it;
}

Result<const HfTensor*> NeedHfTensor(std::span<const HfTensor> tensors, std::string_view suffix,
                                     DType dtype, const std::vector<int64_t>& shape) {
  const HfTensor* tensor = FindHfTensor(tensors, suffix);
  if (tensor == nullptr) return Corrupt("no tensor " + std::string(suffix));
  if (tensor->dtype != dtype || tensor->shape != shape) {
    return Corrupt(std::string(suffix) + ": " + DTypeName(tensor->dtype) + " of shape" +
                   ShapeText(tensor->shape) + " where " + DTypeName(dtype) + " of" +
                   ShapeText(shape) + " is needed");
  }
  return tensor;
}

}  // namespace nibble
