// What a person reads: sizes, aligned tables, progress.
#ifndef NIBBLE_TOOLS_TERMINAL_H_
#define NIBBLE_TOOLS_TERMINAL_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "nibble/quantize_model.h"

namespace nibble::tools {

// "4.21 MB": decimal prefixes.
std::string Size(uint64_t bytes);

// "576 x 1536": as a matrix, slowest dimension first.
std::string Shape(const std::vector<int64_t>& dims);

double BitsPerWeight(uint64_t bytes, uint64_t weights);

// Rows of cells, padded so that columns align. Columns of `numbers` align right.
class Table {
 public:
  Table(std::vector<std::string> heading, std::vector<bool> numbers)
      : rows_{std::move(heading)}, numbers_(std::move(numbers)) {}

  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string Text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
  std::vector<bool> numbers_;
};

// On a terminal a bar with rate and time left, elsewhere a line for each tenth; on stderr.
class ProgressDisplay {
 public:
  explicit ProgressDisplay(bool quiet);
  ~ProgressDisplay() { Clear(); }

  void Update(const ModelProgress& progress);
  // `rate`: how fast, in words; `detail`: what is being worked on, cut off where the line is full.
  void Update(double fraction, const std::string& rate, const std::string& detail);
  void Clear();  // takes the bar away
  double Seconds() const;

 private:
  using SteadyClock = std::chrono::steady_clock;
  using TimePoint = SteadyClock::time_point;

  void DrawBar(double fraction, const std::string& text);

  bool quiet_;
  bool terminal_;
  bool drawn_ = false;
  int tenths_ = 0;
  TimePoint start_;
  TimePoint last_;
};

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_TERMINAL_H_
