// config.json's "quantization_config".
#include <algorithm>
#include <string_view>
#include <vector>

#include "lib/model/hf_layout.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

int32_t GroupSize(const Scheme& scheme) {
  return scheme.granularity == Granularity::kGroup ? scheme.group_size : -1;
}

Json WriteGptq(const HfQuantization& q, const HfConfigDetails& details) {
  return {{"bits", q.scheme.bits},
          {"group_size", GroupSize(q.scheme)},
          {"sym", q.scheme.symmetric},
          {"desc_act", q.scheme.has_group_index},
          {"static_groups", details.static_groups},
          {"true_sequential", false},
          {"damp_percent", details.damping},
          {"lm_head", false},
          {"checkpoint_format", q.zeros_less_one ? "gptq" : "gptq_v2"},
          {"pack_dtype", "int32"},
          {"meta", {{"quantizer", {"nibble:" NIBBLE_VERSION}}}}};
}

Json WriteAwq(const HfQuantization& q) {
  return {{"bits", q.scheme.bits},
          {"group_size", GroupSize(q.scheme)},
          {"zero_point", true},
          {"version", "gemm"},
          {"modules_to_not_convert", nullptr}};
}

Json WriteBitsAndBytes(const HfQuantization& q) {
  const bool eight = q.scheme.code == Code::kUniform;
  return {{"load_in_8bit", eight},
          {"load_in_4bit", !eight},
          {"_load_in_8bit", eight},
          {"_load_in_4bit", !eight},
          {"llm_int8_threshold", 6.0},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_skip_modules", {"lm_head"}},
          {"bnb_4bit_quant_type", q.scheme.code == Code::kFp4 ? "fp4" : "nf4"},
          {"bnb_4bit_use_double_quant", q.scheme.double_quant},
          {"bnb_4bit_compute_dtype", "bfloat16"},
          {"bnb_4bit_quant_storage", "uint8"}};
}

Json WriteCompressed(const HfQuantization& q) {
  const bool integers = q.scheme.code == Code::kUniform;
  const char* type = integers ? "int" : "float";
  const char* strategy = q.scheme.granularity == Granularity::kChannel ? "channel" : "tensor";
  const Json weights = {{"num_bits", 8},
                        {"type", type},
                        {"symmetric", true},
                        {"strategy", strategy},
                        {"dynamic", false},
                        {"group_size", nullptr},
                        {"block_structure", nullptr},
                        {"actorder", nullptr},
                        {"observer", "minmax"},
                        {"observer_kwargs", Json::object()}};
  const Json inputs = {{"num_bits", 8},
                       {"type", type},
                       {"symmetric", true},
                       {"strategy", "token"},
                       {"dynamic", true},
                       {"group_size", nullptr},
                       {"block_structure", nullptr},
                       {"actorder", nullptr},
                       {"observer", nullptr},
                       {"observer_kwargs", Json::object()}};
  return {{"format", integers ? "int-quantized" : "float-quantized"},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"weights", weights},
              {"input_activations", inputs},
              {"output_activations", nullptr}}}}},
          {"ignore", {"lm_head"}},
          {"kv_cache_scheme", nullptr},
          {"quantization_status", "compressed"},
          {"global_compression_ratio", nullptr}};
}

Json WriteAqlm(const HfQuantization& q) {
  return {{"num_codebooks", q.scheme.codebooks},
          {"nbits_per_codebook", q.scheme.bits},
          {"in_group_size", q.scheme.vector},
          {"out_group_size", 1},
          // By the weight for transformers 4, by the module for 5.
          {"linear_weights_not_to_quantize", {"lm_head.weight", "lm_head"}}};
}

// --- Reading. ---

Result<Scheme> ReadIntegers(const JsonObject& json) {
  Scheme scheme;
  scheme.scale_dtype = DType::kF16;
  NIBBLE_ASSIGN_OR_RETURN(const int64_t bits, json.Integer("bits", 1, 8));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t group, json.Integer("group_size", -1, 1 << 20));
  scheme.bits = static_cast<uint8_t>(bits);
  if (group < 1) {
    scheme.granularity = Granularity::kChannel;
  } else {
    scheme.group_size = static_cast<int32_t>(group);
  }
  return scheme;
}

Status NeedWord(const JsonObject& json, const char* key, std::string otherwise,
                const std::vector<std::string_view>& words) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string found, json.StringOr(key, std::move(otherwise)));
  if (std::ranges::find(words, std::string_view(found)) != words.end()) return OkStatus();
  return Unsupported(json.name() + ": " + key + " \"" + Printable(found) + "\"");
}

Result<HfQuantization> ReadGptq(const JsonObject& json) {
  HfQuantization q{HfLayout::kGptq, {}, true};
  NIBBLE_ASSIGN_OR_RETURN(q.scheme, ReadIntegers(json));
  NIBBLE_ASSIGN_OR_RETURN(q.scheme.symmetric, json.BoolOr("sym", true));
  NIBBLE_RETURN_IF_ERROR(NeedWord(json, "pack_dtype", "int32", {"int32"}));
  NIBBLE_ASSIGN_OR_RETURN(const std::string format, json.StringOr("checkpoint_format", "gptq"));
  if (format != "gptq" && format != "gptq_v2") {
    return Unsupported(json.name() + ": checkpoint_format \"" + Printable(format) + "\"");
  }
  q.zeros_less_one = format == "gptq";
  return q;
}

Result<HfQuantization> ReadAwq(const JsonObject& json) {
  HfQuantization q{HfLayout::kAwq, {}, false};
  NIBBLE_ASSIGN_OR_RETURN(q.scheme, ReadIntegers(json));
  q.scheme.symmetric = false;
  NIBBLE_RETURN_IF_ERROR(NeedWord(json, "version", "gemm", {"gemm", "GEMM"}));
  NIBBLE_ASSIGN_OR_RETURN(const bool zeros, json.BoolOr("zero_point", true));
  if (!zeros) return Unsupported(json.name() + ": no zero_point");
  return q;
}

// The tensors tell the rest.
Result<HfQuantization> ReadBitsAndBytesConfig(const JsonObject& json) {
  HfQuantization q{HfLayout::kBitsAndBytes, {}, false};
  NIBBLE_ASSIGN_OR_RETURN(const bool eight, json.BoolOr("load_in_8bit", false));
  NIBBLE_ASSIGN_OR_RETURN(const bool four, json.BoolOr("load_in_4bit", false));
  if (eight == four) return Corrupt(json.name() + ": neither 4 bits nor 8");
  if (eight) {
    q.scheme = {.bits = 8, .granularity = Granularity::kChannel};
  } else {
    q.scheme = {.code = Code::kNf4};
  }
  return q;
}

Result<HfQuantization> ReadCompressedConfig(const JsonObject& json) {
  HfQuantization q{HfLayout::kCompressedTensors, {}, false};
  NIBBLE_ASSIGN_OR_RETURN(const std::string format, json.StringOr("format", ""));
  if (format != "int-quantized" && format != "float-quantized" && format != "naive-quantized") {
    return Unsupported(json.name() + ": format \"" + Printable(format) + "\"");
  }
  q.scheme.bits = 8;
  q.scheme.granularity = Granularity::kChannel;
  if (format == "float-quantized") q.scheme.code = Code::kF8E4M3;
  return q;
}

// The tensors tell the type of codebooks and scales.
Result<HfQuantization> ReadAqlmConfig(const JsonObject& json) {
  HfQuantization q{HfLayout::kAqlm, {}, false};
  NIBBLE_ASSIGN_OR_RETURN(const int64_t codebooks, json.Integer("num_codebooks", 1, 255));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t bits, json.Integer("nbits_per_codebook", 1, 255));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t vector, json.Integer("in_group_size", 1, 255));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t rows, json.Integer("out_group_size", 1, 255));
  if (rows != 1) {
    return Unsupported(json.name() + ": vectors of several rows (out_group_size " +
                       std::to_string(rows) + ")");
  }
  q.scheme = {.code = Code::kAdditive,
              .bits = static_cast<uint8_t>(bits),
              .granularity = Granularity::kChannel,
              .scale_dtype = DType::kF16,
              .codebooks = static_cast<uint8_t>(codebooks),
              .vector = static_cast<uint8_t>(vector)};
  return q;
}

}  // namespace

nlohmann::json WriteHfQuantization(const HfQuantization& quantization,
                                   const HfConfigDetails& details) {
  const auto write = [&]() -> Json {
    switch (quantization.layout) {
      case HfLayout::kGptq:
        return WriteGptq(quantization, details);
      case HfLayout::kAwq:
        return WriteAwq(quantization);
      case HfLayout::kBitsAndBytes:
        return WriteBitsAndBytes(quantization);
      case HfLayout::kCompressedTensors:
        return WriteCompressed(quantization);
      case HfLayout::kAqlm:
        return WriteAqlm(quantization);
    }
    return {};
  };
  Json json = write();
  json["quant_method"] = GetHfLayoutInfo(quantization.layout).name;
  return json;
}

Result<std::optional<HfQuantization>> ReadHfQuantization(const JsonObject& config) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject json, config.ObjectOr("quantization_config"));
  if (json.empty()) return std::optional<HfQuantization>();
  NIBBLE_ASSIGN_OR_RETURN(const std::string method, json.StringOr("quant_method", "unknown"));
  const Result<HfLayout> layout = ParseHfLayout(method);
  if (!layout.ok()) {
    return Unsupported(config.name() + ": the model is quantized already (" + Printable(method) +
                       "), in a layout that is not known here");
  }
  const auto read = [&]() -> Result<HfQuantization> {
    switch (*layout) {
      case HfLayout::kGptq:
        return ReadGptq(json);
      case HfLayout::kAwq:
        return ReadAwq(json);
      case HfLayout::kBitsAndBytes:
        return ReadBitsAndBytesConfig(json);
      case HfLayout::kCompressedTensors:
        return ReadCompressedConfig(json);
      case HfLayout::kAqlm:
        return ReadAqlmConfig(json);
    }
    return InternalError("no such layout");
  };
  NIBBLE_ASSIGN_OR_RETURN(const HfQuantization quantization, read());
  NIBBLE_RETURN_IF_ERROR(
      CheckHfLayout(quantization.layout, quantization.scheme).WithContext(config.name()));
  return std::optional<HfQuantization>(quantization);
}

}  // namespace nibble
