// The sixteen levels of IQ4 codes (ggml's kvalues_iq4nl), and the nearest one to a float.
#pragma once

#include "kernels/simd.hpp"

namespace phiquant::kernels::iq4_levels {

alignas(k_alignment) static constexpr float k_levels[16] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// Halfway to the level above; from there on it is nearer, by the reference's rounding too: where
/// it compares two distances that nearly tie, both subtractions are exact.
static constexpr float middle(int level) noexcept {
    return (k_levels[level] + k_levels[level + 1]) / 2;
}

// Written as "not below", so that a NaN (0 times the inverse of a tiny scale) gets the reference's
// code, the highest.
template <class Arch>
XSIMD_INLINE I32<Arch> nearest_code(F32<Arch> value) noexcept {
    I32<Arch> code(15);
    for (int i = 0; i < 15; ++i) {
        const auto below = xsimd::batch_bool_cast<std::int32_t>(value < F32<Arch>(middle(i)));
        code = xsimd::select(below, code - I32<Arch>(1), code);
    }
    return code;
}

namespace level_of {

template <class Arch, class Tag>
XSIMD_INLINE F32<Arch> nearest(F32<Arch> value, Tag) noexcept {
    F32<Arch> level(k_levels[15]);
    for (int i = 14; i >= 0; --i) {
        level = xsimd::select(value < F32<Arch>(middle(i)), F32<Arch>(k_levels[i]), level);
    }
    return level;
}

#if XSIMD_WITH_AVX512BW
/// The floats from 8 k - 132 to 8 k - 124 hold at most one of the middles: 32 such ranges cover
/// all of them, and no range begins at a middle, so that rounding on the way to k does no harm.
struct Ranges {
    alignas(k_alignment) float middle[32];
    alignas(k_alignment) float below[32];
    alignas(k_alignment) float above[32];

    constexpr Ranges() : middle{}, below{}, above{} {
        for (int k = 0; k < 32; ++k) {
            const float begin = 8.0f * static_cast<float>(k) - 132.0f;
            int level = 0;
            while (level < 15 && iq4_levels::middle(level) < begin) ++level;
            const bool has = level < 15 && iq4_levels::middle(level) < begin + 8.0f;
            middle[k] = has ? iq4_levels::middle(level) : __builtin_inff();
            below[k] = k_levels[level];
            above[k] = has ? k_levels[level + 1] : k_levels[level];
        }
        // min() below takes NaNs there.
        above[31] = k_levels[15];
    }
};
static constexpr Ranges k_ranges;

template <class Arch>
XSIMD_INLINE F32<Arch> nearest(F32<Arch> value, xsimd::avx512bw) noexcept {
    const __m512 steps =
        _mm512_add_ps(_mm512_mul_ps(value, _mm512_set1_ps(0.125f)), _mm512_set1_ps(16.5f));
    const __m512 within =
        _mm512_max_ps(_mm512_min_ps(steps, _mm512_set1_ps(31.0f)), _mm512_setzero_ps());
    const __m512i k = _mm512_cvttps_epi32(within);
    const auto look_up = [k](const float* table) {
        return _mm512_permutex2var_ps(_mm512_load_ps(table), k, _mm512_load_ps(table + 16));
    };
    const __mmask16 is_below = _mm512_cmp_ps_mask(value, look_up(k_ranges.middle), _CMP_LT_OQ);
    return F32<Arch>(
        _mm512_mask_blend_ps(is_below, look_up(k_ranges.above), look_up(k_ranges.below)));
}
#endif

}  // namespace level_of

/// The nearest level itself.
template <class Arch>
XSIMD_INLINE F32<Arch> nearest(F32<Arch> value) noexcept {
    return level_of::nearest<Arch>(value, Arch{});
}

}  // namespace phiquant::kernels::iq4_levels
