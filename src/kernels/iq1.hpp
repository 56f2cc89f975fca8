// IQ1_S and IQ1_M: points of 8 values of three levels, which an eighth shifts up or down.
#pragma once

#include "base/half.hpp"
#include "kernels/lattice_tile.hpp"
#include "kernels/nearest_point.hpp"
#include "kernels/point_decode.hpp"
#include "kernels/small_blocks.hpp"
#include "kernels/split_search.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

/// The search (ggml's quantize_row_iq1_s_impl and _m_impl) over sub-blocks of 32 or 16 values.
template <class Arch, std::size_t size>
class OneBitSearch {
    using Batch = F32<Arch>;
    using Integers = I32<Arch>;
    static constexpr std::size_t lanes = Batch::size;
    static constexpr std::size_t groups = size / 8;
    static constexpr float negligible = size == 32 ? 1e-12f : 1e-7f;

public:
    OneBitSearch() noexcept
        : grid_(grid_table(GridName::iq1)),
          levels_{repeat_levels<8>(k_iq1_up), repeat_levels<8>(k_iq1_down)} {}

    /// `shifts`: as in Split, for each sub-block.
    void run(LatticeTile& tile, std::uint8_t* shifts) noexcept {
        for (std::size_t b = 0; b < k_lattice_values / size; b += lanes) run_batch(tile, shifts, b);
    }

private:
    void run_batch(LatticeTile& tile, std::uint8_t* shifts, std::size_t b) noexcept {
        const Batch zero(0.0f);
        transpose_sub_blocks<Arch, size>(tile.values + b * size, x_, 1);
        transpose_sub_blocks<Arch, size>(tile.weight + b * size, w_, 1);
        Split<Arch> split;
        split.scale = zero;
        for (std::size_t i = 0; i < size; ++i) {
            split.scale = xsimd::max(split.scale, xsimd::abs(x_[i]));
            sorted_.value[i] = x_[i];
            sorted_.weight[i] = w_[i];
            sorted_.place[i] = Integers(static_cast<std::int32_t>(i));
        }
        const auto small = split.scale < Batch(negligible);
        sorted_.sort();
        search_splits<Arch>(sorted_, split);
        const auto none = small | xsimd::batch_bool_cast<float>(split.first < Integers(0));

        Lanes chosen;
        const auto turned = static_cast<std::uint32_t>((split.scale < zero).mask());
        const auto dead = static_cast<std::uint32_t>(none.mask());
        Batch scale = xsimd::abs(split.scale);
        scale.store_aligned(chosen.scale);
        split.first.store_aligned(chosen.first);
        split.second.store_aligned(chosen.second);
        split.shift.store_aligned(chosen.shift);
        for (std::size_t i = 0; i < size; ++i) sorted_.place[i].store_aligned(chosen.place[i]);
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            if ((turned >> lane & 1) != 0) chosen.shift[lane] ^= size == 32 ? 1 : 3;
            tile.negligible[b + lane] = (dead >> lane & 1) != 0;
            choose_points(tile, b + lane, lane, (turned >> lane & 1) != 0, chosen);
            shifts[b + lane] = tile.negligible[b + lane]
                                   ? std::uint8_t{0}
                                   : static_cast<std::uint8_t>(chosen.shift[lane]);
        }
        fit(chosen, scale);
        xsimd::select(none, zero, scale).store_aligned(tile.scales + b);
    }

    struct Lanes {
        alignas(k_alignment) float scale[lanes];
        alignas(k_alignment) std::int32_t first[lanes], second[lanes], shift[lanes];
        alignas(k_alignment) std::int32_t place[size][lanes];
        alignas(k_alignment) std::int32_t words[groups][lanes];  ///< levels, as GridTable has them
        alignas(k_alignment) std::int32_t moved[lanes];  ///< whether a point was off the grid
    };

    bool down(const Lanes& chosen, std::size_t lane, std::size_t group) const noexcept {
        const int bit = size == 32 ? 0 : group == 0 ? 1 : 0;
        return (chosen.shift[lane] >> bit & 1) != 0;
    }

    XSIMD_INLINE void choose_points(LatticeTile& tile, std::size_t j, std::size_t lane, bool turned,
                                    Lanes& chosen) noexcept {
        std::uint8_t levels[size];
        const auto first = static_cast<std::size_t>(chosen.first[lane]);
        const auto second = static_cast<std::size_t>(chosen.second[lane]);
        const std::uint8_t low = turned ? 2 : 0;
        chosen.moved[lane] = 0;
        for (std::size_t i = 0; i < size && !tile.negligible[j]; ++i) {
            const std::uint8_t level = i < first ? low : i < second ? 1 : 2 - low;
            levels[chosen.place[i][lane]] = level;
        }
        for (std::size_t g = 0; g < groups; ++g) {
            chosen.words[g][lane] = 0;
            tile.indices[j * groups + g] = 0;
            if (tile.negligible[j]) continue;
            std::size_t number = 0;
            for (std::size_t i = 8; i-- > 0;) number = number * 3 + levels[g * 8 + i];
            const GridPlace place = grid_.places[number];
            std::uint32_t word = place.first;
            std::uint16_t index = place.index;
            if (place.count != 0) {
                const std::size_t at = j * size + g * 8;
                const std::size_t found =
                    place.first +
                    find_nearest<Arch, 8>(grid_, place, levels_[down(chosen, lane, g) ? 1 : 0],
                                          tile.values + at, tile.weight + at, chosen.scale[lane]);
                word = grid_.candidates[found];
                index = grid_.indices[found];
                chosen.moved[lane] = 1;
            }
            chosen.words[g][lane] = static_cast<std::int32_t>(word);
            tile.indices[j * groups + g] = index;
        }
    }

    /// Fit the scale to the points where not all were on the grid.
    XSIMD_INLINE void fit(const Lanes& chosen, Batch& scale) const noexcept {
        const Batch zero(0.0f);
        const auto moved = Integers::load_aligned(chosen.moved) > Integers(0);
        if (!xsimd::any(moved)) return;
        Batch qx = zero, q2 = zero;
        for (std::size_t g = 0; g < groups; ++g) {
            const Integers words = Integers::load_aligned(chosen.words[g]);
            alignas(k_alignment) float lowest[lanes];
            for (std::size_t lane = 0; lane < lanes; ++lane) {
                lowest[lane] = down(chosen, lane, g) ? k_iq1_down[0] : k_iq1_up[0];
            }
            const Batch base = Batch::load_aligned(lowest);
            for (std::size_t i = 0; i < 8; ++i) {
                const Integers level = (words >> static_cast<int>(4 * i)) & Integers(3);
                const Batch q = base + xsimd::batch_cast<float>(level);
                const Batch wq = w_[g * 8 + i] * q;
                qx = qx + wq * x_[g * 8 + i];
                q2 = q2 + wq * q;
            }
        }
        const auto fitted = xsimd::batch_bool_cast<float>(moved) & (qx > zero) & (q2 > zero);
        scale = xsimd::select(fitted, quotient<Arch>(qx, q2), scale);
    }

    const GridTable& grid_;
    PointLevels levels_[2];
    Batch x_[size], w_[size];
    Sortable<Arch, size> sorted_;
};

/// Codes of 3 bits (l stands for 2l + 1) for the scales, against the largest; its share of 15, or 0
/// when all are zero.
static inline float round_iq1_scales(const float* scales, std::size_t count,
                                     std::uint8_t* codes) noexcept {
    float largest = 0.0f;
    for (std::size_t j = 0; j < count; ++j) largest = scales[j] > largest ? scales[j] : largest;
    std::memset(codes, 0, count);
    if (largest == 0.0f) return 0.0f;
    const float unit = largest / 15.0f;
    const float inverse = 1.0f / unit;
    for (std::size_t j = 0; j < count; ++j) {
        const int code = nearest_int(0.5f * (inverse * scales[j] - 1.0f));
        codes[j] = static_cast<std::uint8_t>(code < 0 ? 0 : code > 7 ? 7 : code);
    }
    return unit;
}

template <class Arch>
void pack(const LatticeTile& tile, std::size_t first, const std::uint8_t* shifts,
          BlockIQ1S& out) noexcept {
    std::uint8_t codes[8];
    const float unit = round_iq1_scales(tile.scales + first, 8, codes);
    out.scale = float_to_half(unit * 1.125f);
    for (std::size_t j = 0; j < 8; ++j) {
        unsigned bits = unit == 0.0f ? 0u : codes[j] | shifts[first + j] * 8u;
        bits <<= 12;
        for (unsigned k = 0; k < 4; ++k) {
            const unsigned index = tile.indices[(first + j) * 4 + k];
            out.indices[4 * j + k] = static_cast<std::uint8_t>(index);
            bits |= index >> 8 << (3 * k);
        }
        out.parameters[j] = static_cast<std::uint16_t>(bits);
    }
}

/// `first` counts sub-blocks. The scale is fitted once more, to all values with the rounded scales.
template <class Arch>
void pack(const LatticeTile& tile, std::size_t first, const std::uint8_t* shifts,
          BlockIQ1M& out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq1);
    std::uint8_t codes[16];
    float unit = round_iq1_scales(tile.scales + first, 16, codes);
    std::memset(&out, 0, sizeof(out));
    float qx = 0.0f, q2 = 0.0f;
    for (std::size_t j = 0; j < 16; ++j) {
        const std::uint16_t* indices = tile.indices + (first + j) * 2;
        out.indices[2 * j] = static_cast<std::uint8_t>(indices[0]);
        out.indices[2 * j + 1] = static_cast<std::uint8_t>(indices[1]);
        unsigned high = indices[0] >> 8 | indices[1] >> 8 << 4;
        const unsigned shift = shifts[first + j];
        // Where all scales are zero the reference stops before it stores the shifts.
        if (unit != 0.0f) high |= (shift & 2u) << 2 | (shift & 1u) << 7;
        out.indices_high[j] = static_cast<std::uint8_t>(high);
        out.scales[j / 4] =
            static_cast<std::uint16_t>(out.scales[j / 4] | codes[j] << (3 * (j % 4)));
        for (std::size_t k = 0; k < 2; ++k) {
            const bool is_down = (shift >> (1 - k) & 1) != 0;
            const float* levels = is_down ? k_iq1_down : k_iq1_up;
            const std::size_t at = (first + j) * 16 + k * 8;
            for (unsigned i = 0; i < 8; ++i) {
                const float q = levels[points[indices[k]] >> (2 * i) & 3] *
                                static_cast<float>(2 * codes[j] + 1);
                const float wq = tile.weight[at + i] * q;
                qx += wq * tile.values[at + i];
                q2 += wq * q;
            }
        }
    }
    if (unit == 0.0f) return;
    if (q2 > 0.0f) unit = qx / q2;
    const unsigned stored = float_to_half(unit * 1.1125f);
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned part = (stored >> (4 * i) & 15u) << 12;
        out.scales[i] = static_cast<std::uint16_t>(out.scales[i] | part);
    }
}

template <class Arch, std::size_t size, PlainWeight plain, class Block>
void encode_one_bit(const Rows& rows, Block* block) noexcept {
    LatticeTile tile;
    OneBitSearch<Arch, size> search;
    std::uint8_t shifts[k_lattice_values / size];
    const std::uint64_t blocks = rows.rows * rows.columns / k_super_block;
    for (std::uint64_t first = 0; first < blocks; first += 2) {
        fill_tile<Arch>(rows, first, blocks, 2.0f, tile);
        weigh_values<Arch, plain>(tile);
        search.run(tile, shifts);
        for (std::size_t s = 0; s < tile.count; ++s, ++block) {
            pack<Arch>(tile, s * (k_super_block / size), shifts, *block);
        }
    }
}

template <class Arch>
void encode_rows(const Rows& rows, BlockIQ1S* block) noexcept {
    encode_one_bit<Arch, 32, PlainWeight::none>(rows, block);
}

template <class Arch>
void encode_rows(const Rows& rows, BlockIQ1M* block) noexcept {
    encode_one_bit<Arch, 16, PlainWeight::square>(rows, block);
}

static constexpr float k_iq1_ups[8] = {-0.875f, 0.125f, 1.125f, 0, -0.875f, 0.125f, 1.125f, 0};
static constexpr float k_iq1_downs[8] = {-1.125f, -0.125f, 0.875f, 0, -1.125f, -0.125f, 0.875f, 0};

/// The levels of two points, by whether the first's (1) and the second's (2) are shifted down.
static constexpr PointTable k_iq1_tables[4] = {
    {k_iq1_ups, k_iq1_ups},
    {k_iq1_downs, k_iq1_ups},
    {k_iq1_ups, k_iq1_downs},
    {k_iq1_downs, k_iq1_downs},
};

template <class Arch>
void decode_values(const BlockIQ1S* block, std::uint64_t values, float* out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq1);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (std::size_t p = 0; p < 32; p += 2, out += 16) {
            const unsigned bits = block->parameters[p / 4];
            const unsigned first = block->indices[p] | (bits >> (p % 4 * 3) & 7) << 8;
            const unsigned second = block->indices[p + 1] | (bits >> (p % 4 * 3 + 3) & 7) << 8;
            decode_points<Arch, 2>(points[first], points[second],
                                   k_iq1_tables[(bits & 0x8000) != 0 ? 3 : 0],
                                   unit * static_cast<float>(2 * (bits >> 12 & 7) + 1), 0, out);
        }
    }
}

template <class Arch>
void decode_values(const BlockIQ1M* block, std::uint64_t values, float* out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq1);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        unsigned stored = 0;
        for (unsigned i = 0; i < 4; ++i) stored |= (block->scales[i] >> 12 & 15u) << (4 * i);
        const float unit = half_to_float(static_cast<std::uint16_t>(stored));
        for (std::size_t p = 0; p < 32; p += 2, out += 16) {
            const unsigned high = block->indices_high[p / 2];
            const unsigned code = block->scales[p / 8] >> (p % 8 / 2 * 3) & 7u;
            const unsigned first = block->indices[p] | (high & 7) << 8;
            const unsigned second = block->indices[p + 1] | (high & 0x70) << 4;
            decode_points<Arch, 2>(points[first], points[second],
                                   k_iq1_tables[(high >> 3 & 1) | (high >> 6 & 2)],
                                   unit * static_cast<float>(2 * code + 1), 0, out);
        }
    }
}

}  // namespace phiquant::kernels
