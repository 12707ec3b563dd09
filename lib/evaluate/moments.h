// Mean and standard error of a stream of values.
#ifndef NIBBLE_LIB_EVALUATE_MOMENTS_H_
#define NIBBLE_LIB_EVALUATE_MOMENTS_H_

#include <cmath>
#include <cstdint>

#include "nibble/evaluate.h"

namespace nibble {

class Moments {
 public:
  void Add(double x) {
    ++count_;
    const double delta = x - mean_;
    mean_ += delta / static_cast<double>(count_);
    squares_ += delta * (x - mean_);
  }
  Estimate estimate() const {
    if (count_ < 2) return {mean_, 0};
    const double n = static_cast<double>(count_);
    return {mean_, std::sqrt(squares_ / (n - 1) / n)};
  }

 private:
  int64_t count_ = 0;
  double mean_ = 0, squares_ = 0;
};

}  // namespace nibble

#endif  // NIBBLE_LIB_EVALUATE_MOMENTS_H_
