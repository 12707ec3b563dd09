#!/usr/bin/env python3
"""Compares nibble's statistics of a model's inputs with what llama.cpp computes.

    imatrix_check.py MODEL.gguf TEXT IMATRIX.gguf [--context 256] [--tolerance 2e-3]

Runs llama.cpp over the text as its imatrix tool does: windows of one context each, a BOS in the
place of the first token, every token counted. A callback sees the inputs of each matrix. IMATRIX is
what `nibble calibrate` made of the same text. Needs llama-cpp-python, gguf and numpy.
"""
import argparse
import collections
import ctypes
import pathlib
import sys

import gguf
import llama_cpp
import numpy as np


class Tensor(ctypes.Structure):
    """ggml_tensor, of ggml.h."""


Tensor._fields_ = [("type", ctypes.c_int), ("buffer", ctypes.c_void_p),
                   ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4), ("op", ctypes.c_int),
                   ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
                   ("src", ctypes.POINTER(Tensor) * 10), ("view_src", ctypes.c_void_p),
                   ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p),
                   ("name", ctypes.c_char * 64)]


class Statistics:
    def __init__(self):
        self.sums = collections.defaultdict(float)
        self.counts = collections.Counter()

    def see(self, address, ask, _):
        tensor = ctypes.cast(address, ctypes.POINTER(Tensor)).contents
        if not tensor.src[0] or not tensor.src[1]:
            return not ask
        weight, inputs = tensor.src[0].contents, tensor.src[1].contents
        name = weight.name.decode()
        wanted = name.startswith("blk.") and name.endswith(".weight") and (
            weight.ne[0] == inputs.ne[0] and tensor.ne[0] == weight.ne[1] and weight.ne[1] > 1)
        if ask or not wanted:
            return wanted if ask else True
        rows, cols = inputs.ne[1], inputs.ne[0]
        data = np.ctypeslib.as_array(ctypes.cast(inputs.data, ctypes.POINTER(ctypes.c_float)),
                                     (rows, inputs.nb[1] // 4))[:, :cols]
        self.sums[name] += np.square(data, dtype=np.float64).sum(axis=0)
        self.counts[name] += rows
        return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("imatrix")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=2e-3)
    arguments = parser.parse_args()
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))

    seen = Statistics()
    callback = llama_cpp.ggml_backend_sched_eval_callback(seen.see)
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = False  # its layouts for AMX crash on some processors
    model = llama_cpp.llama_model_load_from_file(arguments.model.encode(), params)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = arguments.context
    settings.n_threads = settings.n_threads_batch = 1
    settings.cb_eval = callback
    context = llama_cpp.llama_init_from_model(model, settings)
    vocab = llama_cpp.llama_model_get_vocab(model)
    text = pathlib.Path(arguments.text).read_bytes()
    tokens = (llama_cpp.llama_token * (len(text) + 8))()
    count = llama_cpp.llama_tokenize(vocab, text, len(text), tokens, len(tokens), True, False)
    bos = llama_cpp.llama_vocab_bos(vocab)
    for window in range(min(arguments.windows, count // arguments.context)):
        first = window * arguments.context
        part = list(tokens[first:first + arguments.context])
        if llama_cpp.llama_vocab_get_add_bos(vocab):
            part[0] = bos
        batch = llama_cpp.llama_batch_init(arguments.context, 0, 1)
        batch.n_tokens = arguments.context
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, True
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        if llama_cpp.llama_decode(context, batch) != 0:
            sys.exit("llama.cpp could not run the model")
        llama_cpp.llama_batch_free(batch)

    ours = {t.name: t.data for t in gguf.GGUFReader(arguments.imatrix).tensors}
    names = {name.removesuffix(".in_sum2") for name in ours if name.endswith(".in_sum2")}
    if names != set(seen.sums):
        sys.exit(f"other matrices: {sorted(names ^ set(seen.sums))}")
    worst = 0.0
    for name in sorted(names):
        if float(ours[name + ".counts"].ravel()[0]) != seen.counts[name]:
            sys.exit(f"{name}: {ours[name + '.counts'].ravel()} tokens, not {seen.counts[name]}")
        expected = seen.sums[name]
        got = ours[name + ".in_sum2"].ravel().astype(np.float64)
        # Of a column next to the mean: those that are almost zero need not agree to many digits.
        worst = max(worst, float((np.abs(got - expected) / (expected + expected.mean())).max()))
    print(f"{len(names)} matrices, {seen.counts.most_common(1)[0][1]} tokens: mean squares within "
          f"{worst:.1e} of llama.cpp's")
    sys.exit(0 if worst < arguments.tolerance else 1)


main()
