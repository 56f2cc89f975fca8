// The rule of NNCF's weight compression, which OpenVINO's int4 and int8 weights are made with.
#pragma once

#include "kernels/affine_mlx.hpp"

namespace phiquant::kernels {

/// Where a scale is smaller than this, NNCF takes this: the float32 epsilon.
inline constexpr float k_nncf_least = 0x1p-23f;

/// A scale and a zero point before the scale is rounded to its type: codes are made with these.
struct NncfParameters {
    float scale, zero;
};

/// Symmetric: the end of the range with the larger magnitude gets the code -2^(bits-1), so that
/// scales are negative where that end is positive. Asymmetric: zero is within the range, and is a
/// code.
static inline NncfParameters nncf_parameters(Extremes range, unsigned bits,
                                             bool symmetric) noexcept {
    const float middle = static_cast<float>(1u << (bits - 1));
    const float most = static_cast<float>((1u << bits) - 1);
    float scale = 0.0f;
    if (symmetric) {
        const float low = __builtin_fabsf(range.least);
        scale = (low >= range.most ? low : -range.most) / middle;
    } else {
        range.least = range.least < 0.0f ? range.least : 0.0f;
        range.most = range.most > 0.0f ? range.most : 0.0f;
        scale = (range.most - range.least) / most;
    }
    if (__builtin_fabsf(scale) < k_nncf_least) scale = k_nncf_least;
    if (symmetric) return {scale, middle};
    const float at = range.least / scale;  // -most to 0
    const float zero = 0.0f - ((at + k_magic) - k_magic);
    return {scale, zero < most ? zero : most};
}

/// NNCF's INT8_SYM, INT8_ASYM, INT4_SYM and INT4_ASYM (nncf 3.4, weight_lowering.py): in float32,
/// ties to even, and the scale is rounded to its type after the codes are made.
template <class Arch>
void encode_nncf(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    const float most = static_cast<float>((1u << grid.bits) - 1);
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        const NncfParameters found =
            nncf_parameters(extremes_of<Arch>(values, count), grid.bits, grid.symmetric);
        const F32<Arch> step(found.scale), from(found.zero);
        if (grid.symmetric) {
            // Codes are rounded around zero; the zero point is phiquant's.
            round_codes<Arch>(
                count, most,
                [&](std::uint64_t i) noexcept {
                    const auto value = F32<Arch>::load_unaligned(values + i);
                    return nearest_even<Arch>(quotient<Arch>(value, step)) + from;
                },
                [&](std::uint64_t i) noexcept {
                    const float at = values[i] / found.scale;
                    return ((at + k_magic) - k_magic) + found.zero;
                },
                codes);
        } else {
            round_codes<Arch>(
                count, most,
                [&](std::uint64_t i) noexcept {
                    const auto value = F32<Arch>::load_unaligned(values + i);
                    return quotient<Arch>(value, step) + from;
                },
                [&](std::uint64_t i) noexcept { return values[i] / found.scale + found.zero; },
                codes);
        }
        scale = stored_scale(found.scale, grid.scale);
        zero = found.zero;
    };
    // NNCF has no short groups; codes behind a row's end are never read.
    for_each_group(grid, rows, out, fit,
                   [](float zero) noexcept { return static_cast<std::uint8_t>(zero); });
}

}  // namespace phiquant::kernels
