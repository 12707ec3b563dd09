// The angles by which positions turn pairs of dimensions.
#ifndef NIBBLE_LIB_MODEL_ROPE_TABLE_H_
#define NIBBLE_LIB_MODEL_ROPE_TABLE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "nibble/model.h"

namespace nibble {

// The angle of one position for each pair of dimensions.
class RopeTable {
 public:
  RopeTable(const RopeConfig& rope, const std::vector<float>& divisors) : pairs_(rope.dims / 2) {
    const double dims = static_cast<double>(rope.dims);
    // YaRN: the pair whose wavelength fits `turns` times into the original context.
    const auto pair_of = [&](double turns) {
      return dims * std::log(static_cast<double>(rope.yarn_original_context) / (turns * 2 * M_PI)) /
             (2 * std::log(rope.base));
    };
    for (int64_t i = 0; i < pairs_; ++i) {
      double frequency =
          std::pow(static_cast<double>(rope.base), -2.0 * static_cast<double>(i) / dims);
      if (!divisors.empty()) frequency /= divisors[static_cast<size_t>(i)];
      if (rope.yarn_factor > 1) {
        const double low = std::max(0.0, std::floor(pair_of(rope.yarn_beta_fast)));
        const double high = std::min(dims - 1, std::ceil(pair_of(rope.yarn_beta_slow)));
        const double ramp =
            std::clamp((static_cast<double>(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
        frequency = frequency / rope.yarn_factor * ramp + frequency * (1 - ramp);
      }
      frequencies_.push_back(frequency * rope.scale);
    }
    if (rope.yarn_factor > 1) {
      magnitude_ = rope.yarn_attention_factor * (1.0 + 0.1 * std::log(rope.yarn_factor));
    }
  }

  // Cosines and sines of `position`, `pairs` each.
  void Fill(int64_t position, float* cosines, float* sines) const {
    for (int64_t i = 0; i < pairs_; ++i) {
      const double angle = static_cast<double>(position) * frequencies_[static_cast<size_t>(i)];
      cosines[i] = static_cast<float>(std::cos(angle) * magnitude_);
      sines[i] = static_cast<float>(std::sin(angle) * magnitude_);
    }
  }

  int64_t pairs() const { return pairs_; }

 private:
  int64_t pairs_;
  double magnitude_ = 1.0;
  std::vector<double> frequencies_;
};

}  // namespace nibble

#endif  // NIBBLE_LIB_MODEL_ROPE_TABLE_H_
