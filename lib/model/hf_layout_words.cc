// The layouts of GPTQ and AWQ: integer codes in words of 32 bits, zeros likewise, scales beside
// them.
#include <algorithm>
#include <array>
#include <numeric>

#include "kernels/planar.h"
#include "lib/model/hf_layout.h"

namespace nibble {
namespace {

constexpr int kWordBits = 32;

// A stream of codes of `bits` bits, lowest first, through words that are `stride` apart. Codes of 3
// bits run across the words' ends.
template <class Word>
struct WordStream {
  Word* words;
  int64_t stride;
  int bits;

  void Put(int64_t i, uint32_t code) const {
    Word* at = words + i * bits / kWordBits * stride;
    const int shift = static_cast<int>(i * bits % kWordBits);
    *at |= code << shift;
    if (shift + bits > kWordBits) at[stride] |= code >> (kWordBits - shift);
  }
  uint32_t Get(int64_t i) const {
    const Word* at = words + i * bits / kWordBits * stride;
    const int shift = static_cast<int>(i * bits % kWordBits);
    uint32_t code = *at >> shift;
    if (shift + bits > kWordBits) code |= at[stride] << (kWordBits - shift);
    return code & ((1u << bits) - 1);
  }
};

// AWQ's words hold eight consecutive rows in this order, lowest first: 0 2 4 6 1 3 5 7.
constexpr std::array<int, 8> kAwqPlaces = {0, 4, 1, 5, 2, 6, 3, 7};  // of each row

int64_t AwqPlace(int64_t row) { return row / 8 * 8 + kAwqPlaces[static_cast<size_t>(row % 8)]; }

// Where the codes of a matrix and its zeros lie.
class Words {
 public:
  Words(const HfQuantization& quantization, int64_t rows, int64_t cols)
      : awq_(quantization.layout == HfLayout::kAwq),
        bits_(quantization.scheme.bits),
        rows_(rows),
        cols_(cols),
        groups_(GroupsPerRow(quantization.scheme, cols)) {}

  int64_t row_words() const { return rows_ * bits_ / kWordBits; }
  std::vector<int64_t> code_shape() const {
    if (awq_) return {cols_, row_words()};
    return {cols_ * bits_ / kWordBits, rows_};
  }
  std::vector<int64_t> zero_shape() const { return {groups_, row_words()}; }
  std::vector<int64_t> scale_shape() const { return {groups_, rows_}; }

  template <class Word, class Function>
  void ForCodes(Word* words, int64_t row, const Function& function) const {
    if (awq_) {
      for (int64_t j = 0; j < cols_; ++j) {
        function(WordStream<Word>{words + j * row_words(), 1, bits_}, AwqPlace(row), j);
      }
    } else {
      const WordStream<Word> stream{words + row, rows_, bits_};
      for (int64_t j = 0; j < cols_; ++j) function(stream, j, j);
    }
  }
  template <class Word>
  WordStream<Word> Zeros(Word* words, int64_t group) const {
    return {words + group * row_words(), 1, bits_};
  }
  int64_t ZeroPlace(int64_t row) const { return awq_ ? AwqPlace(row) : row; }

 private:
  const bool awq_;
  const int bits_;
  const int64_t rows_, cols_, groups_;
};

// Codes that fill words together.
int64_t Period(int bits) { return kWordBits / std::gcd(bits, kWordBits); }

Status CheckIntegers(const Scheme& scheme, bool bits_fit, const char* bits) {
  const bool zeros = scheme.symmetric || scheme.zero_dtype == DType::kU8;
  if (scheme.code == Code::kUniform && bits_fit && scheme.granularity != Granularity::kTensor &&
      scheme.scale_dtype == DType::kF16 && zeros) {
    return OkStatus();
  }
  return Unsupported(std::string("holds integers of ") + bits +
                     " bits by group or channel, scales in f16 and zeros that are codes");
}

int32_t PlainGroup(const Scheme& scheme, int64_t column) {
  return scheme.granularity == Granularity::kGroup
             ? static_cast<int32_t>(column / scheme.group_size)
             : 0;
}

Result<std::vector<int32_t>> GroupIndex(const Scheme& scheme, int64_t cols,
                                        std::span<const HfTensor> tensors) {
  if (FindHfTensor(tensors, "g_idx") == nullptr) return std::vector<int32_t>();
  NIBBLE_ASSIGN_OR_RETURN(const HfTensor* tensor,
                          NeedHfTensor(tensors, "g_idx", DType::kI32, {cols}));
  std::vector<int32_t> index = ElementsOf<int32_t>(*tensor);
  const int64_t groups = GroupsPerRow(scheme, cols);
  bool plain = true;
  for (int64_t j = 0; j < cols; ++j) {
    const int32_t group = index[static_cast<size_t>(j)];
    if (group < 0 || group >= groups) {
      return Corrupt("g_idx: column " + std::to_string(j) + " is in group " +
                     std::to_string(group) + " of " + std::to_string(groups));
    }
    plain &= group == PlainGroup(scheme, j);
  }
  if (plain) index.clear();
  return index;
}

}  // namespace

Status CheckGptqScheme(const Scheme& scheme) {
  const int bits = scheme.bits;
  return CheckIntegers(scheme, bits == 2 || bits == 3 || bits == 4 || bits == 8, "2, 3, 4 or 8")
      .WithContext("gptq");
}

Status CheckAwqScheme(const Scheme& scheme) {
  return CheckIntegers(scheme, scheme.bits == 4 && !scheme.has_group_index, "4").WithContext("awq");
}

Result<std::vector<HfTensor>> WordTensors(const HfQuantization& quantization, int64_t rows,
                                          int64_t cols) {
  const Scheme& scheme = quantization.scheme;
  const bool awq = quantization.layout == HfLayout::kAwq;
  const int64_t period = Period(scheme.bits);
  const int64_t step = awq && scheme.granularity == Granularity::kGroup ? scheme.group_size : 1;
  if (rows % period != 0 || (!awq && cols % period != 0) || cols % step != 0) {
    return Unsupported(std::to_string(rows) + " x " + std::to_string(cols) + " weights, where " +
                       GetHfLayoutInfo(quantization.layout).name + " needs multiples of " +
                       std::to_string(period) + (step > 1 ? " and of whole groups" : ""));
  }
  const Words words(quantization, rows, cols);
  std::vector<HfTensor> tensors = {{"qweight", DType::kI32, words.code_shape(), {}},
                                   {"qzeros", DType::kI32, words.zero_shape(), {}},
                                   {"scales", DType::kF16, words.scale_shape(), {}}};
  if (!awq) tensors.push_back({"g_idx", DType::kI32, {cols}, {}});
  return tensors;
}

Status FillWords(const HfQuantization& quantization, const QuantizedTensor& matrix, DType,
                 std::span<HfTensor> tensors) {
  const Scheme& scheme = matrix.scheme();
  const int64_t rows = matrix.rows(), cols = matrix.cols(), groups = GroupsPerRow(scheme, cols);
  const int bits = scheme.bits;
  const auto plane = [&](Plane p) {
    return reinterpret_cast<const uint8_t*>(matrix.plane(p).data());
  };
  const Words words(quantization, rows, cols);
  auto* codes = reinterpret_cast<uint32_t*>(tensors[0].data.data());
  auto* zeros = reinterpret_cast<uint32_t*>(tensors[1].data.data());
  auto* scales = reinterpret_cast<uint16_t*>(tensors[2].data.data());
  // An unsigned code from one in two's complement, and the zero of all of them.
  const uint32_t middle = scheme.symmetric ? 1u << (bits - 1) : 0u, mask = (1u << bits) - 1;
  std::vector<uint8_t> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    UnpackCodes(plane(Plane::kCodes) + r * PlanarRowBytes(bits, cols), bits, cols, row.data());
    words.ForCodes(codes, r, [&](const auto& stream, int64_t place, int64_t j) {
      stream.Put(place, (row[static_cast<size_t>(j)] + middle) & mask);
    });
    for (int64_t g = 0; g < groups; ++g) {
      const uint32_t zero = scheme.symmetric ? middle : plane(Plane::kZeros)[r * groups + g];
      const uint32_t stored = zero - (quantization.zeros_less_one ? 1u : 0u);
      if (stored > mask) {
        return InvalidArgument("row " + std::to_string(r) + ", group " + std::to_string(g) +
                               ": the zero " + std::to_string(zero) + " cannot be stored");
      }
      words.Zeros(zeros, g).Put(words.ZeroPlace(r), stored);
      std::memcpy(scales + g * rows + r, plane(Plane::kScales) + 2 * (r * groups + g), 2);
    }
  }
  if (tensors.size() > 3) {
    auto* index = reinterpret_cast<int32_t*>(tensors[3].data.data());
    if (scheme.has_group_index) {
      std::memcpy(index, plane(Plane::kGroupIndex), static_cast<size_t>(cols) * 4);
    } else {
      for (int64_t j = 0; j < cols; ++j) index[j] = PlainGroup(scheme, j);
    }
  }
  return OkStatus();
}

Result<HfShape> WordsShape(const HfQuantization& quantization, std::span<const HfTensor> tensors) {
  const HfTensor* codes = FindHfTensor(tensors, "qweight");
  if (codes == nullptr || codes->shape.size() != 2) return Corrupt("no matrix qweight");
  const int bits = quantization.scheme.bits;
  HfShape shape{codes->shape[1], codes->shape[0]};
  int64_t& packed = quantization.layout == HfLayout::kAwq ? shape.rows : shape.cols;
  if (shape.rows < 1 || shape.cols < 1 || packed > INT64_MAX / kWordBits ||
      packed * kWordBits % bits != 0) {
    return Corrupt("qweight: no whole number of codes");
  }
  packed = packed * kWordBits / bits;
  if (shape.rows % Period(bits) != 0) return Corrupt("qweight: rows that fill no words of zeros");
  return shape;
}

Result<QuantizedTensor> ReadWords(const HfQuantization& quantization,
                                  std::span<const HfTensor> tensors) {
  Scheme scheme = quantization.scheme;
  NIBBLE_ASSIGN_OR_RETURN(const HfShape shape, WordsShape(quantization, tensors));
  const int64_t rows = shape.rows, cols = shape.cols, groups = GroupsPerRow(scheme, cols);
  const int bits = scheme.bits;
  const Words words(quantization, rows, cols);
  NIBBLE_ASSIGN_OR_RETURN(const HfTensor* code_tensor,
                          NeedHfTensor(tensors, "qweight", DType::kI32, words.code_shape()));
  NIBBLE_ASSIGN_OR_RETURN(const HfTensor* zero_tensor,
                          NeedHfTensor(tensors, "qzeros", DType::kI32, words.zero_shape()));
  const HfTensor* scale_tensor = FindHfTensor(tensors, "scales");
  if (scale_tensor != nullptr &&
      (scale_tensor->dtype == DType::kF32 || scale_tensor->dtype == DType::kBF16)) {
    scheme.scale_dtype = scale_tensor->dtype;
  }
  NIBBLE_ASSIGN_OR_RETURN(scale_tensor,
                          NeedHfTensor(tensors, "scales", scheme.scale_dtype, words.scale_shape()));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> index, GroupIndex(scheme, cols, tensors));
  if (!index.empty() && scheme.granularity != Granularity::kGroup) {
    return Corrupt("g_idx: groups where config.json tells of none");
  }
  scheme.has_group_index = !index.empty();

  const std::vector<uint32_t> zero_words = ElementsOf<uint32_t>(*zero_tensor);
  std::vector<uint8_t> zeros(static_cast<size_t>(rows * groups));
  const uint32_t middle = 1u << (bits - 1);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const uint32_t zero = words.Zeros(zero_words.data(), g).Get(words.ZeroPlace(r)) +
                            (quantization.zeros_less_one ? 1u : 0u);
      if (zero > 255) return Unsupported("qzeros: a zero of 256");
      zeros[static_cast<size_t>(r * groups + g)] = static_cast<uint8_t>(zero);
      scheme.symmetric &= zero == middle;
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor matrix, QuantizedTensor::Allocate(scheme, rows, cols));
  const auto plane = [&](Plane p) { return reinterpret_cast<uint8_t*>(matrix.plane(p).data()); };
  if (!scheme.symmetric) std::ranges::copy(zeros, plane(Plane::kZeros));
  if (!index.empty()) std::memcpy(plane(Plane::kGroupIndex), index.data(), index.size() * 4);
  const size_t width = DTypeBytes(scheme.scale_dtype);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      std::memcpy(plane(Plane::kScales) + static_cast<size_t>(r * groups + g) * width,
                  scale_tensor->data.data() + static_cast<size_t>(g * rows + r) * width, width);
    }
  }
  const std::vector<uint32_t> code_words = ElementsOf<uint32_t>(*code_tensor);
  const uint32_t shift = scheme.symmetric ? middle : 0u, mask = (1u << bits) - 1;
  std::vector<uint8_t> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    words.ForCodes(code_words.data(), r, [&](const auto& stream, int64_t place, int64_t j) {
      row[static_cast<size_t>(j)] = static_cast<uint8_t>((stream.Get(place) - shift) & mask);
    });
    PackCodes(row.data(), bits, cols, plane(Plane::kCodes) + r * PlanarRowBytes(bits, cols));
  }
  return matrix;
}

}  // namespace nibble
