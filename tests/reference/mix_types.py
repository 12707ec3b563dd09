#!/usr/bin/env python3
"""Records the types that llama.cpp's quantizer gives the tensors of models of many shapes.

Needs the packages gguf, numpy and llama-cpp-python. Writes mix_types.json beside itself:
    models[].metadata   what the model's GGUF metadata says
    models[].layers     how often the templates with "{}" stand, counted from 0
    models[].tensors    [name or template, [dims, fastest first]]
    models[].types      "MIX" or "MIX+importance" -> the tensors' types in file order, as runs: a
                       letter and how often it stands
    letters             letter -> format
"""
import ctypes
import itertools
import json
import pathlib
import tempfile

import gguf
import llama_cpp
import numpy as np

FILE_TYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7,
    "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15,
    "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "Q2_K_S": 21, "IQ4_NL": 25, "IQ4_XS": 30,
    "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38,
}
LETTERS = {
    "F32": "f", "F16": "h", "BF16": "b", "Q4_0": "u", "Q4_1": "v", "Q5_0": "w", "Q5_1": "x",
    "Q8_0": "z", "Q2_K": "A", "Q3_K": "B", "Q4_K": "C", "Q5_K": "D", "Q6_K": "E", "IQ4_NL": "N",
    "IQ4_XS": "X", "TQ1_0": "S", "TQ2_0": "T", "MXFP4": "M",
}
# Types whose choice hangs on an importance matrix are recorded with one as well.
WITH_IMPORTANCE = ["Q4_0", "Q5_0", "Q2_K_S", "Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL",
                   "IQ4_XS"]
ROWS = 2


def dense(cols=256, tied=False):
    tensors = [["token_embd.weight", [cols, 8]], ["output_norm.weight", [cols]]]
    if not tied:
        tensors.append(["output.weight", [cols, 8]])
    for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
        tensors.append(["blk.{}." + part + ".weight", [cols, ROWS]])
    return tensors + [["blk.{}.attn_norm.weight", [cols]], ["blk.{}.ffn_norm.weight", [cols]]]


def experts(count):
    tensors = [t for t in dense() if "ffn_gate" not in t[0] and "ffn_up" not in t[0]
               and "ffn_down" not in t[0]]
    tensors.append(["blk.{}.ffn_gate_inp.weight", [256, count]])
    for part in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]:
        tensors.append(["blk.{}." + part + ".weight", [256, ROWS, count]])
    return tensors


def fused(cols=256, tied=False):
    tensors = [["token_embd.weight", [cols, 8]], ["output_norm.weight", [cols]],
               ["output_norm.bias", [cols]]]
    if not tied:
        tensors.append(["output.weight", [cols, 8]])
    for part in ["attn_qkv", "attn_output", "ffn_up", "ffn_down"]:
        tensors.append(["blk.{}." + part + ".weight", [cols, ROWS]])
    return tensors + [["blk.{}.attn_norm.weight", [cols]], ["blk.{}.attn_norm.bias", [cols]]]


def model(name, arch, layers, heads, kv, tensors, **more):
    metadata = {"general.architecture": arch, f"{arch}.block_count": layers,
                f"{arch}.attention.head_count": heads, f"{arch}.attention.head_count_kv": kv}
    metadata.update({f"{arch}.{k}": v for k, v in more.items()})
    return {"name": name, "layers": layers, "metadata": metadata, "tensors": tensors}


MODELS = [
    model("reference", "llama", 8, 8, 4, dense(tied=True)),
    model("16 layers, many heads", "llama", 16, 8, 8, dense()),
    model("32 layers, grouped", "llama", 32, 8, 2, dense()),
    model("36 layers, tied", "qwen2", 36, 8, 2, dense(tied=True)),
    model("llama 70B", "llama", 80, 8, 1, dense()),
    model("llama 65B", "llama", 80, 8, 8, dense()),
    model("qwen2 72B", "qwen2", 80, 8, 1, dense()),
    model("8 experts", "llama", 32, 8, 2, experts(8), expert_count=8, expert_used_count=2),
    model("4 experts", "llama", 12, 8, 8, experts(4), expert_count=4, expert_used_count=2),
    model("rows of 576", "llama", 30, 9, 3, dense(576, tied=True)),
    model("rows of 320", "qwen2", 24, 10, 5, dense(320)),
    model("falcon", "falcon", 32, 8, 1, fused()),
    model("phi2, fused", "phi2", 32, 8, 8, fused()),
]


def write(path, spec):
    arch = spec["metadata"]["general.architecture"]
    width = spec["tensors"][0][1][0]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(width // spec["metadata"][f"{arch}.attention.head_count"])
    writer.add_vocab_size(8)
    for key, value in spec["metadata"].items():
        if key != "general.architecture":
            writer.add_uint32(key, value)
    rng = np.random.default_rng(1)
    for name, dims in expand(spec):
        data = rng.standard_normal(dims[::-1]).astype(np.float32)
        writer.add_tensor(name, data if len(dims) == 1 or "gate_inp" in name
                          else data.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def expand(spec):
    for name, dims in spec["tensors"]:
        for layer in range(spec["layers"] if "{}" in name else 1):
            yield name.format(layer), dims


class ImportanceData(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)),
                ("size", ctypes.c_size_t)]


def quantize(source, target, file_type, spec, importance):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 1
    if importance:
        ones = (ctypes.c_float * 4096)(*([1.0] * 4096))
        items = [(n, d) for n, d in expand(spec) if len(d) > 1]
        entries = (ImportanceData * (len(items) + 1))()
        for entry, (name, dims) in zip(entries, items):
            entry.name = name.encode()
            entry.data = ctypes.cast(ones, ctypes.POINTER(ctypes.c_float))
            entry.size = dims[0] * (dims[2] if len(dims) > 2 else 1)
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    return llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))


def types_of(path, spec):
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    letters = [LETTERS[types[name]] for name, _ in expand(spec)]
    return "".join(f"{k}{len(list(run))}" for k, run in itertools.groupby(letters))


def main():
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.gguf", f"{folder}/out.gguf"
        for spec in MODELS:
            write(source, spec)
            spec["types"] = {}
            runs = [(m, False) for m in FILE_TYPES] + [(m, True) for m in WITH_IMPORTANCE]
            for mix, importance in runs:
                # Q2_K_S is refused without an importance matrix.
                if quantize(source, target, FILE_TYPES[mix], spec, importance) != 0:
                    print(spec["name"], mix, importance, "refused")
                    continue
                spec["types"][mix + "+importance" * importance] = types_of(target, spec)
            print(spec["name"], len(spec["types"]), "types")
    letters = {v: k for k, v in LETTERS.items()}
    path = pathlib.Path(__file__).with_suffix(".json")
    rows = ",\n".join(json.dumps(m, separators=(",", ":")) for m in MODELS)
    path.write_text('{"letters":%s,\n"models":[\n%s\n]}\n' % (json.dumps(letters), rows))


main()
