#!/usr/bin/env python3
"""Writes a Llama of random weights as a Hugging Face folder: the shapes of a real model to time, in
16 bits, without its text.

    synthetic_llama.py FOLDER [--layers N] [--width N] [--heads N] [--kv-heads N] [--ffn N]

The default is 1.1 billion weights in TinyLlama's shapes. The tokenizer is the reference model's; the
vocabulary is filled up to 32,000. Same weights for same shapes; memory stays below 200 MB. Needs
numpy alone.
"""
import argparse
import json
import pathlib
import shutil

import numpy as np

REFERENCE = pathlib.Path(__file__).resolve().parent.parent / "examples" / "reference-model"
VOCABULARY = 32000
CHUNK = 1 << 22  # weights that are made at once


def shapes(a):
    """Every tensor's name and dimensions, slowest first."""
    head = a.width // a.heads
    yield "model.embed_tokens.weight", (VOCABULARY, a.width)
    for i in range(a.layers):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (a.width,)
        yield layer + "self_attn.q_proj.weight", (a.width, a.width)
        yield layer + "self_attn.k_proj.weight", (a.kv_heads * head, a.width)
        yield layer + "self_attn.v_proj.weight", (a.kv_heads * head, a.width)
        yield layer + "self_attn.o_proj.weight", (a.width, a.width)
        yield layer + "post_attention_layernorm.weight", (a.width,)
        yield layer + "mlp.gate_proj.weight", (a.ffn, a.width)
        yield layer + "mlp.up_proj.weight", (a.ffn, a.width)
        yield layer + "mlp.down_proj.weight", (a.width, a.ffn)
    yield "model.norm.weight", (a.width,)
    yield "lm_head.weight", (VOCABULARY, a.width)


def config(a):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": a.width, "intermediate_size": a.ffn, "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads,
        "head_dim": a.width // a.heads, "vocab_size": VOCABULARY, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    for option, value in (("layers", 22), ("width", 2048), ("heads", 32), ("kv-heads", 4),
                          ("ffn", 5632)):
        parser.add_argument(f"--{option}", type=int, default=value)
    arguments = parser.parse_args()

    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(REFERENCE / "tokenizer.model", folder)
    (folder / "config.json").write_text(json.dumps(config(arguments), indent=2) + "\n")
    header, offset = {}, 0
    for name, dims in shapes(arguments):
        size = 2 * int(np.prod(dims))
        header[name] = {"dtype": "F16", "shape": dims, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(1)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dims in shapes(arguments):
            left = int(np.prod(dims))
            if len(dims) == 1:  # a norm
                file.write(np.ones(left, np.float16).tobytes())
                continue
            scale = np.float32(dims[1] ** -0.5)
            while left > 0:
                count = min(left, CHUNK)
                weights = random.standard_normal(count, np.float32) * scale
                file.write(weights.astype(np.float16).tobytes())
                left -= count


if __name__ == "__main__":
    main()
