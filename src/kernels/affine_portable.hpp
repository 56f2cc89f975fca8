// The portable rule: one rounding whose weights are the same in every format and every runtime.
#pragma once

#include <limits>

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

/// The squared error of a group under one scale and zero point, rounded as `round_away` does. Sums
/// are kept in an order of their own, the same on every instruction set.
template <class Arch>
float portable_error(const float* values, std::uint64_t count, float scale, float zero,
                     float most) noexcept {
    using Batch = F32<Arch>;
    constexpr std::size_t k_sums = 16, lanes = Batch::size, parts = k_sums / lanes;
    const float inverse = 1.0f / scale;
    const Batch factor(inverse), origin(zero), end(most), step(scale), nothing(0.0f), one(1.0f);
    Batch sum[parts];
    for (Batch& part : sum) part = nothing;
    std::uint64_t i = 0;
    for (; i + k_sums <= count; i += k_sums) {
        for (std::size_t p = 0; p < parts; ++p) {
            const auto value = Batch::load_unaligned(values + i + p * lanes);
            const auto at = xsimd::min(xsimd::max(value * factor + origin, nothing), end);
            const auto whole = xsimd::batch_cast<float>(xsimd::batch_cast<std::int32_t>(at));
            const auto code = whole + xsimd::select(at - whole >= Batch(0.5f), one, nothing);
            const auto off = value - (code - origin) * step;
            sum[p] = sum[p] + off * off;
        }
    }
    alignas(k_alignment) float sums[k_sums];
    for (std::size_t p = 0; p < parts; ++p) sum[p].store_aligned(sums + p * lanes);
    for (std::size_t k = 0; i < count; ++i, ++k) {
        std::uint8_t code;
        round_away(values + i, 1, inverse, zero, most, &code);
        const float off = values[i] - (static_cast<float>(code) - zero) * scale;
        sums[k] += off * off;
    }
    for (std::size_t half = k_sums / 2; half > 0; half /= 2) {
        for (std::size_t k = 0; k < half; ++k) sums[k] += sums[k + half];
    }
    return sums[0];
}

/// Scales are rounded to 7 significant bits *before* weights are: of the two such numbers about the
/// exact one, that which leaves the smaller squared error (a smaller scale clips the ends, a larger
/// one has coarser codes). Asymmetric: zero is within the range, its code an integer. Symmetric:
/// the largest magnitude becomes the code 0, or lies half a step beyond the last code, whichever
/// errs less; scales may be negative. Groups whose weights are all zero have the scale 2^-14.
/// Rounds halves away from zero. For codes of up to 4 bits.
template <class Arch>
void encode_portable(const AffineGrid& grid, const AffineRows& rows,
                     const AffineCodes& out) noexcept {
    const float most = static_cast<float>((1u << grid.bits) - 1);
    const float middle = static_cast<float>(1u << (grid.bits - 1));
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        const Extremes found = extremes_of<Arch>(values, count);
        const float low = found.least < 0.0f ? found.least : 0.0f;
        const float high = found.most > 0.0f ? found.most : 0.0f;
        scale = 0x1p-14f;
        zero = grid.symmetric ? middle : 0.0f;
        float least = std::numeric_limits<float>::infinity();
        const auto attempt = [&](float step, float origin) noexcept {
            const float error = portable_error<Arch>(values, count, step, origin, most);
            if (!(error < least)) return;
            least = error;
            scale = step;
            zero = origin;
        };
        // Both neighbours of an exact scale; one where it needs no rounding.
        const auto about = [&](float exact, bool negative) noexcept {
            // A range that overflows has no scale; what comes of it is refused.
            if (!__builtin_isfinite(exact)) return;
            const float step = portable_step(exact);
            const float below = static_cast<float>(static_cast<std::uint32_t>(exact / step)) * step;
            for (const float one : {below, below + step}) {
                if (one == 0.0f || (one != below && below == exact)) continue;
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
        round_away(values, count, 1.0f / scale, zero, most, codes);
    };
    for_each_group(grid, rows, out, fit,
                   [](float zero) noexcept { return static_cast<std::uint8_t>(zero); });
}

}  // namespace phiquant::kernels
