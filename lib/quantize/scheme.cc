#include "nibble/scheme.h"

#include <array>
#include <charconv>
#include <cctype>
#include <string>
#include <utility>

#include "kernels/codec_planar.h"
#include "nibble/quantized_tensor.h"

namespace nibble {
namespace {

std::string CodeWord(const Scheme& scheme) {
  switch (scheme.code) {
    case Code::kUniform:
      return "int" + std::to_string(scheme.bits);
    case Code::kNf4:
      return "nf4";
    case Code::kFp4:
      return "fp4";
    case Code::kF8E4M3:
      return "f8_e4m3";
    case Code::kF8E5M2:
      return "f8_e5m2";
    case Code::kTable:
      return "table" + std::to_string(scheme.bits);
    case Code::kAdditive:
      return std::to_string(scheme.codebooks) + "x" + std::to_string(scheme.bits) + "g" +
             std::to_string(scheme.vector);
  }
  return "unknown";
}

// The number that makes up the rest of `word` after `prefix`; false where that is not all of it.
bool NumberAfter(std::string_view word, std::string_view prefix, int32_t* number) {
  if (!word.starts_with(prefix) || word.size() == prefix.size()) return false;
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data() + prefix.size(), end, *number);
  return error == std::errc() && stop == end;
}

// The three numbers of a word as "2x8g8"; false where it is none.
bool AdditiveWord(std::string_view word, std::array<uint8_t, 3>* numbers) {
  const char *at = word.data(), *const end = word.data() + word.size();
  for (size_t i = 0; i < 3; ++i) {
    if (i > 0 && (at == end || *at++ != "xg"[i - 1])) return false;
    const auto [stop, error] = std::from_chars(at, end, (*numbers)[i]);
    if (error != std::errc()) return false;
    at = stop;
  }
  return at == end;
}

// What ParseScheme has been told so far: each property at most once.
struct Words {
  Scheme scheme;
  bool code = false, symmetry = false, granularity = false, scale = false, zero = false;
};

// Takes one word; false where it means nothing or repeats a property.
bool TakeWord(std::string_view word, Words* words) {
  Scheme& s = words->scheme;
  const auto once = [](bool* seen) { return !std::exchange(*seen, true); };
  const auto code = [&](Code c, int bits) {
    s.code = c;
    s.bits = static_cast<uint8_t>(bits);
    return bits >= 1 && bits <= 8 && once(&words->code);
  };
  int32_t number = 0;
  std::array<uint8_t, 3> numbers;
  if (AdditiveWord(word, &numbers)) {
    s.code = Code::kAdditive;
    s.codebooks = numbers[0];
    s.bits = numbers[1];
    s.vector = numbers[2];
    if (!words->granularity) s.granularity = Granularity::kChannel;
    return once(&words->code);
  }
  if (word == "nf4") return code(Code::kNf4, 4);
  if (word == "fp4") return code(Code::kFp4, 4);
  if (word == "f8_e4m3") return code(Code::kF8E4M3, 8);
  if (word == "f8_e5m2") return code(Code::kF8E5M2, 8);
  if (NumberAfter(word, "int", &number)) return code(Code::kUniform, number);
  if (NumberAfter(word, "table", &number)) return code(Code::kTable, number);
  if (word == "sym" || word == "asym") {
    s.symmetric = word == "sym";
    return once(&words->symmetry);
  }
  if (word == "tensor" || word == "channel") {
    s.granularity = word == "tensor" ? Granularity::kTensor : Granularity::kChannel;
    return once(&words->granularity);
  }
  if (NumberAfter(word, "g", &number)) {
    s.granularity = Granularity::kGroup;
    s.group_size = number;
    return once(&words->granularity);
  }
  for (const DType t : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (word != DTypeName(t)) continue;
    s.scale_dtype = t;
    return once(&words->scale);
  }
  for (const DType t : {DType::kU8, DType::kF16, DType::kF32}) {
    if (word != std::string("z") + DTypeName(t)) continue;
    s.zero_dtype = t;
    return once(&words->zero);
  }
  if (word == "double") return once(&s.double_quant);
  if (word == "act-order") return once(&s.has_group_index);
  return false;
}

}  // namespace

Status CheckScheme(const Scheme& s) {
  const auto refuse = [&](const std::string& why) {
    return InvalidArgument("scheme " + CodeWord(s) + ": " + why);
  };
  if (s.code > Code::kAdditive || s.granularity > Granularity::kGroup) {
    return refuse("unknown code or granularity");
  }
  const int bits = s.bits;
  const bool bits_ok = s.code == Code::kUniform ? bits >= (s.symmetric ? 2 : 1) && bits <= 8
                       : s.code == Code::kTable ? bits >= 1 && bits <= 8
                       : s.code == Code::kNf4 || s.code == Code::kFp4 ? bits == 4
                       : s.code == Code::kAdditive                    ? bits == 8 || bits == 16
                                                                      : bits == 8;
  if (!bits_ok) return refuse("cannot have " + std::to_string(bits) + " bits");
  if (!s.symmetric && s.code != Code::kUniform) return refuse("only integer codes have zeros");
  if (s.code == Code::kAdditive) {
    if (s.codebooks < 1 || s.codebooks > 8) {
      return refuse("1 to 8 codebooks, not " + std::to_string(s.codebooks));
    }
    if (s.vector != 8 && s.vector != 16 && s.vector != 32) {
      return refuse("vectors of 8, 16 or 32 weights, not " + std::to_string(s.vector));
    }
    if (s.granularity != Granularity::kChannel) return refuse("scales are by channel");
  } else if (s.codebooks != 1 || s.vector != 1) {
    return refuse("a code stands for one weight");
  }
  if (s.granularity == Granularity::kGroup && s.group_size < 1) {
    return refuse("a group of " + std::to_string(s.group_size) + " weights");
  }
  if (s.scale_dtype != DType::kF32 && s.scale_dtype != DType::kF16 &&
      s.scale_dtype != DType::kBF16) {
    return refuse(std::string("scales cannot be ") + DTypeName(s.scale_dtype));
  }
  if (!s.symmetric && s.zero_dtype != DType::kU8 && s.zero_dtype != DType::kF16 &&
      s.zero_dtype != DType::kF32) {
    return refuse(std::string("zeros cannot be ") + DTypeName(s.zero_dtype));
  }
  if (s.double_quant) {
    if (s.code != Code::kNf4 && s.code != Code::kFp4) {
      return refuse("double quantization is defined for nf4 and fp4");
    }
    if (s.granularity == Granularity::kTensor) return refuse("one scale cannot be quantized again");
    if (s.scale_dtype != DType::kF32) return refuse("double quantization starts from f32 scales");
  }
  if (s.has_group_index && s.granularity != Granularity::kGroup) {
    return refuse("a group index without groups");
  }
  return OkStatus();
}

std::string SchemeName(const Scheme& s) {
  std::string name = CodeWord(s);
  if (s.code == Code::kUniform) name += s.symmetric ? " sym" : " asym";
  switch (s.granularity) {
    case Granularity::kTensor:
      name += " tensor";
      break;
    case Granularity::kChannel:
      name += " channel";
      break;
    case Granularity::kGroup:
      name += " g" + std::to_string(s.group_size);
      break;
  }
  if (s.scale_dtype != DType::kF32) name += std::string(" ") + DTypeName(s.scale_dtype);
  if (!s.symmetric && s.zero_dtype != DType::kU8) {
    name += std::string(" z") + DTypeName(s.zero_dtype);
  }
  if (s.double_quant) name += " double";
  if (s.has_group_index) name += " act-order";
  return name;
}

Result<Scheme> ParseScheme(std::string_view name) {
  Words words;
  size_t i = 0;
  while (i < name.size()) {
    if (name[i] == ' ') {
      ++i;
      continue;
    }
    std::string word;
    for (; i < name.size() && name[i] != ' '; ++i) {
      word += static_cast<char>(std::tolower(static_cast<unsigned char>(name[i])));
    }
    if (!TakeWord(word, &words)) {
      return InvalidArgument("scheme \"" + std::string(name) + "\": unexpected word \"" + word +
                             "\"");
    }
  }
  if (!words.code) {
    return InvalidArgument("scheme \"" + std::string(name) +
                           "\" names no code (int1 to int8, nf4, fp4, f8_e4m3, f8_e5m2, table1 to "
                           "table8, codebooks such as 2x8g8)");
  }
  if (words.zero && words.scheme.symmetric) {
    return InvalidArgument("scheme \"" + std::string(name) + "\": zeros need \"asym\"");
  }
  NIBBLE_RETURN_IF_ERROR(CheckScheme(words.scheme));
  return words.scheme;
}

int64_t GroupsPerRow(const Scheme& scheme, int64_t cols) {
  if (scheme.granularity != Granularity::kGroup) return 1;
  return cols / scheme.group_size + (cols % scheme.group_size != 0);
}

Result<size_t> PlaneBytes(const Scheme& scheme, Plane plane, int64_t rows, int64_t cols) {
  NIBBLE_RETURN_IF_ERROR(CheckScheme(scheme));
  if (rows < 0 || cols < 0) return InvalidArgument("negative shape");
  const auto too_large = [&] {
    return InvalidArgument("a matrix of " + std::to_string(rows) + " x " + std::to_string(cols) +
                           " is too large");
  };
  // Every plane is `count` times `unit` bytes; both factors are checked.
  const int64_t scale_rows = scheme.granularity == Granularity::kTensor ? (rows > 0) : rows;
  int64_t count = 0;
  size_t unit = 0;
  bool overflow = false;
  switch (plane) {
    case Plane::kCodes: {
      int64_t bits = 0;
      overflow = cols / scheme.vector >= INT64_MAX / scheme.codebooks ||
                 __builtin_mul_overflow(CodesPerRow(scheme, cols), int64_t{scheme.bits}, &bits);
      count = rows;
      unit = static_cast<size_t>(bits / 8 + (bits % 8 != 0));
      break;
    }
    case Plane::kScales:
    case Plane::kZeros:
      if (plane == Plane::kZeros && scheme.symmetric) return size_t{0};
      overflow = __builtin_mul_overflow(scale_rows, GroupsPerRow(scheme, cols), &count);
      unit = plane == Plane::kZeros ? DTypeBytes(scheme.zero_dtype)
             : scheme.double_quant  ? 1
                                    : DTypeBytes(scheme.scale_dtype);
      break;
    case Plane::kGroupIndex:
      if (scheme.has_group_index) count = cols;
      unit = sizeof(int32_t);
      break;
    case Plane::kTable:
      if (scheme.code == Code::kTable) count = int64_t{1} << scheme.bits;
      unit = sizeof(float);
      if (scheme.code == Code::kAdditive) {
        count = int64_t{scheme.codebooks} * scheme.vector << scheme.bits;
        unit = DTypeBytes(scheme.scale_dtype);
      }
      break;
    case Plane::kSuperScales: {
      if (!scheme.double_quant) return size_t{0};
      int64_t scales = 0;
      overflow = __builtin_mul_overflow(scale_rows, GroupsPerRow(scheme, cols), &scales);
      count = scales / kScalesPerSuperBlock + (scales % kScalesPerSuperBlock != 0) + 1;
      unit = sizeof(float);
      break;
    }
    default:
      return InvalidArgument("unknown plane");
  }
  size_t bytes = 0;
  if (overflow || __builtin_mul_overflow(static_cast<size_t>(count), unit, &bytes) ||
      bytes > static_cast<size_t>(INT64_MAX)) {
    return too_large();
  }
  return bytes;
}

double SchemeBitsPerWeight(const Scheme& scheme, int64_t rows, int64_t cols) {
  double bytes = 0;
  for (int p = 0; p < kPlaneCount; ++p) {
    const Result<size_t> plane = PlaneBytes(scheme, static_cast<Plane>(p), rows, cols);
    if (plane.ok()) bytes += static_cast<double>(*plane);
  }
  const double weights = static_cast<double>(rows) * static_cast<double>(cols);
  return weights > 0 ? 8.0 * bytes / weights : 0.0;
}

}  // namespace nibble
