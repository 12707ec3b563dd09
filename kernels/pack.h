// Canonical blocks to packed tiles (kernels/pack_layout.h) and back.
#ifndef NIBBLE_KERNELS_PACK_H_
#define NIBBLE_KERNELS_PACK_H_

#include <cstddef>
#include <cstdint>

#include "kernels/matmul.h"
#include "nibble/format.h"

namespace nibble {

// Bytes of a tile of `cols` columns; 0 where the format has no packed form.
int64_t PackedTileBytes(Format format, int64_t cols);

// Packs `row_count` (at most 16) rows of blocks, `row_bytes` apart, into a tile; missing rows are
// zeros.
void PackTile(Format format, const std::byte* blocks, int64_t row_bytes, int64_t row_count,
              int64_t cols, std::byte* tile);

// Weights that decode from the tiles at `tiles`.
WeightRows PackedRows(Format format, const std::byte* tiles, int64_t rows, int64_t cols);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_PACK_H_
