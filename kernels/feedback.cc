#include "kernels/feedback.h"

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/feedback.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"
#include "kernels/dispatch.h"
#include "kernels/feedback-inl.h"
#include "kernels/feedback_refine-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

// Calls function(a value of the format's search struct); nothing for other formats.
template <class Function>
void WithSearched(Format format, const Function& function) {
  switch (format) {
    case Format::kQ2_K:
      return function(SearchQ2_K());
    case Format::kQ3_K:
      return function(SearchQ3_K());
    case Format::kQ4_K:
      return function(SearchQ4_K());
    case Format::kQ5_K:
      return function(SearchQ5_K());
    case Format::kQ6_K:
      return function(SearchQ6_K());
    case Format::kIQ4_NL:
      return function(SearchIQ4_NL());
    case Format::kIQ4_XS:
      return function(SearchIQ4_XS());
    case Format::kQ4_0:
      return function(SearchQ4_0());
    case Format::kQ4_1:
      return function(SearchQ4_1());
    case Format::kQ5_0:
      return function(SearchQ5_0());
    case Format::kQ5_1:
      return function(SearchQ5_1());
    case Format::kQ8_0:
      return function(SearchQ8_0());
    default:
      return;
  }
}

void EncodeWithFeedbackTarget(Format format, const FeedbackChunk& chunk,
                              const FeedbackOptions& options, double* losses) {
  const hn::CappedTag<float, kMaxLanes> d;
  WithSearched(format, [&](auto f) { EncodeChunk<decltype(f)>(d, chunk, options, losses); });
}

void RefineWithFeedbackTarget(Format format, const RefineChunk& chunk,
                              const RefineOptions& options) {
  const hn::CappedTag<float, kMaxLanes> d;
  WithSearched(format, [&](auto f) { RefineRows<decltype(f)>(d, chunk, options); });
}

int64_t FeedbackGroupTarget(Format format) {
  int64_t group = 0;
  WithSearched(format, [&](auto f) { group = static_cast<int64_t>(decltype(f)::kGroup); });
  return group;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(EncodeWithFeedbackTarget);
HWY_EXPORT(RefineWithFeedbackTarget);
HWY_EXPORT(FeedbackGroupTarget);

int64_t FeedbackGroup(Format format) { return NIBBLE_DISPATCH(FeedbackGroupTarget)(format); }

bool HasFeedback(Format format) { return FeedbackGroup(format) > 0; }

void EncodeWithFeedback(Format format, const FeedbackChunk& chunk, const FeedbackOptions& options,
                        double* losses) {
  NIBBLE_DISPATCH(EncodeWithFeedbackTarget)(format, chunk, options, losses);
}

void RefineWithFeedback(Format format, const RefineChunk& chunk, const RefineOptions& options) {
  NIBBLE_DISPATCH(RefineWithFeedbackTarget)(format, chunk, options);
}

}  // namespace nibble
#endif  // HWY_ONCE
