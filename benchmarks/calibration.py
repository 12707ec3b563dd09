#!/usr/bin/env python3
"""Measures what calibration saves: nibble's GPTQ against llama.cpp's importance matrix.

    calibration.py NIBBLE MODEL --calibration TEXT --evaluation TEXT [--types q2_K,q3_K,...]

MODEL is a Hugging Face folder or a GGUF file of full precision. Both sides see the same windows of
the calibration text: `nibble calibrate` makes the importance matrix that llama.cpp's quantizer
gets, `nibble quantize --method gptq` runs over the text itself. Every matrix of the layers gets the
same type on both sides, embeddings and output stay f16, so that the tensors of two files take the
same bytes. llama.cpp judges all files, itself in f16 the reference, over the windows of the
evaluation text: their second halves, as llama-perplexity scores. Needs llama-cpp-python, gguf and
numpy. Prints a table in Markdown.
"""
import argparse
import ctypes
import math
import pathlib
import subprocess
import sys
import tempfile
import time

import gguf
import llama_cpp
import numpy as np

# nibble's name; llama.cpp's numbers of the file type.
FILE_TYPES = {"q2_K": 10, "q3_K": 11, "q4_K": 14, "q5_K": 16, "q6_K": 18, "iq4_xs": 30,
              "iq4_nl": 25, "q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9}
F16 = 1  # the tensor type
KEPT = ("token_embd.weight", "output.weight")


def without_repacking():
    """Model parameters that keep weights as they are in the file: llama.cpp's layouts for AMX crash
    on some processors."""
    params = default_params()
    params.use_extra_bufts = False
    return params


default_params = llama_cpp.llama_model_default_params
llama_cpp.llama_cpp.llama_model_default_params = without_repacking  # as Llama sees it


def load(path, context, threads):
    return llama_cpp.Llama(str(path), n_ctx=context, n_batch=context, n_ubatch=context,
                           logits_all=True, verbose=False, n_threads=threads,
                           n_threads_batch=threads)


def importance(path):
    """Mean squares by the name of the weight, from an importance matrix in GGUF."""
    tensors = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    means = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2"):
            name = name.removesuffix(".in_sum2")
            counts = tensors[name + ".counts"].reshape(-1, 1)
            means[name] = (sums.reshape(len(counts), -1) / counts).astype(np.float32).ravel()
    return means


def quantize_with_llama_cpp(source, target, name, means):
    entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (weight, values) in zip(entries, means.items()):
        entry.name = weight.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = len(values)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[name]
    params.pure = True
    params.output_tensor_type = params.token_embedding_type = F16
    params.imatrix = entries
    params.nthread = 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(),
                                      ctypes.byref(params)) != 0:
        sys.exit(f"llama.cpp could not quantize to {name}")


def tensors_of(path):
    return {t.name: (t.tensor_type.name, t.n_bytes) for t in gguf.GGUFReader(path).tensors}


def log_softmax(logits):
    logits = logits.astype(np.float32)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True, dtype=np.float64)).astype(
        np.float32)


class Score:
    def __init__(self):
        self.nll, self.kl, self.same = [], [], []

    def add(self, reference, mine, targets):
        p = np.exp(reference)
        self.kl.append((p * (reference - mine)).sum(axis=1, dtype=np.float64))
        self.nll.append(-mine[np.arange(len(targets)), targets].astype(np.float64))
        self.same.append(reference.argmax(axis=1) == mine.argmax(axis=1))

    def summary(self):
        kl, nll = np.concatenate(self.kl), np.concatenate(self.nll)
        return {"kl": kl.mean(), "kl_error": kl.std() / math.sqrt(len(kl)),
                "perplexity": math.exp(nll.mean()), "same": np.concatenate(self.same).mean()}


def judge(reference, files, text, context, windows, threads):
    """Scores of each file against the reference, window by window."""
    models = [load(path, context, threads) for path in [reference, *files]]
    tokens = models[0].tokenize(text, add_bos=True, special=False)
    count = len(tokens) // context
    count = min(count, windows) if windows else count
    scores = [Score() for _ in models]
    first, bos = context // 2, models[0].token_bos()
    adds_bos = tokens[0] == bos
    start = time.time()
    for window in range(count):
        part = tokens[window * context:(window + 1) * context]
        if adds_bos:
            part[0] = bos
        targets = part[first + 1:]
        for index, (model, score) in enumerate(zip(models, scores)):
            model.reset()
            model.eval(part)
            mine = log_softmax(np.array(model.scores[first:context - 1]))
            if index == 0:
                expected = mine
            score.add(expected, mine, targets)
        if window % 50 == 49:
            print(f"{window + 1} of {count} windows, {time.time() - start:.0f} s", file=sys.stderr)
    return count, [score.summary() for score in scores]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--evaluation", required=True)
    parser.add_argument("--types", default="q2_K,q3_K,q4_K,iq4_xs")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--calibration-windows", type=int, default=100000)
    parser.add_argument("--windows", type=int, default=0, help="of the evaluation; 0: all")
    parser.add_argument("--threads", type=int, default=1, help="of llama.cpp")
    parser.add_argument("--gptq", default="", help="further options of nibble quantize")
    parser.add_argument("--folder", help="keep the files here, and take those that are there")
    arguments = parser.parse_args()
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(arguments.folder or temporary)
        folder.mkdir(exist_ok=True)

        def nibble(*words):
            subprocess.run([arguments.nibble, *map(str, words)], check=True, stdout=sys.stderr)

        source, imatrix = folder / "f16.gguf", folder / "imatrix.gguf"
        windows = ["--calibration-windows", arguments.calibration_windows,
                   "--calibration-context", arguments.context]
        if not source.exists():
            nibble("convert", arguments.model, "--type", "f16", "-o", source, "--quiet")
        if not imatrix.exists():
            nibble("calibrate", source, arguments.calibration, "-o", imatrix, *windows)
        means = importance(imatrix)
        files = []
        for name in arguments.types.split(","):
            theirs, ours = folder / f"llama.cpp-{name}.gguf", folder / f"nibble-{name}.gguf"
            if not theirs.exists():
                quantize_with_llama_cpp(source, theirs, name, means)
            if not ours.exists():
                kept = [f"--tensor-type={weight}=f16" for weight in KEPT
                        if weight in tensors_of(source)]
                nibble("quantize", source, "-o", ours, "--type", name, "--pure", *kept, "--method",
                       "gptq", "--calibration", arguments.calibration, *windows,
                       *arguments.gptq.split())
            if tensors_of(theirs) != tensors_of(ours):
                sys.exit(f"{name}: the two files differ in the types of their tensors")
            files += [theirs, ours]
        text = pathlib.Path(arguments.evaluation).read_bytes()
        count, scores = judge(source, files, text, arguments.context, arguments.windows,
                              arguments.threads)
        base = scores[0]["perplexity"]
        print(f"{count} windows of {arguments.context}, perplexity of f16 {base:.4f}\n")
        print("| type | bytes of tensors | mean KL, llama.cpp + imatrix | nibble gptq | less by "
              "| perplexity, llama.cpp | nibble | gap less by | same top token, llama.cpp | nibble |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for i, name in enumerate(arguments.types.split(",")):
            theirs, ours = scores[1 + 2 * i], scores[2 + 2 * i]
            size = sum(size for _, size in tensors_of(files[2 * i]).values())
            gap = (ours["perplexity"] - base) / (theirs["perplexity"] - base)
            print(f"| {name} | {size} | {theirs['kl']:.6f} ± {theirs['kl_error']:.6f} "
                  f"| {ours['kl']:.6f} ± {ours['kl_error']:.6f} "
                  f"| {100 * (1 - ours['kl'] / theirs['kl']):.1f} % "
                  f"| {theirs['perplexity']:.4f} | {ours['perplexity']:.4f} "
                  f"| {100 * (1 - gap):.1f} % | {100 * theirs['same']:.2f} % "
                  f"| {100 * ours['same']:.2f} % |")


if __name__ == "__main__":
    main()
