// Decoders of IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/iq_grids.hpp"
#include "kernels/point_decode.hpp"
#include "kernels/simd.hpp"
#include "kernels/small_blocks.hpp"

namespace phiquant::kernels {

// What ggml multiplies the scales of each format's levels with; the last two in eights. Points of
// 8 values have two bits for each, whatever the third bit is.
static constexpr PointTable k_iq2_levels({8, 25, 43, 0, 8, 25, 43, 0});
static constexpr PointTable k_iq3_xxs_levels({4, 12, 20, 28, 36, 44, 52, 62});
static constexpr PointTable k_iq3_s_levels({1, 3, 5, 7, 9, 11, 13, 15});

/// Twice seven signs, each with the eighth that makes minuses even in number.
static inline unsigned even_signs(unsigned first, unsigned second) noexcept {
    return first | static_cast<unsigned>(__builtin_parity(first)) << 7 | second << 8 |
           static_cast<unsigned>(__builtin_parity(second)) << 15;
}

/// Two points of four values as one of eight.
static inline std::uint32_t two_points(const std::uint16_t* points, unsigned first,
                                       unsigned second) noexcept {
    return points[first] | static_cast<std::uint32_t>(points[second]) << 12;
}

/// ggml's order of operations: d · (0.5 + code) · factor.
static inline float lattice_scale(float unit, unsigned code, float factor) noexcept {
    return unit * (0.5f + static_cast<float>(code)) * factor;
}

template <class Arch>
void decode_values(const BlockIQ2XXS* block, std::uint64_t values, float* out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq2_xxs);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (std::size_t j = 0; j < 8; ++j) {
            std::uint32_t words[2];
            std::memcpy(words, block->codes + 4 * j, sizeof(words));
            const float scale = lattice_scale(unit, words[1] >> 28, 0.25f);
            for (unsigned k = 0; k < 4; k += 2, out += 16) {
                decode_points<Arch, 2>(
                    points[words[0] >> (8 * k) & 255], points[words[0] >> (8 * k + 8) & 255],
                    k_iq2_levels, scale,
                    even_signs(words[1] >> (7 * k) & 127, words[1] >> (7 * k + 7) & 127), out);
            }
        }
    }
}

template <class Arch>
void decode_values(const BlockIQ2XS* block, std::uint64_t values, float* out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq2_xs);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (std::size_t p = 0; p < 32; p += 2, out += 16) {
            const unsigned code = block->scales[p / 4] >> (p % 4 / 2 * 4) & 15u;
            const unsigned first = block->codes[p], second = block->codes[p + 1];
            decode_points<Arch, 2>(points[first & 511], points[second & 511], k_iq2_levels,
                                   lattice_scale(unit, code, 0.25f),
                                   even_signs(first >> 9, second >> 9), out);
        }
    }
}

template <class Arch>
void decode_values(const BlockIQ2S* block, std::uint64_t values, float* out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq2_s);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (std::size_t p = 0; p < 32; p += 2, out += 16) {
            const unsigned code = block->scales[p / 4] >> (p % 4 / 2 * 4) & 15u;
            const unsigned high = static_cast<unsigned>(block->indices_high[p / 4]) << 8;
            const unsigned first = block->indices[p] | (high >> (p % 4 * 2) & 0x300);
            const unsigned second = block->indices[p + 1] | (high >> (p % 4 * 2 + 2) & 0x300);
            decode_points<Arch, 2>(points[first], points[second], k_iq2_levels,
                                   lattice_scale(unit, code, 0.25f),
                                   block->signs[p] | block->signs[p + 1] << 8, out);
        }
    }
}

template <class Arch>
void decode_values(const BlockIQ3XXS* block, std::uint64_t values, float* out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq3_xxs);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (std::size_t j = 0; j < 8; ++j) {
            std::uint32_t word;
            std::memcpy(&word, block->signs_and_scales + 4 * j, sizeof(word));
            const float scale = lattice_scale(unit, word >> 28, 0.5f);
            for (unsigned k = 0; k < 4; k += 2, out += 16) {
                const std::uint8_t* indices = block->indices + 8 * j + 2 * k;
                decode_points<Arch, 3>(
                    two_points(points, indices[0], indices[1]),
                    two_points(points, indices[2], indices[3]), k_iq3_xxs_levels, scale,
                    even_signs(word >> (7 * k) & 127, word >> (7 * k + 7) & 127), out);
            }
        }
    }
}

template <class Arch>
void decode_values(const BlockIQ3S* block, std::uint64_t values, float* out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq3_s);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (std::size_t p = 0; p < 64; p += 4, out += 16) {
            const unsigned code = block->scales[p / 16] >> (p % 16 / 8 * 4) & 15u;
            const unsigned high = static_cast<unsigned>(block->indices_high[p / 8]) << 8 >> (p % 8);
            const auto index = [&](unsigned i) {
                return block->indices[p + i] | (high >> i & 0x100);
            };
            decode_points<Arch, 3>(two_points(points, index(0), index(1)),
                                   two_points(points, index(2), index(3)), k_iq3_s_levels,
                                   unit * static_cast<float>(1 + 2 * code),
                                   block->signs[p / 2] | block->signs[p / 2 + 1] << 8, out);
        }
    }
}

}  // namespace phiquant::kernels
