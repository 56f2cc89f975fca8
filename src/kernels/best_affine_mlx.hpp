// The search for mlx's scales and biases: quality "best" of its affine codecs.
//
// Least squares over trial grids that leave off part of the range at either end, refitted to the
// codes that they give; then what is next to the found scale and bias among the numbers that can be
// stored, by the error that decoding makes. One lane is one group, so that no result depends on the
// width of batches.
#pragma once

#include "kernels/affine_mlx.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

template <class Arch, AffineScale type, bool weighted>
class MlxSearch {
public:
    using Batch = F32<Arch>;
    static constexpr std::size_t lanes = Batch::size;
    /// Longer groups are not searched: mlx has none.
    static constexpr std::uint64_t longest = 128;

    struct Found {
        alignas(k_alignment) float scale[lanes], bias[lanes];
    };

    /// `place(lane)` and `weights(lane)` give each group's values and their weights. `found` holds
    /// the rule's own parameters, and is left with the best ones.
    template <class Place, class Weights>
    void run(std::uint64_t group, float most, const Place& place, const Weights& weights,
             Found& found) noexcept {
        for (std::uint64_t i = 0; i < group; i += 16) {
            transpose_runs<Arch, 16>([&](std::size_t lane) { return place(lane) + i; }, x_ + i, 1);
            if constexpr (weighted) {
                transpose_runs<Arch, 16>([&](std::size_t lane) { return weights(lane) + i; },
                                         w_ + i, 1);
            }
        }
        group_ = group;
        most_ = most;
        const Batch own_scale = Batch::load_aligned(found.scale);
        const Batch own_bias = Batch::load_aligned(found.bias);
        Batch error = error_of(own_scale, own_bias);
        Batch best_scale = own_scale, best_bias = own_bias;
        const Fit fit = search();
        const Sums at = sums_of(fit);
        for (const int up : {0, -1, 1}) {
            const Batch scale = neighbour(fit.scale, up);
            // The best bias for this scale, given the codes.
            const Batch wanted = fit.bias + quotient<Arch>((fit.scale - scale) * at.l, w_sum_);
            for (const int aside : {0, -1, 1}) {
                const Batch bias = neighbour(wanted, aside);
                // What cannot be stored, or divided by, is the rule's own.
                const auto usable = (scale >= Batch(1e-20f)) & (scale <= Batch(k_largest)) &
                                    (xsimd::abs(bias) <= Batch(k_largest));
                const Batch tried_scale = xsimd::select(usable, scale, own_scale);
                const Batch tried_bias = xsimd::select(usable, bias, own_bias);
                const Batch tried = error_of(tried_scale, tried_bias);
                const auto better = tried < error;
                error = xsimd::select(better, tried, error);
                best_scale = xsimd::select(better, tried_scale, best_scale);
                best_bias = xsimd::select(better, tried_bias, best_bias);
            }
            if (type == AffineScale::f32) break;  // neighbours are no different
        }
        best_scale.store_aligned(found.scale);
        best_bias.store_aligned(found.bias);
    }

private:
    static constexpr float k_largest = type == AffineScale::f16 ? 65504.0f : 1e30f;

    struct Fit {
        Batch scale, bias, gain;
    };

    /// Weighted sums of codes, of their squares, of codes times values.
    struct Sums {
        Batch l, l2, xl;
    };

    XSIMD_INLINE Batch weigh(Batch value, std::size_t i) const noexcept {
        if constexpr (weighted) {
            return w_[i] * value;
        } else {
            return value;
        }
    }

    /// A number of the scale's type: the nearest, or one next to it.
    static XSIMD_INLINE Batch neighbour(Batch value, int by) noexcept {
        using Integers = I32<Arch>;
        if constexpr (type == AffineScale::f16) {
            return floats_of_halves<Arch>((halves_of<Arch>(value) + Integers(by)) &
                                          Integers(0xffff));
        } else if constexpr (type == AffineScale::bf16) {
            return float_of_bits<Arch>((bfloats_of<Arch>(value) + Integers(by)) << 16);
        } else {
            return value;
        }
    }

    template <std::size_t together>
    XSIMD_INLINE void sum(const Batch* scale, const Batch* bias, Sums* sums) const noexcept {
        Batch inverse[together];
        for (std::size_t t = 0; t < together; ++t) {
            inverse[t] = quotient<Arch>(Batch(1.0f), scale[t]);
            sums[t] = {Batch(0.0f), Batch(0.0f), Batch(0.0f)};
        }
        for (std::size_t i = 0; i < group_; ++i) {
            for (std::size_t t = 0; t < together; ++t) {
                const Batch code =
                    nearest_code<Arch, Range::limited>((x_[i] - bias[t]) * inverse[t], most_);
                const Batch counted = weigh(code, i);
                sums[t].l = sums[t].l + counted;
                sums[t].l2 = sums[t].l2 + counted * code;
                sums[t].xl = sums[t].xl + counted * x_[i];
            }
        }
    }

    XSIMD_INLINE Sums sums_of(const Fit& fit) const noexcept {
        Sums sums;
        sum<1>(&fit.scale, &fit.bias, &sums);
        return sums;
    }

    /// Least squares for the codes behind `sums`; errors are compared by what they lack of Σ w x².
    XSIMD_INLINE void take(const Sums& sums, Fit& fit) const noexcept {
        const Batch zero(0.0f), one(1.0f);
        const Batch determinant = w_sum_ * sums.l2 - sums.l * sums.l;
        const auto solvable = determinant > zero;
        const Batch divisor = xsimd::select(solvable, determinant, one);
        const Batch scale = quotient<Arch>(w_sum_ * sums.xl - wx_sum_ * sums.l, divisor);
        const Batch bias = quotient<Arch>(sums.l2 * wx_sum_ - sums.l * sums.xl, divisor);
        const Batch gain = scale * sums.xl + bias * wx_sum_;
        const auto better = solvable & (scale >= Batch(1e-20f)) & (scale <= Batch(k_largest)) &
                            (xsimd::abs(bias) <= Batch(k_largest)) & (gain > fit.gain);
        fit.scale = xsimd::select(better, scale, fit.scale);
        fit.bias = xsimd::select(better, bias, fit.bias);
        fit.gain = xsimd::select(better, gain, fit.gain);
    }

    Fit search() noexcept {
        // Steps that the lowest value stands below code 0, and the highest above the last one.
        constexpr float ends[4] = {-0.2f, 0.2f, 0.6f, 1.0f};
        constexpr std::size_t together = 2;
        Batch low = x_[0], high = x_[0], w(0.0f), wx(0.0f);
        for (std::size_t i = 0; i < group_; ++i) {
            low = xsimd::min(low, x_[i]);
            high = xsimd::max(high, x_[i]);
            w = w + weigh(Batch(1.0f), i);
            wx = wx + weigh(x_[i], i);
        }
        w_sum_ = xsimd::select(w > Batch(0.0f), w, Batch(1.0f));
        wx_sum_ = wx;
        const Batch range = high - low, least(1e-20f);
        Fit fit{xsimd::max(range * Batch(1.0f / most_), least), low, Batch(-1e38f)};
        for (const float begin : ends) {
            for (std::size_t trial = 0; trial < 4; trial += together) {
                Batch scale[together], bias[together];
                Sums sums[together];
                for (std::size_t t = 0; t < together; ++t) {
                    const float steps = most_ + begin + ends[trial + t];
                    scale[t] = xsimd::max(range * Batch(1.0f / steps), least);
                    bias[t] = low + Batch(begin) * scale[t];
                }
                sum<together>(scale, bias, sums);
                for (const Sums& tried : sums) take(tried, fit);
            }
        }
        for (int pass = 0; pass < 2; ++pass) take(sums_of(fit), fit);
        return fit;
    }

    XSIMD_INLINE Batch error_of(Batch scale, Batch bias) const noexcept {
        const Batch inverse = quotient<Arch>(Batch(1.0f), scale);
        Batch error(0.0f);
        for (std::size_t i = 0; i < group_; ++i) {
            const Batch code = nearest_code<Arch, Range::limited>((x_[i] - bias) * inverse, most_);
            const Batch off = (code * scale + bias) - x_[i];
            error = error + weigh(off * off, i);
        }
        return error;
    }

    Batch x_[longest], w_[weighted ? longest : 1];
    Batch w_sum_, wx_sum_;
    std::uint64_t group_ = 0;
    float most_ = 0.0f;
};

template <class Arch, AffineScale type, bool weighted>
void best_mlx_as(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    using Search = MlxSearch<Arch, type, weighted>;
    constexpr std::size_t lanes = Search::lanes;
    encode_mlx_as<Arch, type>(grid, rows, out);
    const std::uint64_t group = grid.group, groups = rows.columns / group;
    if (group > Search::longest || group % 16 != 0 || rows.columns % group != 0) return;
    const float most = static_cast<float>((1u << grid.bits) - 1);
    const std::uint64_t count = rows.rows * groups;
    Search search;
    typename Search::Found found;
    for (std::uint64_t first = 0; first < count; first += lanes) {
        const std::size_t here =
            count - first < lanes ? static_cast<std::size_t>(count - first) : lanes;
        // Where lanes are left over they repeat the last group.
        const auto index = [&](std::size_t lane) noexcept {
            return first + (lane < here ? lane : here - 1);
        };
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            found.scale[lane] = out.scales[index(lane)];
            found.bias[lane] = out.zeros[index(lane)];
        }
        search.run(
            group, most,
            [&](std::size_t lane) noexcept { return rows.values + index(lane) * group; },
            [&](std::size_t lane) noexcept {
                return rows.importance + index(lane) % groups * group;
            },
            found);
        for (std::size_t lane = 0; lane < here; ++lane) {
            const float scale = found.scale[lane], bias = found.bias[lane];
            const float* values = rows.values + (first + lane) * group;
            const float inverse = 1.0f / scale;
            std::uint8_t* codes = out.codes + (first + lane) * group;
            const F32<Arch> factor(inverse), edge(bias);
            // The search's own formula, so that its errors are those of these codes; also where the
            // rule's parameters are the best, whose codes come of parameters before rounding.
            const auto place = [&](std::uint64_t i) noexcept {
                return (F32<Arch>::load_unaligned(values + i) - edge) * factor;
            };
            const auto place_one = [&](std::uint64_t i) noexcept {
                return (values[i] - bias) * inverse;
            };
            // As in encode_mlx_as: a scale of 0 makes NaN of the values at the edge.
            if (__builtin_isfinite(inverse)) {
                round_codes<Arch>(group, most, place, place_one, codes);
            } else {
                round_each(0, group, most, place_one, codes);
            }
            out.scales[first + lane] = scale;
            out.zeros[first + lane] = bias;
        }
    }
}

/// Scales and biases searched for the least squared error, each column's times its importance.
template <class Arch>
void best_mlx(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    const bool weighted = rows.importance != nullptr;
    switch (grid.scale) {
        case AffineScale::f16:
            return weighted ? best_mlx_as<Arch, AffineScale::f16, true>(grid, rows, out)
                            : best_mlx_as<Arch, AffineScale::f16, false>(grid, rows, out);
        case AffineScale::bf16:
            return weighted ? best_mlx_as<Arch, AffineScale::bf16, true>(grid, rows, out)
                            : best_mlx_as<Arch, AffineScale::bf16, false>(grid, rows, out);
        case AffineScale::f32:
            return weighted ? best_mlx_as<Arch, AffineScale::f32, true>(grid, rows, out)
                            : best_mlx_as<Arch, AffineScale::f32, false>(grid, rows, out);
    }
}

}  // namespace phiquant::kernels
