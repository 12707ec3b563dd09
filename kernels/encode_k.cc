// EncodeSearch on the best instruction set of the machine.
#include "kernels/encode.h"

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/encode_k.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/highway.h"
#include "kernels/dispatch.h"
#include "kernels/search-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

void EncodeSearchTarget(Format format, std::span<const float* const> rows, int64_t cols,
                        const float* importance, std::byte* out) {
  EncodeSearchWith(hn::CappedTag<float, kMaxLanes>(), format, rows, cols, importance, out);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(EncodeSearchTarget);

void EncodeSearch(Format format, std::span<const float* const> rows, int64_t cols,
                  const float* importance, std::byte* out) {
  NIBBLE_DISPATCH(EncodeSearchTarget)(format, rows, cols, importance, out);
}

}  // namespace nibble
#endif  // HWY_ONCE
