#include "tools/nibble/run_options.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#if NIBBLE_HAS_CUDA
#include "nibble/cuda.h"
#endif

namespace nibble::tools {

namespace {

void AddPrecision(CLI::App& command, const std::map<std::string, Precision>& names,
                  const char* help, Precision& precision) {
  command.add_option("--precision", precision, help)
      ->transform(CLI::CheckedTransformer(names, CLI::ignore_case).description(""));
}

}  // namespace

void AddRunOptions(CLI::App& command, RunOptions& options) {
  static const std::map<std::string, Precision> names = {
      {"int8", Precision::kInt8}, {"bf16", Precision::kBf16}, {"f32", Precision::kF32}};
  AddPrecision(command, names,
               "Arithmetic of the products: int8 (default), bf16 or f32, which is exact",
               options.precision);
  AddCacheOptions(command, options.cache);
}

void AddKernelPrecision(CLI::App& command, Precision& precision) {
  static const std::map<std::string, Precision> names = {{"int8", Precision::kInt8},
                                                         {"bf16", Precision::kBf16},
                                                         {"f32", Precision::kF32},
                                                         {"int8-per-row", Precision::kInt8PerRow}};
  AddPrecision(command, names,
               "Arithmetic of the products: int8 (default), bf16, f32, or int8-per-row, W8A8",
               precision);
}

void AddCacheOptions(CLI::App& command, KvCacheOptions& options) {
  static const std::map<std::string, CacheType> caches = {{"f16", CacheType::kF16},
                                                          {"q8_0", CacheType::kQ8_0},
                                                          {"q4_0", CacheType::kQ4_0},
                                                          {"int8", CacheType::kInt8}};
  command
      .add_option("--cache-keys", options.keys,
                  "Type of cached keys: f16 (default), q8_0, q4_0, int8")
      ->transform(CLI::CheckedTransformer(caches, CLI::ignore_case).description(""));
  command.add_option("--cache-values", options.values, "Type of cached values, likewise")
      ->transform(CLI::CheckedTransformer(caches, CLI::ignore_case).description(""));
}

void AddDeviceOption(CLI::App& command, RunOptions& options) {
  static const std::map<std::string, Device> devices = {{"cpu", Device::kCpu},
                                                        {"cuda", Device::kCuda}};
  command
      .add_option("--device", options.cache.device,
                  "Where the model runs: cpu (default), or cuda, the current GPU")
      ->transform(CLI::CheckedTransformer(devices, CLI::ignore_case).description(""));
}

Status PrepareDevice(const RunOptions& options) {
  if (options.cache.device == Device::kCpu) return OkStatus();
#if NIBBLE_HAS_CUDA
  return cuda::Initialize().WithContext("--device cuda");
#else
  return Unsupported("--device cuda: this nibble was built without CUDA (NIBBLE_CUDA)");
#endif
}

Result<Model> LoadModel(const std::string& path, const RunOptions& options) {
  NIBBLE_RETURN_IF_ERROR(PrepareDevice(options));
  NIBBLE_ASSIGN_OR_RETURN(Model model, Model::Load(path));
  if (options.cache.device == Device::kCpu) return model;
  Result<Model> there = model.OnDevice(options.cache.device, options.precision);
  if (!there.ok()) return std::move(there).status().WithContext(path);
  return there;
}

const char* PrecisionName(Precision precision) {
  switch (precision) {
    case Precision::kInt8:
      return "int8";
    case Precision::kBf16:
      return "bf16";
    case Precision::kF32:
      return "f32";
    case Precision::kInt8PerRow:
      return "int8-per-row";
  }
  return "";
}

Result<std::string> ReadTextFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return IoError(path + ": " + std::strerror(errno));
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) return IoError(path + ": cannot be read");
  return text;
}

}  // namespace nibble::tools
