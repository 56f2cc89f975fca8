// The lattices of the iq1, iq2 and iq3 formats, ready for the search of the nearest point. Built
// once a process, by code that is compiled for the baseline: all instruction sets share them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace phiquant::kernels {

/// A word of 8 values of 3 levels, or 4 values of 8 levels; its number is Σ level_i · levels^i.
struct GridPlace {
    /// Of a word on the grid: its levels as `GridTable::candidates` has them; else the first of its
    /// candidates.
    std::uint32_t first;
    std::uint16_t count;  ///< candidates; 0 on the grid
    std::uint16_t index;  ///< of a word on the grid: its index
};

struct GridTable {
    const GridPlace* places;  ///< by the word's number

    /// For each word off the grid the points that ggml considers for it, nearest first. Nibble i
    /// belongs to value i: its level, plus its place among the values whose levels share a register
    /// of 16 (4 values of 3 levels, 2 values of 8). Each word's candidates begin at a
    /// multiple of 16, and are filled up to one with the last of them; 64-byte aligned.
    const std::uint32_t* candidates;
    const std::uint16_t* indices;  ///< of the candidates
};

/// Candidates are stored in groups of this many.
inline constexpr std::size_t k_candidates_together = 16;

enum class GridName : std::uint8_t { iq2_xxs, iq2_xs, iq2_s, iq1, iq3_xxs, iq3_s };

/// A lattice; the first call for each makes it (some 20 ms for the largest).
const GridTable& grid_table(GridName name) noexcept;

/// The points alone, by index: the levels of their values, 2 or 3 bits each, the first one lowest.
const std::uint16_t* grid_points(GridName name) noexcept;

}  // namespace phiquant::kernels
