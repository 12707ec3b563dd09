#!/usr/bin/env python3
"""Compares nibble's perplexity with llama.cpp's, type by type, on the same windows of a text.

    perplexity.py NIBBLE MODEL TEXT [--windows N] [--report FILE.md]

MODEL is a Hugging Face folder or a GGUF file of full precision. llama.cpp counts as its perplexity
tool does by default: windows of the whole context, the first token replaced by a BOS, the second
half scored. Exit status 1 when F32, F16 or BF16 differ by more than 0.1 %, or a quantized type by
more than 0.5 %. Needs llama-cpp-python and numpy.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np

from llama_cpp_peer import READ_TYPES, TYPES, quantize

FLOATS = {"F32": 0.1, "F16": 0.1, "BF16": 0.1}  # per cent that are allowed
QUANTIZED = 0.5
CONTEXT = 256


def perplexity_of_llama_cpp(path, text, windows):
    """Perplexity, and the number of windows."""
    model = llama_cpp.Llama(path, n_ctx=CONTEXT, n_batch=CONTEXT, logits_all=True, verbose=False,
                            n_threads=1, n_threads_batch=1)
    tokens = model.tokenize(text, add_bos=True)
    count = len(tokens) // CONTEXT if windows is None else min(windows, len(tokens) // CONTEXT)
    first, nll = CONTEXT // 2, []
    for window in range(count):
        part = tokens[window * CONTEXT:(window + 1) * CONTEXT]
        part[0] = model.token_bos()
        model.reset()
        model.eval(part)
        logits = np.array(model.scores[first:CONTEXT - 1], dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(logits)), part[first + 1:]]
        nll.append(np.log(np.exp(logits).sum(axis=1)) - chosen)
    model.close()
    return float(np.exp(np.concatenate(nll).mean())), count


def perplexity_of_nibble(nibble, path, text_path, windows, precision):
    command = [nibble, "perplexity", path, "--text", text_path, "--context", str(CONTEXT),
               "--precision", precision, "--json", "--quiet"]
    if windows is not None:
        command += ["--windows", str(windows)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def report(arguments, rows, windows):
    bits = ["# Perplexity beside llama.cpp's", "",
            f"The reference model, type by type, on {'all ' if arguments.windows is None else ''}"
            f"{windows} windows of {CONTEXT} tokens of "
            f"`{pathlib.Path(arguments.text).name}` (the second half of each scored, "
            f"{windows * (CONTEXT // 2 - 1)} tokens). llama.cpp {llama_cpp.__version__} is "
            "llama-cpp-python's, built for this processor, weights kept as in the file; files "
            "are nibble's, but for " + " and ".join(name for name, _ in READ_TYPES) +
            ", which llama.cpp wrote. int8 is nibble's default: activations rounded to 8 bits by "
            "block, as llama.cpp rounds them; f32 does not round them. Made by "
            "`tests/peers/perplexity.py`.", "",
            "| type | llama.cpp | nibble, int8 | differs | nibble, f32 | differs |",
            "|---|---:|---:|---:|---:|---:|"]
    for name, theirs, ours in rows:
        cells = [f"{ours[p]:.4f} | {100 * (ours[p] / theirs - 1):+.3f} %" for p in ours]
        bits.append(f"| {name} | {theirs:.4f} | " + " | ".join(cells) + " |")
    pathlib.Path(arguments.report).write_text("\n".join(bits) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--windows", type=int)
    parser.add_argument("--report")
    arguments = parser.parse_args()
    text = pathlib.Path(arguments.text).read_bytes()
    failures, rows = 0, []
    with tempfile.TemporaryDirectory() as folder:
        source = f"{folder}/source.gguf"
        subprocess.run([arguments.nibble, "convert", arguments.model, "-o", source, "--quiet"],
                       check=True)
        for name, file_type in TYPES + READ_TYPES:
            target = f"{folder}/{name}.gguf"
            if (name, file_type) in READ_TYPES:
                if not quantize(source, target, file_type):
                    sys.exit(f"llama.cpp does not write {name}")
            else:
                subprocess.run([arguments.nibble, "quantize", source, "-o", target, "--type", name,
                                "--quiet"], check=True)
            theirs, windows = perplexity_of_llama_cpp(target, text, arguments.windows)
            ours = {}
            for precision in ("int8", "f32"):
                result = perplexity_of_nibble(arguments.nibble, target, arguments.text, windows,
                                              precision)
                if result["windows"] != windows:
                    sys.exit(f"nibble cut the text into {result['windows']} windows, "
                             f"llama.cpp into {windows}")
                ours[precision] = result["perplexity"]["value"]
            differs = 100 * (ours["int8"] / theirs - 1)
            good = abs(differs) <= FLOATS.get(name, QUANTIZED)
            failures += not good
            rows.append((name, theirs, ours))
            print(f"{'ok  ' if good else 'FAIL'} {name:8} llama.cpp {theirs:9.4f}  nibble int8 "
                  f"{ours['int8']:9.4f} ({differs:+.3f} %)  f32 {ours['f32']:9.4f} "
                  f"({100 * (ours['f32'] / theirs - 1):+.3f} %)", flush=True)
            pathlib.Path(target).unlink()
    if arguments.report:
        report(arguments, rows, windows)
    sys.exit(1 if failures else 0)


main()
