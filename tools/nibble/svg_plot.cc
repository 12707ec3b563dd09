#include "tools/nibble/svg_plot.h"

#include <algorithm>
#include <cmath>

#include "fmt/core.h"

namespace nibble::tools {
namespace {

// In pixels.
constexpr double kHeight = 360;
constexpr double kLeft = 76, kRight = 20, kTop = 14, kBottom = 50;
constexpr double kCharacter = 6.6, kLine = 14;  // of a label

// Numbers on one axis, mapped to pixels.
class Axis {
 public:
  Axis(double low, double high, bool log, bool from_zero, double begin, double end)
      : log_(log), begin_(begin), end_(end) {
    low_ = Scaled(low);
    high_ = Scaled(high);
    const double room = high_ > low_ ? 0.08 * (high_ - low_) : log ? 0.3 : 0.5;
    low_ = from_zero ? 0 : low_ - room;
    if (from_zero && high_ <= 0) high_ = 1;
    high_ += room;
  }

  double Pixel(double value) const {
    return begin_ + (Scaled(value) - low_) / (high_ - low_) * (end_ - begin_);
  }

  // Round numbers inside the axis.
  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    if (log_) {
      const bool few = high_ - low_ < 2.5;  // decades
      for (double decade = std::floor(low_); decade <= high_; ++decade) {
        for (const double digit : {1.0, 2.0, 5.0}) {
          if (digit > 1 && !few) continue;
          const double tick = digit * std::pow(10, decade);
          if (std::log10(tick) >= low_ && std::log10(tick) <= high_) ticks.push_back(tick);
        }
      }
      return ticks;
    }
    const double rough = (high_ - low_) / 5;
    const double power = std::pow(10, std::floor(std::log10(rough)));
    const double step = power * (rough / power < 1.5 ? 1 : rough / power < 3.5 ? 2 : 5);
    for (double i = std::ceil(low_ / step); i * step <= high_; ++i)
      ticks.push_back(i * step + 0.0);  // not -0
    return ticks;
  }

 private:
  double Scaled(double value) const { return log_ ? std::log10(value) : value; }

  bool log_;
  double begin_, end_;
  double low_ = 0, high_ = 1;
};

struct Box {
  double left, top, right, bottom;
  bool Overlaps(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
};

// Puts each label beside its point where nothing is yet.
class Labels {
 public:
  explicit Labels(double width) : width_(width) {}

  void Occupy(double x, double y) { taken_.push_back({x - 6, y - 6, x + 6, y + 6}); }

  std::string Place(double x, double y, const std::string& text) {
    const double width = kCharacter * static_cast<double>(text.size());
    struct Try {
      double dx, dy;
      const char* anchor;
    };
    constexpr Try kTries[] = {{10, 4, "start"},  {-10, 4, "end"},    {0, -12, "middle"},
                              {0, 22, "middle"}, {10, -10, "start"}, {10, 18, "start"},
                              {-10, -10, "end"}, {-10, 18, "end"},   {0, -26, "middle"},
                              {0, 36, "middle"}, {0, -40, "middle"}, {0, 50, "middle"}};
    for (const Try& t : kTries) {
      const double anchor = x + t.dx;
      const double left = *t.anchor == 's'   ? anchor
                          : *t.anchor == 'e' ? anchor - width
                                             : anchor - width / 2;
      const Box box = {left, y + t.dy - kLine + 3, left + width, y + t.dy + 3};
      if (box.left < kLeft || box.right > width_ || box.top < 0 || box.bottom > kHeight - kBottom) {
        continue;
      }
      if (std::any_of(taken_.begin(), taken_.end(),
                      [&](const Box& other) { return box.Overlaps(other); })) {
        continue;
      }
      taken_.push_back(box);
      return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", anchor,
                         y + t.dy, t.anchor, Escaped(text));
    }
    return {};  // the tooltip and the table still tell
  }

 private:
  double width_;  // of the plot
  std::vector<Box> taken_;
};

bool IsDrawn(const Plot& plot, const PlotPoint& point) {
  return std::isfinite(point.x) && std::isfinite(point.y) && (!plot.log_y || point.y > 0);
}

std::string Frame(const Plot& plot, const Axis& x, const Axis& y) {
  std::string svg = "<g class=\"axes\">\n";
  for (const double tick : y.Ticks()) {
    svg += fmt::format(
        "<line x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\"/>"
        "<text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5:g}</text>\n",
        kLeft, plot.width - kRight, y.Pixel(tick), kLeft - 8, y.Pixel(tick) + 4,
        std::abs(tick) < 1e-12 ? 0.0 : tick);
  }
  for (const double tick : x.Ticks()) {
    svg += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\"/>"
        "<text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\">{4:g}</text>\n",
        x.Pixel(tick), kHeight - kBottom, kHeight - kBottom + 5, kHeight - kBottom + 19, tick);
  }
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                     (kLeft + plot.width - kRight) / 2, kHeight - 10, Escaped(plot.x_axis));
  svg += fmt::format(
      "<text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n</g>\n",
      (kTop + kHeight - kBottom) / 2, Escaped(plot.y_axis));
  return svg;
}

}  // namespace

std::string Escaped(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string PlotSvg(const Plot& plot) {
  double low_x = INFINITY, high_x = -INFINITY, low_y = INFINITY, high_y = -INFINITY;
  for (const PlotPoint& point : plot.points) {
    if (!IsDrawn(plot, point)) continue;
    low_x = std::min(low_x, point.x);
    high_x = std::max(high_x, point.x);
    low_y = std::min(low_y, plot.log_y ? point.y : point.y - point.error);
    high_y = std::max(high_y, point.y + point.error);
  }
  if (!(low_x <= high_x)) return {};
  const Axis x(low_x, high_x, false, false, kLeft, plot.width - kRight);
  const Axis y(low_y, high_y, plot.log_y, plot.from_zero, kHeight - kBottom, kTop);
  std::string svg = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n",
                                plot.width, kHeight, Escaped(plot.title));
  svg += Frame(plot, x, y);
  Labels labels(plot.width);
  for (const PlotPoint& point : plot.points) {
    if (IsDrawn(plot, point)) labels.Occupy(x.Pixel(point.x), y.Pixel(point.y));
  }
  for (const PlotPoint& point : plot.points) {
    if (!IsDrawn(plot, point)) continue;
    const double px = x.Pixel(point.x), py = y.Pixel(point.y);
    svg += fmt::format("<g style=\"color:var(--s{})\">", point.series % 8);
    if (point.error > 0) {
      const double low =
          plot.log_y ? std::max(point.y - point.error, low_y) : point.y - point.error;
      svg += fmt::format("<path class=\"error\" d=\"M{0:.1f} {1:.1f}V{2:.1f}\"/>", px, y.Pixel(low),
                         y.Pixel(point.y + point.error));
    }
    svg +=
        fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\"><title>{}</title></circle></g>\n",
                    px, py, plot.large_dots ? 5 : 3, Escaped(point.tooltip));
    if (!point.label.empty()) svg += labels.Place(px, py, point.label);
  }
  return svg + "</svg>\n";
}

}  // namespace nibble::tools
