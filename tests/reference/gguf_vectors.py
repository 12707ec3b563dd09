"""Writes gguf_vectors.json: what the public packages make of numbers that tests/vectors.h can make too.

    python3 tests/reference/gguf_vectors.py > tests/reference/gguf_vectors.json

Needs the PyPI packages `gguf`, `numpy` and `llama-cpp-python` (for ggml's own library).

  decode   per format: hash of the floats that `gguf` decodes from 512 blocks of random bytes; ggml's C
           decoder is checked here to give the same
  encode   per format and case: hash of the bytes to which `gguf` quantizes a case's floats
  ggml     per format: bytes to which ggml quantizes two rows of 256 floats, and the hash of the
           floats that ggml decodes from them
  activations   per format and case: hash of the bytes to which ggml quantizes a case's floats
"""

import ctypes
import json
import pathlib
import sys

import gguf
import llama_cpp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES

T = gguf.GGMLQuantizationType
M64 = (1 << 64) - 1


def random(seed, count):
    """SplitMix64 from `seed`: uint64[count]."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def digest(words):
    """Sum of words[i] * random[i], as 16 hexadecimal digits."""
    words = np.ascontiguousarray(words).ravel().astype(np.uint64)
    with np.errstate(over="ignore"):
        return f"{int((words * random(0, words.size)).sum()) & M64:016x}"


def digest_floats(x):
    """NaNs count as one value."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).copy()
    bits[np.isnan(x.reshape(bits.shape))] = 0x7FC00000
    return digest(bits)


WEIGHTS = 256 * 64


def case_floats(name):
    """The cases of tests/vectors.h, to the bit."""
    u = random(1, WEIGHTS)
    i = np.arange(WEIGHTS)
    sign = ((u >> np.uint64(63)) << np.uint64(31)).astype(np.uint32)
    mantissa = (u & np.uint64(0x7FFFFF)).astype(np.uint32)
    pick = ((u >> np.uint64(32)) & np.uint64(0xFFFFFF)).astype(np.uint32)
    integer = (u >> np.uint64(40)).astype(np.int64) - (1 << 23)

    def bits(exponent):
        return (sign | (exponent.astype(np.uint32) << np.uint32(23)) | mantissa).view(np.float32)

    if name == "uniform":
        return integer.astype(np.float32) / np.float32(1 << 27)
    if name == "ties":  # few values: halves of a code, equal maxima of both signs
        return ((u >> np.uint64(59)).astype(np.int64) - 16).astype(np.float32) / np.float32(8)
    if name == "zeros":  # both zeros, and in every fourth block of 32 one other value
        x = sign.view(np.float32).copy()
        x[i % 128 == 77] = np.float32(-0.75)
        return x
    if name == "denormal":
        return (sign | mantissa).view(np.float32)
    if name == "tiny":  # where reciprocals overflow
        return bits(1 + pick % 40)
    if name == "wide":  # 2^-40 to 2^14
        return bits(87 + pick % 55)
    if name == "powers":  # close below powers of two
        return bits_below_powers(u, i)
    raise ValueError(name)


def bits_below_powers(u, i):
    # Block of 32 number n: magnitudes of at most 2^v (1 - j 2^-24), v from -100 to 15, j from 0 to 63.
    block = (i // 32).astype(np.uint32)
    exponent = np.uint32(127) - np.uint32(100) + block % np.uint32(116)
    top = (exponent << np.uint32(23)) - block // np.uint32(116) * np.uint32(13) - block % np.uint32(7)
    rest = (u % np.uint64(1 << 24)).astype(np.uint32)
    return np.where(i % 32 == 5, top, top - rest).astype(np.uint32).view(np.float32)


CASES = ["uniform", "ties", "zeros", "denormal", "tiny", "wide", "powers"]
# `gguf` lets the shared exponent of mxfp4 wrap around below 2^-125; nibble stops at the smallest.
# Which of two zeros numpy's minimum returns depends on the machine; nibble writes +0.
SKIP = {("MXFP4", "denormal"), ("Q4_1", "zeros"), ("Q5_1", "zeros")}

ENCODED = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
DECODED = ENCODED[2:] + [
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M",
]  # fmt: skip


class TypeTraits(ctypes.Structure):
    TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", TO_FLOAT),
        ("from_float_ref", ctypes.c_void_p),
    ]


folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
ggml.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
ggml.ggml_quantize_chunk.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
    ctypes.c_void_p,
]  # fmt: skip


def ggml_decode(raw, qtype, count):
    out = np.zeros(count, np.float32)
    raw = np.ascontiguousarray(raw)
    traits = ggml.ggml_get_type_traits(int(qtype)).contents
    traits.to_float(raw.ctypes.data, out.ctypes.data, count)
    return out


def ggml_encode(x, qtype):
    rows, cols = x.shape
    block, size = GGML_QUANT_SIZES[qtype]
    out = np.zeros(x.size // block * size, np.uint8)
    importance = np.ones(cols, np.float32)
    wrote = ggml.ggml_quantize_chunk(
        int(qtype), x.ctypes.data, out.ctypes.data, 0, rows, cols, importance.ctypes.data
    )
    assert wrote == out.size
    return out


BLOCKS = 512
result = {"decode": {}, "encode": {}, "ggml": {}, "activations": {}}
for name in DECODED:
    qtype = T[name]
    block, size = GGML_QUANT_SIZES[qtype]
    words = (BLOCKS * size + 7) // 8
    raw = random(int(qtype), words).view(np.uint8)[: BLOCKS * size].copy()
    with np.errstate(all="ignore"):
        floats = gguf.quants.dequantize(raw.reshape(1, -1), qtype).ravel()
    result["decode"][name.lower()] = digest_floats(floats)
    same = digest_floats(ggml_decode(raw, qtype, BLOCKS * block))
    if same != result["decode"][name.lower()]:
        print(f"{name}: ggml's decoder differs", file=sys.stderr)

for name in ENCODED:
    for case in CASES:
        if (name, case) in SKIP:
            continue
        with np.errstate(all="ignore"):
            raw = gguf.quants.quantize(case_floats(case).reshape(64, 256), T[name])
        result["encode"][f"{name.lower()}/{case}"] = digest(raw.view(np.uint8))

matrix = case_floats("uniform")[:512].reshape(2, 256).copy()
for name in DECODED:
    raw = ggml_encode(matrix, T[name])
    floats = ggml_decode(raw, T[name], matrix.size)
    result["ggml"][name.lower()] = {"bytes": raw.tobytes().hex(), "floats": digest_floats(floats)}

for name, function in [("q8_1", ggml.quantize_row_q8_1_ref), ("q8_K", ggml.quantize_row_q8_K_ref)]:
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function.restype = None
    block, size = GGML_QUANT_SIZES[T[name.upper()]]
    for case in ["uniform", "ties", "wide"]:
        x = case_floats(case)
        raw = np.zeros(x.size // block * size, np.uint8)
        function(x.ctypes.data, raw.ctypes.data, x.size)
        result["activations"][f"{name}/{case}"] = digest(raw)

json.dump(result, sys.stdout, indent=1)
print()
