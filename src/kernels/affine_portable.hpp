// The portable rule: one rounding whose weights are the same in every format and every runtime.
#pragma once

#include "kernels/affine_group.hpp"

namespace phiquant::kernels {

/// The step between scales near `scale` (positive, finite): the 7th significant bit, and never
/// below 2^-24, the step of float16's smallest numbers. Codes of up to 4 bits times such a scale,
/// their differences and zero points times it are fewer than 2^11 of the steps: all are float16
/// numbers, and the scale itself is a bfloat16 one, too.
static inline float portable_step(float scale) noexcept {
    const std::uint32_t power = __builtin_bit_cast(std::uint32_t, scale) & 0x7f800000u;
    const float step = __builtin_bit_cast(float, power) * 0x1p-6f;
    return step < 0x1p-24f ? 0x1p-24f : step;
}

/// Codes of a group under one scale and zero point; gives their squared error. Sums are kept in an
/// order of their own, the same on every instruction set.
static inline float portable_codes(const float* values, std::uint64_t count, float scale,
                                   float zero, float most, std::uint8_t* codes) noexcept {
    round_away(values, count, 1.0f / scale, zero, most, codes);
    constexpr std::uint64_t k_sums = 8;
    float sums[k_sums] = {};
    std::uint64_t i = 0;
    for (; i + k_sums <= count; i += k_sums) {
        for (std::uint64_t k = 0; k < k_sums; ++k) {
            const float off = values[i + k] - (static_cast<float>(codes[i + k]) - zero) * scale;
            sums[k] += off * off;
        }
    }
    for (; i < count; ++i) {
        const float off = values[i] - (static_cast<float>(codes[i]) - zero) * scale;
        sums[0] += off * off;
    }
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) +
           ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

/// Scales are rounded to 7 significant bits *before* weights are: of the two such numbers about the
/// exact one, that which leaves the smaller squared error (a smaller scale clips the ends, a larger
/// one has coarser codes). Asymmetric: zero is within the range, its code an integer. Symmetric:
/// the largest magnitude becomes the code 0, or lies half a step beyond the last code, whichever
/// errs less; scales may be negative. Groups whose weights are all zero, or become it, have the
/// scale 2^-14. Rounds halves away from zero. For codes of up to 4 bits.
template <class Arch>
void encode_portable(const AffineGrid& grid, const AffineRows& rows,
                     const AffineCodes& out) noexcept {
    constexpr std::uint64_t k_piece = 256;
    const float most = static_cast<float>((1u << grid.bits) - 1);
    const float middle = static_cast<float>(1u << (grid.bits - 1));
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        const Extremes found = extremes_of<Arch>(values, count);
        const float low = found.least < 0.0f ? found.least : 0.0f;
        const float high = found.most > 0.0f ? found.most : 0.0f;
        // Nothing: all weights become zero.
        scale = 0x1p-14f;
        zero = grid.symmetric ? middle : 0.0f;
        float least = portable_codes(values, count, 1.0f, 0.0f, 0.0f, codes);
        for (std::uint64_t i = 0; i < count; ++i) codes[i] = static_cast<std::uint8_t>(zero);
        const auto attempt = [&](float step, float origin) noexcept {
            std::uint8_t tried[k_piece];
            float error = 0.0f;
            for (std::uint64_t i = 0; i < count; i += k_piece) {
                const std::uint64_t piece = count - i < k_piece ? count - i : k_piece;
                error += portable_codes(values + i, piece, step, origin, most, tried);
            }
            if (!(error < least)) return;
            least = error;
            scale = step;
            zero = origin;
            for (std::uint64_t i = 0; i < count; i += k_piece) {
                const std::uint64_t piece = count - i < k_piece ? count - i : k_piece;
                round_away(values + i, piece, 1.0f / step, origin, most, codes + i);
            }
        };
        // Both neighbours of an exact scale, the same one twice where it needs no rounding.
        const auto about = [&](float exact, bool negative) noexcept {
            const float step = portable_step(exact);
            const float below = static_cast<float>(static_cast<std::uint32_t>(exact / step)) * step;
            for (const float one : {below, below < exact ? below + step : below}) {
                if (one == 0.0f) continue;
                if (grid.symmetric) {
                    attempt(negative ? -one : one, middle);
                } else {
                    const float at = __builtin_roundf(-low / one);
                    attempt(one, at < most ? at : most);
                }
            }
        };
        if (!grid.symmetric) {
            about((high - low) / most, false);
        } else {
            const bool above = high > -low;
            const float largest = above ? high : -low;
            about(largest / middle, above);
            about(largest / (most / 2), false);
        }
    };
    for_each_group(grid, rows, out, fit,
                   [](float zero) noexcept { return static_cast<std::uint8_t>(zero); });
}

}  // namespace phiquant::kernels
