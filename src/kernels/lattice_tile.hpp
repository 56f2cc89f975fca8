// Two super-blocks of a lattice format, with what its search needs of each value.
#pragma once

#include "kernels/blocks.hpp"
#include "kernels/simd.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

inline constexpr std::size_t k_lattice_values = 2 * k_super_block;  // in a tile

/// How values are weighted where no importance is given.
enum class PlainWeight : std::uint8_t { none, square, square_and_spread };

struct LatticeTile {
    const float* values;  ///< may be the source itself
    std::size_t count;    ///< super-blocks: 1 or 2
    bool weighted;        ///< whether `importance` counts
    alignas(k_alignment) float importance[k_lattice_values];
    alignas(k_alignment) float copy[k_lattice_values];  ///< of values, when only 1 is left
    float spread[2];                                    ///< σ² of each super-block

    alignas(k_alignment) float magnitude[k_lattice_values];  ///< negative where signs must be even
    alignas(k_alignment) float weight[k_lattice_values];
    alignas(k_alignment) float root[k_lattice_values];  ///< of the weight
    alignas(8) std::uint8_t signs[k_lattice_values / 8];

    // Results, for each sub-block and each group of values that is a point.
    alignas(k_alignment) float scales[k_lattice_values / 16];
    bool negligible[k_lattice_values / 16];  ///< stored as zeros
    bool inverted[k_lattice_values / 16];    ///< the scale was negative: all signs turn
    std::uint16_t indices[k_lattice_values / 4];
};

/// Take the next (at most two) super-blocks, from super-block `first` of all on. `factor` times the
/// mean square is the spread.
template <class Arch>
void fill_tile(const Rows& rows, std::uint64_t first, std::uint64_t blocks, float factor,
               LatticeTile& tile) noexcept {
    tile.values = rows.values + first * k_super_block;
    tile.count = blocks - first < 2 ? 1 : 2;
    tile.weighted = rows.importance != nullptr;
    if (tile.count == 1) {
        std::memset(tile.copy, 0, sizeof(tile.copy));
        std::memcpy(tile.copy, tile.values, k_super_block * sizeof(float));
        tile.values = tile.copy;
    }
    // In the values' order: two sums at once are all that the additions' order leaves.
    float sums[2] = {};
    for (std::size_t i = 0; i < k_super_block; ++i) {
        const float* x = tile.values + i;
        sums[0] += x[0] * x[0];
        sums[1] += x[k_super_block] * x[k_super_block];
    }
    for (std::size_t s = 0; s < 2; ++s) {
        tile.spread[s] = factor * sums[s] / 256.0f;
        if (!tile.weighted) continue;
        std::memcpy(tile.importance + s * k_super_block,
                    rows.importance + (first + s) * k_super_block % rows.columns,
                    k_super_block * sizeof(float));
    }
}

template <class Arch, PlainWeight plain>
XSIMD_INLINE F32<Arch> weight_of(const LatticeTile& tile, std::size_t i, F32<Arch> x) noexcept {
    using Batch = F32<Arch>;
    const Batch spread(tile.spread[i / k_super_block]);
    const Batch square = x * x;
    if (plain == PlainWeight::none || tile.weighted) {
        return Batch::load_aligned(tile.importance + i) * square_root<Arch>(spread + square);
    }
    return plain == PlainWeight::square ? square : Batch(0.25f) * spread + square;
}

/// Weights only, as the one-bit formats need them.
template <class Arch, PlainWeight plain>
void weigh_values(LatticeTile& tile) noexcept {
    for (std::size_t i = 0; i < k_lattice_values; i += F32<Arch>::size) {
        const F32<Arch> x = F32<Arch>::load_unaligned(tile.values + i);
        weight_of<Arch, plain>(tile, i, x).store_aligned(tile.weight + i);
    }
}

/// Weights, their roots, magnitudes and signs.
template <class Arch, PlainWeight plain>
void take_apart(LatticeTile& tile) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    for (std::size_t i = 0; i < k_lattice_values; i += 32) {
        std::uint32_t signs = 0;
        for (std::size_t p = 0; p < 32; p += lanes) {
            const F32<Arch> x = F32<Arch>::load_unaligned(tile.values + i + p);
            const F32<Arch> weight = weight_of<Arch, plain>(tile, i + p, x);
            weight.store_aligned(tile.weight + i + p);
            square_root<Arch>(weight).store_aligned(tile.root + i + p);
            xsimd::abs(x).store_aligned(tile.magnitude + i + p);
            const auto negative = x < F32<Arch>(0.0f);
            signs |= static_cast<std::uint32_t>(negative.mask()) << p;
        }
        std::memcpy(tile.signs + i / 8, &signs, sizeof(signs));
    }
}

/// Where 7 bits hold the signs of 8 values, minuses are even in number: the value that matters
/// least is taken with the wrong sign.
template <class Arch>
void make_signs_even(LatticeTile& tile) noexcept {
    for (std::size_t g = 0; g < k_lattice_values / 8; ++g) {
        if (__builtin_popcount(tile.signs[g]) % 2 == 0) continue;
        float* x = tile.magnitude + g * 8;
        const float* w = tile.weight + g * 8;
        float least = w[0] * x[0] * x[0];
        std::size_t place = 0;
        for (std::size_t i = 1; i < 8; ++i) {
            const float here = w[i] * x[i] * x[i];
            place = here < least ? i : place;
            least = here < least ? here : least;
        }
        x[place] = -x[place];
        tile.signs[g] = static_cast<std::uint8_t>(tile.signs[g] ^ 1u << place);
    }
}

}  // namespace phiquant::kernels
