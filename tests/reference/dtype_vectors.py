"""Writes dtype_vectors.json: 8-bit floats as the PyPI package `ml_dtypes` has them.

    python3 tests/reference/dtype_vectors.py > tests/reference/dtype_vectors.json

  decode   the bits of the float that each of the 256 codes stands for; null for a NaN
  encode   the codes of all 65,536 halves in order, as runs [code, count]: NaNs as 0, others clipped to
           the largest finite value first, since nibble saturates
"""

import json
import sys

import ml_dtypes
import numpy as np

halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
result = {}
for name, dtype in [("f8_e4m3", ml_dtypes.float8_e4m3fn), ("f8_e5m2", ml_dtypes.float8_e5m2)]:
    floats = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    largest = float(ml_dtypes.finfo(dtype).max)
    codes = np.clip(halves, -largest, largest).astype(dtype).view(np.uint8)
    codes = np.where(np.isnan(halves), 0, codes).astype(np.uint8)
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    lengths = np.diff(np.r_[starts, codes.size])
    result[name] = {
        "largest": largest,
        "decode": [None if np.isnan(x) else int(x.view(np.uint32)) for x in floats],
        "encode": [[int(codes[s]), int(n)] for s, n in zip(starts, lengths)],
    }
json.dump(result, sys.stdout)
print()
