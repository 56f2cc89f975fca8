// Tiles: the unit of work. A tensor is cut the same way whatever the number of workers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace phiquant::pipeline {

/// Values a tile holds at most: a float32 tile (256 KiB), its source bytes and its codes together
/// stay in a core's second-level cache. A multiple of every block size.
inline constexpr std::uint64_t k_tile_values = 65536;

/// Values of a tile whose planes are written by columns: larger, as each line is a write of its
/// own.
inline constexpr std::uint64_t k_transposed_tile_values = std::uint64_t{1} << 20;

/// A run of whole rows, or (for rows longer than a tile) a piece of one row.
struct Tile {
    std::uint64_t row, rows, column, columns;
    [[nodiscard]] std::uint64_t values() const noexcept { return rows * columns; }
};

/// How one matrix is cut.
class Tiling {
public:
    /// For codecs of blocks: rows longer than a tile are cut.
    Tiling(std::uint64_t rows, std::uint64_t columns) noexcept
        : rows_(rows),
          columns_(columns),
          tile_rows_(columns >= k_tile_values ? 1 : k_tile_values / columns),
          pieces_((columns + k_tile_values - 1) / k_tile_values) {}

    /// For codecs with planes: whole rows, in multiples of `row_step`, of about `values` values.
    Tiling(std::uint64_t rows, std::uint64_t columns, std::uint64_t row_step,
           std::uint64_t values) noexcept
        : rows_(rows),
          columns_(columns),
          tile_rows_(std::max(row_step, values / columns / row_step * row_step)),
          pieces_(1) {}

    [[nodiscard]] std::uint64_t count() const noexcept {
        return (rows_ + tile_rows_ - 1) / tile_rows_ * pieces_;
    }

    /// Values of the largest tile.
    [[nodiscard]] std::uint64_t most_values() const noexcept {
        return pieces_ == 1 ? std::min(tile_rows_, rows_) * columns_ : k_tile_values;
    }

    [[nodiscard]] Tile operator[](std::uint64_t index) const noexcept {
        const std::uint64_t row = index / pieces_ * tile_rows_;
        const std::uint64_t column = index % pieces_ * k_tile_values;
        const std::uint64_t rows = rows_ - row < tile_rows_ ? rows_ - row : tile_rows_;
        const std::uint64_t rest = columns_ - column;
        return {row, rows, column,
                pieces_ == 1           ? columns_
                : rest < k_tile_values ? rest
                                       : k_tile_values};
    }

private:
    std::uint64_t rows_, columns_, tile_rows_, pieces_;
};

}  // namespace phiquant::pipeline
