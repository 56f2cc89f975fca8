// The search for a sub-block's scale and minimum (ggml's make_qkx2_quants), one lane a sub-block.
#pragma once

#include "kernels/simd.hpp"

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
            transpose_sub_blocks<Arch, size>(values + g * lanes * size, &x_[0][g], groups);
            Batch squares = x_[0][g] * x_[0][g];
            for (std::size_t i = 1; i < size; ++i) squares = squares + x_[i][g] * x_[i][g];
            const Batch mean = xsimd::sqrt(squares / Batch(static_cast<float>(size)));
            low_[g] = high_[g] = x_[0][g];
            sum_w_[g] = w_[0][g] = mean + xsimd::abs(x_[0][g]);
            sum_x_[g] = w_[0][g] * x_[0][g];
            for (std::size_t i = 1; i < size; ++i) {
                low_[g] = xsimd::min(low_[g], x_[i][g]);
                high_[g] = xsimd::max(high_[g], x_[i][g]);
                w_[i][g] = mean + xsimd::abs(x_[i][g]);
                sum_w_[g] = sum_w_[g] + w_[i][g];
                sum_x_[g] = sum_x_[g] + w_[i][g] * x_[i][g];
            }
        }
    }

    void start() noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            minimum_[g] = xsimd::min(low_[g], Batch(0.0f));
            flat_[g] = high_[g] == minimum_[g];
            const Batch inverse = Batch(largest) / range(g);
            scale_[g] = Batch(1.0f) / inverse;
            best_inverse_[g] = inverse;
            best_offset_[g] = minimum_[g];
            Batch error(0.0f);
            for (std::size_t i = 0; i < size; ++i) {
                const Batch code = nearest_biased<Arch, Range::any>(
                                       inverse * (x_[i][g] - minimum_[g]), 0.0f, largest) -
                                   Batch(k_magic);
                const Batch off = scale_[g] * code + minimum_[g] - x_[i][g];
                error = error + w_[i][g] * (off * off);
            }
            error_[g] = error;
        }
    }

    /// Range of a lane's values from the running minimum. Flat lanes get 1: their result is
    /// fixed, and an infinite inverse would only send all lanes down the slow path.
    Batch range(std::size_t g) const noexcept {
        return xsimd::select(flat_[g], Batch(1.0f), high_[g] - minimum_[g]);
    }

    void try_inverse(float steps) noexcept {
        Batch inverse[groups];
        auto limited = xsimd::batch_bool<float, Arch>(true);
        for (std::size_t g = 0; g < groups; ++g) {
            inverse[g] = Batch(steps) / range(g);
            // Products grow with x, so that the ends bound them all; a NaN fails the comparison.
            const Batch bottom = inverse[g] * (low_[g] - minimum_[g]);
            const Batch top = inverse[g] * (high_[g] - minimum_[g]);
            const Batch limit(4194303.0f);
            limited = limited & (xsimd::abs(bottom) <= limit) & (xsimd::abs(top) <= limit);
        }
        Batch sum_l[groups], sum_l2[groups], sum_xl[groups];
        if (xsimd::all(limited)) {
            sum<Range::limited>(inverse, sum_l, sum_l2, sum_xl);
        } else {
            sum<Range::any>(inverse, sum_l, sum_l2, sum_xl);
        }
        Batch scale[groups], minimum[groups];
        xsimd::batch_bool<float, Arch> solvable[groups];
        for (std::size_t g = 0; g < groups; ++g) {
            const Batch zero(0.0f);
            const Batch det = sum_w_[g] * sum_l2[g] - sum_l[g] * sum_l[g];
            solvable[g] = det > zero;
            scale[g] = (sum_w_[g] * sum_xl[g] - sum_x_[g] * sum_l[g]) / det;
            minimum[g] = (sum_l2[g] * sum_x_[g] - sum_l[g] * sum_xl[g]) / det;
            const auto positive = minimum[g] > zero;
            if (xsimd::any(positive)) {
                scale[g] = xsimd::select(positive, sum_xl[g] / sum_l2[g], scale[g]);
                minimum[g] = xsimd::select(positive, zero, minimum[g]);
            }
        }
        Batch error[groups];
        for (std::size_t g = 0; g < groups; ++g) error[g] = Batch(0.0f);
        for (std::size_t i = 0; i < size; ++i) {
            for (std::size_t g = 0; g < groups; ++g) {
                const Batch off = scale[g] * codes_[i][g] + minimum[g] - x_[i][g];
                error[g] = error[g] + w_[i][g] * (off * off);
            }
        }
        for (std::size_t g = 0; g < groups; ++g) {
            const auto better = solvable[g] & (error[g] < error_[g]);
            best_inverse_[g] = xsimd::select(better, inverse[g], best_inverse_[g]);
            best_offset_[g] = xsimd::select(better, minimum_[g], best_offset_[g]);
            error_[g] = xsimd::select(better, error[g], error_[g]);
            scale_[g] = xsimd::select(better, scale[g], scale_[g]);
            // The accepted minimum enters the next trials' range and offset, as in the reference.
            minimum_[g] = xsimd::select(better, minimum[g], minimum_[g]);
        }
    }

    template <Range reach>
    void sum(const Batch* inverse, Batch* sum_l, Batch* sum_l2, Batch* sum_xl) noexcept {
        Batch l[groups], l2[groups], xl[groups];
        for (std::size_t g = 0; g < groups; ++g) l[g] = l2[g] = xl[g] = Batch(0.0f);
        for (std::size_t i = 0; i < size; ++i) {
            for (std::size_t g = 0; g < groups; ++g) {
                const Batch steps = inverse[g] * (x_[i][g] - minimum_[g]);
                const Batch code =
                    nearest_biased<Arch, reach>(steps, 0.0f, largest) - Batch(k_magic);
                codes_[i][g] = code;
                const Batch weighted = w_[i][g] * code;
                l[g] = l[g] + weighted;
                l2[g] = l2[g] + weighted * code;
                xl[g] = xl[g] + weighted * x_[i][g];
            }
        }
        for (std::size_t g = 0; g < groups; ++g) {
            sum_l[g] = l[g];
            sum_l2[g] = l2[g];
            sum_xl[g] = xl[g];
        }
    }

    Batch x_[size][groups], w_[size][groups], codes_[size][groups];
    Batch low_[groups], high_[groups], sum_w_[groups], sum_x_[groups];
    Batch scale_[groups], minimum_[groups], error_[groups];
    Batch best_inverse_[groups], best_offset_[groups];
    xsimd::batch_bool<float, Arch> flat_[groups];
};

}  // namespace phiquant::kernels
