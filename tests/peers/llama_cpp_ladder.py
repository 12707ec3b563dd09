#!/usr/bin/env python3
"""Quantizes a model to every type with nibble and has llama.cpp open and run each file.

    llama_cpp_ladder.py NIBBLE MODEL [--prompt TEXT]

MODEL is a Hugging Face folder or a GGUF file of full precision. For every type that both know,
llama.cpp's own quantizer must give every tensor the same type; then the file must load and continue
the prompt with text. Needs gguf and llama-cpp-python. Exit status 1 when anything differs.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import gguf
import llama_cpp

from llama_cpp_peer import TYPES, quantize


def types_of(path):
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


def types_of_llama_cpp(source, target, file_type):
    if not quantize(source, target, file_type):
        return None
    types = types_of(target)
    pathlib.Path(target).unlink()
    return types


def generate(path, prompt):
    model = llama_cpp.Llama(path, n_ctx=128, verbose=False, n_threads=1)
    return model(prompt, max_tokens=16, temperature=0.0)["choices"][0]["text"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--prompt", default="The function returns")
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        source = f"{folder}/source.gguf"
        subprocess.run([arguments.nibble, "convert", arguments.model, "-o", source, "--quiet"],
                       check=True)
        for name, file_type in TYPES:
            target = f"{folder}/{name}.gguf"
            subprocess.run([arguments.nibble, "quantize", source, "-o", target, "--type", name,
                            "--quiet"], check=True)
            ours, same = types_of(target), "-"
            if file_type is not None:
                theirs = types_of_llama_cpp(source, f"{folder}/theirs.gguf", file_type)
                same = "same types" if ours == theirs else "OTHER TYPES"
            text = generate(target, arguments.prompt)
            failures += same == "OTHER TYPES" or not text.strip()
            size = pathlib.Path(target).stat().st_size
            print(f"{name:8} {size:12d} bytes  {same:11}  {text!r}", flush=True)
            pathlib.Path(target).unlink()
    sys.exit(1 if failures else 0)


main()
