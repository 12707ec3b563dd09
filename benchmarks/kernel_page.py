#!/usr/bin/env python3
"""Writes the page of results of the CPU kernels on this machine, with a chart.

    kernel_page.py BIN [--output FOLDER] [--quick]

BIN is the folder of the benchmark programs; FOLDER (docs/results unless said) gets
cpu-<processor>.md and .svg. Peers are those that the programs find (./dev peers). Takes half an
hour; --quick leaves most shapes out. Needs matplotlib.
"""
import argparse
import collections
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent
FEW = ["q4_0", "q8_0", "q4_K", "q6_K"]  # formats that are measured in every shape
SHAPES = ["4096x4096", "11008x4096", "4096x11008", "2048x2048", "1536x576", "128256x4096"]
ANY = "[A-Za-z0-9_]+"
ROWS = [1, 2, 4, 8, 32, 128, 512]


def run(program, pattern):
    """The entries of the benchmarks whose names match."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        print(f"{program.name} {pattern}", file=sys.stderr)
        subprocess.run([program, f"--benchmark_filter=^({pattern})$", f"--benchmark_out={out.name}",
                        "--benchmark_out_format=json"], check=True, stdout=subprocess.DEVNULL)
        text = out.read()
    if not text:
        sys.exit(f"{program}: no benchmark is named {pattern}")
    entries = json.loads(text)["benchmarks"]
    for entry in entries:
        entry["name"] = entry["name"].replace("/iterations:5", "").replace("/iterations:9", "")
        entry["name"] = entry["name"].replace("/manual_time", "")
    return [entry for entry in entries if not entry.get("error_occurred")]


def matmul_cases(bins, few, shapes, rows, threads, prefix="matmul"):
    """{(format, shape, rows, threads): counters}"""
    pattern = (f"{prefix}/({few})/({'|'.join(shapes)})/M:({'|'.join(map(str, rows))})"
               f"/threads:({'|'.join(map(str, threads))}).*")
    cases = {}
    for entry in run(bins / "matmul_benchmark", pattern):
        match = re.match(rf"{prefix}/(\w+)/(\w+)/M:(\d+)/threads:(\d+)", entry["name"])
        cases[match[1], match[2], int(match[3]), int(match[4])] = entry
    return cases


def cell(entry, key, digits=2):
    value = entry.get(key) if entry else None
    return "" if value is None else f"{value:.{digits}f}"


def table(heading, rows):
    """Markdown; the first column is text, all others numbers."""
    lines = ["| " + " | ".join(heading) + " |", "|---|" + "--:|" * (len(heading) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def decode_table(cases, threads):
    rows = []
    for (name, shape, m, t), e in cases.items():
        if t == threads:
            rows.append([name, cell(e, "GB/s", 1), cell(e, "of_limit"), cell(e, "vs_ggml"),
                         cell(e, "canonical_GB/s", 1), cell(e, "canonical_of_limit"),
                         cell(e, "canonical_vs_ggml"), f"{e['nmse']:.1e}"])
    return table(["format", "packed GB/s", "of limit", "ggml best / nibble", "canonical GB/s",
                  "of limit", "ggml plain / nibble", "NMSE"], rows)


def prefill_table(cases, m_rows, threads):
    rows = []
    for (name, shape, m, t), e in cases.items():
        if m == m_rows and t == threads:
            rows.append([name, cell(e, "GFLOP/s", 0), cell(e, "of_limit"), cell(e, "vs_ggml"),
                         cell(e, "vs_openvino"), cell(e, "canonical_GFLOP/s", 0),
                         cell(e, "canonical_of_limit"), cell(e, "canonical_vs_ggml")])
    return table(["format", "packed GFLOP/s", "of limit", "ggml best / nibble", "OpenVINO / nibble",
                  "canonical GFLOP/s", "of limit", "ggml plain / nibble"], rows)


def grid_table(cases, columns, key, label, digits=2):
    """Formats and shapes down, a column for each number of rows."""
    lines = collections.OrderedDict()
    for (name, shape, m, t), e in cases.items():
        lines.setdefault((name, shape), {})[m] = e
    rows = [[f"{name} {shape}"] + [cell(found.get(m), key, digits) for m in columns]
            for (name, shape), found in lines.items()]
    return table([label] + [f"M={m}" for m in columns], rows)


def conversion_table(entries, program, columns):
    found = collections.OrderedDict()
    for entry in entries:
        match = re.match(rf"{program}/(.+)/threads:(\d+)", entry["name"])
        found.setdefault(match[1], {})[int(match[2])] = entry
    rows = [[name] + [cell(by.get(t), key, digits) for t in (1, 2) for key, _, digits in columns]
            for name, by in found.items()]
    heading = [f"{label}, {t} thread{'s' * (t > 1)}" for t in (1, 2) for _, label, _ in columns]
    return table(["format"] + heading, rows)


def draw(decode, prefill, path):
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "nibble", "font.size": 9})
    figure, axes = plt.subplots(2, 1, figsize=(10, 7), constrained_layout=True)
    for axis, cases, title, at in ((axes[0], decode, "M = 1, share of the memory's read bandwidth", 1),
                                   (axes[1], prefill, "M = 512, share of the bare loop", 512)):
        found = {name: e for (name, _, m, t), e in cases.items() if m == at and t == 1}
        places = range(len(found))
        axis.bar([p - 0.2 for p in places], [e.get("of_limit", 0) for e in found.values()], 0.4,
                 label="packed", color="#1f6feb")
        axis.bar([p + 0.2 for p in places], [e.get("canonical_of_limit", 0) for e in found.values()],
                 0.4, label="canonical", color="#9ec5fe")
        axis.plot(places, [e["of_limit"] / e["vs_ggml"] if e.get("vs_ggml") else float("nan")
                           for e in found.values()], "D", color="#d1242f", label="ggml's best")
        axis.axhline(1, color="#888", linewidth=0.8)
        axis.set_xticks(list(places), list(found), rotation=60, ha="right")
        axis.set_title(title, loc="left")
        axis.set_ylim(0, max(1.15, axis.get_ylim()[1]))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, ncols=3, loc="upper right")
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bins", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "results")
    parser.add_argument("--quick", action="store_true")
    a = parser.parse_args()
    load = os.getloadavg()[0]
    square, few = SHAPES[:1], "|".join(FEW)
    decode = matmul_cases(a.bins, ANY, square, [1], [1, 2])
    prefill = matmul_cases(a.bins, ANY, square, [32, 512], [1])
    cached = matmul_cases(a.bins, few if a.quick else ANY, square, [1], [1], "matmul_64MiB")
    many = matmul_cases(a.bins, few, square if a.quick else SHAPES, ROWS, [1])
    pairs = matmul_cases(a.bins, few, square, [1, 512], [1, 2])
    quantize = run(a.bins / "quantize_benchmark", "quantize/.*")
    dequantize = run(a.bins / "dequantize_benchmark", "dequantize/.*")

    name = f"cpu-{machine.slug()}"
    a.output.mkdir(parents=True, exist_ok=True)
    draw(decode, prefill, a.output / f"{name}.svg")
    scaling = [[f"{fmt} {shape}, M={m}",
                f"{pairs[fmt, shape, m, 1]['real_time'] / e['real_time']:.2f}"]
               for (fmt, shape, m, t), e in pairs.items() if t == 2]
    loops = sorted({e["label"] for e in prefill.values() if e.get("label")})
    parts = [
        "# CPU kernels\n",
        f"{machine.processor()}; load average {load:.1f} at the start; "
        f"{datetime.date.today().isoformat()}. Written by `./dev bench --peers`. Ratios are medians "
        "of turns within one run; one thread unless said. \"Of limit\": for few activation rows the "
        "share of the bandwidth that plain reads of the same bytes reach, for many of a bare loop of "
        f"{' or '.join(loops) or 'the fastest instruction'} on registers. Peers, as times over "
        "nibble's (above 1: nibble is faster): ggml of llama.cpp in the fastest of its layouts "
        "(best; its tiles for AMX crash with several rows and are left out there) and with plain "
        "weights, OpenVINO with a compressed matrix of about as many bits. "
        "NMSE: error energy of the int8-activation product over its energy.\n",
        f"![shares of the limit]({name}.svg)\n",
        "## One activation row, 4096 x 4096, from 256 MiB of weights\n", decode_table(decode, 1),
        "Two threads:\n", decode_table(decode, 2),
        "From 64 MiB of weights:\n", decode_table(cached, 1),
        "## Many activation rows, 4096 x 4096\n", "M = 512:\n", prefill_table(prefill, 512, 1),
        "M = 32:\n", prefill_table(prefill, 32, 1),
        "## Shapes and numbers of rows (packed)\n", "GFLOP/s:\n",
        grid_table(many, ROWS, "GFLOP/s", "weights", 0), "ggml's best time / nibble's:\n",
        grid_table(many, ROWS, "vs_ggml", "weights"),
        "## Two threads\n", table(["product", "speed of two threads / one"], scaling),
        "## Quantize, 1024 x 4096\n",
        conversion_table(quantize, "quantize", [("Mweights/s", "Mweights/s", 0),
                                                ("vs_ggml", "ggml / nibble", 2),
                                                ("rms_vs_ggml", "error, nibble / ggml", 4)]),
        "## Dequantize to f32, 4096 x 4096\n",
        conversion_table(dequantize, "dequantize", [("GB/s", "GB/s written", 1),
                                                    ("of_write", "of plain stores", 2),
                                                    ("vs_ggml", "ggml / nibble", 2)]),
    ]
    page = a.output / f"{name}.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
