// The search for scales and minima of Q2_K, Q4_K and Q5_K.
//
// Weighted least squares over trial grids that leave off part of the range at either end, then
// coordinate descent: fit scale and minimum to the codes, round to new codes, and so on. The two
// units of a super-block are chosen by how much each sub-block minds rounded parameters; those are
// moved by one where that is better, and the units are fitted to them again.
#pragma once

#include "base/half.hpp"
#include "kernels/best_tile.hpp"
#include "kernels/halves.hpp"
#include "kernels/k_scale_minimum.hpp"
#include "kernels/narrowing.hpp"

namespace phiquant::kernels::best {

template <class Arch, class Format>
class ScaleMinimumSearch {
    using Batch = F32<Arch>;
    using Values = Tile<Arch, Format::sub_block>;
    static constexpr std::size_t lanes = Batch::size, groups = Values::groups;
    static constexpr std::size_t size = Format::sub_block, each = Format::sub_blocks;
    static constexpr std::size_t blocks = k_together / each;
    static constexpr float largest_code = Format::largest_code;
    static constexpr float largest_parameter = Format::largest_parameter;

public:
    void run(const Values& tile) noexcept {
        for (std::size_t g = 0; g < groups; ++g) search(tile, g);
        for (std::size_t b = 0; b < blocks; ++b) choose_units(b);
        round_parameters();
        improve(tile);
        for (int again = 0; again < Format::refits; ++again) {
            kept_ = at_;
            fit_units(tile);
            improve(tile);
            for (std::size_t b = 0; b < blocks; ++b) keep_better(b);
        }
    }

    [[nodiscard]] float error(std::size_t b) const noexcept {
        return total<Arch, each>(at_.error, b);
    }

    void write(std::size_t b, const float* values, typename Format::Block& block) const noexcept {
        alignas(k_alignment) std::uint8_t codes[each * size];
        const std::size_t first = b * each;
        ScaleMinimumParameters parameters{};
        for (std::size_t j = 0; j < each; ++j) {
            parameters.scales[j] = static_cast<std::uint8_t>(at_.scale.of[first + j]);
            parameters.minima[j] = static_cast<std::uint8_t>(at_.minimum.of[first + j]);
        }
        for (std::size_t i = 0; i < each * size; i += 32) {
            I32<Arch> rounded[32 / lanes];
            for (std::size_t p = 0; p < 32 / lanes; ++p) {
                const std::size_t at = i + p * lanes, j = first + at / size;
                const Batch inverse =
                    inverse_of<Arch>(Batch(at_.scale_unit.of[j] * at_.scale.of[j]));
                const Batch minimum(at_.minimum_unit.of[j] * at_.minimum.of[j]);
                const Batch x = Batch::load_unaligned(values + at);
                rounded[p] = xsimd::batch_cast<std::int32_t>(
                    round_within<Arch>((x + minimum) * inverse, 0.0f, largest_code));
            }
            store_32_bytes<Arch>(rounded, codes + i);
        }
        pack_parameters<Arch>(parameters, block);
        pack_codes<Arch>(codes, block);
        block.scale = float_to_half(at_.scale_unit.of[first]);
        block.minimum = float_to_half(at_.minimum_unit.of[first]);
    }

private:
    /// As stored: float16 units (here as floats), and whole parameters.
    struct Parameters {
        PerSubBlock scale_unit, minimum_unit, scale, minimum, error;
    };

    /// Weighted sums over a sub-block: of codes, of their squares, of codes times values.
    struct Sums {
        Batch l, l2, xl;
    };

    /// Several grids at once: code = round(inverse * x + begin).
    template <std::size_t together>
    static XSIMD_INLINE void sum(const Values& tile, std::size_t g, const Batch* inverse,
                                 const Batch* minimum, Sums* sums) noexcept {
        const Batch *x = tile.x(g), *w = tile.w(g);
        for (std::size_t t = 0; t < together; ++t) {
            sums[t] = {Batch(0.0f), Batch(0.0f), Batch(0.0f)};
        }
        for (std::size_t i = 0; i < size; ++i) {
            for (std::size_t t = 0; t < together; ++t) {
                const Batch code =
                    round_within<Arch>((x[i] + minimum[t]) * inverse[t], 0.0f, largest_code);
                const Batch weighted = w[i] * code;
                sums[t].l = sums[t].l + weighted;
                sums[t].l2 = sums[t].l2 + weighted * code;
                sums[t].xl = sums[t].xl + weighted * x[i];
            }
        }
    }

    /// The best fit so far of each lane's sub-block.
    struct Fit {
        Batch scale, minimum, gain, l, l2;
    };

    /// Least squares for the codes behind `sums`; a minimum below zero cannot be stored, so it is
    /// zero then. Errors are compared by what they lack of Σ w x².
    static XSIMD_INLINE void take(const Sums& sums, Batch w, Batch wx, Fit& fit) noexcept {
        const Batch zero(0.0f), one(1.0f);
        const Batch determinant = w * sums.l2 - sums.l * sums.l;
        const auto solvable = determinant > zero;
        const Batch divisor = xsimd::select(solvable, determinant, one);
        Batch scale = quotient<Arch>(w * sums.xl - wx * sums.l, divisor);
        Batch offset = quotient<Arch>(sums.l2 * wx - sums.l * sums.xl, divisor);
        const auto bound = offset > zero;
        const auto any = sums.l2 > zero;
        const Batch alone = quotient<Arch>(sums.xl, xsimd::select(any, sums.l2, one));
        scale = xsimd::select(bound, alone, scale);
        offset = xsimd::select(bound, zero, offset);
        const Batch gain = scale * sums.xl + offset * wx;
        const Batch most(k_largest_value);
        const auto better = solvable & (scale > zero) & (gain > fit.gain) & (scale <= most) &
                            (zero - offset <= most);
        fit.scale = xsimd::select(better, scale, fit.scale);
        fit.minimum = xsimd::select(better, zero - offset, fit.minimum);
        fit.gain = xsimd::select(better, gain, fit.gain);
        fit.l = xsimd::select(better, sums.l, fit.l);
        fit.l2 = xsimd::select(better, sums.l2, fit.l2);
    }

    void search(const Values& tile, std::size_t g) noexcept {
        constexpr std::size_t ends = sizeof(Format::ends) / sizeof(float);
        constexpr std::size_t together = 3;
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
        const Batch range = high - low;
        // Where nothing can be fitted, the minimum alone has all values of one sign.
        Fit fit{zero, zero - low, zero, zero, zero};
        for (const float begin : Format::ends) {
            for (std::size_t trial = 0; trial < ends; trial += together) {
                Batch inverse[together], minimum[together];
                Sums sums[together];
                for (std::size_t t = 0; t < together; ++t) {
                    // Code 0 stands `begin` steps above the lowest value.
                    const float steps = largest_code + begin + Format::ends[trial + t];
                    const Batch step = range * Batch(1.0f / steps);
                    inverse[t] = inverse_of<Arch>(step);
                    minimum[t] = zero - (low + Batch(begin) * step);
                }
                sum<together>(tile, g, inverse, minimum, sums);
                for (const Sums& tried : sums) take(tried, w, wx, fit);
            }
        }
        for (int pass = 0; pass < 2; ++pass) {
            const Batch inverse = inverse_of<Arch>(fit.scale);
            Sums refitted;
            sum<1>(tile, g, &inverse, &fit.minimum, &refitted);
            take(refitted, w, wx, fit);
        }
        const std::size_t j = g * lanes;
        fit.scale.store_aligned(found_.scale.of + j);
        fit.minimum.store_aligned(found_.minimum.of + j);
        fit.l.store_aligned(l_.of + j);
        fit.l2.store_aligned(l2_.of + j);
        w.store_aligned(w_.of + j);
        wx.store_aligned(wx_.of + j);
    }

    static XSIMD_INLINE Batch error_of(const Values& tile, std::size_t g, Batch scale,
                                       Batch minimum) noexcept {
        const Batch inverse = inverse_of<Arch>(scale);
        Batch error(0.0f);
        for (std::size_t i = 0; i < size; ++i) {
            const Batch x = tile.x(g)[i];
            const Batch code = round_within<Arch>((x + minimum) * inverse, 0.0f, largest_code);
            const Batch off = (scale * code - minimum) - x;
            error = error + tile.w(g)[i] * off * off;
        }
        return error;
    }

    static XSIMD_INLINE Batch whole(Batch value) noexcept {
        return round_within<Arch>(value, 0.0f, largest_parameter);
    }

    /// The best minimum for a scale that is off by `off`, given the codes.
    static XSIMD_INLINE Batch follow(Batch minimum, Batch off, Batch l, Batch w) noexcept {
        const Batch zero(0.0f);
        const auto known = w > zero;
        return minimum +
               xsimd::select(known, quotient<Arch>(off * l, xsimd::select(known, w, Batch(1.0f))),
                             zero);
    }

    static XSIMD_INLINE float largest_of(const PerSubBlock& values, std::size_t b) noexcept {
        float largest = 0.0f;
        for (std::size_t j = b * each; j < (b + 1) * each; ++j) {
            if (values.of[j] > largest) largest = values.of[j];
        }
        return largest;
    }

    void set_units(std::size_t b, float scale, float minimum) noexcept {
        const float scale_unit = half_to_float(float_to_half(scale));
        const float minimum_unit = half_to_float(float_to_half(minimum));
        for (std::size_t j = b * each; j < (b + 1) * each; ++j) {
            at_.scale_unit.of[j] = scale_unit;
            at_.minimum_unit.of[j] = minimum_unit;
        }
    }

    /// One lane a pair of candidates.
    void choose_units(std::size_t b) noexcept {
        constexpr std::size_t candidates = sizeof(Format::units) / sizeof(float);
        constexpr std::size_t pairs = candidates * candidates;
        static_assert(pairs % k_together == 0);
        const float scale = largest_of(found_.scale, b), minimum = largest_of(found_.minimum, b);
        alignas(k_alignment) float scales[pairs], minima[pairs], costs[pairs];
        for (std::size_t c = 0; c < pairs; ++c) {
            scales[c] = Format::units[c / candidates];
            minima[c] = Format::units[c % candidates];
        }
        for (std::size_t c = 0; c < pairs; c += lanes) {
            const Batch unit = floats_of_halves<Arch>(
                halves_of<Arch>(quotient<Arch>(Batch(scale), Batch::load_aligned(scales + c))));
            const Batch minimum_unit = floats_of_halves<Arch>(
                halves_of<Arch>(quotient<Arch>(Batch(minimum), Batch::load_aligned(minima + c))));
            const Batch inverse = inverse_of<Arch>(unit);
            const Batch minimum_inverse = inverse_of<Arch>(minimum_unit);
            Batch cost(0.0f);
            for (std::size_t j = b * each; j < (b + 1) * each; ++j) {
                const Batch l(l_.of[j]), w(w_.of[j]), wanted(found_.minimum.of[j]);
                const Batch off =
                    unit * whole(inverse * Batch(found_.scale.of[j])) - Batch(found_.scale.of[j]);
                const Batch shift =
                    minimum_unit * whole(minimum_inverse * follow(wanted, off, l, w)) - wanted;
                cost = cost + (off * off * Batch(l2_.of[j]) - Batch(2.0f) * off * shift * l +
                               shift * shift * w);
            }
            unit.store_aligned(scales + c);
            minimum_unit.store_aligned(minima + c);
            cost.store_aligned(costs + c);
        }
        std::size_t best = 0;
        for (std::size_t c = 1; c < pairs; ++c) {
            if (costs[c] < costs[best]) best = c;
        }
        set_units(b, scales[best], minima[best]);
    }

    void round_parameters() noexcept {
        for (std::size_t j = 0; j < k_together; j += lanes) {
            const Batch unit = Batch::load_aligned(at_.scale_unit.of + j);
            const Batch wanted = Batch::load_aligned(found_.scale.of + j);
            const Batch scale = whole(inverse_of<Arch>(unit) * wanted);
            const Batch minimum =
                follow(Batch::load_aligned(found_.minimum.of + j), unit * scale - wanted,
                       Batch::load_aligned(l_.of + j), Batch::load_aligned(w_.of + j));
            scale.store_aligned(at_.scale.of + j);
            whole(inverse_of<Arch>(Batch::load_aligned(at_.minimum_unit.of + j)) * minimum)
                .store_aligned(at_.minimum.of + j);
        }
    }

    /// Move each sub-block's parameters by one each where that is better.
    void improve(const Values& tile) noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            const std::size_t j = g * lanes;
            const Batch scale_unit = Batch::load_aligned(at_.scale_unit.of + j);
            const Batch minimum_unit = Batch::load_aligned(at_.minimum_unit.of + j);
            const Batch scale = Batch::load_aligned(at_.scale.of + j);
            const Batch minimum = Batch::load_aligned(at_.minimum.of + j);
            const Batch zero(0.0f), most(largest_parameter);
            Batch best_scale = scale, best_minimum = minimum;
            Batch error = error_of(tile, g, scale_unit * scale, minimum_unit * minimum);
            for (const float up : {0.0f, -1.0f, 1.0f}) {
                for (const float aside : {0.0f, -1.0f, 1.0f}) {
                    if (up == 0.0f && aside == 0.0f) continue;
                    const Batch s = xsimd::min(xsimd::max(scale + Batch(up), zero), most);
                    const Batch m = xsimd::min(xsimd::max(minimum + Batch(aside), zero), most);
                    const Batch tried = error_of(tile, g, scale_unit * s, minimum_unit * m);
                    const auto better = tried < error;
                    error = xsimd::select(better, tried, error);
                    best_scale = xsimd::select(better, s, best_scale);
                    best_minimum = xsimd::select(better, m, best_minimum);
                }
            }
            best_scale.store_aligned(at_.scale.of + j);
            best_minimum.store_aligned(at_.minimum.of + j);
            error.store_aligned(at_.error.of + j);
        }
    }

    /// Least squares of each super-block's two units, given all codes and whole parameters.
    void fit_units(const Values& tile) noexcept {
        PerSubBlock ss, sm, mm, xs, xm;
        for (std::size_t g = 0; g < groups; ++g) {
            const std::size_t j = g * lanes;
            const Batch s = Batch::load_aligned(at_.scale.of + j);
            const Batch m = Batch::load_aligned(at_.minimum.of + j);
            const Batch inverse = inverse_of<Arch>(Batch::load_aligned(at_.scale_unit.of + j) * s);
            const Batch minimum = Batch::load_aligned(at_.minimum_unit.of + j) * m;
            Sums sums;
            sum<1>(tile, g, &inverse, &minimum, &sums);
            (s * s * sums.l2).store_aligned(ss.of + j);
            (s * m * sums.l).store_aligned(sm.of + j);
            (m * m * Batch::load_aligned(w_.of + j)).store_aligned(mm.of + j);
            (s * sums.xl).store_aligned(xs.of + j);
            (m * Batch::load_aligned(wx_.of + j)).store_aligned(xm.of + j);
        }
        for (std::size_t b = 0; b < blocks; ++b) {
            const float a = total<Arch, each>(ss, b), c = total<Arch, each>(mm, b);
            const float mixed = total<Arch, each>(sm, b);
            const float u = total<Arch, each>(xs, b), v = total<Arch, each>(xm, b);
            const float determinant = a * c - mixed * mixed;
            // Where a unit overflowed, there are no codes to fit to.
            if (!(determinant > 0.0f) || !is_finite<Arch>(error(b))) continue;
            const float scale = (u * c - v * mixed) / determinant;
            const float minimum = (u * mixed - v * a) / determinant;
            if (scale > 0.0f && minimum > 0.0f) set_units(b, scale, minimum);
        }
    }

    /// Go back where the new units are no improvement.
    void keep_better(std::size_t b) noexcept {
        if (total<Arch, each>(at_.error, b) < total<Arch, each>(kept_.error, b)) return;
        for (std::size_t j = b * each; j < (b + 1) * each; ++j) {
            at_.scale_unit.of[j] = kept_.scale_unit.of[j];
            at_.minimum_unit.of[j] = kept_.minimum_unit.of[j];
            at_.scale.of[j] = kept_.scale.of[j];
            at_.minimum.of[j] = kept_.minimum.of[j];
            at_.error.of[j] = kept_.error.of[j];
        }
    }

    struct Found {
        PerSubBlock scale, minimum;
    };
    Found found_;
    PerSubBlock l_, l2_, w_, wx_;
    Parameters at_, kept_;
};

}  // namespace phiquant::kernels::best
