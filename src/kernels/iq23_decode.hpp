// Decoders of IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/iq_grids.hpp"
#include "kernels/simd.hpp"
#include "kernels/small_blocks.hpp"

namespace phiquant::kernels {

// What ggml multiplies the scales of each format's levels with; the last two in eights.
static constexpr float k_iq2_levels[4] = {8, 25, 43, 0};
static constexpr float k_iq3_xxs_levels[8] = {4, 12, 20, 28, 36, 44, 52, 62};
static constexpr float k_iq3_s_levels[8] = {1, 3, 5, 7, 9, 11, 13, 15};

/// One point: (scale · level), with the sign bits from `signs` on.
template <class Arch, unsigned values>
XSIMD_INLINE void decode_point(unsigned point, const float* levels, float scale, unsigned signs,
                               float* out) noexcept {
    constexpr unsigned bits = values == 8 ? 2 : 3;
    for (unsigned i = 0; i < values; ++i) {
        const float value = scale * levels[point >> (bits * i) & ((1u << bits) - 1)];
        const std::uint32_t sign = signs >> i << 31;
        out[i] = __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, value) ^ sign);
    }
}

/// Seven signs, and the eighth that makes minuses even in number.
static inline unsigned even_signs(unsigned seven) noexcept {
    return seven | static_cast<unsigned>(__builtin_parity(seven)) << 7;
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
            for (unsigned k = 0; k < 4; ++k, out += 8) {
                decode_point<Arch, 8>(points[words[0] >> (8 * k) & 255], k_iq2_levels, scale,
                                      even_signs(words[1] >> (7 * k) & 127), out);
            }
        }
    }
}

template <class Arch>
void decode_values(const BlockIQ2XS* block, std::uint64_t values, float* out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq2_xs);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (std::size_t p = 0; p < 32; ++p, out += 8) {
            const unsigned code = block->scales[p / 4] >> (p % 4 / 2 * 4) & 15u;
            decode_point<Arch, 8>(points[block->codes[p] & 511], k_iq2_levels,
                                  lattice_scale(unit, code, 0.25f),
                                  even_signs(block->codes[p] >> 9), out);
        }
    }
}

template <class Arch>
void decode_values(const BlockIQ2S* block, std::uint64_t values, float* out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq2_s);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (std::size_t p = 0; p < 32; ++p, out += 8) {
            const unsigned code = block->scales[p / 4] >> (p % 4 / 2 * 4) & 15u;
            const unsigned high = block->indices_high[p / 4] >> (p % 4 * 2) & 3u;
            decode_point<Arch, 8>(points[block->indices[p] | high << 8], k_iq2_levels,
                                  lattice_scale(unit, code, 0.25f), block->signs[p], out);
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
            for (unsigned k = 0; k < 8; ++k, out += 4) {
                const unsigned signs = even_signs(word >> (7 * (k / 2)) & 127) >> (k % 2 * 4);
                decode_point<Arch, 4>(points[block->indices[8 * j + k]], k_iq3_xxs_levels, scale,
                                      signs, out);
            }
        }
    }
}

template <class Arch>
void decode_values(const BlockIQ3S* block, std::uint64_t values, float* out) noexcept {
    const std::uint16_t* points = grid_points(GridName::iq3_s);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (std::size_t p = 0; p < 64; ++p, out += 4) {
            const unsigned code = block->scales[p / 16] >> (p % 16 / 8 * 4) & 15u;
            const unsigned high = block->indices_high[p / 8] >> (p % 8) & 1u;
            decode_point<Arch, 4>(points[block->indices[p] | high << 8], k_iq3_s_levels,
                                  unit * static_cast<float>(1 + 2 * code),
                                  static_cast<unsigned>(block->signs[p / 2] >> (p % 2 * 4)), out);
        }
    }
}

}  // namespace phiquant::kernels
