// The report as one HTML file: no script, nothing fetched, plots as inline SVG.
#include <cmath>

#include "fmt/core.h"
#include "tools/nibble/report.h"
#include "tools/nibble/svg_plot.h"
#include "tools/nibble/terminal.h"

namespace nibble::tools {
namespace {

constexpr const char* kStyle = R"css(
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1f24; --muted: #5b6470; --grid: #e3e6ea;
  --pass: #1a7f37; --review: #b35900;
  --s0: #6e7781; --s1: #0969da; --s2: #bc4c00; --s3: #1a7f37;
  --s4: #8250df; --s5: #bf3989; --s6: #7d6600; --s7: #0f7b8a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --ink: #e6e8eb; --muted: #9aa4af; --grid: #2c323a;
    --pass: #4cc16c; --review: #f0a04b;
    --s0: #9aa4af; --s1: #62a8ff; --s2: #ff9457; --s3: #56c878;
    --s4: #b99aff; --s5: #f17fbc; --s6: #d9b84a; --s7: #4cc4d3;
  }
}
body { margin: 2rem auto; max-width: 84rem; padding: 0 1rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.conditions { color: var(--muted); }
.verdicts { list-style: none; padding: 0; }
.verdicts li { margin: .3rem 0; }
.badge { display: inline-block; min-width: 4.6rem; font-weight: 600; }
.PASS { color: var(--pass); } .REVIEW { color: var(--review); }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--grid); text-align: left;
  white-space: nowrap; }
th { font-weight: 600; color: var(--muted); }
.number { text-align: right; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(30rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: var(--ink); }
.axes line { stroke: var(--grid); } .axes text { fill: var(--muted); }
circle { fill: currentColor; stroke: var(--page); } .error { stroke: currentColor; stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; color: var(--muted); }
.legend span::before { content: "●"; color: var(--c); margin-right: .35rem; }
)css";

double Megabytes(uint64_t bytes) { return static_cast<double>(bytes) / 1e6; }

// `value` gives y and its error of each model; the reference's point is left out without `all`.
template <class Function>
Plot AgainstSize(const Evaluation& evaluation, const std::string& title, const std::string& y_axis,
                 bool all, const Function& value) {
  Plot plot;
  plot.title = title;
  plot.x_axis = "size on disk, MB";
  plot.y_axis = y_axis;
  const std::vector<std::string> names = ModelNames(evaluation);
  for (size_t i = all ? 0 : 1; i < names.size(); ++i) {
    const ModelEvaluation& model = i == 0 ? evaluation.reference : evaluation.models[i - 1];
    const Estimate y = value(model);
    plot.points.push_back(
        {Megabytes(model.file_bytes), y.value, y.error, i, names[i],
         fmt::format("{}: {}, {:.4g}", names[i], Size(model.file_bytes), y.value)});
  }
  return plot;
}

std::vector<Plot> Plots(const Evaluation& evaluation) {
  std::vector<Plot> plots;
  if (evaluation.has_text) {
    plots.push_back(AgainstSize(
        evaluation, "Divergence from the reference against size", "mean KL, nats (log scale)",
        false, [](const ModelEvaluation& m) { return m.perplexity.divergence.kl; }));
    plots.back().log_y = true;
    plots.push_back(AgainstSize(evaluation, "Perplexity against size", "perplexity", true,
                                [](const ModelEvaluation& m) {
                                  return Estimate{m.perplexity.perplexity.value, 0};
                                }));
  }
  if (!evaluation.reference.tasks.empty()) {
    plots.push_back(
        AgainstSize(evaluation, "Accuracy over all tasks against size", "accuracy, %", true,
                    [](const ModelEvaluation& m) {
                      double sum = 0;
                      for (const TaskResult& t : m.tasks) sum += t.accuracy.value;
                      return Estimate{100 * sum / static_cast<double>(m.tasks.size()), 0};
                    }));
    plots.back().from_zero = true;
  }
  if (evaluation.has_speed) {
    plots.push_back(AgainstSize(evaluation, "Decode speed against size", "tokens/s", true,
                                [](const ModelEvaluation& m) {
                                  return Estimate{m.speed.decode_tokens_per_second, 0};
                                }));
    plots.back().from_zero = true;
    plots.push_back(AgainstSize(evaluation, "Prefill speed against size", "tokens/s", true,
                                [](const ModelEvaluation& m) {
                                  return Estimate{m.speed.prefill_tokens_per_second, 0};
                                }));
    plots.back().from_zero = true;
  }
  return plots;
}

// Signal to noise of each matrix, in the order of the file.
Plot TensorPlot(const Evaluation& evaluation) {
  Plot plot;
  plot.title = "Error of each matrix";
  plot.x_axis = "matrix, in the order of the file";
  plot.y_axis = "signal to noise, dB (higher is better)";
  plot.large_dots = false;
  plot.width = 1260;
  const std::vector<std::string> names = ModelNames(evaluation);
  for (size_t m = 0; m < evaluation.models.size(); ++m) {
    for (size_t t = 0; t < evaluation.models[m].tensors.size(); ++t) {
      const TensorComparison& tensor = evaluation.models[m].tensors[t];
      const double db = tensor.error.SnrDb();
      plot.points.push_back({static_cast<double>(t), db, 0, m + 1, "",
                             fmt::format("{}, {}: {} {:.1f} dB", names[m + 1], tensor.name,
                                         GetFormatInfo(tensor.format).name, db)});
    }
  }
  return plot;
}

std::string Figure(const Plot& plot) {
  const std::string svg = PlotSvg(plot);
  if (svg.empty()) return {};
  return fmt::format("<figure><figcaption>{}</figcaption>\n{}</figure>\n", Escaped(plot.title),
                     svg);
}

std::string Html(const ReportTable& table) {
  std::string html =
      fmt::format("<h2>{}</h2>\n<div class=\"table\"><table>\n<thead><tr>", Escaped(table.title));
  const auto cell = [&](const char* tag, size_t column, const std::string& text) {
    html += fmt::format("<{0}{1}>{2}</{0}>", tag, table.numbers[column] ? " class=\"number\"" : "",
                        Escaped(text));
  };
  for (size_t c = 0; c < table.heading.size(); ++c) cell("th", c, table.heading[c]);
  html += "</tr></thead>\n<tbody>\n";
  for (const auto& row : table.rows) {
    html += "<tr>";
    for (size_t c = 0; c < row.size(); ++c) cell("td", c, row[c]);
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
}

}  // namespace

std::string ReportHtml(const Evaluation& evaluation, const ReportSettings& settings) {
  const std::vector<std::string> names = ModelNames(evaluation);
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<title>{0} and what was made of it</title>\n<style>{1}</style>\n</head>\n<body>\n"
      "<h1>{0} and what was made of it</h1>\n<p class=\"conditions\">{2}.</p>\n"
      "<ul class=\"verdicts\">\n",
      Escaped(names[0]), kStyle, Escaped(Conditions(evaluation, settings)));
  for (size_t i = 0; i < evaluation.models.size(); ++i) {
    const ModelEvaluation& model = evaluation.models[i];
    html += fmt::format("<li><span class=\"badge {0}\">{0}</span> <b>{1}</b>", VerdictName(model),
                        Escaped(names[i + 1]));
    const char* separator = ": ";
    for (const std::string& reason : Reasons(model)) {
      html += separator + Escaped(reason);
      separator = "; ";
    }
    html += "</li>\n";
  }
  html += "</ul>\n";
  for (const ReportTable& table : ReportTables(evaluation)) html += Html(table);
  html += "<h2>Plots</h2>\n<div class=\"plots\">\n";
  for (const Plot& plot : Plots(evaluation)) html += Figure(plot);
  html += "</div>\n";
  const std::string tensors = Figure(TensorPlot(evaluation));
  if (!tensors.empty()) {
    html += "<h2>Tensors</h2>\n<p class=\"legend\">";
    for (size_t i = 1; i < names.size(); ++i) {
      html += fmt::format("<span style=\"--c:var(--s{})\">{}</span>", i % 8, Escaped(names[i]));
    }
    html += "</p>\n" + tensors;
  }
  return html + "</body>\n</html>\n";
}

}  // namespace nibble::tools
