// `nibble bench kernels` and `nibble bench --targets`.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "fmt/core.h"
#include "kernels/amx.h"
#include "nibble/kernel_benchmark.h"
#include "nibble/target.h"
#include "nlohmann/json.hpp"
#include "tools/nibble/bench.h"
#include "tools/nibble/run_options.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

using nlohmann::ordered_json;

struct OperationName {
  KernelOperation operation;
  const char* option;  // also in JSON
  const char* text;
};
constexpr OperationName kOperations[] = {
    {KernelOperation::kMatmul, "product", "product"},
    {KernelOperation::kMatmulPacked, "packed", "product, packed"},
    {KernelOperation::kQuantize, "quantize", "quantize"},
    {KernelOperation::kDequantize, "dequantize", "dequantize"},
};

struct BenchKernelsCommand {
  std::vector<std::string> types = {"q4_0", "q8_0", "q4_K", "q6_K"};
  std::vector<std::string> operations = {"product", "packed", "quantize", "dequantize"};
  std::vector<int64_t> activation_rows = {1, 8, 512};
  KernelBenchmarkOptions benchmark;
  CommonOptions common;
};

struct Measured {
  KernelBenchmarkOptions options;
  const OperationName* name;
  KernelTiming timing;

  bool is_product() const { return timing.operations > 0; }
};

std::vector<Measured> Plan(const BenchKernelsCommand& command, const ParallelFor& parallel) {
  std::vector<Measured> plan;
  KernelBenchmarkOptions options = command.benchmark;
  options.parallel = parallel;
  for (const std::string& type : command.types) {
    const FormatInfo* info = FindFormat(type);
    options.type = type;
    for (const OperationName& name : kOperations) {
      if (std::ranges::find(command.operations, name.option) == command.operations.end()) continue;
      options.operation = name.operation;
      const bool encodes = info == nullptr || info->can_encode();
      if (name.operation == KernelOperation::kQuantize && !encodes) continue;
      const bool product = name.operation == KernelOperation::kMatmul ||
                           name.operation == KernelOperation::kMatmulPacked;
      for (const int64_t rows : product ? command.activation_rows : std::vector<int64_t>{1}) {
        options.activation_rows = rows;
        plan.push_back({options, &name, {}});
      }
    }
  }
  return plan;
}

double PerSecond(const Measured& m, double amount) { return amount / m.timing.seconds; }

void PrintTable(const std::vector<Measured>& measured) {
  Table table({"type", "operation", "rows", "ms", "weights GB/s", "GFLOP/s", "Gweights/s", "share",
               "of what", "kernel"},
              {false, false, true, true, true, true, true, true, false, false});
  for (const Measured& m : measured) {
    const KernelTiming& t = m.timing;
    table.Add({m.options.type, m.name->text,
               m.is_product() ? std::to_string(m.options.activation_rows) : "",
               fmt::format("{:.3f}", 1e3 * t.seconds),
               fmt::format("{:.2f}", PerSecond(m, static_cast<double>(t.weight_bytes)) / 1e9),
               m.is_product() ? fmt::format("{:.1f}", PerSecond(m, t.operations) / 1e9) : "",
               fmt::format("{:.3f}", PerSecond(m, static_cast<double>(t.weights)) / 1e9),
               t.of_limit > 0 ? fmt::format("{:.0f} %", 100 * t.of_limit) : "", t.limit, t.kernel});
  }
  fmt::print("{}", table.Text());
}

void PrintJson(const std::vector<Measured>& measured, const BenchKernelsCommand& command,
               int threads) {
  ordered_json document = {{"version", NIBBLE_VERSION},
                           {"target", CurrentTarget()},
                           {"precision", PrecisionName(command.benchmark.precision)},
                           {"threads", threads},
                           {"rows", command.benchmark.rows},
                           {"cols", command.benchmark.cols},
                           {"kernels", ordered_json::array()}};
  for (const Measured& m : measured) {
    const KernelTiming& t = m.timing;
    ordered_json entry = {{"type", m.options.type},
                          {"operation", m.name->option},
                          {"seconds", t.seconds},
                          {"weight_bytes", t.weight_bytes},
                          {"weights", t.weights}};
    if (m.is_product()) {
      entry["activation_rows"] = m.options.activation_rows;
      entry["operations"] = t.operations;
      entry["kernel"] = t.kernel;
    }
    if (t.of_limit > 0) {
      entry["limit"] = t.limit;
      entry["of_limit"] = t.of_limit;
    }
    document["kernels"].push_back(std::move(entry));
  }
  fmt::print("{}\n", document.dump(2));
}

int Run(const BenchKernelsCommand& command) {
  ThreadPool pool(command.common.threads);
  std::vector<Measured> plan = Plan(command, pool.parallel_for());
  ProgressDisplay display(command.common.quiet);
  for (size_t i = 0; i < plan.size(); ++i) {
    display.Update(static_cast<double>(i) / static_cast<double>(plan.size()), plan[i].name->text,
                   plan[i].options.type);
    const Result<KernelTiming> timing = TimeKernel(plan[i].options);
    if (!timing.ok()) {
      display.Clear();
      return Fail(timing.status());
    }
    plan[i].timing = *timing;
  }
  display.Clear();
  if (command.common.json) {
    PrintJson(plan, command, pool.threads());
    return kSuccess;
  }
  PrintTable(plan);
  fmt::print("\nnibble {}, {}, {}, {} threads, weights {} x {}; medians of {} runs\n",
             NIBBLE_VERSION, CurrentTarget(), PrecisionName(command.benchmark.precision),
             pool.threads(), command.benchmark.rows, command.benchmark.cols,
             command.benchmark.runs);
  return kSuccess;
}

// "4096x11008": rows (outputs) and columns (inputs) of the weights.
void ParseShape(const std::string& text, KernelBenchmarkOptions& options) {
  long long rows = 0, cols = 0;
  int end = 0;
  if (std::sscanf(text.c_str(), "%lldx%lld%n", &rows, &cols, &end) != 2 ||
      static_cast<size_t>(end) != text.size() || rows < 1 || cols < 1) {
    throw CLI::ValidationError("--shape", "'" + text + "' is no shape as in 4096x4096");
  }
  options.rows = rows;
  options.cols = cols;
}

}  // namespace

int PrintTargets(const CommonOptions& options) {
  const AmxSupport amx = GetAmxSupport();
  const std::string current = CurrentTarget();
  if (options.json) {
    const ordered_json document = {{"targets", SupportedTargets()},
                                   {"current", current},
                                   {"amx_bf16", amx.bf16},
                                   {"amx_int8", amx.int8}};
    fmt::print("{}\n", document.dump(2));
    return kSuccess;
  }
  for (const std::string& target : SupportedTargets()) {
    fmt::print("{}{}\n", target, target == current ? "  (in use)" : "");
  }
  fmt::print("AMX tiles: {}\n", amx.bf16 && amx.int8 ? "bf16, int8"
                                : amx.bf16           ? "bf16"
                                : amx.int8           ? "int8"
                                                     : "none");
  return kSuccess;
}

void AddBenchKernels(CLI::App& bench, Action& action) {
  CLI::App* command = bench.add_subcommand(
      "kernels", "Time products, quantize and dequantize by type, and their share of the limit");
  auto options = std::make_shared<BenchKernelsCommand>();
  std::vector<std::string> names;
  for (const OperationName& name : kOperations) names.push_back(name.option);
  command
      ->add_option("--types", options->types,
                   "Formats or schemes, with commas; default q4_0,q8_0,q4_K,q6_K")
      ->delimiter(',');
  command->add_option("--operations", options->operations, "With commas; default all of them")
      ->delimiter(',')
      ->check(CLI::IsMember(names));
  command->add_option_function<std::string>(
      "--shape", [options](const std::string& text) { ParseShape(text, options->benchmark); },
      "Rows and columns of the weights; default 4096x4096");
  command
      ->add_option(
          "--rows", options->activation_rows,
          "Activation rows of products, with commas; default 1,8,512. Up to 8 read weights "
          "from memory")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 16));
  command->add_option("--runs", options->benchmark.runs, "Timed runs of each; default 5")
      ->check(CLI::Range(1, 100000));
  AddKernelPrecision(*command, options->benchmark.precision);
  AddCommonOptions(*command, options->common);
  command->callback([options, &action] { action = [options] { return Run(*options); }; });
}

}  // namespace nibble::tools
