// What the rules of affine codecs share: a group's extremes, and rounding to codes.
#pragma once

#include "base/half.hpp"
#include "kernels/affine.hpp"
#include "kernels/simd.hpp"

namespace phiquant::kernels {

struct Extremes {
    float least, most;
};

/// The smallest and the largest of `count` finite values (at least one).
template <class Arch>
Extremes extremes_of(const float* values, std::uint64_t count) noexcept {
    constexpr std::uint64_t k_width = F32<Arch>::size;
    Extremes found{values[0], values[0]};
    std::uint64_t i = 0;
    if (count >= k_width) {
        auto least = F32<Arch>::load_unaligned(values), most = least;
        for (i = k_width; i + k_width <= count; i += k_width) {
            const auto next = F32<Arch>::load_unaligned(values + i);
            least = xsimd::min(least, next);
            most = xsimd::max(most, next);
        }
        found = {xsimd::reduce_min(least), xsimd::reduce_max(most)};
    }
    for (; i < count; ++i) {
        found.least = values[i] < found.least ? values[i] : found.least;
        found.most = values[i] > found.most ? values[i] : found.most;
    }
    return found;
}

/// codes = clamp(round(values * factor + zero), 0, most), halves away from zero.
static inline void round_away(const float* values, std::uint64_t count, float factor, float zero,
                              float most, std::uint8_t* codes) noexcept {
    // Clamping first gives the same integers, and lets every instruction set round by truncation.
    for (std::uint64_t i = 0; i < count; ++i) {
        float at = values[i] * factor + zero;
        at = at > 0.0f ? at : 0.0f;
        at = at < most ? at : most;
        const auto whole = static_cast<std::int32_t>(at);
        codes[i] = static_cast<std::uint8_t>(
            whole + static_cast<std::int32_t>(at - static_cast<float>(whole) >= 0.5f));
    }
}

/// The nearest number of a scale's type.
static inline float stored_scale(float scale, AffineScale type) noexcept {
    switch (type) {
        case AffineScale::f16:
            return half_to_float(float_to_half(scale));
        case AffineScale::bf16:
            return bfloat_to_float(float_to_bfloat(scale));
        case AffineScale::f32:
            break;
    }
    return scale;
}

/// Calls `fit(values, importance, count, codes, scale, zero)` for every group of every row;
/// `importance` is null where there is none. Codes behind a row's end become `padding(zero)`.
template <class Fit, class Padding>
void for_each_group(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out,
                    const Fit& fit, const Padding& padding) noexcept {
    const std::uint64_t group = grid.group;
    const std::uint64_t groups = (rows.columns + group - 1) / group;
    for (std::uint64_t row = 0; row < rows.rows; ++row) {
        const float* values = rows.values + row * rows.columns;
        for (std::uint64_t g = 0; g < groups; ++g) {
            const std::uint64_t begin = g * group;
            const std::uint64_t count = group < rows.columns - begin ? group : rows.columns - begin;
            const std::uint64_t at = row * groups + g;
            std::uint8_t* codes = out.codes + at * group;
            fit(values + begin, rows.importance == nullptr ? nullptr : rows.importance + begin,
                count, codes, out.scales[at], out.zeros[at]);
            for (std::uint64_t i = count; i < group; ++i) codes[i] = padding(out.zeros[at]);
        }
    }
}

}  // namespace phiquant::kernels
