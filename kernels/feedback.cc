#include "kernels/feedback.h"

#include "kernels/float_targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/feedback.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"
#include "kernels/dispatch.h"
#include "kernels/feedback-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

void EncodeWithFeedbackTarget(Format format, const FeedbackChunk& chunk,
                              const FeedbackOptions& options, double* losses) {
  const hn::CappedTag<float, kMaxLanes> d;
  switch (format) {
    case Format::kQ2_K:
      return EncodeChunk<SearchQ2_K>(d, chunk, options, losses);
    case Format::kQ3_K:
      return EncodeChunk<SearchQ3_K>(d, chunk, options, losses);
    case Format::kQ4_K:
      return EncodeChunk<SearchQ4_K>(d, chunk, options, losses);
    case Format::kQ5_K:
      return EncodeChunk<SearchQ5_K>(d, chunk, options, losses);
    case Format::kQ6_K:
      return EncodeChunk<SearchQ6_K>(d, chunk, options, losses);
    case Format::kIQ4_NL:
      return EncodeChunk<SearchIQ4_NL>(d, chunk, options, losses);
    case Format::kIQ4_XS:
      return EncodeChunk<SearchIQ4_XS>(d, chunk, options, losses);
    case Format::kQ4_0:
      return EncodeChunk<SearchQ4_0>(d, chunk, options, losses);
    case Format::kQ4_1:
      return EncodeChunk<SearchQ4_1>(d, chunk, options, losses);
    case Format::kQ5_0:
      return EncodeChunk<SearchQ5_0>(d, chunk, options, losses);
    case Format::kQ5_1:
      return EncodeChunk<SearchQ5_1>(d, chunk, options, losses);
    default:
      return;
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(EncodeWithFeedbackTarget);

bool HasFeedback(Format format) {
  switch (format) {
    case Format::kQ2_K:
    case Format::kQ3_K:
    case Format::kQ4_K:
    case Format::kQ5_K:
    case Format::kQ6_K:
    case Format::kIQ4_NL:
    case Format::kIQ4_XS:
    case Format::kQ4_0:
    case Format::kQ4_1:
    case Format::kQ5_0:
    case Format::kQ5_1:
      return true;
    default:
      return false;
  }
}

void EncodeWithFeedback(Format format, const FeedbackChunk& chunk, const FeedbackOptions& options,
                        double* losses) {
  NIBBLE_DISPATCH(EncodeWithFeedbackTarget)(format, chunk, options, losses);
}

}  // namespace nibble
#endif  // HWY_ONCE
