"""Makes bitsandbytes_vectors.json: what bitsandbytes' reference backend gives for planar_bitsandbytes_test.cc.

Run with what requirements-bitsandbytes.txt names installed:  python bitsandbytes_vectors.py

The native CPU library is kept from loading, so that the package's own portable implementation runs:
the native one finds 8-bit codes through a table of limited resolution and misses the nearest value
now and then.
"""

import ctypes
import json
import pathlib

ctypes.cdll.LoadLibrary = lambda path: (_ for _ in ()).throw(OSError("not wanted: " + str(path)))

import bitsandbytes.functional as F  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402


def weights(n, seed):
    """The generator of the test: a linear congruential sequence, scaled by a factor per 64."""
    state, out = seed, np.empty(n, np.float32)
    for i in range(n):
        state = (state * 1664525 + 1013904223) % 2**32
        signed = state - 2**32 if state >= 2**31 else state
        factor = np.float32(i // 64 * 7919 % 1000 + 1) * np.float32(2.0**-10)
        out[i] = np.float32(signed >> 8) * np.float32(2.0**-23) * factor
    return out


def hexes(floats):
    return "".join("%08x" % v for v in np.asarray(floats, np.float32).view(np.uint32).ravel())


def fnv(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    return "%016x" % h


def case_4bit(kind, block, rows, cols, dtype, double, seed):
    x = torch.from_numpy(weights(rows * cols, seed).reshape(rows, cols)).to(dtype)
    packed, state = F.quantize_4bit(x, blocksize=block, quant_type=kind, compress_statistics=double)
    codes = packed.numpy().ravel()
    nibbles = np.stack([codes >> 4, codes & 15], axis=1).ravel()[: rows * cols]
    state.dtype = torch.float32
    decoded = F.dequantize_4bit(packed, state).reshape(-1).numpy()
    case = dict(kind=kind, block=block, rows=rows, cols=cols, dtype=str(dtype).split(".")[1],
                double=double, seed=seed, codes="".join("%x" % v for v in nibbles),
                decoded_fnv=fnv(decoded.tobytes()))
    if double:
        case.update(scale_codes="".join("%02x" % v for v in state.absmax.numpy()),
                    maxima=hexes(state.state2.absmax.numpy()), mean=hexes(state.offset.numpy()))
    else:
        case["scales"] = hexes(state.absmax.numpy())
    return case


def case_int8(rows, cols, dtype, seed):
    x = torch.from_numpy(weights(rows * cols, seed).reshape(rows, cols)).to(dtype)
    codes, absmax, _ = F.int8_vectorwise_quant(x)
    return dict(rows=rows, cols=cols, dtype=str(dtype).split(".")[1], seed=seed,
                codes="".join("%02x" % (int(v) & 255) for v in codes.numpy().ravel()),
                absmax=hexes(absmax.numpy()))


four = [
    case_4bit("nf4", 64, 150, 128, torch.float32, True, 1),
    case_4bit("nf4", 64, 10, 192, torch.float32, False, 2),
    case_4bit("nf4", 128, 1, 1000, torch.float16, False, 3),
    case_4bit("fp4", 64, 40, 192, torch.float32, True, 4),
    case_4bit("fp4", 64, 6, 128, torch.bfloat16, False, 5),
    case_4bit("fp4", 32, 3, 96, torch.float32, False, 6),
]
out = dict(dynamic_map=hexes(F.create_dynamic_map().numpy()), four_bit=four,
           int8=[case_int8(5, 200, torch.float16, 7), case_int8(3, 77, torch.float32, 8)])
path = pathlib.Path(__file__).with_name("bitsandbytes_vectors.json")
path.write_text(json.dumps(out, indent=1) + "\n")
