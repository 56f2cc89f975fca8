// The search for a sub-block's scale and minimum (ggml's make_qkx2_quants), one lane a sub-block.
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
};

template <class Arch, class Format, std::size_t groups>
class ScaleMinimumSearch {
    static constexpr std::size_t lanes = F32<Arch>::size;
    static constexpr std::size_t size = Format::sub_block;
    static constexpr float largest = Format::largest_code;
    using Batch = F32<Arch>;
    using Mask = xsimd::batch_bool<float, Arch>;

public:
    static constexpr std::size_t sub_blocks = groups * lanes;

    /// `values`: `sub_blocks` consecutive sub-blocks.
    void run(const float* values, ScalesAndMinima<sub_blocks>& found) noexcept {
        load(values);
        start();
        for (int step = 0; step <= Format::last_step; ++step) {
            try_inverse((Format::first_step + 0.1f * static_cast<float>(step)) + largest);
        }
        for (std::size_t g = 0; g < groups; ++g) {
            // A sub-block of one value, not above zero, is its minimum alone.
            xsimd::select(flat_[g], Batch(0.0f), scale_[g]).store_aligned(found.scale + g * lanes);
            (-minimum_[g]).store_aligned(found.minimum + g * lanes);
            best_inverse_[g].store_aligned(found.inverse + g * lanes);
            best_offset_[g].store_aligned(found.offset + g * lanes);
        }
    }

private:
    void load(const float* values) noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            transpose_sub_blocks<Arch, size>(values + g * lanes * size, &each_[0].x[g],
                                             sizeof(Each) / sizeof(Batch));
            // Sums live in locals: as members they would be stored and loaded at every step.
            Batch squares = each_[0].x[g] * each_[0].x[g];
            for (std::size_t i = 1; i < size; ++i)
                squares = squares + each_[i].x[g] * each_[i].x[g];
            const Batch mean = square_root<Arch>(squares * Batch(1.0f / size));
            Batch low = each_[0].x[g], high = low;
            Batch sum_w = mean + xsimd::abs(low);
            Batch sum_x = sum_w * low;
            each_[0].w[g] = sum_w;
            for (std::size_t i = 1; i < size; ++i) {
                const Batch x = each_[i].x[g];
                const Batch w = mean + xsimd::abs(x);
                low = xsimd::min(low, x);
                high = xsimd::max(high, x);
                sum_w = sum_w + w;
                sum_x = sum_x + w * x;
                each_[i].w[g] = w;
            }
            low_[g] = low;
            high_[g] = high;
            sum_w_[g] = sum_w;
            sum_x_[g] = sum_x;
        }
    }

    void start() noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            minimum_[g] = xsimd::min(low_[g], Batch(0.0f));
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
                error = error + each_[i].w[g] * (off * off);
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
                error = error + each_[i].w[g] * (off * off);
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
