// The search for a sub-block's scale that moves one code at a time (ggml's make_q3_quants), one
// lane a sub-block.
#pragma once

#include "kernels/search_scale.hpp"
#include "kernels/simd.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

/// One lane of sub-blocks of 16 values, codes from -4 to 3, weights x².
template <class Arch>
class ScaleDescent {
    static constexpr std::size_t size = 16;
    static constexpr float lowest = -4.0f, highest = 3.0f;
    using Batch = F32<Arch>;
    using Mask = xsimd::batch_bool<float, Arch>;

public:
    /// `values`: as many consecutive sub-blocks as there are lanes.
    void start(const float* values) noexcept {
        transpose_sub_blocks<Arch, size>(values, &each_[0].x, sizeof(Each) / sizeof(Batch));
        const Batch zero(0.0f);
        Batch largest = zero, magnitude = zero;
        for (std::size_t i = 0; i < size; ++i) {
            const Batch x = each_[i].x;
            const auto larger = xsimd::abs(x) > magnitude;  // so that the first of equals wins
            magnitude = xsimd::select(larger, xsimd::abs(x), magnitude);
            largest = xsimd::select(larger, x, largest);
        }
        negligible_ = magnitude < Batch(k_negligible);
        const Batch inverse =
            quotient<Arch>(Batch(lowest), xsimd::select(negligible_, Batch(1.0f), largest));
        Batch xl = zero, l2 = zero;
        for (std::size_t i = 0; i < size; ++i) {
            each_[i].set(
                nearest_biased<Arch, Range::limited>(inverse * each_[i].x, lowest, highest) -
                Batch(k_magic));
            xl = xl + each_[i].xl;
            l2 = l2 + each_[i].l2;
        }
        sum_xl_ = xl;
        sum_l2_ = l2;
    }

    /// Try to move value i's code; whether any lane's changed.
    XSIMD_INLINE bool try_move(std::size_t i) noexcept {
        const Each& each = each_[i];
        const Batch other_xl = sum_xl_ - each.xl;
        const Batch other_l2 = sum_l2_ - each.l2;
        const Batch product = each.x * other_l2;
        // Few codes would move. Where none would, no division is needed, and nothing later waits
        // for anything here.
        const Mask stays = (product < each.high * other_xl) & (product > each.low * other_xl);
        if (xsimd::all(stays | negligible_)) return false;
        return move(i, other_xl, other_l2, product);
    }

    Batch scale() const noexcept {
        const Batch zero(0.0f);
        const Mask solved = (sum_l2_ > zero) & !negligible_;
        return xsimd::select(solved, quotient<Arch>(sum_xl_, sum_l2_), zero);
    }

    /// The code, 0 to 7, that the search ended with for value `i`.
    std::uint8_t code(std::size_t lane, std::size_t i) const noexcept {
        alignas(k_alignment) float codes[Batch::size];
        // Code 0 for sub-blocks that are all zero, which is not their middle.
        xsimd::select(negligible_, Batch(0.0f), each_[i].code - Batch(lowest)).store_aligned(codes);
        return static_cast<std::uint8_t>(codes[lane]);
    }

private:
    /// What belongs to value i of each sub-block: its code, what it adds to the sums, and the
    /// bounds between which x over the others' scale surely rounds to that code again.
    struct Each {
        Batch x, code, xl, l2, low, high;

        XSIMD_INLINE void set(Batch value) noexcept {
            const Batch margin(0.49999f), beyond(3e38f);
            code = value;
            const Batch w = x * x;
            xl = w * x * value;
            l2 = w * value * value;
            low = xsimd::select(value == Batch(lowest), -beyond, value - margin);
            high = xsimd::select(value == Batch(highest), beyond, value + margin);
        }
    };

    /// Move value i's code in the lanes where that fits all better.
    bool move(std::size_t i, Batch other_xl, Batch other_l2, Batch product) noexcept {
        const Batch zero(0.0f);
        const Each old = each_[i];
        Each moved = old;
        moved.set(
            nearest_biased<Arch, Range::any>(quotient<Arch>(product, other_xl), lowest, highest) -
            Batch(k_magic));
        const Batch xl = other_xl + moved.xl;
        const Batch l2 = other_l2 + moved.l2;
        const Mask better = (other_xl > zero) & (moved.code != old.code) & (l2 > zero) &
                            (xl * xl * sum_l2_ > sum_xl_ * sum_xl_ * l2) & !negligible_;
        if (xsimd::none(better)) return false;
        each_[i].set(xsimd::select(better, moved.code, old.code));
        sum_xl_ = xsimd::select(better, xl, sum_xl_);
        sum_l2_ = xsimd::select(better, l2, sum_l2_);
        return true;
    }

    Each each_[size];
    Batch sum_xl_, sum_l2_;
    Mask negligible_;
};

/// Several batches of sub-blocks at once: a move is a division and a dozen steps that depend on
/// each other, and one batch's fill the waits of another's.
template <class Arch, std::size_t groups>
class ScaleDescents {
    static constexpr std::size_t lanes = F32<Arch>::size;

public:
    static constexpr std::size_t sub_blocks = groups * lanes;

    /// `values`: `sub_blocks` consecutive sub-blocks; their scales go to `scales`.
    void run(const float* values, float* scales) noexcept {
        bool active[groups];
        for (std::size_t g = 0; g < groups; ++g) {
            each_[g].start(values + g * lanes * 16);
            active[g] = true;
        }
        for (int pass = 0; pass < 5; ++pass) {
            // Sub-blocks without a change in one pass have none in the next either.
            bool changed[groups] = {};
            for (std::size_t i = 0; i < 16; ++i) {
                for (std::size_t g = 0; g < groups; ++g) {
                    if (active[g]) changed[g] |= each_[g].try_move(i);
                }
            }
            bool any = false;
            for (std::size_t g = 0; g < groups; ++g) any |= active[g] = changed[g];
            if (!any) break;
        }
        for (std::size_t g = 0; g < groups; ++g) {
            each_[g].scale().store_unaligned(scales + g * lanes);
        }
    }

    /// The code, 0 to 7, that the search ended with for value `i`.
    std::uint8_t code(std::size_t sub_block, std::size_t i) const noexcept {
        return each_[sub_block / lanes].code(sub_block % lanes, i);
    }

private:
    ScaleDescent<Arch> each_[groups];
};

}  // namespace phiquant::kernels
