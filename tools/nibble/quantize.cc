#include <memory>

#include "nibble/hf_layout.h"
#include "tools/nibble/make_model.h"
#include "tools/nibble/prepare.h"

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

std::string MethodHelp() {
  std::string help;
  for (const MethodInfo& method : AllMethods()) {
    help += std::string(help.empty() ? "" : "; ") + method.name + ": " + method.summary;
  }
  return help;
}

std::string PreparationHelp() {
  std::string help;
  for (const PreparationInfo& info : AllPreparations()) {
    help += std::string(help.empty() ? "" : "; ") + info.name + ": " + info.summary;
  }
  return help;
}

std::string LayoutHelp() {
  std::string help = "Of --scheme: how its folder is laid out; default the first that holds it. ";
  for (const HfLayoutInfo& info : AllHfLayouts()) {
    help +=
        std::string(info.layout == HfLayout::kGptq ? "" : "; ") + info.name + ": " + info.summary;
  }
  return help;
}

void AddMethodOptions(CLI::App& command, MakeModelOptions& options) {
  CalibrationOptions& calibration = options.calibration;
  CLI::Option* text =
      command.add_option("--calibration", calibration.text,
                         "A text file that a calibrated method or a budget runs the model over");
  command.add_option_function<std::string>(
      "--method",
      [&options](const std::string& name) {
        const Result<Method> method = ParseMethod(name);
        if (!method.ok()) throw CLI::ValidationError("--method", method.status().message());
        options.method = *method;
      },
      MethodHelp());
  command
      .add_option(
          "--prepare", options.preparations,
          "Change the weights before they are quantized, one after another; " + PreparationHelp())
      ->check([](const std::string& name) {
        return FindPreparation(name) != nullptr ? std::string()
                                                : "no preparation is called '" + name + "'";
      })
      ->take_all()
      ->expected(1);
  command
      .add_option("--hessians", calibration.hessians,
                  "A file that calibrate --hessians wrote: gptq needs no text and no run then")
      ->excludes(text);
  AddWindowOptions(command, calibration, kMostWindows);
  AddMemoryOption(command, calibration);
  command
      .add_option(
          "--damping", calibration.damping,
          "Of gptq: share of the mean diagonal added to the Hessian; default 0.2. Less follows "
          "the text more closely, which pays where it is long and of the models' own kind")
      ->check(CLI::Range(0.0, 1e3));
  command.add_flag("--static-groups", calibration.static_groups,
                   "Of gptq with --scheme: columns in the order of act-order under scales that are "
                   "fixed before, for loaders that read no group index");
  command.add_flag("--sequential", calibration.sequential,
                   "Of gptq with --scheme: layer after layer on the inputs that the quantized ones "
                   "before it give, as with --type; for long texts");
}

void CheckHessians(const MakeModelOptions& options) {
  const MethodInfo& method = GetMethodInfo(options.method);
  if (!method.calibrated) {
    throw CLI::ValidationError("--hessians",
                               std::string("the method ") + method.name + " uses no Hessians");
  }
  if (!options.imatrix.empty()) {
    throw CLI::ValidationError("--hessians", "excludes --imatrix, whose means it knows");
  }
  if (!options.preparations.empty()) {
    throw CLI::ValidationError("--hessians",
                               "excludes --prepare: they are those of the model as it is");
  }
}

// What one option says must fit what another says.
void CheckMethod(const MakeModelOptions& options) {
  const MethodInfo& method = GetMethodInfo(options.method);
  const bool given = !options.calibration.text.empty();
  const bool budget = options.budget.wanted(), scheme = !options.scheme.empty();
  if (budget + scheme + !options.type.empty() != 1) {
    throw CLI::ValidationError(
        "--type", "one of --type, --target-bpw or --target-size, and --scheme decides");
  }
  if (scheme && (options.pure || !options.tensor_types.empty() || options.clamp)) {
    throw CLI::ValidationError(
        "--scheme", "goes with --method, --prepare and their options, not with those of types");
  }
  if (!scheme && !options.layout.empty()) throw CLI::ValidationError("--layout", "needs --scheme");
  if (!scheme && options.method == Method::kHqq) {
    throw CLI::ValidationError("--method", "hqq chooses the zeros of a --scheme");
  }
  if (options.calibration.static_groups && (!scheme || !method.calibrated)) {
    throw CLI::ValidationError("--static-groups", "needs --scheme and --method gptq");
  }
  if (options.calibration.sequential && (!scheme || !method.calibrated || !given)) {
    throw CLI::ValidationError("--sequential", "needs --scheme, --method gptq and --calibration");
  }
  if (budget && options.pure) throw CLI::ValidationError("--pure", "needs --type");
  if (!options.calibration.hessians.empty()) return CheckHessians(options);
  if (given && !options.imatrix.empty() && !(budget && !method.calibrated)) {
    throw CLI::ValidationError("--calibration",
                               "excludes --imatrix, but for a budget without a calibrated method");
  }
  bool used = method.calibrated || (budget && given);
  for (const std::string& name : options.preparations) {
    const PreparationInfo& info = *FindPreparation(name);
    if (info.calibrated && !given) {
      throw CLI::ValidationError("--prepare", name + " needs a text: --calibration FILE");
    }
    used |= info.calibrated;
  }
  if (used == given) return;
  throw CLI::ValidationError(
      method.calibrated ? "--method" : "--calibration",
      std::string("the method ") + method.name +
          (method.calibrated ? " needs a text: --calibration FILE, or --hessians FILE"
                             : " uses no calibration text"));
}

}  // namespace

void AddQuantize(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("quantize", "Quantize a model to a GGUF file, or a Hugging Face folder");
  auto options = std::make_shared<MakeModelOptions>();
  AddOutputOptions(*command, *options);
  command->add_option("--type", options->type, "A mix or a format, see below");
  command->add_flag("--pure", options->pure,
                    "Of a mix only its main format, for every matrix, embeddings and output too");
  command
      ->add_option("--tensor-type", options->tensor_types,
                   "REGEX=TYPE: another format for tensors whose name matches; the first one that "
                   "matches decides; may be given again")
      ->take_all()
      ->expected(1);
  AddBudgetOptions(*command, options->budget);
  command->add_option(
      "--scheme", options->scheme,
      "In place of --type: from a Hugging Face folder to one whose layers' matrices are in e.g. "
      "'int4 sym g128 f16', 'nf4 g64 double' or 'int8 sym channel'");
  command->add_option("--layout", options->layout, LayoutHelp())
      ->check([](const std::string& name) {
        const Result<HfLayout> layout = ParseHfLayout(name);
        return layout.ok() ? std::string() : layout.status().message();
      });
  command->add_option("--imatrix", options->imatrix,
                      "Importance matrix in either of llama.cpp's file formats");
  AddMethodOptions(*command, *options);
  command->add_flag("--allow-requantize", options->permissions.requantize,
                    "Quantize tensors that are quantized already");
  command->add_flag("--allow-missing-importance", options->permissions.missing_importance,
                    "Quantize matrices that the importance matrix lacks without it");
  command->add_flag("!--no-fallback", options->permissions.fallback,
                    "Stop when a row length does not fit the format, instead of taking another");
  command->footer(TypeHelp());
  command->callback([options, &action] {
    CheckMethod(*options);
    action = [options] {
      return options->scheme.empty() ? MakeModel(*options) : MakeFolder(*options);
    };
  });
}

}  // namespace nibble::tools
