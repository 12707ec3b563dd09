// Options of the commands that run a model.
#ifndef NIBBLE_TOOLS_RUN_OPTIONS_H_
#define NIBBLE_TOOLS_RUN_OPTIONS_H_

#include <string>

#include "nibble/model.h"
#include "tools/nibble/command.h"

namespace nibble::tools {

struct RunOptions {
  Precision precision = Precision::kInt8;
  KvCacheOptions cache;
};

void AddRunOptions(CLI::App& command, RunOptions& options);
// Of the above, those of the cache alone.
void AddCacheOptions(CLI::App& command, KvCacheOptions& options);

// --device: where models run, RunOptions::cache.device.
void AddDeviceOption(CLI::App& command, RunOptions& options);
// Makes that device ready; an error that says what it lacks.
Status PrepareDevice(const RunOptions& options);
// A model whose weights lie on that device, which is made ready.
Result<Model> LoadModel(const std::string& path, const RunOptions& options);

// --precision of commands that run kernels alone: W8A8 too.
void AddKernelPrecision(CLI::App& command, Precision& precision);

// "int8", "bf16", "f32", "int8-per-row": as the option has it.
const char* PrecisionName(Precision precision);

// The whole of a text file.
Result<std::string> ReadTextFile(const std::string& path);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_RUN_OPTIONS_H_
