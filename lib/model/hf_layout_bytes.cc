// The layouts of bitsandbytes and of compressed-tensors: codes in bytes.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/codec_planar.h"
#include "lib/model/hf_layout.h"

namespace nibble {
namespace {

// --- Planes. ---

const std::byte* PlaneData(const QuantizedTensor& matrix, Plane plane) {
  return matrix.plane(plane).data();
}

void CopyPlane(const QuantizedTensor& matrix, Plane plane, HfTensor& tensor) {
  std::memcpy(tensor.data.data(), PlaneData(matrix, plane), tensor.data.size());
}

// --- bitsandbytes, 4 bits. ---

constexpr std::array kBlockSizes = {32, 64, 128, 256, 512, 1024, 2048, 4096};
constexpr std::string_view kState = "weight.quant_state.bitsandbytes__";
constexpr size_t kLargestState = 1 << 16;

bool IsFourBits(const Scheme& scheme) {
  return scheme.code == Code::kNf4 || scheme.code == Code::kFp4;
}

const char* FourBitName(Code code) { return code == Code::kNf4 ? "nf4" : "fp4"; }

float FourBitValue(Code code, uint32_t i) { return code == Code::kNf4 ? Nf4Value(i) : Fp4Value(i); }

bool IsBlockSize(int64_t size) { return std::ranges::find(kBlockSizes, size) != kBlockSizes.end(); }

// What the library keeps beside the tensors, as JSON. Padded with spaces, which no reader of JSON
// minds: its length must be known before the work.
std::string StateText(const QuantizedTensor& matrix, DType dtype, size_t bytes) {
  const Scheme& scheme = matrix.scheme();
  const char* type = dtype == DType::kF32   ? "float32"
                     : dtype == DType::kF16 ? "float16"
                                            : "bfloat16";
  nlohmann::ordered_json state = {{"quant_type", FourBitName(scheme.code)},
                                  {"blocksize", scheme.group_size},
                                  {"dtype", type},
                                  {"shape", {matrix.rows(), matrix.cols()}}};
  if (scheme.double_quant) {
    const auto* super = reinterpret_cast<const uint8_t*>(PlaneData(matrix, Plane::kSuperScales));
    const auto last = static_cast<int64_t>(matrix.plane(Plane::kSuperScales).size() / 4) - 1;
    state["nested_blocksize"] = kScalesPerSuperBlock;
    state["nested_dtype"] = "float32";
    state["nested_offset"] = static_cast<double>(LoadPlaneFloat(super, DType::kF32, last));
  }
  std::string text = state.dump();
  text.resize(bytes, ' ');
  return text;
}

// Enough for every shape and offset.
size_t StateBytes(const Scheme& scheme) { return scheme.double_quant ? 256 : 160; }

struct State {
  Code code = Code::kNf4;
  int64_t block = 0, rows = 0, cols = 0;
  bool nested = false;
  double offset = 0;
};

Result<State> ReadState(std::span<const HfTensor> tensors) {
  const auto it = std::ranges::find_if(
      tensors, [](const HfTensor& tensor) { return tensor.suffix.starts_with(kState); });
  if (it == tensors.end()) return Corrupt("no tensor " + std::string(kState));
  const HfTensor& tensor = *it;
  if (tensor.dtype != DType::kU8 || tensor.data.size() > kLargestState) {
    return Corrupt(tensor.suffix + ": no JSON of a readable length");
  }
  NIBBLE_ASSIGN_OR_RETURN(
      const JsonObject json,
      JsonObject::Parse({reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size()},
                        tensor.suffix));
  State state;
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, json.StringOr("quant_type", ""));
  if (type != "nf4" && type != "fp4") {
    return Unsupported(tensor.suffix + ": quant_type " + Printable(type));
  }
  state.code = type == "nf4" ? Code::kNf4 : Code::kFp4;
  NIBBLE_ASSIGN_OR_RETURN(state.block, json.Integer("blocksize", 1, 1 << 20));
  const nlohmann::json* shape = json.Find("shape");
  constexpr uint64_t kMostSize = uint64_t{1} << 31;
  if (shape == nullptr || !shape->is_array() || shape->size() != 2 ||
      !(*shape)[0].is_number_unsigned() || !(*shape)[1].is_number_unsigned() ||
      (*shape)[0] > kMostSize || (*shape)[1] > kMostSize || (*shape)[0] < 1u || (*shape)[1] < 1u) {
    return Corrupt(tensor.suffix + ": no shape of a matrix");
  }
  state.rows = (*shape)[0].get<int64_t>();
  state.cols = (*shape)[1].get<int64_t>();
  const nlohmann::json* offset = json.Find("nested_offset");
  state.nested = offset != nullptr;
  if (state.nested) {
    if (!offset->is_number()) return Corrupt(tensor.suffix + ": nested_offset is no number");
    state.offset = offset->get<double>();
    NIBBLE_RETURN_IF_ERROR(
        json.Integer("nested_blocksize", kScalesPerSuperBlock, kScalesPerSuperBlock).status());
  }
  return state;
}

// That a map of values is the one known here.
template <class Value>
Status CheckMap(std::span<const HfTensor> tensors, const char* suffix, int64_t count,
                const Value& value) {
  NIBBLE_ASSIGN_OR_RETURN(const HfTensor* tensor,
                          NeedHfTensor(tensors, suffix, DType::kF32, {count}));
  const std::vector<float> values = ElementsOf<float>(*tensor);
  for (int64_t i = 0; i < count; ++i) {
    if (!(std::fabs(values[static_cast<size_t>(i)] - value(static_cast<uint32_t>(i))) <= 1e-6f)) {
      return Unsupported(std::string(suffix) + ": value " + std::to_string(i) +
                         " is not the one known here");
    }
  }
  return OkStatus();
}

std::vector<HfTensor> FourBitTensors(const Scheme& scheme, int64_t rows, int64_t cols) {
  const int64_t scales = rows * GroupsPerRow(scheme, cols);
  const int64_t supers = (scales + kScalesPerSuperBlock - 1) / kScalesPerSuperBlock;
  std::vector<HfTensor> tensors = {
      {"weight", DType::kU8, {rows * cols / 2, 1}, {}},
      {"weight.absmax", scheme.double_quant ? DType::kU8 : DType::kF32, {scales}, {}},
      {"weight.quant_map", DType::kF32, {16}, {}},
      {std::string(kState) + FourBitName(scheme.code),
       DType::kU8,
       {static_cast<int64_t>(StateBytes(scheme))},
       {}}};
  if (scheme.double_quant) {
    tensors.push_back({"weight.nested_absmax", DType::kF32, {supers}, {}});
    tensors.push_back({"weight.nested_quant_map", DType::kF32, {256}, {}});
  }
  return tensors;
}

// nibble's streams begin with the low half of a byte, bitsandbytes' with the high one.
void SwapHalves(std::span<const std::byte> in, std::byte* out) {
  std::ranges::transform(in, out, [](std::byte b) { return b << 4 | b >> 4; });
}

void FillFourBits(const QuantizedTensor& matrix, DType dtype, std::span<HfTensor> tensors) {
  const Scheme& scheme = matrix.scheme();
  SwapHalves(matrix.plane(Plane::kCodes).bytes(), tensors[0].data.data());
  CopyPlane(matrix, Plane::kScales, tensors[1]);
  auto* map = reinterpret_cast<float*>(tensors[2].data.data());
  for (uint32_t i = 0; i < 16; ++i) map[i] = FourBitValue(scheme.code, i);
  const std::string state = StateText(matrix, dtype, tensors[3].data.size());
  std::memcpy(tensors[3].data.data(), state.data(), state.size());
  if (!scheme.double_quant) return;
  CopyPlane(matrix, Plane::kSuperScales, tensors[4]);  // all but the mean
  auto* nested = reinterpret_cast<float*>(tensors[5].data.data());
  for (uint32_t i = 0; i < 256; ++i) nested[i] = DynamicMapValue(i);
}

Result<QuantizedTensor> ReadFourBits(std::span<const HfTensor> tensors) {
  NIBBLE_ASSIGN_OR_RETURN(const State state, ReadState(tensors));
  if (state.cols % state.block != 0 || state.cols % 2 != 0) {
    return Unsupported("blocks of " + std::to_string(state.block) +
                       " weights that run across rows of " + std::to_string(state.cols));
  }
  Scheme scheme;
  scheme.code = state.code;
  scheme.group_size = static_cast<int32_t>(state.block);
  scheme.double_quant = state.nested;
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  const std::vector<HfTensor> wanted = FourBitTensors(scheme, state.rows, state.cols);
  std::vector<const HfTensor*> found;
  for (const HfTensor& tensor : wanted) {
    if (tensor.suffix.starts_with(kState)) continue;
    NIBBLE_ASSIGN_OR_RETURN(const HfTensor* have,
                            NeedHfTensor(tensors, tensor.suffix, tensor.dtype, tensor.shape));
    found.push_back(have);
  }
  NIBBLE_RETURN_IF_ERROR(CheckMap(tensors, "weight.quant_map", 16,
                                  [&](uint32_t i) { return FourBitValue(state.code, i); }));
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor matrix,
                          QuantizedTensor::Allocate(scheme, state.rows, state.cols));
  SwapHalves(found[0]->data.bytes(), matrix.plane(Plane::kCodes).data());
  std::ranges::copy(found[1]->data.bytes(), matrix.plane(Plane::kScales).data());
  if (state.nested) {
    NIBBLE_RETURN_IF_ERROR(CheckMap(tensors, "weight.nested_quant_map", 256,
                                    [](uint32_t i) { return DynamicMapValue(i); }));
    const std::span<const std::byte> maxima = found[3]->data.bytes();
    std::byte* super = matrix.plane(Plane::kSuperScales).data();
    std::ranges::copy(maxima, super);
    const auto mean = static_cast<float>(state.offset);
    std::memcpy(super + maxima.size(), &mean, sizeof(mean));
  }
  return matrix;
}

// --- bitsandbytes, 8 bits: rows of int8, their largest magnitudes in "SCB". ---

std::vector<HfTensor> RowTensors(int64_t rows, int64_t cols) {
  return {{"weight", DType::kI8, {rows, cols}, {}},
          {"SCB", DType::kF32, {rows}, {}},
          {"weight_format", DType::kU8, {}, {}}};  // 0: row by row
}

void FillRows(const QuantizedTensor& matrix, std::span<HfTensor> tensors) {
  CopyPlane(matrix, Plane::kCodes, tensors[0]);
  const auto* scales = reinterpret_cast<const uint8_t*>(PlaneData(matrix, Plane::kScales));
  auto* maxima = reinterpret_cast<float*>(tensors[1].data.data());
  for (int64_t r = 0; r < matrix.rows(); ++r) {
    maxima[r] = LoadPlaneFloat(scales, DType::kF32, r) * 127.0f;
  }
}

// A matrix whose codes are bytes, of the scheme.
Result<QuantizedTensor> FromBytes(const Scheme& scheme, const HfTensor& codes) {
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor matrix,
                          QuantizedTensor::Allocate(scheme, codes.shape[0], codes.shape[1]));
  std::ranges::copy(codes.data.bytes(), matrix.plane(Plane::kCodes).data());
  return matrix;
}

Result<const HfTensor*> CodesOf(std::span<const HfTensor> tensors) {
  const HfTensor* codes = FindHfTensor(tensors, "weight");
  if (codes == nullptr || codes->shape.size() != 2 || codes->shape[0] < 1 || codes->shape[1] < 1) {
    return Corrupt("no matrix weight");
  }
  return codes;
}

Result<QuantizedTensor> ReadRows(std::span<const HfTensor> tensors) {
  NIBBLE_ASSIGN_OR_RETURN(const HfTensor* codes, CodesOf(tensors));
  if (codes->dtype != DType::kI8) return Corrupt("weight: not int8");
  NIBBLE_ASSIGN_OR_RETURN(const HfTensor* maxima,
                          NeedHfTensor(tensors, "SCB", DType::kF32, {codes->shape[0]}));
  const HfTensor* format = FindHfTensor(tensors, "weight_format");
  if (format != nullptr &&
      !std::ranges::all_of(format->data.bytes(), [](std::byte b) { return b == std::byte{0}; })) {
    return Unsupported("weight_format: not row by row");
  }
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor matrix,
                          FromBytes({.bits = 8, .granularity = Granularity::kChannel}, *codes));
  std::vector<float> scales = ElementsOf<float>(*maxima);
  for (float& scale : scales) scale /= 127.0f;
  std::ranges::copy(std::as_bytes(std::span(scales)), matrix.plane(Plane::kScales).data());
  return matrix;
}

}  // namespace

Status CheckBitsAndBytesScheme(const Scheme& scheme) {
  const bool four = IsFourBits(scheme) && scheme.granularity == Granularity::kGroup &&
                    IsBlockSize(scheme.group_size);
  const bool rows = scheme.code == Code::kUniform && scheme.bits == 8 && scheme.symmetric &&
                    scheme.granularity == Granularity::kChannel;
  if ((four || rows) && scheme.scale_dtype == DType::kF32 && !scheme.has_group_index) {
    return OkStatus();
  }
  return Unsupported(
      "bitsandbytes holds nf4 and fp4 in groups of 32 to 4096 weights (a power of two) and 'int8 "
      "sym channel', scales in f32");
}

Result<std::vector<HfTensor>> BitsAndBytesTensors(const HfQuantization& quantization, int64_t rows,
                                                  int64_t cols) {
  const Scheme& scheme = quantization.scheme;
  if (!IsFourBits(scheme)) return RowTensors(rows, cols);
  if (cols % scheme.group_size != 0) {
    return Unsupported(std::to_string(rows) + " x " + std::to_string(cols) +
                       " weights: bitsandbytes' blocks of " + std::to_string(scheme.group_size) +
                       " would run across rows");
  }
  return FourBitTensors(scheme, rows, cols);
}

Status FillBitsAndBytes(const HfQuantization&, const QuantizedTensor& matrix, DType dtype,
                        std::span<HfTensor> tensors) {
  if (IsFourBits(matrix.scheme())) {
    FillFourBits(matrix, dtype, tensors);
  } else {
    FillRows(matrix, tensors);
  }
  return OkStatus();
}

Result<HfShape> BitsAndBytesShape(const HfQuantization& quantization,
                                  std::span<const HfTensor> tensors) {
  if (FindHfTensor(tensors, "SCB") != nullptr) return CompressedShape(quantization, tensors);
  NIBBLE_ASSIGN_OR_RETURN(const State state, ReadState(tensors));
  return HfShape{state.rows, state.cols};
}

Result<QuantizedTensor> ReadBitsAndBytes(const HfQuantization&, std::span<const HfTensor> tensors) {
  return FindHfTensor(tensors, "SCB") != nullptr ? ReadRows(tensors) : ReadFourBits(tensors);
}

// --- compressed-tensors: "int-quantized" and "float-quantized". ---

Status CheckCompressedScheme(const Scheme& scheme) {
  const bool code = (scheme.code == Code::kUniform && scheme.bits == 8 && scheme.symmetric) ||
                    scheme.code == Code::kF8E4M3;
  if (code && scheme.granularity != Granularity::kGroup) return OkStatus();
  return Unsupported("compressed-tensors holds 'int8 sym' and 'f8_e4m3' by channel or tensor");
}

Result<std::vector<HfTensor>> CompressedTensors(const HfQuantization& quantization, int64_t rows,
                                                int64_t cols) {
  const Scheme& scheme = quantization.scheme;
  const bool channels = scheme.granularity == Granularity::kChannel;
  return std::vector<HfTensor>{
      {"weight", scheme.code == Code::kUniform ? DType::kI8 : DType::kF8E4M3, {rows, cols}, {}},
      {"weight_scale",
       scheme.scale_dtype,
       channels ? std::vector<int64_t>{rows, 1} : std::vector<int64_t>{1},
       {}}};
}

Status FillCompressed(const HfQuantization&, const QuantizedTensor& matrix, DType,
                      std::span<HfTensor> tensors) {
  CopyPlane(matrix, Plane::kCodes, tensors[0]);
  CopyPlane(matrix, Plane::kScales, tensors[1]);
  return OkStatus();
}

Result<HfShape> CompressedShape(const HfQuantization&, std::span<const HfTensor> tensors) {
  NIBBLE_ASSIGN_OR_RETURN(const HfTensor* codes, CodesOf(tensors));
  return HfShape{codes->shape[0], codes->shape[1]};
}

Result<QuantizedTensor> ReadCompressed(const HfQuantization&, std::span<const HfTensor> tensors) {
  NIBBLE_ASSIGN_OR_RETURN(const HfTensor* codes, CodesOf(tensors));
  const HfTensor* scales = FindHfTensor(tensors, "weight_scale");
  if (scales == nullptr) return Corrupt("no tensor weight_scale");
  Scheme scheme;
  scheme.bits = 8;
  scheme.code = codes->dtype == DType::kF8E4M3 ? Code::kF8E4M3 : Code::kUniform;
  scheme.scale_dtype = scales->dtype;
  const bool one = scales->shape.empty() || scales->shape == std::vector<int64_t>{1};
  scheme.granularity = one ? Granularity::kTensor : Granularity::kChannel;
  if ((codes->dtype != DType::kI8 && codes->dtype != DType::kF8E4M3) ||
      (!one && scales->shape != std::vector<int64_t>{codes->shape[0], 1})) {
    return Unsupported(
        "weight: codes or scales of another kind than int8 or f8_e4m3 by channel or "
        "tensor");
  }
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor matrix, FromBytes(scheme, *codes));
  std::ranges::copy(scales->data.bytes(), matrix.plane(Plane::kScales).data());
  return matrix;
}

}  // namespace nibble
