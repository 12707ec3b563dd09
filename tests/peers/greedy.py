#!/usr/bin/env python3
"""Compares nibble's greedy text with llama.cpp's, token by token, at f16 and f32.

    greedy.py NIBBLE MODEL... [--tokens N] [--report FILE.md]

Each MODEL, a GGUF file or a Hugging Face folder, is written as f16 and as f32 by nibble, and both
programs continue the same prompts from these files. llama.cpp rounds the activations to f16 before
it multiplies them with f16 weights, nibble does not; so two tokens whose logits are closer than
this rounding may change places. Where the texts part, the gap between both tokens in llama.cpp's
logits must therefore be smaller than the most by which any of its own logits moves between the two
files after that same text; everything else fails. Exit status 1 then, or where tokens of a prompt
differ, or where more than a quarter of the texts part. Needs llama-cpp-python and numpy.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np

import llama_cpp_peer  # noqa: F401: weights as in the file

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "The three laws of thermodynamics are",
    "To make a good cup of tea, first",
    "def fibonacci(n):",
    "#include <vector>\n\nint main() {",
    "1, 1, 2, 3, 5, 8,",
    "Die Hauptstadt von Deutschland ist",
    "Q: How many days does a leap year have?\nA:",
    "Dear Sir or Madam,\n\nI am writing to",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is 12 times 12?<|im_end|>\n<|im_start|>assistant\n",
]
TYPES = ("f16", "f32")


def logits_after(model, tokens, count):
    """llama.cpp's logits after each of the last `count` tokens."""
    model.reset()
    model.eval(tokens)
    return np.array(model.scores[len(tokens) - count:len(tokens)])


def greedy(model, prompt, count):
    tokens = []
    model.reset()
    model.eval(prompt)
    while len(tokens) < count:
        tokens.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(tokens[-1:])
    return tokens


def continue_with_nibble(nibble, path, prompt, count):
    run = subprocess.run([nibble, "generate", path, "--prompt", prompt, "--special", "--max-tokens",
                          str(count), "--no-stop", "--precision", "f32", "--json", "--quiet"],
                         check=True, capture_output=True)
    document = json.loads(run.stdout)
    return document["prompt_ids"], document["ids"]


def compare(nibble, paths, prompt, count):
    """Yields for each type: equal tokens, and (gap, rounding) where the texts part."""
    models = {name: llama_cpp.Llama(path, n_ctx=256, n_batch=256, logits_all=True, verbose=False,
                                    n_threads=1, n_threads_batch=1)
              for name, path in paths.items()}
    for name, model in models.items():
        ids = model.tokenize(prompt.encode(), add_bos=True, special=True)
        our_ids, ours = continue_with_nibble(nibble, paths[name], prompt, count)
        if our_ids != ids:
            yield name, None, None
            continue
        theirs = greedy(model, ids, count)
        equal = next((i for i in range(count) if theirs[i] != ours[i]), count)
        if equal == count:
            yield name, count, None
            continue
        text = ids + theirs[:equal]
        row = {other: logits_after(models[other], text, 1)[0] for other in TYPES}
        gap = abs(float(row[name][theirs[equal]] - row[name][ours[equal]]))
        yield name, equal, (gap, float(np.abs(row["f16"] - row["f32"]).max()))
    for model in models.values():
        model.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nibble")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--report")
    arguments = parser.parse_args()
    failures, parted, total = 0, 0, 0
    lines = ["# Greedy text beside llama.cpp's", "",
             f"{arguments.tokens} tokens after each prompt: how many agree before the first that "
             f"differs. llama.cpp {llama_cpp.__version__} is llama-cpp-python's, weights kept as "
             "in the file; nibble computes in f32 from the same files; both cache f16. Where the "
             "texts part, the gap is that between both tokens in llama.cpp's logits, and the "
             "rounding the most by which one of its logits moves there between the f16 and the "
             "f32 file. Made by `tests/peers/greedy.py`."]
    for source in map(pathlib.Path, arguments.models):
        lines += ["", "## " + source.name.split(".")[0], "", "| prompt | f16 | f32 |", "|---|---|---|"]
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: f"{folder}/{name}.gguf" for name in TYPES}
            for name, path in paths.items():
                subprocess.run([arguments.nibble, "dequantize", source, "-o", path, "--type", name,
                                "--quiet"], check=True)
            for prompt in PROMPTS:
                cells = []
                for name, equal, tie in compare(arguments.nibble, paths, prompt, arguments.tokens):
                    good = equal == arguments.tokens or (tie is not None and tie[0] < tie[1])
                    if equal is None:
                        cell = "other tokens in the prompt"
                    else:
                        cell = f"{equal} of {arguments.tokens}"
                    if tie is not None:
                        cell += f"; gap {tie[0]:.5f}, rounding {tie[1]:.5f}"
                    total += 1
                    parted += tie is not None
                    failures += not good
                    cells.append(cell)
                    print(f"{'ok  ' if good else 'FAIL'} {name} {prompt!r}: {cell}", flush=True)
                shown = prompt.replace("\n", "⏎").replace("|", "\\|")
                lines.append(f"| `{shown}` | " + " | ".join(cells) + " |")
    print(f"{total - parted} of {total} texts are equal, {parted - failures} part at a tie")
    if arguments.report:
        pathlib.Path(arguments.report).write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(1 if failures or 4 * parted > total else 0)


main()
