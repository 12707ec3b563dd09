#include "tools/nibble/run_options.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

namespace nibble::tools {

void AddRunOptions(CLI::App& command, RunOptions& options) {
  static const std::map<std::string, Precision> precisions = {
      {"int8", Precision::kInt8}, {"bf16", Precision::kBf16}, {"f32", Precision::kF32}};
  command
      .add_option("--precision", options.precision,
                  "Arithmetic of the products: int8 (default), bf16 or f32, which is exact")
      ->transform(CLI::CheckedTransformer(precisions, CLI::ignore_case).description(""));
  AddCacheOptions(command, options.cache);
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
  return precision == Precision::kF32 ? "f32" : precision == Precision::kBf16 ? "bf16" : "int8";
}

Result<std::string> ReadTextFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return IoError(path + ": " + std::strerror(errno));
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) return IoError(path + ": cannot be read");
  return text;
}

}  // namespace nibble::tools
