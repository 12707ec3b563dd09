#include <memory>

#include "tools/nibble/make_model.h"

namespace nibble::tools {

void AddDequantize(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("dequantize",
                         "Turn a quantized model back into floating point: GGUF, or safetensors "
                         "where the output's name ends so");
  auto options = std::make_shared<MakeModelOptions>();
  options->type = "f32";
  options->permissions.requantize = true;
  AddOutputOptions(*command, *options);
  command->add_option("--type", options->type, "f32, f16 or bf16")
      ->capture_default_str()
      ->transform(CLI::IsMember({"f32", "f16", "bf16"}, CLI::ignore_case));
  command->callback([options, &action] { action = [options] { return MakeModel(*options); }; });
}

}  // namespace nibble::tools
