// The search for a sub-block's scale and minimum (ggml's make_qkx2_quants and
// make_qkx3_quants), one lane a sub-block.
#pragma once

#include "kernels/simd.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

/// What the search found for each of `count` sub-blocks.
template <std::size_t count>
struct ScalesAndMinima {
    alignas(k_alignment) float scale[count];
    alignas(k_alignment) float minimum[count];  // as stored: not negative
    // The grid whose codes won: code = clamp(nearest(inverse * (x - offset))). Only sub-blocks
    // whose rounded scale is zero still need those codes, so they are made again for these alone.
    alignas(k_alignment) float inverse[count];
    alignas(k_alignment) float offset[count];
    alignas(k_alignment) float weight[count];  // of all values
};

/// Where the weights of squared errors come from.
enum class Weighting : std::uint8_t {
    magnitude_and_mean,  ///< |x| + root of the mean square
    magnitude,           ///< |x|
    given                ///< by the caller: an importance matrix's
};

/// ggml's search with importance; the rules without it stand with their formats.
template <std::size_t values, int largest>
struct ImportanceRule {
    static constexpr std::size_t sub_block = values;
    static constexpr int largest_code = largest;
    static constexpr Weighting weighting = Weighting::given;
    static constexpr bool absolute_errors = false;
    // Trials: (first_step + step * number + largest_code) / range.
    static constexpr float first_step = -0.9f, step = 0.05f;
    static constexpr int last_step = 36;
};

template <class Arch, class Rule, std::size_t groups>
class ScaleMinimumSearch {
    static constexpr std::size_t lanes = F32<Arch>::size;
    static constexpr std::size_t size = Rule::sub_block;
    static constexpr float largest = Rule::largest_code;
    using Batch = F32<Arch>;
    using Mask = xsimd::batch_bool<float, Arch>;

public:
    static constexpr std::size_t sub_blocks = groups * lanes;

    /// `values`: `sub_blocks` consecutive sub-blocks, whose results go to `found` from `first` on;
    /// `weights`: one for each value, where the rule wants them given.
    template <std::size_t count>
    void run(const float* values, const float* weights, std::size_t first,
             ScalesAndMinima<count>& found) noexcept {
        load(values, weights);
        start();
        for (int step = 0; step <= Rule::last_step; ++step) {
            try_inverse((Rule::first_step + Rule::step * static_cast<float>(step)) + largest);
        }
        for (std::size_t g = 0; g < groups; ++g) {
            const std::size_t at = first + g * lanes;
            // A sub-block of one value, not above zero, is its minimum alone.
            xsimd::select(flat_[g], Batch(0.0f), scale_[g]).store_aligned(found.scale + at);
            negated<Arch>(minimum_[g]).store_aligned(found.minimum + at);
            best_inverse_[g].store_aligned(found.inverse + at);
            best_offset_[g].store_aligned(found.offset + at);
            sum_w_[g].store_aligned(found.weight + at);
        }
    }

private:
    void load(const float* values, const float* weights) noexcept {
        constexpr std::size_t stride = sizeof(Each) / sizeof(Batch);
        for (std::size_t g = 0; g < groups; ++g) {
            const std::size_t from = g * lanes * size;
            transpose_sub_blocks<Arch, size>(values + from, &each_[0].x[g], stride);
            // Sums live in locals: as members they would be stored and loaded at every step.
            Batch mean(0.0f);
            if constexpr (Rule::weighting == Weighting::given) {
                transpose_sub_blocks<Arch, size>(weights + from, &each_[0].w[g], stride);
            } else if constexpr (Rule::weighting == Weighting::magnitude_and_mean) {
                Batch squares = each_[0].x[g] * each_[0].x[g];
                for (std::size_t i = 1; i < size; ++i)
                    squares = squares + each_[i].x[g] * each_[i].x[g];
                mean = square_root<Arch>(squares * Batch(1.0f / size));
            }
            Batch low = each_[0].x[g], high = low;
            Batch sum_w = weigh(0, g, mean);
            Batch sum_x = sum_w * low;
            for (std::size_t i = 1; i < size; ++i) {
                const Batch x = each_[i].x[g];
                const Batch w = weigh(i, g, mean);
                // Of zeros of two signs the first stays, as q4_1 and q5_1 store it.
                low = xsimd::select(x < low, x, low);
                high = xsimd::max(high, x);
                sum_w = sum_w + w;
                sum_x = sum_x + w * x;
            }
            low_[g] = low;
            high_[g] = high;
            sum_w_[g] = sum_w;
            sum_x_[g] = sum_x;
        }
    }

    /// Weight of value i of each sub-block.
    XSIMD_INLINE Batch weigh(std::size_t i, std::size_t g, Batch mean) noexcept {
        Each& each = each_[i];
        if constexpr (Rule::weighting == Weighting::magnitude) {
            each.w[g] = xsimd::abs(each.x[g]);
        } else if constexpr (Rule::weighting == Weighting::magnitude_and_mean) {
            each.w[g] = mean + xsimd::abs(each.x[g]);
        }
        return each.w[g];
    }

    /// How much a value that is `off` by so much weighs.
    static XSIMD_INLINE Batch penalty(Batch w, Batch off) noexcept {
        if constexpr (Rule::absolute_errors) return w * xsimd::abs(off);
        return w * (off * off);
    }

    void start() noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            const Batch zero(0.0f);
            minimum_[g] = xsimd::select(low_[g] > zero, zero, low_[g]);
            flat_[g] = high_[g] == minimum_[g];
            const Batch inverse = quotient<Arch>(Batch(largest), range(g));
            scale_[g] = quotient<Arch>(Batch(1.0f), inverse);
            best_inverse_[g] = inverse;
            best_offset_[g] = minimum_[g];
            Batch error(0.0f);
            for (std::size_t i = 0; i < size; ++i) {
                const Batch code = nearest_biased<Arch, Range::any>(
                                       inverse * (each_[i].x[g] - minimum_[g]), 0.0f, largest) -
                                   Batch(k_magic);
                const Batch off = scale_[g] * code + minimum_[g] - each_[i].x[g];
                error = error + penalty(each_[i].w[g], off);
            }
            error_[g] = error;
        }
    }

    /// Range of a lane's values from the running minimum. Flat lanes get 1: their result is
    /// fixed, and an infinite inverse would only send all lanes down the slow path.
    Batch range(std::size_t g) const noexcept {
        return xsimd::select(flat_[g], Batch(1.0f), high_[g] - minimum_[g]);
    }

    XSIMD_INLINE void try_inverse(float steps) noexcept {
        Batch inverse[groups], scale[groups], minimum[groups];
        Mask solvable[groups];
        for (std::size_t g = 0; g < groups; ++g) {
            const Batch zero(0.0f), limit(4194303.0f);
            inverse[g] = quotient<Arch>(Batch(steps), range(g));
            // Products grow with x, so that the ends bound them all; a NaN fails the comparison.
            const Batch bottom = inverse[g] * (low_[g] - minimum_[g]);
            const Batch top = inverse[g] * (high_[g] - minimum_[g]);
            const Mask limited = (xsimd::abs(bottom) <= limit) & (xsimd::abs(top) <= limit);
            const Sums sums = xsimd::all(limited) ? sum<Range::limited>(g, inverse[g])
                                                  : sum<Range::any>(g, inverse[g]);

            const Batch det = sum_w_[g] * sums.l2 - sums.l * sums.l;
            solvable[g] = det > zero;
            scale[g] = quotient<Arch>(sum_w_[g] * sums.xl - sum_x_[g] * sums.l, det);
            minimum[g] = quotient<Arch>(sums.l2 * sum_x_[g] - sums.l * sums.xl, det);
            const Mask positive = minimum[g] > zero;
            if (xsimd::any(positive)) {
                scale[g] = xsimd::select(positive, quotient<Arch>(sums.xl, sums.l2), scale[g]);
                minimum[g] = xsimd::select(positive, zero, minimum[g]);
            }
        }
        // Group by group, so that one's divisions and comparisons overlap the other's sums.
        for (std::size_t g = 0; g < groups; ++g) {
            Batch error(0.0f);
            for (std::size_t i = 0; i < size; ++i) {
                const Batch off = scale[g] * each_[i].code[g] + minimum[g] - each_[i].x[g];
                error = error + penalty(each_[i].w[g], off);
            }
            const Mask better = solvable[g] & (error < error_[g]);
            best_inverse_[g] = xsimd::select(better, inverse[g], best_inverse_[g]);
            best_offset_[g] = xsimd::select(better, minimum_[g], best_offset_[g]);
            error_[g] = xsimd::select(better, error, error_[g]);
            scale_[g] = xsimd::select(better, scale[g], scale_[g]);
            // The accepted minimum enters the next trials' range and offset, as in the reference.
            minimum_[g] = xsimd::select(better, minimum[g], minimum_[g]);
        }
    }

    struct Sums {
        Batch l, l2, xl;
    };

    /// One group at a time: two groups' sums, grids and constants are more than 16 registers.
    template <Range reach>
    XSIMD_INLINE Sums sum(std::size_t g, Batch inverse) noexcept {
        const Batch offset = minimum_[g];
        Batch l(0.0f), l2(0.0f), xl(0.0f);
        for (std::size_t i = 0; i < size; ++i) {
            const Batch x = each_[i].x[g];
            const Batch code = nearest_code<Arch, reach>(inverse * (x - offset), largest);
            each_[i].code[g] = code;
            const Batch weighted = each_[i].w[g] * code;
            l = l + weighted;
            l2 = l2 + weighted * code;
            xl = xl + weighted * x;
        }
        return {l, l2, xl};
    }

    /// What belongs to value i of each sub-block. In three arrays they would lie 4096 bytes apart.
    struct Each {
        Batch x[groups], w[groups], code[groups];
    };
    Each each_[size];
    Batch low_[groups], high_[groups], sum_w_[groups], sum_x_[groups];
    Batch scale_[groups], minimum_[groups], error_[groups];
    Batch best_inverse_[groups], best_offset_[groups];
    Mask flat_[groups];
};

}  // namespace phiquant::kernels
