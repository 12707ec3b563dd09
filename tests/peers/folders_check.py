#!/usr/bin/env python3
"""Opens folders that nibble wrote with transformers and the libraries that own their layouts.

    folders_check.py NIBBLE MODEL

MODEL, a Hugging Face folder of a llama, is quantized in every layout. Each folder is loaded by
transformers, and each matrix of its layers, found by multiplying with unit vectors, must be what
nibble itself decodes the folder to, but for the rounding of the library's arithmetic. Exit status
1 otherwise. Needs transformers, aqlm, bitsandbytes, compressed-tensors, optimum and gptqmodel.
"""
import pathlib
import subprocess
import sys
import tempfile

import aqlm.utils
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# The scheme and further options.
FOLDERS = {
    "gptq": ("int4 sym g128 f16", []),
    "gptq-asym": ("int4 asym g64 f16", []),
    "gptq-8": ("int8 sym g128 f16", []),
    "gptq-3": ("int3 sym g128 f16", []),
    "gptq-2": ("int2 asym g64 f16", []),
    "gptq-feedback": ("int4 sym g128 f16", ["--method", "gptq"]),
    "gptq-act-order": ("int4 sym g128 f16 act-order", ["--method", "gptq"]),
    "awq": ("int4 asym g128 f16", ["--layout", "awq"]),
    "nf4": ("nf4 g64", []),
    "nf4-double": ("nf4 g64 double", []),
    "fp4": ("fp4 g64", []),
    "llm-int8": ("int8 sym channel", []),
    "compressed-int8": ("int8 sym channel", ["--layout", "compressed-tensors"]),
    "compressed-fp8": ("f8_e4m3 channel", []),
    "aqlm": ("2x8g8 f16", []),
}
# Of a difference, relative to the matrix's largest weight: products in bf16, inputs in int8.
BOUND = 1e-2
MATRICES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def run(*arguments):
    subprocess.run([str(a) for a in arguments], check=True)


def unpermuted(weight, heads):
    """A query or key matrix of GGUF, where halves of a head alternate, as Hugging Face has it."""
    rows, cols = weight.shape
    return weight.view(heads, rows // heads // 2, 2, cols).transpose(1, 2).reshape(rows, cols)


def decoded(nibble, folder, config):
    """What nibble reads: {(layer, name in MATRICES): weights}."""
    path = folder.with_suffix(".safetensors")
    run(nibble, "convert", folder, "-o", path, "--type", "f32", "--quiet")
    tensors = load_file(path)
    heads = {"self_attn.q_proj": config.num_attention_heads,
             "self_attn.k_proj": config.num_key_value_heads}
    result = {}
    for layer in range(config.num_hidden_layers):
        for name, ours in MATRICES.items():
            weight = tensors[f"blk.{layer}.{ours}.weight"]
            result[layer, name] = unpermuted(weight, heads[name]) if name in heads else weight
    return result


def weights_of(linear, cols):
    if hasattr(linear, "codebooks"):  # aqlm 1.1.7 multiplies wrongly without a GPU
        codes = aqlm.utils.unpack_int_data(linear.codes, linear.nbits_per_codebook)
        return aqlm.utils._dequantize_weight(codes, linear.codebooks, linear.scales)
    with torch.no_grad():
        return linear(torch.eye(cols)).T.float()


def main():
    nibble, model = map(pathlib.Path, sys.argv[1:])
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        for name, (scheme, options) in FOLDERS.items():
            folder = pathlib.Path(temporary) / name
            if "gptq" in options:
                options = options + ["--calibration", model / "calibration.txt",
                                     "--calibration-context", "256", "--calibration-windows", "8"]
            run(nibble, "quantize", model, "-o", folder, "--scheme", scheme, "--quiet", *options)
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            if name.startswith("compressed"):  # decodes its weights with the first product
                with torch.no_grad():
                    loaded(torch.tensor([[1]]))
            expected = decoded(nibble, folder, loaded.config)
            worst = 0.0
            for (layer, matrix), weight in expected.items():
                linear = loaded.model.layers[layer].get_submodule(matrix)
                found = weights_of(linear, weight.shape[1])
                difference = (found - weight).abs().max() / weight.abs().max()
                worst = max(worst, difference.item())
            kind = type(linear).__name__
            print(f"{name}: {kind}, largest difference {worst:.1e} of {BOUND:g}", flush=True)
            failed |= not worst <= BOUND
    return failed


if __name__ == "__main__":
    sys.exit(main())
