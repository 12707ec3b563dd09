#include "tools/nibble/run_options.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

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
