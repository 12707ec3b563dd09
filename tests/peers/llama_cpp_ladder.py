#!/usr/bin/env python3
"""Quantizes a model to every type with nibble and has llama.cpp open and run each file.

    llama_cpp_ladder.py NIBBLE MODEL [--prompt TEXT]

MODEL is a Hugging Face folder or a GGUF file of full precision. For every type that both know,
llama.cpp's own quantizer must give every tensor the same type; then the file must load and continue
the prompt with text. Needs gguf and llama-cpp-python. Exit status 1 when anything differs.
"""
import argparse
import ctypes
import pathlib
import subprocess
import sys
import tempfile

import gguf
import llama_cpp

# Name, and the number llama.cpp gives it; None: nibble alone has the name, for every matrix.
TYPES = [("F32", 0), ("F16", 1), ("BF16", 32), ("Q8_0", 7), ("Q6_K", 18), ("Q5_K_M", 17),
         ("Q5_K_S", 16), ("q5_K", None), ("Q5_1", 9), ("Q5_0", 8), ("Q4_K_M", 15), ("Q4_K_S", 14),
         ("q4_K", None), ("Q4_1", 3), ("Q4_0", 2), ("IQ4_NL", 25), ("IQ4_XS", 30), ("mxfp4", None),
         ("Q3_K_L", 13), ("Q3_K_M", 12), ("Q3_K_S", 11), ("q3_K", None), ("Q2_K", 10),
         ("TQ2_0", 37), ("TQ1_0", 36)]


def types_of(path):
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


def types_of_llama_cpp(source, target, file_type):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 1
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        return None
    types = types_of(target)
    pathlib.Path(target).unlink()
    return types


def without_repacking():
    """Model parameters that keep weights as they are in the file: llama.cpp's layouts for AMX crash
    on some processors, with its own Q8_0 files too."""
    params = default_params()
    params.use_extra_bufts = False
    return params


default_params = llama_cpp.llama_model_default_params
llama_cpp.llama_cpp.llama_model_default_params = without_repacking  # as Llama sees it


def generate(path, prompt):
    model = llama_cpp.Llama(path, n_ctx=128, verbose=False, n_threads=1)
    return model(prompt, max_tokens=16, temperature=0.0)["choices"][0]["text"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--prompt", default="The function returns")
    arguments = parser.parse_args()
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
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
