"""Writes kernels/iq_grids.h from the codebooks that the `gguf` Python package publishes.

    python3 tests/reference/iq_grids.py > kernels/iq_grids.h
"""

import numpy as np
from gguf import quants

HEADER = """\
// The codebooks of the iq1, iq2 and iq3 formats: published constants, written by
// tests/reference/iq_grids.py. One number is one point; its coordinates are indices into the few
// values that the codec names, first coordinate in the lowest bits.
#ifndef NIBBLE_KERNELS_IQ_GRIDS_H_
#define NIBBLE_KERNELS_IQ_GRIDS_H_

#include "nibble/dtype.h"

namespace nibble {
"""

GRIDS = [
    ("IQ2_XXS", "kGridIQ2_XXS", "8 coordinates of 2 bits"),
    ("IQ2_XS", "kGridIQ2_XS", "8 coordinates of 2 bits"),
    ("IQ2_S", "kGridIQ2_S", "8 coordinates of 2 bits"),
    ("IQ3_XXS", "kGridIQ3_XXS", "4 coordinates of 4 bits"),
    ("IQ3_S", "kGridIQ3_S", "4 coordinates of 4 bits"),
    ("IQ1_S", "kGridIQ1", "8 coordinates of 2 bits, shared by iq1_s and iq1_m"),
]

print(HEADER)
for name, symbol, meaning in GRIDS:
    cls = getattr(quants, name)
    cls.init_grid()
    grid = cls.grid.reshape(cls.grid_shape)
    codes = np.searchsorted(np.array(cls.grid_map, np.float32), grid)
    bits = 16 // grid.shape[1]
    points = (codes << (bits * np.arange(grid.shape[1]))).sum(axis=1)
    print(f"// {meaning}.")
    print(f"NIBBLE_TABLE uint16_t {symbol}[{len(points)}] = {{")
    for i in range(0, len(points), 16):
        print("    " + ", ".join(str(p) for p in points[i : i + 16]) + ",")
    print("};\n")
print("}  // namespace nibble\n\n#endif  // NIBBLE_KERNELS_IQ_GRIDS_H_")
