#!/usr/bin/env python3
"""Times GPTQ of square layers: nibble's beside a plain one in torch.

    gptq_torch.py GPTQ_BENCHMARK [--sizes 1024,2048,4096,8192] [--output FILE.md]

Both get a Hessian and weights and give codes in groups of 128 with 4 bits and a zero. The one in
torch follows the paper (arXiv 2210.17323): the upper Cholesky factor of the inverse, blocks of 128
columns, scales from the range of each group; in f32 on two threads. nibble's is the program
gptq_benchmark: the same without act-order but with searched scales; and inside the blocks of q4_K
with two further sweeps. In turn, size by size. Needs torch. Prints a table in Markdown: seconds on
the wall, and of all cores' work, which a busy machine disturbs less.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin would count as work
import torch

import machine

BITS, GROUP, BLOCK = 4, 128, 128
KINDS = ["int4_g128", "q4_K"]


def inputs(n):
    """Weights, and the Hessian of 1024 tokens of correlated inputs."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(n, n, generator=generator)
    x = torch.randn(1024, n, generator=generator)
    for j in range(1, n):
        x[:, j] += 0.5 * x[:, j - 1]
    return weights, x.T @ x


def gptq(weights, hessian):
    """Codes u8 [rows, cols]; `weights` is used up."""
    n = hessian.shape[0]
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(n)
    lower = torch.linalg.cholesky(hessian)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    codes = torch.empty_like(weights, dtype=torch.uint8)
    largest = 2**BITS - 1
    for first in range(0, n, BLOCK):
        last = min(first + BLOCK, n)
        block = weights[:, first:last].clone()
        errors = torch.zeros_like(block)
        factor = upper[first:last, first:last]
        for j in range(last - first):
            if (first + j) % GROUP == 0:
                group = block[:, j:j + GROUP]
                low = group.amin(1).clamp(max=0)
                scale = (group.amax(1).clamp(min=0) - low).clamp(min=1e-9) / largest
                zero = torch.round(-low / scale)
            code = (torch.round(block[:, j] / scale) + zero).clamp(0, largest)
            error = (block[:, j] - scale * (code - zero)) / factor[j, j]
            block[:, j:] -= error.unsqueeze(1) * factor[j, j:].unsqueeze(0)
            codes[:, first + j] = code.to(torch.uint8)
            errors[:, j] = error
        weights[:, last:] -= errors @ upper[first:last, last:]
    return codes


def time_torch(n):
    weights, hessian = inputs(n)
    wall, work = time.perf_counter(), time.process_time()
    gptq(weights, hessian)
    return time.perf_counter() - wall, time.process_time() - work


def time_nibble(program, kind, n):
    run = subprocess.run([program, f"--benchmark_filter=/{kind}/{n}/", "--benchmark_format=json"],
                         check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    (result,) = json.loads(run.stdout)["benchmarks"]
    return result["real_time"], result["cpu_time"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="gptq_benchmark")
    parser.add_argument("--sizes", default="1024,2048,4096,8192")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    time_torch(512)  # wakes the threads
    lines = [f"{machine.processor()}; torch {torch.__version__}, two threads each.", "",
             "| layer | torch, s (all cores) | " +
             " | ".join(f"nibble {kind}, s (all cores)" for kind in KINDS) +
             f" | torch's work / nibble's {KINDS[0]} |",
             "|---|---|" + "---|" * len(KINDS) + "---|"]
    for n in map(int, arguments.sizes.split(",")):
        times = [time_torch(n)] + [time_nibble(arguments.program, kind, n) for kind in KINDS]
        cells = [f"{wall:.2f} ({work:.2f})" for wall, work in times]
        lines.append(f"| {n} x {n} | " + " | ".join(cells) + f" | {times[0][1] / times[1][1]:.2f} |")
        print(lines[-1], file=sys.stderr)
    text = "\n".join(lines) + "\n"
    if arguments.output:
        pathlib.Path(arguments.output).write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
