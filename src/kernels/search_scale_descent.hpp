// The search for a sub-block's scale that moves one code at a time (ggml's make_q3_quants), one
// lane a sub-block.
#pragma once

#include "kernels/search_scale.hpp"
#include "kernels/simd.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

/// Sub-blocks of 16 values, codes from -4 to 3, weights x². Each move waits for a division and a
/// dozen steps that depend on each other; `groups` of lanes fill one another's waits.
template <class Arch, std::size_t groups>
class ScaleDescent {
    static constexpr std::size_t lanes = F32<Arch>::size;
    static constexpr std::size_t size = 16;
    using Batch = F32<Arch>;
    using Mask = xsimd::batch_bool<float, Arch>;

public:
    static constexpr std::size_t sub_blocks = groups * lanes;

    /// `values`: `sub_blocks` consecutive sub-blocks; their scales go to `scales`.
    void run(const float* values, float* scales) noexcept {
        load(values);
        start();
        for (int pass = 0; pass < 5; ++pass) {
            if (!descend()) break;
        }
        const Batch zero(0.0f);
        for (std::size_t g = 0; g < groups; ++g) {
            const Batch scale = quotient<Arch>(sum_xl_[g], sum_l2_[g]);
            const Mask solved = (sum_l2_[g] > zero) & !negligible_[g];
            xsimd::select(solved, scale, zero).store_unaligned(scales + g * lanes);
        }
    }

    /// The code, 0 to 7, that the search ended with for value `i`.
    std::uint8_t code(std::size_t sub_block, std::size_t i) const noexcept {
        alignas(k_alignment) float codes[lanes];
        const Batch code = each_[i].code[sub_block / lanes] + Batch(4.0f);
        // Code 0 for sub-blocks that are all zero, which is not their middle.
        xsimd::select(negligible_[sub_block / lanes], Batch(0.0f), code).store_aligned(codes);
        return static_cast<std::uint8_t>(codes[sub_block % lanes]);
    }

private:
    void load(const float* values) noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            transpose_sub_blocks<Arch, size>(values + g * lanes * size, &each_[0].x[g],
                                             sizeof(Each) / sizeof(Batch));
            const Batch zero(0.0f);
            Batch largest = zero, magnitude = zero;
            for (std::size_t i = 0; i < size; ++i) {
                const Batch x = each_[i].x[g];
                const auto larger = xsimd::abs(x) > magnitude;  // so that the first of equals wins
                magnitude = xsimd::select(larger, xsimd::abs(x), magnitude);
                largest = xsimd::select(larger, x, largest);
            }
            negligible_[g] = magnitude < Batch(k_negligible);
            largest_[g] = xsimd::select(negligible_[g], Batch(1.0f), largest);
        }
    }

    void start() noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            const Batch inverse = quotient<Arch>(Batch(-4.0f), largest_[g]);
            Batch xl(0.0f), l2(0.0f);
            for (std::size_t i = 0; i < size; ++i) {
                const Batch x = each_[i].x[g], w = x * x;
                const Batch code =
                    nearest_biased<Arch, Range::limited>(inverse * x, -4.0f, 3.0f) - Batch(k_magic);
                xl = xl + w * x * code;
                l2 = l2 + w * code * code;
                each_[i].code[g] = code;
            }
            sum_xl_[g] = xl;
            sum_l2_[g] = l2;
        }
    }

    /// One pass; whether any code changed. Lanes without a change in one pass have none in the
    /// next either, so that all may go on together.
    XSIMD_INLINE bool descend() noexcept {
        const Batch zero(0.0f);
        Batch sum_xl[groups], sum_l2[groups];
        for (std::size_t g = 0; g < groups; ++g) {
            sum_xl[g] = sum_xl_[g];
            sum_l2[g] = sum_l2_[g];
        }
        Mask changed = zero != zero;
        for (std::size_t i = 0; i < size; ++i) {
            for (std::size_t g = 0; g < groups; ++g) {
                const Batch x = each_[i].x[g], old = each_[i].code[g];
                const Batch w = x * x, wx = w * x;
                const Batch other_xl = sum_xl[g] - wx * old;
                const Batch other_l2 = sum_l2[g] - w * old * old;
                const Batch code = nearest_biased<Arch, Range::any>(
                                       quotient<Arch>(x * other_l2, other_xl), -4.0f, 3.0f) -
                                   Batch(k_magic);
                const Batch xl = other_xl + wx * code;
                const Batch l2 = other_l2 + w * code * code;
                const Mask better = (other_xl > zero) & (code != old) & (l2 > zero) &
                                    (xl * xl * sum_l2[g] > sum_xl[g] * sum_xl[g] * l2);
                each_[i].code[g] = xsimd::select(better, code, old);
                sum_xl[g] = xsimd::select(better, xl, sum_xl[g]);
                sum_l2[g] = xsimd::select(better, l2, sum_l2[g]);
                changed = changed | better;
            }
        }
        for (std::size_t g = 0; g < groups; ++g) {
            sum_xl_[g] = sum_xl[g];
            sum_l2_[g] = sum_l2[g];
        }
        return xsimd::any(changed);
    }

    /// What belongs to value i of each sub-block.
    struct Each {
        Batch x[groups], code[groups];
    };
    Each each_[size];
    Batch largest_[groups], sum_xl_[groups], sum_l2_[groups];
    Mask negligible_[groups];
};

}  // namespace phiquant::kernels
