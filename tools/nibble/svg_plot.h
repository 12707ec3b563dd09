// Scatter plots as inline SVG. Colours come from the CSS variables of the page: --ink, --muted,
// --grid, and --s0 to --s7 for series.
#ifndef NIBBLE_TOOLS_SVG_PLOT_H_
#define NIBBLE_TOOLS_SVG_PLOT_H_

#include <cstddef>
#include <string>
#include <vector>

namespace nibble::tools {

struct PlotPoint {
  double x = 0, y = 0;
  double error = 0;     // of y; drawn where it is not 0
  size_t series = 0;    // colour
  std::string label;    // beside the point; may be empty
  std::string tooltip;  // shown when pointed at
};

struct Plot {
  std::string title;
  std::string x_axis, y_axis;  // what and which unit
  bool log_y = false;          // points that are not above 0 are left out
  bool from_zero = false;      // the y axis begins at 0
  bool large_dots = true;
  double width = 620;  // in pixels, before the page scales it
  std::vector<PlotPoint> points;
};

// Text as it may stand in HTML and XML.
std::string Escaped(const std::string& text);

// An <svg> element; empty where there are no points to draw.
std::string PlotSvg(const Plot& plot);

}  // namespace nibble::tools

#endif  // NIBBLE_TOOLS_SVG_PLOT_H_
