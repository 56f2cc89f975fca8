// The search for scales and zero points that are codes: quality "best" of the rules ort and nncf.
//
// Every zero point near the range's own, with scales that leave off more or less of the range, each
// refitted by least squares to the codes that it gives; for symmetric grids scales of both signs.
// Then the numbers next to the found scale that can be stored, by the error that decoding makes.
// One lane is one group, so that no result depends on the width of batches.
#pragma once

#include "kernels/affine_ort.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

template <class Arch, AffineScale type, bool weighted>
class OrtSearch {
public:
    using Batch = F32<Arch>;
    static constexpr std::size_t lanes = Batch::size;
    /// Longer groups (whole rows) are not searched.
    static constexpr std::uint64_t longest = 256;

    struct Found {
        alignas(k_alignment) float scale[lanes], zero[lanes];
    };

    /// `place(lane)` and `weights(lane)` give each group's values and their weights; values of 0
    /// change nothing. `found` holds the rule's parameters, and is left with the best ones.
    template <class Place, class Weights>
    void run(const AffineGrid& grid, const Place& place, const Weights& weights,
             Found& found) noexcept {
        group_ = grid.group;
        most_ = static_cast<float>((1u << grid.bits) - 1);
        for (std::uint64_t i = 0; i < group_; i += 16) {
            transpose_runs<Arch, 16>([&](std::size_t lane) { return place(lane) + i; }, x_ + i, 1);
            if constexpr (weighted) {
                transpose_runs<Arch, 16>([&](std::size_t lane) { return weights(lane) + i; },
                                         w_ + i, 1);
            }
        }
        const Batch own_scale = Batch::load_aligned(found.scale);
        const Batch own_zero = Batch::load_aligned(found.zero);
        Batch error = error_of(own_scale, own_zero);
        Batch best_scale = own_scale, best_zero = own_zero;
        Fit fit{own_scale, own_zero, Batch(0.0f)};
        if (grid.symmetric) {
            search_scales(grid.bits, fit);
        } else {
            search_zero_points(grid.bits, fit);
        }
        for (int pass = 0; pass < 2; ++pass) try_fit(fit.scale, fit.zero, fit);
        for (const int by : {0, -1, 1}) {
            const Batch scale = neighbour(fit.scale, by);
            const auto usable = is_usable(scale);
            const Batch tried_scale = xsimd::select(usable, scale, own_scale);
            const Batch tried_zero = xsimd::select(usable, fit.zero, own_zero);
            const Batch tried = error_of(tried_scale, tried_zero);
            const auto better = tried < error;
            error = xsimd::select(better, tried, error);
            best_scale = xsimd::select(better, tried_scale, best_scale);
            best_zero = xsimd::select(better, tried_zero, best_zero);
            if (type == AffineScale::f32) break;  // neighbours are no different
        }
        best_scale.store_aligned(found.scale);
        best_zero.store_aligned(found.zero);
    }

private:
    static constexpr float k_largest = type == AffineScale::f16 ? 65504.0f : 1e30f;
    // Parts of the range that trial scales cover with 4 bits; more bits leave off less of it.
    static constexpr float k_parts[9] = {0.70f, 0.76f, 0.80f, 0.84f, 0.88f,
                                         0.92f, 0.96f, 1.00f, 1.04f};

    struct Fit {
        Batch scale, zero, gain;  ///< gain: what the squared error lacks of the values' squares
    };

    XSIMD_INLINE Batch weigh(Batch value, std::size_t i) const noexcept {
        if constexpr (weighted) {
            return w_[i] * value;
        } else {
            return value;
        }
    }

    static XSIMD_INLINE auto is_usable(Batch scale) noexcept {
        const Batch size = xsimd::abs(scale);
        return (size >= Batch(1e-20f)) & (size <= Batch(k_largest));
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

    static float part_of(unsigned bits, std::size_t trial) noexcept {
        const float finer = bits > 4 ? static_cast<float>(1u << (bits - 4)) : 1.0f;
        return 1.0f - (1.0f - k_parts[trial]) / finer;
    }

    XSIMD_INLINE Batch code_of(std::size_t i, Batch inverse, Batch zero) const noexcept {
        return nearest_code<Arch, Range::limited>(x_[i] * inverse + zero, most_);
    }

    /// Codes of `together` trial grids, the least-squares scale for them, and whether that is
    /// better than what `fit` holds.
    template <std::size_t together>
    XSIMD_INLINE void try_fits(const Batch* scale, const Batch* zero, Fit& fit) const noexcept {
        Batch inverse[together], product[together], square[together];
        for (std::size_t t = 0; t < together; ++t) {
            inverse[t] = quotient<Arch>(
                Batch(1.0f), xsimd::select(is_usable(scale[t]), scale[t], Batch(k_largest)));
            product[t] = square[t] = Batch(0.0f);
        }
        for (std::size_t i = 0; i < group_; ++i) {
            for (std::size_t t = 0; t < together; ++t) {
                const Batch step = code_of(i, inverse[t], zero[t]) - zero[t];
                const Batch counted = weigh(step, i);
                product[t] = product[t] + counted * x_[i];
                square[t] = square[t] + counted * step;
            }
        }
        for (std::size_t t = 0; t < together; ++t) {
            const auto solvable = square[t] > Batch(0.0f);
            const Batch wanted =
                quotient<Arch>(product[t], xsimd::select(solvable, square[t], Batch(1.0f)));
            const Batch gain = wanted * product[t];
            const auto better = solvable & is_usable(wanted) & (gain > fit.gain);
            fit.scale = xsimd::select(better, wanted, fit.scale);
            fit.zero = xsimd::select(better, zero[t], fit.zero);
            fit.gain = xsimd::select(better, gain, fit.gain);
        }
    }

    XSIMD_INLINE void try_fit(Batch scale, Batch zero, Fit& fit) const noexcept {
        try_fits<1>(&scale, &zero, fit);
    }

    /// Trial scales of all parts, of `covering` that covers the whole range; three at a time.
    XSIMD_INLINE void try_parts(unsigned bits, Batch covering, Batch zero,
                                Fit& fit) const noexcept {
        for (std::size_t trial = 0; trial < 9; trial += 3) {
            Batch scale[3];
            const Batch zeros[3] = {zero, zero, zero};
            for (std::size_t t = 0; t < 3; ++t) {
                scale[t] = covering * Batch(part_of(bits, trial + t));
            }
            try_fits<3>(scale, zeros, fit);
        }
    }

    void extremes(Batch& low, Batch& high) const noexcept {
        low = high = Batch(0.0f);
        for (std::size_t i = 0; i < group_; ++i) {
            low = xsimd::min(low, x_[i]);
            high = xsimd::max(high, x_[i]);
        }
    }

    void search_scales(unsigned bits, Fit& fit) const noexcept {
        Batch low, high;
        extremes(low, high);
        const Batch middle(static_cast<float>(1u << (bits - 1)));
        const Batch covering = quotient<Arch>(xsimd::max(high, negated<Arch>(low)), middle);
        try_parts(bits, covering, middle, fit);
        try_parts(bits, negated<Arch>(covering), middle, fit);
    }

    void search_zero_points(unsigned bits, Fit& fit) const noexcept {
        Batch low, high;
        extremes(low, high);
        const Batch range = high - low, one(1.0f), zero(0.0f), most(most_);
        const Batch divisor = xsimd::select(range > zero, range, one);
        const Batch below = negated<Arch>(low);
        const Batch exact = quotient<Arch>(below * most, divisor);
        for (const float aside : {-1.0f, 0.0f, 1.0f}) {
            const Batch at = nearest_code<Arch, Range::limited>(exact + Batch(aside), most_);
            // The least scale with which codes reach both ends of the range, where they can.
            const Batch down = quotient<Arch>(below, xsimd::max(at, one));
            const Batch up = quotient<Arch>(high, xsimd::max(most - at, one));
            const Batch covering = xsimd::max(xsimd::select(at > zero, down, zero),
                                              xsimd::select(at < most, up, zero));
            try_parts(bits, covering, at, fit);
        }
    }

    XSIMD_INLINE Batch error_of(Batch scale, Batch zero) const noexcept {
        const auto usable = is_usable(scale);
        const Batch inverse = xsimd::select(
            usable, quotient<Arch>(Batch(1.0f), xsimd::select(usable, scale, Batch(1.0f))),
            Batch(0.0f));
        Batch error(0.0f);
        for (std::size_t i = 0; i < group_; ++i) {
            const Batch off = (code_of(i, inverse, zero) - zero) * scale - x_[i];
            error = error + weigh(off * off, i);
        }
        return error;
    }

    Batch x_[longest], w_[weighted ? longest : 1];
    std::uint64_t group_ = 0;
    float most_ = 0.0f;
};

/// Better parameters than those of a rule, which `out` holds.
template <class Arch, AffineScale type, bool weighted>
void improve_as(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    using Search = OrtSearch<Arch, type, weighted>;
    constexpr std::size_t lanes = Search::lanes;
    const std::uint64_t group = grid.group;
    if (group > Search::longest || group % 16 != 0) return;
    const std::uint64_t groups = (rows.columns + group - 1) / group;
    const std::uint64_t last = rows.columns - (groups - 1) * group;  // values of a row's last group
    const float most = static_cast<float>((1u << grid.bits) - 1);
    const std::uint64_t count = rows.rows * groups;
    Search search;
    typename Search::Found found;
    // Short groups, filled up with zeros.
    float values[lanes][Search::longest], weights[weighted ? lanes : 1][Search::longest];
    for (std::uint64_t first = 0; first < count; first += lanes) {
        const std::size_t here =
            count - first < lanes ? static_cast<std::size_t>(count - first) : lanes;
        // Where lanes are left over they repeat the last group.
        const auto index = [&](std::size_t lane) noexcept {
            return first + (lane < here ? lane : here - 1);
        };
        const auto is_short = [&](std::size_t lane) noexcept {
            return last < group && index(lane) % groups == groups - 1;
        };
        const auto values_of = [&](std::size_t lane) noexcept {
            const std::uint64_t at = index(lane);
            return rows.values + at / groups * rows.columns + at % groups * group;
        };
        const auto weights_of = [&](std::size_t lane) noexcept {
            return rows.importance + index(lane) % groups * group;
        };
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            found.scale[lane] = out.scales[index(lane)];
            found.zero[lane] = out.zeros[index(lane)];
            if (!is_short(lane)) continue;
            for (std::uint64_t i = 0; i < group; ++i) {
                values[lane][i] = i < last ? values_of(lane)[i] : 0.0f;
                if constexpr (weighted) weights[lane][i] = i < last ? weights_of(lane)[i] : 0.0f;
            }
        }
        search.run(
            grid,
            [&](std::size_t lane) noexcept {
                return is_short(lane) ? &values[lane][0] : values_of(lane);
            },
            [&](std::size_t lane) noexcept -> const float* {
                if constexpr (weighted) {
                    if (is_short(lane)) return &weights[lane][0];
                }
                return weights_of(lane);
            },
            found);
        for (std::size_t lane = 0; lane < here; ++lane) {
            const std::uint64_t at = first + lane;
            const float scale = found.scale[lane], zero = found.zero[lane];
            // Where the rule's parameters are the best, so are its codes.
            if (scale == out.scales[at] && zero == out.zeros[at]) continue;
            round_away(values_of(lane), is_short(lane) ? last : group, 1.0f / scale, zero, most,
                       out.codes + at * group);
            out.scales[at] = scale;
            out.zeros[at] = zero;
        }
    }
}

template <class Arch>
void improve(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    const bool weighted = rows.importance != nullptr;
    switch (grid.scale) {
        case AffineScale::f16:
            return weighted ? improve_as<Arch, AffineScale::f16, true>(grid, rows, out)
                            : improve_as<Arch, AffineScale::f16, false>(grid, rows, out);
        case AffineScale::bf16:
            return weighted ? improve_as<Arch, AffineScale::bf16, true>(grid, rows, out)
                            : improve_as<Arch, AffineScale::bf16, false>(grid, rows, out);
        case AffineScale::f32:
            return weighted ? improve_as<Arch, AffineScale::f32, true>(grid, rows, out)
                            : improve_as<Arch, AffineScale::f32, false>(grid, rows, out);
    }
}

/// Scales and zero points searched for the least squared error, each column's times its importance.
template <class Arch>
void best_ort(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    encode_ort<Arch>(grid, rows, out);
    improve<Arch>(grid, rows, out);
}

}  // namespace phiquant::kernels
