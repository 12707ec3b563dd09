"""Writes encode_k.txt: the errors of ggml's quantizers on the matrices of ../encode_k_matrices.h.

A line a case: format, 1 where errors have an importance, matrix, and the sum over all weights of
importance * (weight - decoded weight)^2.

    pip install numpy gguf llama-cpp-python
    python encode_k.py > encode_k.txt
"""

import ctypes
import json
import pathlib

import gguf
import llama_cpp
import numpy as np

ROWS, COLS = 4, 1024
SEARCHED = ["q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs"]
WITH_IMPORTANCE = SEARCHED + ["q4_0", "q4_1", "q5_0", "q5_1"]
MODEL = pathlib.Path(__file__).parents[2] / "examples/reference-model/model.safetensors"


def hash32(i):
    i = np.asarray(i, np.uint32)
    i = (i ^ (i >> np.uint32(16))) * np.uint32(0x7FEB352D)
    i = (i ^ (i >> np.uint32(15))) * np.uint32(0x846CA68B)
    return i ^ (i >> np.uint32(16))


def bell(i):
    total = np.zeros(i.shape, np.int64)
    for k in range(6):
        bits = hash32(np.uint32(6) * i + np.uint32(k))
        total += (bits & 0xFFFF) + (bits >> 16)
    return (total - 6 * 65535) * 2.0**-16


def burst(i):
    bits = hash32(i + np.uint32(0x9E3779B9))
    power = np.zeros(i.shape, np.int64)
    running = np.ones(i.shape, bool)
    for k in range(5):
        running &= (bits >> np.uint32(k) & 1) != 0
        power += running
    return 2.0**power


def model_slice(tensor):
    data = MODEL.read_bytes()
    header = int.from_bytes(data[:8], "little")
    offset = json.loads(data[8 : 8 + header])[tensor]["data_offsets"][0]
    return np.frombuffer(data, np.float16, ROWS * COLS, 8 + header + offset)


def matrices():
    i = np.arange(ROWS * COLS, dtype=np.uint32)
    odd = np.where(hash32(i + np.uint32(77)) % 61 == 0, 2.0**-1, 2.0**-5)
    return {
        "gauss": bell(i) * 2.0**-5,
        "heavy": bell(i) * burst(i) * 2.0**-6,
        "uniform": hash32(i).astype(np.int32).astype(np.float32) * 2.0**-34,
        "outliers": bell(i) * odd,
        "constant": (hash32(i // np.uint32(COLS)) >> np.uint32(8)) * 2.0**-26,
        "zeros": np.zeros(i.shape),
        "negative": -np.abs(bell(i)) * 2.0**-5,
        "one_sided": np.abs(bell(i)) * 2.0**-5,
        "offset": (bell(i) * 2.0**-5).astype(np.float32) + np.float32(1),
        "denormal": (hash32(i) & 0xFFFF) * 2.0**-149,
        "small": bell(i) * 2.0**-18,
        "huge": bell(i) * 2.0**11,
        "attn_q": model_slice("model.layers.3.self_attn.q_proj.weight"),
        "ffn_down": model_slice("model.layers.3.mlp.down_proj.weight"),
    }


def importance():
    bits = hash32(np.arange(COLS, dtype=np.uint32) + np.uint32(0x1234567))
    return ((256 + (bits >> 24)) * 2.0 ** -(bits % 10).astype(np.float64)).astype(np.float32)


def main():
    library = pathlib.Path(llama_cpp.__file__).parent / "lib/libggml-base.so"
    ggml = ctypes.CDLL(str(library))
    weigh = importance()
    for name, values in matrices().items():
        values = np.ascontiguousarray(values, np.float32)
        for format_name in WITH_IMPORTANCE:
            for weighted in [0, 1] if format_name in SEARCHED else [1]:
                quantize = ggml[f"quantize_{format_name}"]
                quantize.restype = ctypes.c_size_t
                out = np.zeros(values.size * 4, np.uint8)
                used = quantize(
                    values.ctypes.data_as(ctypes.c_void_p),
                    out.ctypes.data_as(ctypes.c_void_p),
                    ctypes.c_int64(ROWS),
                    ctypes.c_int64(COLS),
                    weigh.ctypes.data_as(ctypes.c_void_p) if weighted else None,
                )
                kind = gguf.GGMLQuantizationType[format_name.upper()]
                decoded = gguf.quants.dequantize(out[:used], kind).reshape(ROWS, COLS)
                error = (values.reshape(ROWS, COLS).astype(np.float64) - decoded) ** 2
                total = float(np.sum(error * weigh if weighted else error))
                print(format_name, weighted, name, f"{total:.7g}")


main()
