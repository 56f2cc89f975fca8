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
    alignas(k_alignment) float middle[count];  // the code of zero; 0 where all values are zero
    alignas(k_alignment) float weight[count];  // of all values
};

// Below this a sub-block counts as all zero (ggml's GROUP_MAX_EPS).
inline constexpr float k_negligible = 1e-15f;

/// What is searched: sub-blocks of `values` values and codes from -half_range to half_range - 1.
template <std::size_t values, int half_range_, bool weighted_, Range reach_ = Range::limited>
struct ScaleRule {
    static constexpr std::size_t sub_block = values;
    static constexpr int half_range = half_range_;
    static constexpr bool weighted = weighted_;  // by given weights; else by x²
    static constexpr Range reach = reach_;       // of values: any, if they need not be finite
};

/// The trials' numerators, over the largest value: -(half_range + 0.1 * step), with step 0 first,
/// then -9 to 9 without 0.
template <int half_range>
struct ScaleTrials {
    static constexpr int count = 19;
    float steps[count];

    constexpr ScaleTrials() : steps{} {
        for (int trial = 0; trial < count; ++trial) {
            const int step = trial == 0 ? 0 : trial <= 9 ? trial - 10 : trial - 9;
            steps[trial] = -(half_range + 0.1f * static_cast<float>(step));
        }
    }
};

/// The search over as many sub-blocks as a batch has lanes.
template <class Arch, class Rule>
class ScaleSearch {
    static constexpr std::size_t lanes = F32<Arch>::size;
    static constexpr std::size_t size = Rule::sub_block;
    static constexpr float range = Rule::half_range;
    using Batch = F32<Arch>;
    using Trials = ScaleTrials<Rule::half_range>;
    static constexpr Trials k_trials{};

public:
    /// `values`: `lanes` consecutive sub-blocks, whose results go to `found` from `first` on;
    /// `weights`: one for each value, if the rule is weighted.
    template <std::size_t count>
    void run(const float* values, const float* weights, std::size_t first,
             Scales<count>& found) noexcept {
        load(values, weights);
        // |inverse * x| is at most the numerator, as `largest` bounds |x|: up to range - 0.6
        // nothing can round past the upper end, and up to range + 0.4 nothing past the lower one.
        try_steps<Ends::upper, 1>(0);
        try_steps<Ends::none, 4>(1);
        for (int trial = 5; trial < 14; trial += 3) try_steps<Ends::upper, 3>(trial);
        try_steps<Ends::both, 5>(14);
        select(found.scale + first, found.inverse + first);
        xsimd::select(negligible_, Batch(0.0f), Batch(range)).store_aligned(found.middle + first);
        sum_w_.store_aligned(found.weight + first);
    }

private:
    enum class Ends { none, upper, both };

    /// What belongs to value i of each sub-block.
    struct Each {
        Batch x, w, wx;
    };

    /// What a trial comes to: Σ w·x·l, Σ w·l², and their quotient.
    struct Trial {
        Batch inverse, xl, l2, scale;
    };

    void load(const float* values, const float* weights) noexcept {
        constexpr std::size_t stride = sizeof(Each) / sizeof(Batch);
        transpose_sub_blocks<Arch, size>(values, &each_[0].x, stride);
        if constexpr (Rule::weighted) {
            transpose_sub_blocks<Arch, size>(weights, &each_[0].w, stride);
        }
        const Batch zero(0.0f);
        Batch largest = zero, magnitude = zero, sum_w = zero;
        for (std::size_t i = 0; i < size; ++i) {
            const Batch x = each_[i].x;
            const Batch here = xsimd::abs(x);
            const auto larger = here > magnitude;  // so that the first of equals wins
            magnitude = xsimd::select(larger, here, magnitude);
            largest = xsimd::select(larger, x, largest);
            if constexpr (!Rule::weighted) each_[i].w = x * x;
            each_[i].wx = each_[i].w * x;
            sum_w = sum_w + each_[i].w;
        }
        sum_w_ = sum_w;
        negligible_ = magnitude < Batch(k_negligible);
        largest_ = xsimd::select(negligible_, Batch(1.0f), largest);
    }

    template <Ends ends>
    static XSIMD_INLINE Batch nearest(Batch steps) noexcept {
        if constexpr (Rule::reach == Range::limited && k_has_integer_extremes<Arch>) {
            // Negative floats' bits are ordered by magnitude: above all others as unsigned
            // integers, below them as signed ones. So each end has its own kind of minimum.
            using Unsigned = xsimd::batch<std::uint32_t, Arch>;
            Batch code = nearest_even<Arch>(steps);
            if constexpr (ends == Ends::both) {
                const auto bits = xsimd::bitwise_cast<std::uint32_t>(code);
                const Unsigned low(__builtin_bit_cast(std::uint32_t, -range));
                code = xsimd::bitwise_cast<float>(xsimd::min(bits, low));
            }
            if constexpr (ends != Ends::none) {
                const I32<Arch> high(__builtin_bit_cast(std::int32_t, range - 1.0f));
                code = float_of_bits<Arch>(xsimd::min(bits_of<Arch>(code), high));
            }
            return code;
        } else {
            return nearest_biased<Arch, Rule::reach>(steps, -range, range - 1.0f) - Batch(k_magic);
        }
    }

    /// Several trials at once, from `first` on: they share the loads, and fill each other's waits.
    template <Ends ends, int together>
    XSIMD_INLINE void try_steps(int first) noexcept {
        Batch inverse[together], xl[together], l2[together];
        for (int t = 0; t < together; ++t) {
            inverse[t] = quotient<Arch>(Batch(k_trials.steps[first + t]), largest_);
            xl[t] = l2[t] = Batch(0.0f);
        }
        for (std::size_t i = 0; i < size; ++i) {
            const Each each = each_[i];
            for (int t = 0; t < together; ++t) {
                const Batch code = nearest<ends>(inverse[t] * each.x);
                xl[t] = xl[t] + each.wx * code;
                l2[t] = l2[t] + (each.w * code) * code;
            }
        }
        for (int t = 0; t < together; ++t) {
            trials_[first + t] = {inverse[t], xl[t], l2[t], quotient<Arch>(xl[t], l2[t])};
        }
    }

    void select(float* scales, float* inverses) const noexcept {
        const Batch zero(0.0f);
        Batch scale = xsimd::select(trials_[0].l2 != zero, trials_[0].scale, zero);
        Batch best = scale * trials_[0].xl;
        Batch inverse = trials_[0].inverse;
        for (int trial = 1; trial < Trials::count; ++trial) {
            const Trial& tried = trials_[trial];
            const auto better = (tried.l2 > zero) & (tried.xl * tried.xl > best * tried.l2);
            scale = xsimd::select(better, tried.scale, scale);
            best = xsimd::select(better, tried.scale * tried.xl, best);
            inverse = xsimd::select(better, tried.inverse, inverse);
        }
        xsimd::select(negligible_, zero, scale).store_aligned(scales);
        xsimd::select(negligible_, zero, inverse).store_aligned(inverses);
    }

    Each each_[size];
    Trial trials_[Trials::count];
    Batch largest_, sum_w_;
    xsimd::batch_bool<float, Arch> negligible_;
};

}  // namespace phiquant::kernels
