// What a sub-block's scale and minimum make of it, for Q2_K, Q4_K and Q5_K: the fit with real
// parameters, before any of them is rounded, and the errors of given ones.
//
// Weighted least squares over trial grids that leave off part of the range at either end, then
// coordinate descent: fit scale and minimum to the codes, round to new codes, and so on.
#pragma once

#include "kernels/best_tile.hpp"

namespace phiquant::kernels::best {

template <class Arch, class Format>
class ScaleMinimumFit {
    using Batch = F32<Arch>;
    using Values = Tile<Arch, Format::sub_block>;
    static constexpr std::size_t lanes = Batch::size, size = Format::sub_block;
    static constexpr float largest_code = Format::largest_code;

public:
    /// Weighted sums over a sub-block: of codes, of their squares, of codes times values.
    struct Sums {
        Batch l, l2, xl;
    };

    /// The best fit so far of each lane's sub-block, its sums, and those of weights and of values.
    struct Fit {
        Batch scale, minimum, gain, l, l2, w, wx;
    };

    /// The best fit with real parameters that was found.
    static Fit fit(const Values& tile, std::size_t g) noexcept {
        constexpr std::size_t ends = sizeof(Format::ends) / sizeof(float);
        // Three grids' sums are too many for sixteen registers.
        constexpr std::size_t together = lanes == k_together ? 3 : 2;
        static_assert(ends % together == 0);
        const Batch zero(0.0f);
        Batch low = zero, high = tile.x(g)[0], w = zero, wx = zero;
        for (std::size_t i = 0; i < size; ++i) {
            const Batch x = tile.x(g)[i];
            low = xsimd::min(low, x);
            high = xsimd::max(high, x);
            w = w + tile.w(g)[i];
            wx = wx + tile.w(g)[i] * x;
        }
        Batch along[size];  // from 0 to 1
        const Batch per_range = inverse_of<Arch>(high - low);
        for (std::size_t i = 0; i < size; ++i) along[i] = (tile.x(g)[i] - low) * per_range;
        // Where nothing can be fitted, the minimum alone has all values of one sign.
        Fit found{zero, zero - low, zero, zero, zero, w, wx};
        for (const float begin : Format::ends) {
            // Code 0 stands `begin` steps above the lowest value.
            Batch first[together];
            for (Batch& each_first : first) each_first = Batch(-begin);
            for (std::size_t trial = 0; trial < ends; trial += together) {
                Batch steps[together];
                Sums sums[together];
                for (std::size_t t = 0; t < together; ++t) {
                    steps[t] = Batch(largest_code + begin + Format::ends[trial + t]);
                }
                sum<together>(tile, g, along, steps, first, sums);
                for (const Sums& tried : sums) take(tried, found);
            }
        }
        for (int pass = 0; pass < 2; ++pass) {
            take(sum_nearest(tile, g, found.scale, found.minimum), found);
        }
        return found;
    }

    /// The sums for the codes nearest to the values.
    static XSIMD_INLINE Sums sum_nearest(const Values& tile, std::size_t g, Batch scale,
                                         Batch minimum) noexcept {
        const Batch inverse = inverse_of<Arch>(scale), begin = minimum * inverse;
        Sums sums;
        sum<1>(tile, g, tile.x(g), &inverse, &begin, &sums);
        return sums;
    }

    /// Errors with one scale and several minima, which share most of the loads and products.
    template <std::size_t together>
    static XSIMD_INLINE void errors_of(const Values& tile, std::size_t g, Batch scale,
                                       const Batch* minimum, Batch* errors) noexcept {
        const Batch *x = tile.x(g), *w = tile.w(g);
        const Batch zero(0.0f), inverse = inverse_of<Arch>(scale);
        Batch begin[together];
        for (std::size_t t = 0; t < together; ++t) {
            begin[t] = minimum[t] * inverse;
            errors[t] = zero;
        }
        for (std::size_t i = 0; i < size; ++i) {
            const Batch steps = x[i] * inverse;
            for (std::size_t t = 0; t < together; ++t) {
                const Batch at = steps + begin[t];
                const Batch off = round_within<Arch>(at, 0.0f, largest_code) - at;
                errors[t] = errors[t] + (w[i] * off) * off;
            }
        }
        const auto flat = scale == zero;
        for (std::size_t t = 0; t < together; ++t) errors[t] = (errors[t] * scale) * scale;
        if (xsimd::none(flat)) return;
        for (std::size_t t = 0; t < together; ++t) {
            Batch error = zero;
            for (std::size_t i = 0; i < size; ++i) {
                const Batch off = x[i] + minimum[t];
                error = error + (w[i] * off) * off;
            }
            errors[t] = xsimd::select(flat, error, errors[t]);
        }
    }

private:
    /// Several grids at once: code = round(slope * along + begin), where `along` runs with x.
    template <std::size_t together>
    static XSIMD_INLINE void sum(const Values& tile, std::size_t g, const Batch* along,
                                 const Batch* slope, const Batch* begin, Sums* sums) noexcept {
        const Batch *x = tile.x(g), *w = tile.w(g);
        for (std::size_t t = 0; t < together; ++t) {
            sums[t] = {Batch(0.0f), Batch(0.0f), Batch(0.0f)};
        }
        for (std::size_t i = 0; i < size; ++i) {
            for (std::size_t t = 0; t < together; ++t) {
                const Batch code =
                    round_within<Arch>(along[i] * slope[t] + begin[t], 0.0f, largest_code);
                const Batch weighted = w[i] * code;
                sums[t].l = sums[t].l + weighted;
                sums[t].l2 = sums[t].l2 + weighted * code;
                sums[t].xl = sums[t].xl + weighted * x[i];
            }
        }
    }

    /// Least squares for the codes behind `sums`; a minimum below zero cannot be stored, so it is
    /// zero then. Errors are compared by what they lack of Σ w x².
    static XSIMD_INLINE void take(const Sums& sums, Fit& fit) noexcept {
        const Batch w = fit.w, wx = fit.wx;
        const Batch zero(0.0f), one(1.0f);
        const Batch determinant = w * sums.l2 - sums.l * sums.l;
        const auto solvable = determinant > zero;
        const Batch inverse = quotient<Arch>(one, xsimd::select(solvable, determinant, one));
        Batch scale = (w * sums.xl - wx * sums.l) * inverse;
        Batch minimum = (sums.l * sums.xl - sums.l2 * wx) * inverse;
        const auto bound = minimum < zero;
        if (xsimd::any(bound)) {
            const auto any = sums.l2 > zero;
            const Batch alone = quotient<Arch>(sums.xl, xsimd::select(any, sums.l2, one));
            scale = xsimd::select(bound, alone, scale);
            minimum = xsimd::select(bound, zero, minimum);
        }
        const Batch gain = scale * sums.xl - minimum * wx;
        const Batch most(k_largest_value);
        const auto better =
            solvable & (scale > zero) & (gain > fit.gain) & (scale <= most) & (minimum <= most);
        fit.scale = xsimd::select(better, scale, fit.scale);
        fit.minimum = xsimd::select(better, minimum, fit.minimum);
        fit.gain = xsimd::select(better, gain, fit.gain);
        fit.l = xsimd::select(better, sums.l, fit.l);
        fit.l2 = xsimd::select(better, sums.l2, fit.l2);
    }
};

}  // namespace phiquant::kernels::best
