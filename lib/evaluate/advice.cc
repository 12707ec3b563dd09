// Which type to take, and how to quantize to it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "nibble/estimate.h"

namespace nibble {
namespace {

// Above, rounding alone costs so little that calibration has nothing to win back; below the second,
// errors are so large that weighing them is not enough.
constexpr double kPlainSnrDb = 30, kImportanceSnrDb = 22;
// The same by bits per weight, where no error was measured.
constexpr double kPlainBits = 6, kImportanceBits = 4.6;

std::string Number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

// Larger is better: by measured error, or by bits where there is none.
double Closeness(const TypeForecast& forecast, bool measured) {
  return measured ? *forecast.SnrDb() : forecast.bits_per_weight;
}

void CheckLimits(const TypeForecast& forecast, const AdviceGoal& goal, RankedType* ranked) {
  const auto over = [&](const char* what, double value, double limit) {
    ranked->reasons.push_back(std::string(what) + Number(" %.3g times the limit", value / limit));
  };
  if (goal.max_file_bytes > 0 && forecast.file_bytes > goal.max_file_bytes) {
    over("file", static_cast<double>(forecast.file_bytes),
         static_cast<double>(goal.max_file_bytes));
  }
  if (goal.max_memory_bytes > 0 && forecast.footprint.total() > goal.max_memory_bytes) {
    over("memory", static_cast<double>(forecast.footprint.total()),
         static_cast<double>(goal.max_memory_bytes));
  }
  if (goal.min_decode > 0 && forecast.decode_limit < goal.min_decode) {
    ranked->reasons.push_back("at most " + Number("%.3g tokens/s", forecast.decode_limit));
  }
  const std::optional<double> snr = forecast.SnrDb();
  if (goal.min_snr_db > 0 && snr && *snr < goal.min_snr_db) {
    ranked->reasons.push_back(Number("error too large, %.1f dB", *snr));
  }
  ranked->fits = ranked->reasons.empty();
}

void ChooseMethod(const TypeForecast& forecast, bool measured, Advice* advice) {
  const double figure = Closeness(forecast, measured);
  const bool plain = figure >= (measured ? kPlainSnrDb : kPlainBits);
  const bool importance = figure >= (measured ? kImportanceSnrDb : kImportanceBits);
  const std::string basis = !measured            ? Number("%.2f bits per weight", figure)
                            : std::isinf(figure) ? std::string("no error")
                                                 : Number("%.1f dB", figure);
  if (plain) {
    advice->method_reason = basis + ": calibration has next to nothing to win back";
  } else if (importance) {
    advice->importance = true;
    advice->method_reason =
        basis + ": an importance matrix, which weighs errors by the inputs' strength, will do";
  } else {
    advice->method = Method::kGptq;
    advice->method_reason =
        basis + ": errors are large; let later columns make good what earlier ones lost";
  }
}

}  // namespace

Advice Advise(std::span<const TypeForecast> forecasts, const AdviceGoal& goal) {
  const bool measured = std::all_of(forecasts.begin(), forecasts.end(),
                                    [](const TypeForecast& f) { return f.Nmse().has_value(); });
  Advice advice;
  for (size_t i = 0; i < forecasts.size(); ++i) {
    RankedType ranked;
    ranked.index = i;
    CheckLimits(forecasts[i], goal, &ranked);
    if (ranked.fits && measured) {
      for (const TypeForecast& other : forecasts) {
        if (other.file_bytes < forecasts[i].file_bytes && *other.Nmse() < *forecasts[i].Nmse()) {
          ranked.reasons.push_back(other.type + " is smaller and closer");
          break;
        }
      }
    }
    advice.ranking.push_back(std::move(ranked));
  }
  std::stable_sort(advice.ranking.begin(), advice.ranking.end(),
                   [&](const RankedType& a, const RankedType& b) {
                     if (a.fits != b.fits) return a.fits;
                     const TypeForecast &x = forecasts[a.index], &y = forecasts[b.index];
                     // What does not fit comes in the order of how nearly it does.
                     if (goal.smallest || !a.fits) {
                       if (x.file_bytes != y.file_bytes) return x.file_bytes < y.file_bytes;
                     }
                     const double cx = Closeness(x, measured), cy = Closeness(y, measured);
                     return cx != cy ? cx > cy : x.file_bytes < y.file_bytes;
                   });
  advice.found = !advice.ranking.empty() && advice.ranking[0].fits;
  if (advice.found) ChooseMethod(forecasts[advice.ranking[0].index], measured, &advice);
  return advice;
}

}  // namespace nibble
