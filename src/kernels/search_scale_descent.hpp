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
    static constexpr int passes = 5;
    using Batch = F32<Arch>;
    using Bits = I32<Arch>;
    using Mask = xsimd::batch_bool<float, Arch>;

public:
    /// The codes that the largest value's scale gives. `place(lane)` points to a sub-block.
    template <class Place>
    XSIMD_INLINE void start(Place place) noexcept {
        transpose_runs<Arch, size>(place, x_, 1);
        const Batch zero(0.0f);
        Batch largest = zero, magnitude = zero;
        for (std::size_t i = 0; i < size; ++i) {
            const auto larger = xsimd::abs(x_[i]) > magnitude;  // so that the first of equals wins
            magnitude = xsimd::select(larger, xsimd::abs(x_[i]), magnitude);
            largest = xsimd::select(larger, x_[i], largest);
        }
        negligible_ = magnitude < Batch(k_negligible);
        const Batch inverse =
            quotient<Arch>(Batch(lowest), xsimd::select(negligible_, Batch(1.0f), largest));
        Batch xl = zero, l2 = zero;
        for (std::size_t i = 0; i < size; ++i) {
            code_[i] = nearest_biased<Arch, Range::limited>(inverse * x_[i], lowest, highest) -
                       Batch(k_magic);
            const Share share(x_[i], code_[i]);
            xl_[i] = share.xl;
            l2_[i] = share.l2;
            xl = xl + share.xl;
            l2 = l2 + share.l2;
        }
        sum_xl_ = xl;
        sum_l2_ = l2;
    }

    /// A bit for each value whose code may not be the nearest to what all others ask for; to be
    /// looked at more closely. All others' surely is.
    XSIMD_INLINE Bits unsettled() const noexcept {
        const Bits sign(INT32_MIN);
        Bits bits(0);
        for (std::size_t i = 0; i < size; ++i) {
            const Batch other_xl = sum_xl_ - xl_[i];
            const Batch product = x_[i] * (sum_l2_ - l2_[i]);
            const Batch clamped = xsimd::min(xsimd::max(product, other_xl * Batch(lowest)),
                                             other_xl * Batch(highest));
            // |distance| < 0.49999 * other_xl, told from the bits of both, negated: those of
            // negative floats are ordered by magnitude. Below zero other_xl, where codes stay,
            // becomes positive and is above them all.
            const Bits distance = bits_of<Arch>(clamped - code_[i] * other_xl) | sign;
            const auto settled = distance < bits_of<Arch>(other_xl * Batch(-0.49999f));
            bits = bits | xsimd::select(settled, Bits(0), Bits(1 << i));
        }
        return xsimd::select(xsimd::batch_bool_cast<std::int32_t>(negligible_), Bits(0), bits);
    }

    /// Move codes until none moves any more, or for as many passes as the reference makes.
    void settle() noexcept {
        const Bits zero(0), one(1);
        Bits ahead(-1);  // the values that are still to come in this pass
        Bits changed(0), pass(0);
        for (;;) {
            const Bits bits = unsettled();
            Bits next = bits & ahead;
            // Between two moves nothing changes. So a lane can go on to the next value that may
            // move at once, if need be in its next pass, whatever the other lanes do.
            const auto again = (next == zero) & (changed != zero) & (pass < Bits(passes - 1));
            next = xsimd::select(again, bits, next);
            changed = xsimd::select(again, zero, changed);
            pass = pass + xsimd::select(again, one, zero);
            next = next & -next;
            if (xsimd::all(next == zero)) return;
            ahead = ~(next | (next - one));
            changed = changed | move(next);
        }
    }

    Batch scale() const noexcept {
        const Batch zero(0.0f);
        const Mask solved = (sum_l2_ > zero) & !negligible_;
        return xsimd::select(solved, quotient<Arch>(sum_xl_, sum_l2_), zero);
    }

    /// The codes, 0 to 7.
    void store_codes(std::uint8_t* codes) const noexcept {
        for (std::size_t i = 0; i < size; ++i) {
            alignas(k_alignment) float lanes[Batch::size];
            // Code 0 for sub-blocks that are all zero, which is not their middle.
            xsimd::select(negligible_, Batch(0.0f), code_[i] - Batch(lowest)).store_aligned(lanes);
            for (std::size_t lane = 0; lane < Batch::size; ++lane) {
                codes[lane * size + i] = static_cast<std::uint8_t>(lanes[lane]);
            }
        }
    }

private:
    /// What a value with some code adds to the sums.
    struct Share {
        Batch xl, l2;

        XSIMD_INLINE Share(Batch x, Batch code) noexcept {
            const Batch w = x * x;
            xl = w * x * code;
            l2 = w * code * code;
        }
    };

    /// Move the code of each lane's value (one bit; no bit for none) where that fits all better;
    /// not zero where it did.
    XSIMD_INLINE Bits move(Bits value) noexcept {
        const Batch zero(0.0f);
        Batch x = zero, old = zero;
        for (std::size_t i = 0; i < size; ++i) {
            const auto here = xsimd::batch_bool_cast<float>(value == Bits(1 << i));
            x = xsimd::select(here, x_[i], x);
            old = xsimd::select(here, code_[i], old);
        }
        const Share before(x, old);
        const Batch other_xl = sum_xl_ - before.xl;
        const Batch other_l2 = sum_l2_ - before.l2;
        const Batch code = nearest_biased<Arch, Range::any>(quotient<Arch>(x * other_l2, other_xl),
                                                            lowest, highest) -
                           Batch(k_magic);
        const Share after(x, code);
        const Batch xl = other_xl + after.xl;
        const Batch l2 = other_l2 + after.l2;
        const Mask better = (other_xl > zero) & (code != old) & (l2 > zero) &
                            (xl * xl * sum_l2_ > sum_xl_ * sum_xl_ * l2);
        const Bits moved =
            xsimd::select(xsimd::batch_bool_cast<std::int32_t>(better), value, Bits(0));
        const Mask valid = xsimd::batch_bool_cast<float>(moved != Bits(0));
        sum_xl_ = xsimd::select(valid, xl, sum_xl_);
        sum_l2_ = xsimd::select(valid, l2, sum_l2_);
        for (std::size_t i = 0; i < size; ++i) {
            const auto here = xsimd::batch_bool_cast<float>(moved == Bits(1 << i));
            code_[i] = xsimd::select(here, code, code_[i]);
            xl_[i] = xsimd::select(here, after.xl, xl_[i]);
            l2_[i] = xsimd::select(here, after.l2, l2_[i]);
        }
        return moved;
    }

    Batch x_[size], code_[size];
    Batch xl_[size], l2_[size];  // what each value adds to the sums
    Batch sum_xl_, sum_l2_;
    Mask negligible_;
};

/// The search over at most `most` sub-blocks. Three in four are settled as they start (among them
/// all whose largest value is positive: their sums are negative, and the reference leaves those
/// alone); the rest are put together again, so that no lane waits for others.
template <class Arch, std::size_t most>
class ScaleDescents {
    static constexpr std::size_t lanes = F32<Arch>::size;

public:
    /// `values`: `count` consecutive sub-blocks, a multiple of the lanes; their scales go to
    /// `scales`.
    static void run(const float* values, std::size_t count, float* scales) noexcept {
        std::uint16_t unsettled[most + lanes];
        std::size_t left = 0;
        for (std::size_t first = 0; first < count; first += lanes) {
            ScaleDescent<Arch> descent;
            descent.start([&](std::size_t lane) { return values + (first + lane) * 16; });
            descent.scale().store_unaligned(scales + first);
            alignas(k_alignment) std::int32_t bits[lanes];
            descent.unsettled().store_aligned(bits);
            for (std::size_t lane = 0; lane < lanes; ++lane) {
                unsettled[left] = static_cast<std::uint16_t>(first + lane);
                left += bits[lane] != 0;
            }
        }
        for (std::size_t lane = 0; lane < lanes && left % lanes != 0; ++lane) {
            unsettled[left] = unsettled[left - 1];
            ++left;
        }
        for (std::size_t first = 0; first < left; first += lanes) {
            ScaleDescent<Arch> descent;
            const std::uint16_t* which = unsettled + first;
            descent.start([&](std::size_t lane) { return values + which[lane] * 16; });
            descent.settle();
            alignas(k_alignment) float found[lanes];
            descent.scale().store_aligned(found);
            for (std::size_t lane = 0; lane < lanes; ++lane) scales[which[lane]] = found[lane];
        }
    }

    /// The codes, 0 to 7, that the search ends with for `lanes` consecutive sub-blocks.
    static void run_for_codes(const float* values, std::uint8_t* codes) noexcept {
        ScaleDescent<Arch> descent;
        descent.start([&](std::size_t lane) { return values + lane * 16; });
        descent.settle();
        descent.store_codes(codes);
    }
};

}  // namespace phiquant::kernels
