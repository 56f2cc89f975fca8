// The search for a sub-block's scale (ggml's make_qx_quants), one lane a sub-block.
#pragma once

#include "kernels/simd.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

/// What the search found for each of `count` sub-blocks.
template <std::size_t count>
struct Scales {
    alignas(k_alignment) float scale[count];
    // The grid whose codes won: code = clamp(nearest(inverse * x)); 0 where all values are zero.
    alignas(k_alignment) float inverse[count];
};

// Below this a sub-block counts as all zero (ggml's GROUP_MAX_EPS).
inline constexpr float k_negligible = 1e-15f;

/// The trials: -(32 + 0.1 * step) / max, first step 0, then -9 to 9 without 0.
inline constexpr int k_scale_trials = 19;
static constexpr int scale_trial_step(int trial) noexcept {
    return trial == 0 ? 0 : trial <= 9 ? trial - 10 : trial - 9;
}
static constexpr float scale_trial_steps(int trial) noexcept {
    return -(32.0f + 0.1f * static_cast<float>(scale_trial_step(trial)));
}

/// Sums of one trial over a sub-block's 16 values: Σ w·x·l and Σ w·l·l with w = x².
template <class Arch>
struct ScaleSums {
    F32<Arch> xl, l2;
};

template <class Arch>
XSIMD_INLINE void sum_scale_trial(const F32<Arch>* x, const F32<Arch>* w, const F32<Arch>* wx,
                                  F32<Arch> inverse, ScaleSums<Arch>& sums) noexcept {
    using Batch = F32<Arch>;
    sums.xl = sums.l2 = Batch(0.0f);
    for (std::size_t i = 0; i < 16; ++i) {
        // |inverse * x| is at most 33, as max bounds |x|.
        const Batch code =
            nearest_biased<Arch, Range::limited>(inverse * x[i], -32.0f, 31.0f) - Batch(k_magic);
        sums.xl = sums.xl + wx[i] * code;
        sums.l2 = sums.l2 + (w[i] * code) * code;
    }
}

/// `values`: as many consecutive sub-blocks of 16 as a batch has lanes.
template <class Arch, std::size_t count>
void search_scale(const float* values, std::size_t first, Scales<count>& found) noexcept {
    using Batch = F32<Arch>;
    const Batch zero(0.0f);
    Batch x[16], w[16], wx[16];
    transpose_sub_blocks<Arch, 16>(values, x, 1);
    Batch largest = zero, magnitude = zero;
    for (std::size_t i = 0; i < 16; ++i) {
        const Batch size = xsimd::abs(x[i]);
        const auto larger = size > magnitude;  // so that the first of equals wins
        magnitude = xsimd::select(larger, size, magnitude);
        largest = xsimd::select(larger, x[i], largest);
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
    }
    const auto negligible = magnitude < Batch(k_negligible);
    largest = xsimd::select(negligible, Batch(1.0f), largest);

    Batch scale, best, best_inverse;
    for (int trial = 0; trial < k_scale_trials; ++trial) {
        const Batch inverse = Batch(scale_trial_steps(trial)) / largest;
        ScaleSums<Arch> sums;
        sum_scale_trial<Arch>(x, w, wx, inverse, sums);
        if (trial == 0) {
            scale = xsimd::select(sums.l2 != zero, sums.xl / sums.l2, zero);
            best = scale * sums.xl;
            best_inverse = inverse;
        } else {
            const auto better = (sums.l2 > zero) & (sums.xl * sums.xl > best * sums.l2);
            scale = xsimd::select(better, sums.xl / sums.l2, scale);
            best = xsimd::select(better, scale * sums.xl, best);
            best_inverse = xsimd::select(better, inverse, best_inverse);
        }
    }
    xsimd::select(negligible, zero, scale).store_aligned(found.scale + first);
    xsimd::select(negligible, zero, best_inverse).store_aligned(found.inverse + first);
}

}  // namespace phiquant::kernels
