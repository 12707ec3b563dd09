#include "tools/nibble/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "fmt/core.h"

namespace nibble::tools {
namespace {

constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr auto kLineInterval = std::chrono::milliseconds(300);

int TerminalColumns() {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

std::string Clock(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole >= 3600) {
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  }
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

// Characters of UTF-8.
size_t Length(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

}  // namespace

std::string Size(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  if (bytes < 1000) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < std::size(kUnits)) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, value < 10 ? 2 : value < 100 ? 1 : 0, kUnits[unit]);
}

std::string Shape(const std::vector<int64_t>& dims) {
  std::string text;
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    text += fmt::format("{}{}", text.empty() ? "" : " x ", *dim);
  }
  return text;
}

double BitsPerWeight(uint64_t bytes, uint64_t weights) {
  return weights == 0 ? 0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

std::string Table::Text() const {
  std::vector<size_t> widths(numbers_.size());
  for (const auto& row : rows_) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], Length(row[c]));
  }
  std::string text;
  for (const auto& row : rows_) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string padding(widths[c] - Length(row[c]), ' ');
      if (c > 0) line += "  ";
      line += numbers_[c] ? padding + row[c] : row[c] + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

ProgressDisplay::ProgressDisplay(bool quiet)
    : quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(SteadyClock::now()),
      last_(start_) {}

double ProgressDisplay::Seconds() const {
  return std::chrono::duration<double>(SteadyClock::now() - start_).count();
}

void ProgressDisplay::Update(const ModelProgress& progress) {
  const double rate = static_cast<double>(progress.weights_done) / std::max(Seconds(), 1e-9);
  const double fraction = progress.weights_total == 0
                              ? 1
                              : static_cast<double>(progress.weights_done) /
                                    static_cast<double>(progress.weights_total);
  Update(fraction, fmt::format("{:.1f} Mweights/s", rate / 1e6),
         fmt::format("{} ({} of {})", progress.tensor, progress.index + 1, progress.count));
}

void ProgressDisplay::Update(double fraction, const std::string& rate, const std::string& detail) {
  if (quiet_) return;
  const double left = fraction > 0 ? Seconds() * (1 - fraction) / fraction : 0;
  const std::string text =
      fmt::format("{}{}{} left  {}", rate, rate.empty() ? "" : ", ", Clock(left), detail);
  const TimePoint now = SteadyClock::now();
  if (terminal_) {
    if (now - last_ < kRedraw) return;
    last_ = now;
    DrawBar(fraction, text);
    return;
  }
  const int tenths = static_cast<int>(fraction * 10);
  if (tenths == tenths_ || now - last_ < kLineInterval) return;
  tenths_ = tenths;
  last_ = now;
  fmt::print(stderr, "{}%, {}\n", tenths * 10, text);
}

void ProgressDisplay::DrawBar(double fraction, const std::string& text) {
  const int columns = TerminalColumns() - 1;
  const int bar = std::clamp(columns / 4, 0, 30);
  const int filled = static_cast<int>(fraction * bar);
  std::string line =
      fmt::format("[{:.<{}}] {:3.0f}%  {}", std::string(static_cast<size_t>(filled), '#'), bar,
                  100 * fraction, text);
  if (line.size() > static_cast<size_t>(columns)) line.resize(static_cast<size_t>(columns));
  fmt::print(stderr, "\r\033[K{}", line);
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressDisplay::Clear() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
  drawn_ = false;
}

}  // namespace nibble::tools
