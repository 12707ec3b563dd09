// The methods that choose the codes of a model's weights, by name.
#ifndef NIBBLE_METHOD_H_
#define NIBBLE_METHOD_H_

#include <cstdint>
#include <span>
#include <string_view>

#include "nibble/status.h"

namespace nibble {

enum class Method : uint8_t {
  kRtn,   // nearest codes under searched scales, weighed by an importance matrix where there is one
  kGptq,  // error feedback on calibration text, layer after layer
  kHqq,   // half-quadratic scales and zeros of planar schemes, from the weights alone
};

struct MethodInfo {
  Method method;
  const char* name;     // "gptq"
  bool calibrated;      // runs the model over calibration text
  const char* summary;  // a line for people
};

std::span<const MethodInfo> AllMethods();
const MethodInfo& GetMethodInfo(Method method);
// In any letter case.
Result<Method> ParseMethod(std::string_view name);

}  // namespace nibble

#endif  // NIBBLE_METHOD_H_
