#include <memory>

#include "tools/nibble/make_model.h"

namespace nibble::tools {
namespace {

std::string TypeHelp() {
  std::string mixes, formats;
  for (const MixInfo& mix : AllMixes()) mixes += std::string(" ") + mix.name;
  for (const FormatInfo& info : AllFormats()) {
    const Result<TypeChoice> type = ParseType(info.name);
    if (type.ok() && type->mix == nullptr) formats += std::string(" ") + info.name;
  }
  return "Types, in any letter case.\n  Mixes, tensor by tensor as llama-quantize chooses:" +
         mixes + "\n  Formats, the same for every matrix:" + formats +
         "\nNorms, biases and other small tensors stay as they are.";
}

}  // namespace

void AddQuantize(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("quantize", "Quantize a model to a GGUF file");
  auto options = std::make_shared<MakeModelOptions>();
  AddOutputOptions(*command, *options);
  command->add_option("--type", options->type, "A mix or a format, see below")->required();
  command->add_flag("--pure", options->pure,
                    "Of a mix only its main format, for every matrix, embeddings and output too");
  command
      ->add_option("--tensor-type", options->tensor_types,
                   "REGEX=TYPE: another format for tensors whose name matches; the first one that "
                   "matches decides; may be given again")
      ->take_all()
      ->expected(1);
  command->add_option("--imatrix", options->imatrix,
                      "Importance matrix in either of llama.cpp's file formats");
  command->add_flag("--allow-requantize", options->permissions.requantize,
                    "Quantize tensors that are quantized already");
  command->add_flag("--allow-missing-importance", options->permissions.missing_importance,
                    "Quantize matrices that the importance matrix lacks without it");
  command->add_flag("!--no-fallback", options->permissions.fallback,
                    "Stop when a row length does not fit the format, instead of taking another");
  command->footer(TypeHelp());
  command->callback([options, &action] { action = [options] { return MakeModel(*options); }; });
}

}  // namespace nibble::tools
