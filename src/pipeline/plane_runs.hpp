// Which bytes of a plane belong to a tile.
#pragma once

#include <cstdint>

#include "codecs/planes.hpp"

namespace phiquant::pipeline {

/// Calls run(in the plane, in the piece, bytes) for every run of bytes that `rows` rows from `row`
/// have in a plane: one, or one a line of a transposed plane. `row` must begin a byte.
template <class Run>
void for_each_run(const codecs::Plane& plane, std::uint64_t row, std::uint64_t rows,
                  const Run& run) {
    if (!plane.transposed) {
        run(row / plane.rows_per_line * plane.line_bits / 8, 0, piece_bytes(plane, rows));
        return;
    }
    const std::uint64_t bytes = rows * plane.bits / 8;
    for (std::uint64_t line = 0; line < plane.lines; ++line) {
        run(line * plane.line_bits / 8 + row * plane.bits / 8, line * bytes, bytes);
    }
}

}  // namespace phiquant::pipeline
