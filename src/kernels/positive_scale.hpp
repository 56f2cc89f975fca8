// A scale for codes 0 to 4 of 32 values (ggml's make_qp_quants), one lane a sub-block.
#pragma once

#include "kernels/simd.hpp"

namespace phiquant::kernels {

template <class Arch>
class PositiveScale {
    using Batch = F32<Arch>;
    using Integers = I32<Arch>;
    static constexpr std::size_t size = 32;
    static constexpr int most = 4;

public:
    /// `largest` of each lane is positive. Values may be negative: their codes are, too, except
    /// that the reference keeps codes in unsigned bytes, where -1 is 255.
    static XSIMD_INLINE Batch search(const Batch* x, const Batch* w, Batch largest) noexcept {
        const Batch zero(0.0f), one(1.0f);
        Batch inverse = quotient<Arch>(Batch(static_cast<float>(most)), largest);
        Batch best = zero;
        const Batch first = quotient<Arch>(one, inverse);
        for (std::size_t i = 0; i < size; ++i) {
            const Batch difference = x[i] - first * byte_of(nearest(inverse * x[i]));
            best = best + (w[i] * difference) * difference;
        }
        for (int step = -4; step <= 4; ++step) {
            if (step == 0) continue;
            const float numerator = 0.1f * static_cast<float>(step) + static_cast<float>(most);
            const Batch tried = quotient<Arch>(Batch(numerator), largest);
            const Batch scale = quotient<Arch>(one, tried);
            Batch error = zero;
            for (std::size_t i = 0; i < size; ++i) {
                const Batch code = xsimd::batch_cast<float>(capped(tried * x[i]));
                const Batch difference = x[i] - scale * code;
                error = error + (w[i] * difference) * difference;
            }
            const auto better = error < best;
            best = xsimd::select(better, error, best);
            inverse = xsimd::select(better, tried, inverse);
        }
        Batch codes[size];
        Batch xl = zero, l2 = zero;
        for (std::size_t i = 0; i < size; ++i) {
            const Integers code = capped(inverse * x[i]);
            const Batch l = xsimd::batch_cast<float>(code);
            codes[i] = byte_of(code);
            xl = xl + (w[i] * x[i]) * l;
            l2 = l2 + (w[i] * l) * l;
        }
        descend(x, w, codes, xl, l2);
        return xsimd::select(l2 > zero, quotient<Arch>(xl, l2), zero);
    }

private:
    /// Change one code at a time for the better, at most five rounds.
    static XSIMD_INLINE void descend(const Batch* x, const Batch* w, Batch* codes, Batch& xl,
                                     Batch& l2) noexcept {
        const Batch zero(0.0f);
        for (int round = 0; round < 5; ++round) {
            bool changed = false;
            for (std::size_t i = 0; i < size; ++i) {
                const Batch wx = w[i] * x[i];
                Batch rest_xl = xl - wx * codes[i];
                Batch rest_l2 = l2 - (w[i] * codes[i]) * codes[i];
                const auto usable = (rest_xl > zero) & (rest_l2 > zero);
                const Integers code = capped(quotient<Arch>(x[i] * rest_l2, rest_xl));
                const Batch l = xsimd::batch_cast<float>(code);
                rest_xl = rest_xl + wx * l;
                rest_l2 = rest_l2 + (w[i] * l) * l;
                const auto better =
                    usable & (l != codes[i]) & (rest_xl * rest_xl * l2 > xl * xl * rest_l2);
                if (!xsimd::any(better)) continue;
                changed = true;
                codes[i] = xsimd::select(better, byte_of(code), codes[i]);
                xl = xsimd::select(better, rest_xl, xl);
                l2 = xsimd::select(better, rest_l2, l2);
            }
            if (!changed) break;
        }
    }

    /// ggml's nearest_int, for any value.
    static XSIMD_INLINE Integers nearest(Batch value) noexcept {
        const Integers bits = bits_of<Arch>(value + Batch(k_magic));
        return (bits & Integers(0x007fffff)) - Integers(0x00400000);
    }

    static XSIMD_INLINE Integers capped(Batch value) noexcept {
        return xsimd::min(nearest(value), Integers(most));
    }

    static XSIMD_INLINE Batch byte_of(Integers code) noexcept {
        return xsimd::batch_cast<float>(code & Integers(255));
    }
};

}  // namespace phiquant::kernels
