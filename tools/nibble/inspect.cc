#include <map>
#include <memory>

#include "fmt/core.h"
#include "nibble/model_source.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/command.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

using nlohmann::ordered_json;

struct InspectOptions {
  std::string model;
  CommonOptions common;
};

template <class T>
inline constexpr bool kIsList = false;
template <class T>
inline constexpr bool kIsList<std::vector<T>> = true;

// JSON holds bytes that are no UTF-8 as replacement characters.
std::string Dump(const ordered_json& value, int indent = -1) {
  return value.dump(indent, ' ', false, ordered_json::error_handler_t::replace);
}

ordered_json ToJson(const GgufValue& value) {
  return std::visit([](const auto& v) { return ordered_json(v); }, value);
}

// On one line; long lists and texts by their beginning and length.
std::string Brief(const GgufValue& value) {
  constexpr size_t kItems = 4, kCharacters = 60;
  return std::visit(
      [&]<class T>(const T& v) -> std::string {
        if constexpr (kIsList<T>) {
          ordered_json items = ordered_json::array();
          for (size_t i = 0; i < std::min(kItems, v.size()); ++i) {
            items.push_back(static_cast<typename T::value_type>(v[i]));
          }
          std::string text = Dump(items);
          if (v.size() > kItems) {
            text.back() = ',';
            text += fmt::format(" ... {} in all]", v.size());
          }
          return text;
        } else if constexpr (std::is_same_v<T, std::string>) {
          if (v.size() <= kCharacters) return Dump(v);
          return fmt::format("{} ... {} bytes in all", Dump(v.substr(0, kCharacters)), v.size());
        } else {
          return Dump(v);
        }
      },
      value);
}

struct Total {
  size_t tensors = 0;
  uint64_t weights = 0;
  uint64_t bytes = 0;

  void Add(uint64_t more_weights, uint64_t more_bytes) {
    ++tensors;
    weights += more_weights;
    bytes += more_bytes;
  }
};

int Inspect(const InspectOptions& options) {
  const Result<ModelSource> source = ModelSource::Open(options.model);
  if (!source.ok()) return FailAtWork(source.status());
  Table tensors({"tensor", "shape", "format", "bits/weight", "size"},
                {false, true, false, true, true});
  ordered_json document = {{"paths", source->paths()}, {"file_bytes", source->file_bytes()}};
  document["metadata"] = ordered_json::object();
  document["tensors"] = ordered_json::array();
  Total total;
  std::map<std::string, Total> formats;
  for (const ModelTensor& tensor : source->tensors()) {
    const FormatInfo& info = GetFormatInfo(tensor.format);
    const Result<size_t> bytes = FormatBytes(tensor.format, tensor.rows(), tensor.cols());
    if (!bytes.ok()) return FailAtWork(bytes.status());
    const auto weights = static_cast<uint64_t>(tensor.rows() * tensor.cols());
    total.Add(weights, *bytes);
    formats[info.name].Add(weights, *bytes);
    tensors.Add({tensor.name, Shape(tensor.dims), info.name,
                 fmt::format("{:.3f}", info.bits_per_weight()), Size(*bytes)});
    document["tensors"].push_back({{"name", tensor.name},
                                   {"source_name", tensor.source_name},
                                   {"dims", tensor.dims},
                                   {"format", info.name},
                                   {"bytes", *bytes}});
  }
  if (options.common.json) {
    for (const auto& [key, value] : source->metadata().entries()) {
      document["metadata"][key] = ToJson(value);
    }
    for (const auto& [name, share] : formats) {
      document["formats"][name] = {
          {"tensors", share.tensors}, {"weights", share.weights}, {"bytes", share.bytes}};
    }
    document["weights"] = total.weights;
    document["bits_per_weight"] = BitsPerWeight(total.bytes, total.weights);
    document["notices"] = source->notices();
    fmt::print("{}\n", Dump(document, 2));
    return kSuccess;
  }
  for (const std::string& notice : source->notices()) {
    if (!options.common.quiet) fmt::print(stderr, "note: {}\n", notice);
  }
  for (const auto& [key, value] : source->metadata().entries()) {
    fmt::print("{} = {}\n", key, Brief(value));
  }
  fmt::print("\n{}\n", tensors.Text());
  Table table({"format", "tensors", "weights", "size"}, {false, true, true, true});
  for (const auto& [name, share] : formats) {
    table.Add(
        {name, std::to_string(share.tensors), std::to_string(share.weights), Size(share.bytes)});
  }
  fmt::print("{}{} tensors, {} weights, {}, {:.3f} bits per weight; {} on disk\n", table.Text(),
             total.tensors, total.weights, Size(total.bytes),
             BitsPerWeight(total.bytes, total.weights), Size(source->file_bytes()));
  return kSuccess;
}

}  // namespace

void AddInspect(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("inspect", "Show a model's metadata and tensors");
  auto options = std::make_shared<InspectOptions>();
  command
      ->add_option("model", options->model,
                   "GGUF file (any shard), .safetensors file or Hugging Face folder")
      ->required();
  AddCommonOptions(*command, options->common);
  command->callback([options, &action] { action = [options] { return Inspect(*options); }; });
}

}  // namespace nibble::tools
