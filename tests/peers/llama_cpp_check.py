#!/usr/bin/env python3
"""Has llama.cpp run a GGUF file and compares it with what PyTorch computed.

    llama_cpp_check.py MODEL.gguf EXPECTED.json [--text FILE]

EXPECTED.json holds prompts with their token ids and greedy continuations: llama.cpp must cut every prompt into the same tokens and continue it with the same ones. --text adds
llama.cpp's perplexity over a text, in windows of one context each, beside those in EXPECTED.json.
Needs llama-cpp-python and numpy.
"""
import argparse
import json
import sys

import llama_cpp
import numpy as np


def perplexity(model, text, windows):
    """Perplexity over the first `windows` windows of context - 1 tokens, each after one bos."""
    tokens = model.tokenize(text.encode(), add_bos=False)
    size = model.n_ctx() - 1
    total, count = 0.0, 0
    for window in range(min(windows, len(tokens) // size)):
        part = tokens[window * size:(window + 1) * size]
        model.reset()
        model.eval([model.token_bos()] + part)
        logits = np.array(model.scores[:size], dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(size), part]
        total += float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum())
        count += size
    return float(np.exp(total / count)), count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("expected")
    parser.add_argument("--text")
    parser.add_argument("--windows", type=int, default=8)
    arguments = parser.parse_args()

    with open(arguments.expected, encoding="utf-8") as file:
        expected = json.load(file)
    model = llama_cpp.Llama(arguments.model, n_ctx=256, logits_all=True, verbose=False, n_threads=2)
    failures = 0
    for case in expected["greedy"]:
        prompt = model.tokenize(case["prompt"].encode())
        wanted = case["greedy_ids"]
        model.reset()
        greedy = []
        for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0):
            greedy.append(token)
            if len(greedy) == len(wanted):
                break
        same_prompt = prompt == case["prompt_ids"]
        same = sum(1 for a, b in zip(greedy, wanted) if a == b)
        good = same_prompt and greedy == wanted
        failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {case['prompt']!r}: prompt tokens "
              f"{'equal' if same_prompt else 'DIFFER'}, {same} of {len(wanted)} greedy tokens equal")
    if arguments.text:
        with open(arguments.text, encoding="utf-8") as file:
            value, count = perplexity(model, file.read(), arguments.windows)
        print(f"perplexity {value:.4f} over {count} tokens of {arguments.text}")
    print(f"{len(expected['greedy']) - failures} of {len(expected['greedy'])} prompts pass")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
