#include "nibble/method.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string>

namespace nibble {
namespace {

// In the order of the enum.
constexpr std::array kMethods = {
    MethodInfo{Method::kRtn, "rtn", false,
               "nearest codes under searched scales, weighed by --imatrix"},
    MethodInfo{Method::kGptq, "gptq", true,
               "later columns make good what earlier ones lose, layer after layer"},
    MethodInfo{Method::kHqq, "hqq", false,
               "zeros of 'asym' schemes that forgive outliers, from the weights alone (HQQ)"},
};

bool SameLetters(std::string_view a, std::string_view b) {
  return std::ranges::equal(
      a, b, [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

}  // namespace

std::span<const MethodInfo> AllMethods() { return kMethods; }

const MethodInfo& GetMethodInfo(Method method) { return kMethods[static_cast<size_t>(method)]; }

Result<Method> ParseMethod(std::string_view name) {
  std::string message = "no method is called '";
  message.append(name).append("'; there are");
  for (const MethodInfo& info : kMethods) {
    if (SameLetters(info.name, name)) return info.method;
    message.append(" ").append(info.name);
  }
  return InvalidArgument(message);
}

}  // namespace nibble
