#!/usr/bin/env python3
"""Permutes the channels of a Llama-family model in GGUF, which leaves its function as it is.

    permute_model.py IN.gguf OUT.gguf

IN holds f16 or f32. A model that was quantized before lies on a grid of its blocks: quantizing it to
like blocks again loses nothing and shows nothing. Here the residual channels, the neurons of each
feed-forward part and the dimensions of each value head are shuffled with a fixed seed, so that a
block mixes weights of many grids. Needs gguf and numpy.
"""
import shutil
import sys

import gguf
import numpy as np


def main():
    source, target = sys.argv[1:]
    reader = gguf.GGUFReader(source)

    def number(key):
        field = reader.fields[key]
        return int(field.parts[field.data[0]][0])

    architecture = reader.fields["general.architecture"]
    prefix = bytes(architecture.parts[architecture.data[0]]).decode() + "."
    layers, width = number(prefix + "block_count"), number(prefix + "embedding_length")
    heads = number(prefix + "attention.head_count")
    kv_heads = number(prefix + "attention.head_count_kv")
    tensors = {t.name: t for t in reader.tensors}
    random = np.random.default_rng(20240229)
    channels = random.permutation(width)
    shutil.copyfile(source, target)
    file = np.memmap(target, dtype=np.uint8, mode="r+")
    done = set()

    def permute(name, rows=None, cols=None):
        tensor = tensors[name]
        if tensor.tensor_type.name not in ("F16", "F32"):
            sys.exit(f"{name}: {tensor.tensor_type.name}, not f16 or f32")
        data = tensor.data
        if rows is not None:
            data = data[rows]
        if cols is not None:
            data = data[..., cols]
        raw = np.ascontiguousarray(data).view(np.uint8).ravel()
        file[tensor.data_offset:tensor.data_offset + raw.size] = raw
        done.add(name)

    for name in ("token_embd.weight", "output.weight", "output_norm.weight"):
        if name in tensors:
            permute(name, cols=channels)
    for layer in range(layers):
        blk = f"blk.{layer}."
        neurons = random.permutation(tensors[blk + "ffn_up.weight"].data.shape[0])
        head_dim = tensors[blk + "attn_v.weight"].data.shape[0] // kv_heads
        dims = [random.permutation(head_dim) for _ in range(kv_heads)]
        values = np.concatenate([h * head_dim + dims[h] for h in range(kv_heads)])
        outputs = np.concatenate(
            [h * head_dim + dims[h * kv_heads // heads] for h in range(heads)])
        permute(blk + "attn_norm.weight", cols=channels)
        permute(blk + "ffn_norm.weight", cols=channels)
        permute(blk + "attn_q.weight", cols=channels)
        permute(blk + "attn_k.weight", cols=channels)
        permute(blk + "attn_v.weight", rows=values, cols=channels)
        permute(blk + "attn_output.weight", rows=channels, cols=outputs)
        permute(blk + "ffn_gate.weight", rows=neurons, cols=channels)
        permute(blk + "ffn_up.weight", rows=neurons, cols=channels)
        permute(blk + "ffn_down.weight", rows=channels, cols=neurons)
    left = {name for name in tensors if name not in done and name != "rope_freqs.weight"}
    if left:
        sys.exit(f"not known how to permute {sorted(left)}")
    file.flush()


main()
