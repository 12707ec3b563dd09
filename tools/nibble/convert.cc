#include <memory>

#include "tools/nibble/make_model.h"

namespace nibble::tools {

void AddConvert(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "convert",
      "Turn a model into GGUF, or safetensors where the output's name ends so; whole or in "
      "shards");
  auto options = std::make_shared<MakeModelOptions>();
  options->type = kCopyType;
  AddOutputOptions(*command, *options);
  command
      ->add_option("--type", options->type,
                   "Floating-point matrices as f32, f16 or bf16; copy: everything as it is")
      ->capture_default_str()
      ->transform(CLI::IsMember({kCopyType, "f32", "f16", "bf16"}, CLI::ignore_case));
  command->callback([options, &action] { action = [options] { return MakeModel(*options); }; });
}

}  // namespace nibble::tools
