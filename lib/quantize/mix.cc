#include "nibble/mix.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <numeric>
#include <optional>
#include <regex>

#include "lib/io/errors.h"

namespace nibble {
namespace {

constexpr MixInfo kMixes[] = {
    {Mix::kF32, "F32", Format::kF32, 0},
    {Mix::kF16, "F16", Format::kF16, 1},
    {Mix::kBF16, "BF16", Format::kBF16, 32},
    {Mix::kQ4_0, "Q4_0", Format::kQ4_0, 2},
    {Mix::kQ4_1, "Q4_1", Format::kQ4_1, 3},
    {Mix::kQ5_0, "Q5_0", Format::kQ5_0, 8},
    {Mix::kQ5_1, "Q5_1", Format::kQ5_1, 9},
    {Mix::kQ8_0, "Q8_0", Format::kQ8_0, 7},
    {Mix::kQ2_K, "Q2_K", Format::kQ2_K, 10},
    {Mix::kQ2_K_S, "Q2_K_S", Format::kQ2_K, 21},
    {Mix::kQ3_K_S, "Q3_K_S", Format::kQ3_K, 11},
    {Mix::kQ3_K_M, "Q3_K_M", Format::kQ3_K, 12},
    {Mix::kQ3_K_L, "Q3_K_L", Format::kQ3_K, 13},
    {Mix::kQ4_K_S, "Q4_K_S", Format::kQ4_K, 14},
    {Mix::kQ4_K_M, "Q4_K_M", Format::kQ4_K, 15},
    {Mix::kQ5_K_S, "Q5_K_S", Format::kQ5_K, 16},
    {Mix::kQ5_K_M, "Q5_K_M", Format::kQ5_K, 17},
    {Mix::kQ6_K, "Q6_K", Format::kQ6_K, 18},
    {Mix::kIQ4_NL, "IQ4_NL", Format::kIQ4_NL, 25},
    {Mix::kIQ4_XS, "IQ4_XS", Format::kIQ4_XS, 30},
    {Mix::kTQ1_0, "TQ1_0", Format::kTQ1_0, 36},
    {Mix::kTQ2_0, "TQ2_0", Format::kTQ2_0, 37},
    {Mix::kMXFP4_MOE, "MXFP4_MOE", Format::kMXFP4, 38},
};

bool EqualIgnoringCase(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::tolower(x) == std::tolower(y);
  });
}

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// What a mix needs to know of a model.
struct Model {
  std::string architecture;
  int layers = 0;
  int experts = 0;
  int heads_per_kv = 1;
  bool tied_embeddings = true;  // no output matrix of its own
  bool has_importance = false;
  int value_tensors = 0;  // attention values, alone or fused with others

  bool falcon() const { return architecture == "falcon"; }
  // The 70B models: their value matrices are an eighth of the queries', more bits cost little.
  bool is_70b() const {
    if (layers != 80) return false;
    return (architecture == "llama" && heads_per_kv > 1) || architecture == "qwen2" ||
           architecture == "deci" || architecture == "apertus";
  }
};

// A count that may be given once or layer by layer; the first layer's then.
int ReadCount(const GgufMetadata& metadata, const std::string& key, int fallback) {
  if (const Result<uint64_t> value = metadata.GetUint(key); value.ok()) {
    return static_cast<int>(std::min<uint64_t>(*value, 1 << 20));
  }
  const GgufValue* value = metadata.Find(key);
  if (value == nullptr) return fallback;
  if (const auto* list = std::get_if<std::vector<int32_t>>(value); list && !list->empty()) {
    return list->front();
  }
  if (const auto* list = std::get_if<std::vector<uint32_t>>(value); list && !list->empty()) {
    return static_cast<int>(std::min<uint32_t>(list->front(), 1 << 20));
  }
  return fallback;
}

enum class Part { kEmbedding, kOutput, kValue, kKey, kAttentionOutput, kFfnDown, kOther };

Part PartOf(std::string_view name) {
  if (name == "output.weight") return Part::kOutput;
  if (name == "token_embd.weight" || name == "per_layer_token_embd.weight") return Part::kEmbedding;
  for (const char* part : {"attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"}) {
    if (Contains(name, part)) return Part::kValue;
  }
  if (Contains(name, "attn_k.weight")) return Part::kKey;
  if (Contains(name, "attn_output.weight")) return Part::kAttentionOutput;
  if (Contains(name, "ffn_down")) return Part::kFfnDown;
  return Part::kOther;
}

Model Describe(const GgufMetadata& metadata, std::span<const GgufTensorInfo> tensors) {
  Model model;
  if (Result<std::string> name = metadata.GetString("general.architecture"); name.ok()) {
    model.architecture = *std::move(name);
  }
  const std::string prefix = model.architecture + ".";
  model.layers = ReadCount(metadata, prefix + "block_count", 0);
  model.experts = ReadCount(metadata, prefix + "expert_count", 0);
  const int heads = ReadCount(metadata, prefix + "attention.head_count", 1);
  const int kv_heads = ReadCount(metadata, prefix + "attention.head_count_kv", heads);
  model.heads_per_kv = kv_heads > 0 ? heads / kv_heads : 0;
  for (const GgufTensorInfo& tensor : tensors) {
    const Part part = PartOf(tensor.name);
    if (part == Part::kOutput) model.tied_embeddings = false;
    if (part == Part::kValue) ++model.value_tensors;
  }
  return model;
}

// The layers that the "M" mixes spend more bits on: the first and last eighth, every third between.
bool IsFavoured(int layer, int layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

// Conditions of a rule: all of its bits must hold.
enum : unsigned {
  kAlways = 0,
  kSharedKv = 1 << 0,  // four or more query heads share a key and value head
  kFirstTwo = 1 << 1,
  kFirstFour = 1 << 2,
  kFirstSixteenth = 1 << 3,
  kFirstEighth = 1 << 4,
  kFavoured = 1 << 5,
  kImportance = 1 << 6,
  kNoImportance = 1 << 7,
  kFalcon = 1 << 8,
  kNotFalcon = 1 << 9,
  kEightExperts = 1 << 10,
  kOtherExperts = 1 << 11,  // none, or another number than eight
};

unsigned ConditionsThatHold(const Model& model, int layer, int layers) {
  unsigned holds = 0;
  if (model.heads_per_kv >= 4) holds |= kSharedKv;
  if (layer < 2) holds |= kFirstTwo;
  if (layer < 4) holds |= kFirstFour;
  if (layer < layers / 16) holds |= kFirstSixteenth;
  if (layer < layers / 8) holds |= kFirstEighth;
  if (IsFavoured(layer, layers)) holds |= kFavoured;
  holds |= model.has_importance ? kImportance : kNoImportance;
  holds |= model.falcon() ? kFalcon : kNotFalcon;
  holds |= model.experts == 8 ? kEightExperts : kOtherExperts;
  return holds;
}

struct Exception {
  Mix mix;
  Part part;
  unsigned when;
  Format format;
};

// Where a mix departs from its base format: the first row that fits decides.
constexpr Exception kExceptions[] = {
    {Mix::kQ4_0, Part::kFfnDown, kImportance | kFirstEighth, Format::kQ4_1},
    {Mix::kQ5_0, Part::kFfnDown, kImportance | kFirstEighth, Format::kQ5_1},

    {Mix::kQ2_K, Part::kValue, kSharedKv, Format::kQ4_K},
    {Mix::kQ2_K, Part::kValue, kAlways, Format::kQ3_K},
    {Mix::kQ2_K, Part::kFfnDown, kAlways, Format::kQ3_K},
    {Mix::kQ2_K, Part::kAttentionOutput, kNotFalcon | kEightExperts, Format::kQ5_K},
    {Mix::kQ2_K, Part::kAttentionOutput, kNotFalcon, Format::kQ3_K},

    {Mix::kQ2_K_S, Part::kValue, kSharedKv, Format::kQ4_K},
    {Mix::kQ2_K_S, Part::kFfnDown, kFirstEighth, Format::kQ4_K},

    {Mix::kQ3_K_S, Part::kAttentionOutput, kNotFalcon | kEightExperts, Format::kQ5_K},

    {Mix::kQ3_K_M, Part::kValue, kFirstTwo, Format::kQ5_K},
    {Mix::kQ3_K_M, Part::kValue, kAlways, Format::kQ4_K},
    {Mix::kQ3_K_M, Part::kFfnDown, kFirstSixteenth, Format::kQ5_K},
    {Mix::kQ3_K_M, Part::kFfnDown, kNotFalcon, Format::kQ4_K},
    {Mix::kQ3_K_M, Part::kFfnDown, kFavoured, Format::kQ4_K},
    {Mix::kQ3_K_M, Part::kAttentionOutput, kNotFalcon | kEightExperts, Format::kQ5_K},
    {Mix::kQ3_K_M, Part::kAttentionOutput, kNotFalcon, Format::kQ4_K},

    {Mix::kQ3_K_L, Part::kValue, kAlways, Format::kQ5_K},
    {Mix::kQ3_K_L, Part::kFfnDown, kFalcon, Format::kQ4_K},
    {Mix::kQ3_K_L, Part::kFfnDown, kAlways, Format::kQ5_K},
    {Mix::kQ3_K_L, Part::kAttentionOutput, kFalcon, Format::kQ4_K},
    {Mix::kQ3_K_L, Part::kAttentionOutput, kOtherExperts, Format::kQ5_K},

    {Mix::kQ4_K_S, Part::kValue, kFirstFour, Format::kQ5_K},
    {Mix::kQ4_K_S, Part::kFfnDown, kNotFalcon | kFirstEighth, Format::kQ5_K},
    {Mix::kQ4_K_S, Part::kAttentionOutput, kNotFalcon | kEightExperts, Format::kQ5_K},

    {Mix::kQ4_K_M, Part::kValue, kFavoured, Format::kQ6_K},
    {Mix::kQ4_K_M, Part::kFfnDown, kFalcon | kFirstSixteenth, Format::kQ6_K},
    {Mix::kQ4_K_M, Part::kFfnDown, kFalcon | kFavoured, Format::kQ5_K},
    {Mix::kQ4_K_M, Part::kFfnDown, kNotFalcon | kFavoured, Format::kQ6_K},
    {Mix::kQ4_K_M, Part::kAttentionOutput, kNotFalcon | kEightExperts, Format::kQ5_K},

    {Mix::kQ5_K_M, Part::kValue, kFavoured, Format::kQ6_K},
    {Mix::kQ5_K_M, Part::kFfnDown, kFavoured, Format::kQ6_K},

    {Mix::kIQ4_NL, Part::kValue, kSharedKv, Format::kQ5_K},
    {Mix::kIQ4_NL, Part::kFfnDown, kNoImportance | kFirstEighth, Format::kQ5_K},
    {Mix::kIQ4_NL, Part::kAttentionOutput, kNotFalcon | kEightExperts, Format::kQ5_K},

    {Mix::kIQ4_XS, Part::kValue, kSharedKv, Format::kQ5_K},
    {Mix::kIQ4_XS, Part::kFfnDown, kNoImportance | kFirstEighth, Format::kQ5_K},
    {Mix::kIQ4_XS, Part::kAttentionOutput, kNotFalcon | kEightExperts, Format::kQ5_K},

    {Mix::kTQ1_0, Part::kEmbedding, kAlways, Format::kQ4_K},
    {Mix::kTQ2_0, Part::kEmbedding, kAlways, Format::kQ4_K},
};

// The N of "blk.N."; -1 for a tensor of no layer.
int LayerOf(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return -1;
  int layer = -1;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + kPrefix.size(), end, layer);
  return error == std::errc() && rest != end && *rest == '.' ? layer : -1;
}

// Dimensions without the trailing ones.
int64_t Rank(const GgufTensorInfo& tensor) {
  size_t rank = tensor.dims.size();
  while (rank > 1 && tensor.dims[rank - 1] == 1) --rank;
  return static_cast<int64_t>(rank);
}

// Small tensors that a little noise hurts more than their bytes cost.
bool IsKept(std::string_view name) {
  for (const char* part : {"_norm.weight",
                           "ffn_gate_inp.weight",
                           "ffn_gate_tid2eid.weight",
                           "altup",
                           "laurel",
                           "per_layer_model_proj",
                           "ssm_conv1d",
                           "shortconv.conv.weight",
                           "indexer.k_proj.weight",
                           "indexer.q_proj.weight",
                           "time_mix_first.weight",
                           "time_mix_w0.weight",
                           "time_mix_w1.weight",
                           "time_mix_w2.weight",
                           "time_mix_v0.weight",
                           "time_mix_v1.weight",
                           "time_mix_v2.weight",
                           "time_mix_a0.weight",
                           "time_mix_a1.weight",
                           "time_mix_a2.weight",
                           "time_mix_g1.weight",
                           "time_mix_g2.weight",
                           "time_mix_decay_w1.weight",
                           "time_mix_decay_w2.weight",
                           "time_mix_lerp_fused.weight",
                           "attn_rel_b.weight",
                           ".position_embd",
                           "sam.pos_embd",
                           "sam.neck.",
                           "sam.net_",
                           ".rel_pos",
                           ".patch_embd",
                           ".patch_merger",
                           "a.rvq.codebook",
                           "mm.a.code_embd"}) {
    if (Contains(name, part)) return true;
  }
  return name == "position_embd.weight" || name == "token_types.weight";
}

bool IsQuantizable(const GgufTensorInfo& tensor) {
  const FormatInfo* info = FindFormat(tensor.format);
  return info != nullptr && info->can_decode() && Rank(tensor) >= 2 &&
         std::string_view(tensor.name).ends_with("weight") && !IsKept(tensor.name);
}

// The running choice of a mix over a model's tensors in layer order.
class MixChooser {
 public:
  MixChooser(const MixInfo& mix, const Model& model) : mix_(mix), model_(model) {}

  Format Next(const GgufTensorInfo& tensor) {
    const Part part = PartOf(tensor.name);
    if (part == Part::kOutput || (part == Part::kEmbedding && model_.tied_embeddings)) {
      return ForOutput(tensor);
    }
    if (mix_.mix == Mix::kMXFP4_MOE) {
      const bool stacked = tensor.dims.size() > 2 && tensor.dims[2] > 1;
      return stacked ? Format::kMXFP4 : Format::kQ8_0;
    }
    // Feed-forward tensors of experts come in no order that could be counted.
    int layer = 0, layers = model_.layers;
    if (part == Part::kValue) {
      layer = value_index_++;
      layers = model_.value_tensors;
    } else if (part == Part::kFfnDown) {
      const int named = model_.experts > 1 ? LayerOf(tensor.name) : -1;
      layer = named >= 0 ? named : down_index_;
      ++down_index_;
    }
    Format format = mix_.base;
    const unsigned holds = ConditionsThatHold(model_, layer, layers);
    for (const Exception& row : kExceptions) {
      if (row.mix == mix_.mix && row.part == part && (row.when & ~holds) == 0) {
        format = row.format;
        break;
      }
    }
    if (part == Part::kValue && model_.is_70b() &&
        (format == Format::kQ3_K || format == Format::kQ4_K)) {
      format = Format::kQ5_K;
    }
    if (model_.experts == 8 && (part == Part::kValue || part == Part::kKey)) format = Format::kQ8_0;
    return format;
  }

 private:
  Format ForOutput(const GgufTensorInfo& tensor) const {
    const bool fits = tensor.cols() % GetFormatInfo(mix_.base).block_weights == 0;
    if (mix_.mix == Mix::kMXFP4_MOE || model_.falcon() || !fits || mix_.base == Format::kQ8_0) {
      return Format::kQ8_0;
    }
    return Format::kQ6_K;
  }

  const MixInfo& mix_;
  const Model& model_;
  int value_index_ = 0;
  int down_index_ = 0;
};

Format Fallback(Format wanted, int64_t cols) {
  const auto fits = [cols](Format format) {
    return cols % GetFormatInfo(format).block_weights == 0;
  };
  if (fits(wanted)) return wanted;
  Format narrow = wanted;
  switch (wanted) {
    case Format::kIQ4_XS:
      narrow = Format::kIQ4_NL;
      break;
    case Format::kQ2_K:
    case Format::kQ3_K:
    case Format::kTQ1_0:
    case Format::kTQ2_0:
      narrow = Format::kQ4_0;
      break;
    case Format::kQ4_K:
      narrow = Format::kQ5_0;
      break;
    case Format::kQ5_K:
      narrow = Format::kQ5_1;
      break;
    case Format::kQ6_K:
      narrow = Format::kQ8_0;
      break;
    default:
      break;
  }
  return fits(narrow) ? narrow : Format::kF16;
}

Result<std::vector<std::regex>> CompileRules(std::span<const TensorTypeRule> rules) {
  std::vector<std::regex> compiled;
  for (const TensorTypeRule& rule : rules) {
    try {
      compiled.emplace_back(rule.pattern);
    } catch (const std::regex_error& error) {
      return InvalidArgument(Quoted(rule.pattern) +
                             " is not a regular expression: " + error.what());
    }
  }
  return compiled;
}

// The index of the first pattern found in `name`, or -1.
Result<int> FirstMatch(const std::vector<std::regex>& patterns, const std::string& name) {
  for (size_t i = 0; i < patterns.size(); ++i) {
    try {
      if (std::regex_search(name, patterns[i])) return static_cast<int>(i);
    } catch (const std::regex_error& error) {  // a pattern too complex for this name
      return InvalidArgument("cannot match a pattern with " + name + ": " + error.what());
    }
  }
  return -1;
}

}  // namespace

std::span<const MixInfo> AllMixes() { return kMixes; }

Result<TypeChoice> ParseType(std::string_view name, bool pure) {
  for (const MixInfo& mix : kMixes) {
    if (EqualIgnoringCase(mix.name, name)) {
      return TypeChoice{pure ? nullptr : &mix, mix.base, mix.file_type};
    }
  }
  const FormatInfo* info = FindFormat(name);
  if (info == nullptr) {
    return InvalidArgument(Quoted(name) + " is neither a format nor a mix");
  }
  if (!info->can_encode()) {
    return InvalidArgument(std::string(info->name) + " can be read but not written");
  }
  TypeChoice choice{nullptr, info->format, 0};
  for (const MixInfo& mix : kMixes) {  // the plainest mix of the format stands for it
    if (mix.base != info->format) continue;
    choice.file_type = mix.file_type;
    break;
  }
  return choice;
}

Result<TensorTypeRule> ParseTensorTypeRule(std::string_view text) {
  const size_t equals = text.rfind('=');
  if (equals == std::string_view::npos || equals == 0) {
    return InvalidArgument(Quoted(text) + " is not of the form REGEX=TYPE");
  }
  const std::string_view type = text.substr(equals + 1);
  const FormatInfo* info = FindFormat(type);
  if (info == nullptr) return InvalidArgument(Quoted(type) + " is not a format");
  if (!info->can_encode()) {
    return InvalidArgument(std::string(info->name) + " can be read but not written");
  }
  TensorTypeRule rule{std::string(text.substr(0, equals)), info->format};
  Result<std::vector<std::regex>> compiled = CompileRules({&rule, 1});
  if (!compiled.ok()) return std::move(compiled).status();
  return rule;
}

Result<std::vector<FormatChoice>> ChooseFormats(const GgufMetadata& metadata,
                                                std::span<const GgufTensorInfo> tensors,
                                                const TypeChoice& type,
                                                std::span<const TensorTypeRule> rules,
                                                bool has_importance) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::regex> patterns, CompileRules(rules));
  Model model = Describe(metadata, tensors);
  model.has_importance = has_importance;
  // Whole numbers and halves are no mix: what the mixes do is about block formats.
  const bool mixed = type.mix != nullptr && GetFormatInfo(type.format).use == FormatUse::kWeight;
  std::optional<MixChooser> chooser;
  if (mixed) chooser.emplace(*type.mix, model);

  // The mixes count tensors by layer, then name, whatever their order in the file.
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const int layer_a = LayerOf(tensors[a].name), layer_b = LayerOf(tensors[b].name);
    return layer_a != layer_b ? layer_a < layer_b : tensors[a].name < tensors[b].name;
  });

  std::vector<FormatChoice> choices(tensors.size());
  for (const size_t i : order) {
    const GgufTensorInfo& tensor = tensors[i];
    FormatChoice& choice = choices[i];
    choice.format = choice.wanted = tensor.format;
    choice.quantizable = IsQuantizable(tensor);
    if (!choice.quantizable) continue;
    NIBBLE_ASSIGN_OR_RETURN(const int rule, FirstMatch(patterns, tensor.name));
    choice.rule = rule;
    if (rule >= 0) {
      choice.wanted = rules[static_cast<size_t>(rule)].format;
    } else {
      choice.wanted = chooser ? chooser->Next(tensor) : type.format;
    }
    choice.format = Fallback(choice.wanted, tensor.cols());
  }
  return choices;
}

}  // namespace nibble
