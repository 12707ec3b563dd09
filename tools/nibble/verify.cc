#include <memory>

#include "fmt/core.h"
#include "nibble/quantize_model.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/command.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

struct VerifyOptions {
  std::string file;
  std::string source;   // to make the file again from, or empty
  std::string imatrix;  // the one it was made with, or empty
  CommonOptions common;
};

Status Rederive(const VerifyOptions& options, const GgufFile& file, const ModelRunOptions& run) {
  NIBBLE_ASSIGN_OR_RETURN(const ModelSource source, ModelSource::Open(options.source));
  ImportanceMatrix importance;
  if (!options.imatrix.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(importance, ImportanceMatrix::Load(options.imatrix));
  }
  return RederiveModel(file, source, options.imatrix.empty() ? nullptr : &importance, run)
      .WithContext(options.file);
}

int Verify(const VerifyOptions& options) {
  const Result<GgufFile> file = GgufFile::Open(options.file);
  if (!file.ok()) return FailAtWork(file.status());
  ThreadPool pool(options.common.threads);
  ProgressDisplay display(options.common.quiet);
  ModelRunOptions run;
  run.parallel = pool.parallel_for();
  run.progress = [&](const ModelProgress& progress) {
    display.Update(progress);
    return true;
  };
  const Result<bool> hashed = VerifyModel(*file, run);
  display.Clear();
  if (!hashed.ok()) return FailAtWork(Status(hashed.status()).WithContext(options.file));
  if (!options.source.empty()) {
    const Status same = Rederive(options, *file, run);
    display.Clear();
    if (!same.ok()) return FailAtWork(same);
  }
  if (options.common.json) {
    const nlohmann::ordered_json document = {{"file", options.file},
                                             {"tensors", file->tensors().size()},
                                             {"bytes", file->file_bytes()},
                                             {"has_content_hash", *hashed},
                                             {"rederived", !options.source.empty()}};
    fmt::print("{}\n", document.dump(2));
  } else if (!options.common.quiet) {
    fmt::print("{}: {} tensors are sound and all weights finite; {}{}\n", options.file,
               file->tensors().size(),
               *hashed ? "they are the bytes that were written"
                       : "it tells no hash to compare its bytes with",
               options.source.empty() ? "" : "; made again from its source it is the same");
  }
  return kSuccess;
}

}  // namespace

void AddVerify(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "verify", "Check a GGUF file: structure, finite weights, the hash it was written with");
  auto options = std::make_shared<VerifyOptions>();
  command->add_option("file", options->file, "GGUF file (any shard)")->required();
  CLI::Option* rederive = command->add_option(
      "--rederive", options->source,
      "Also make the file again from this source by its recipe and compare every byte");
  command->add_option("--imatrix", options->imatrix, "The importance matrix it was made with")
      ->needs(rederive);
  AddCommonOptions(*command, options->common);
  command->callback([options, &action] { action = [options] { return Verify(*options); }; });
}

}  // namespace nibble::tools
