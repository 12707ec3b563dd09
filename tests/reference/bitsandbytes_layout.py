"""Makes bitsandbytes_layout.safetensors: matrices as bitsandbytes itself saves them, and what it
reads back, for hf_layout_test.cc.

Run with what requirements-bitsandbytes.txt names installed:  python bitsandbytes_layout.py
"""

import ctypes
import json
import pathlib

# The package's own portable implementation, as in bitsandbytes_vectors.py.
ctypes.cdll.LoadLibrary = lambda path: (_ for _ in ()).throw(OSError("not wanted: " + str(path)))

import bitsandbytes.functional as F  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

ROWS, COLS = 4, 256
TYPES = {"torch.float32": "F32", "torch.uint8": "U8", "torch.int8": "I8"}


def weights():
    """The generator of the test: a linear congruential sequence."""
    state, out = 7, np.empty(ROWS * COLS, np.float32)
    for i in range(len(out)):
        state = (state * 1664525 + 1013904223) % 2**32
        out[i] = np.float32(state - 2**32 if state >= 2**31 else state) * np.float32(2.0**-31)
    return torch.from_numpy(out.reshape(ROWS, COLS))


def matrices():
    """Name and tensors of each: the library's own names behind a prefix, "exact" what it decodes."""
    w = weights()
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            packed, state = F.quantize_4bit(w, blocksize=64, compress_statistics=nested, quant_type=kind)
            tensors = {"weight": packed}
            tensors |= {"weight." + k: v for k, v in state.as_dict(packed=True).items()}
            tensors["exact"] = F.dequantize_4bit(packed, state)
            yield kind + ("_nested" if nested else ""), tensors
    codes, maxima, _ = F.int8_vectorwise_quant(w.to(torch.float16))
    yield "int8", {"weight": codes, "SCB": maxima,
                   "exact": F.int8_vectorwise_dequant(codes, maxima)}


def main():
    header, data = {}, b""
    for name, tensors in matrices():
        for suffix, tensor in tensors.items():
            raw = tensor.contiguous().numpy().tobytes()
            header[f"{name}.{suffix}"] = {"dtype": TYPES[str(tensor.dtype)],
                                          "shape": list(tensor.shape),
                                          "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = pathlib.Path(__file__).with_suffix(".safetensors")
    path.write_bytes(np.uint64(len(text)).tobytes() + text + data)


if __name__ == "__main__":
    main()
