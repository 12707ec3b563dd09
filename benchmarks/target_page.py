#!/usr/bin/env python3
"""Writes the page of results of the CPU kernels with lesser instruction sets than the machine's.

    target_page.py BIN --ggml TARGET=FOLDER... [--output FOLDER]

BIN is the folder of the benchmark programs. TARGET is avx3_dl (AVX-512 with VNNI and VBMI, no tiles),
avx2_vnni or avx2, which NIBBLE_TARGET makes nibble use; FOLDER holds libggml*.so built for the same. They come
from the sources of llama-cpp-python (tests/reference/requirements.txt names the version):

    cmake -S vendor/llama.cpp/ggml -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \\
        -DGGML_NATIVE=OFF -DGGML_LLAMAFILE=ON -DGGML_{AVX,AVX2,FMA,F16C,BMI2}=ON \\
        [-DGGML_AVX_VNNI=ON] [-DGGML_AVX512{,_VBMI,_VNNI,_BF16}=ON]

OpenVINO is told its limit by ONEDNN_MAX_CPU_ISA. The page is FOLDER/cpu-<processor>-targets.md,
FOLDER docs/results unless said. One thread, on the first processor. Takes a quarter of an hour.
"""
import argparse
import datetime
import os
import pathlib

import kernel_page
import machine

FORMATS = ["q4_0", "q8_0", "q4_K", "q6_K", "q3_K", "iq4_nl", "iq4_xs", "iq2_xs", "tq1_0"]
TARGETS = {"avx3_dl": ("AVX-512 with VNNI and VBMI, without AMX", "AVX512_CORE_BF16"),
           "avx2_vnni": ("AVX2 with AVX-VNNI", "AVX2_VNNI"),
           "avx2": ("AVX2 with FMA and F16C", "AVX2")}
ROWS = [1, 8, 32, 512]


def section(bins, target, folder):
    title, limit = TARGETS[target]
    os.environ.update(NIBBLE_TARGET=target, NIBBLE_GGML=str(folder), ONEDNN_MAX_CPU_ISA=limit)
    cases = kernel_page.matmul_cases(bins, "|".join(FORMATS), ["4096x4096"], ROWS, [1])
    parts = [f"## {title}\n", f"`NIBBLE_TARGET={target}`, `ONEDNN_MAX_CPU_ISA={limit}`.\n"]
    cell = kernel_page.cell
    for m in ROWS:
        rows = [[name, cell(e, "GFLOP/s", 0), cell(e, "vs_ggml"), cell(e, "vs_openvino"),
                 cell(e, "canonical_GFLOP/s", 0), cell(e, "canonical_vs_ggml"), f"{e['nmse']:.1e}"]
                for (name, _, at, _), e in cases.items() if at == m]
        parts += [f"M = {m}:\n", kernel_page.table(
            ["format", "packed GFLOP/s", "ggml best / nibble", "OpenVINO / nibble",
             "canonical GFLOP/s", "ggml plain / nibble", "NMSE"], rows)]
    return parts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bins", type=pathlib.Path)
    parser.add_argument("--ggml", action="append", required=True, metavar="TARGET=FOLDER")
    parser.add_argument("--output", type=pathlib.Path,
                        default=kernel_page.ROOT / "docs" / "results")
    a = parser.parse_args()
    load = os.getloadavg()[0]
    os.sched_setaffinity(0, {0})
    parts = [
        "# CPU kernels without the machine's best instructions\n",
        f"{machine.processor()}; load average {load:.1f} at the start; "
        f"{datetime.date.today().isoformat()}. Written by `benchmarks/target_page.py`. Weights of "
        "4096 x 4096, one thread, processor time; ratios are medians of turns within one run. nibble "
        "was told to use the lesser instruction set, ggml of llama.cpp was built for it (the fastest "
        "of its layouts is \"best\", canonical weights are \"plain\"), and OpenVINO, with a "
        "compressed matrix of about as many bits, was limited to it. Peers are given as times over "
        "nibble's: above 1, nibble is faster. With 1 and 8 activation rows weights come from memory.\n"
    ]
    for entry in a.ggml:
        target, folder = entry.split("=", 1)
        parts += section(a.bins.resolve(), target, pathlib.Path(folder).resolve())
    page = a.output / f"cpu-{machine.slug()}-targets.md"
    page.write_text("\n".join(parts), encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
