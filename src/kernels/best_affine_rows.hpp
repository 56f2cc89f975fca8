// The search for a scale (and zero point) that a whole row shares: quality "best" of NNCF's int8.
//
// As best_affine_ort.hpp searches groups, but one row after the other: rows are as long as they
// like. Sums are kept in sixteen places, so that no result depends on the width of batches.
#pragma once

#include "kernels/best_affine_ort.hpp"

namespace phiquant::kernels {

template <class Arch, bool weighted>
class RowSearch {
public:
    using Batch = F32<Arch>;

    /// `scale` and `zero` hold the rule's parameters, and are left with the best ones.
    void run(const AffineGrid& grid, const float* values, const float* weights, std::uint64_t count,
             float& scale, float& zero) noexcept {
        values_ = values;
        weights_ = weights;
        count_ = count;
        type_ = grid.scale;
        most_ = static_cast<float>((1u << grid.bits) - 1);
        float error = error_of(scale, zero);
        Fit fit{scale, zero, 0.0f};
        if (grid.symmetric) {
            search_scales(grid.bits, fit);
        } else {
            search_zero_points(grid.bits, fit);
        }
        for (int pass = 0; pass < 2; ++pass) try_fits<1>(&fit.scale, fit.zero, fit);
        for (const int by : {0, -1, 1}) {
            const float tried_scale = neighbour(fit.scale, by);
            if (!is_usable(tried_scale)) continue;
            const float tried = error_of(tried_scale, fit.zero);
            if (tried < error) {
                error = tried;
                scale = tried_scale;
                zero = fit.zero;
            }
        }
    }

private:
    static constexpr std::size_t k_sums = 16, parts = k_sums / Batch::size;
    static constexpr float k_parts[9] = {0.70f, 0.76f, 0.80f, 0.84f, 0.88f,
                                         0.92f, 0.96f, 1.00f, 1.04f};

    struct Fit {
        float scale, zero, gain;  ///< gain: what the squared error lacks of the values' squares
    };

    /// One sum of sixteen.
    struct Sum {
        Batch part[parts];
        Sum() noexcept {
            for (Batch& one : part) one = Batch(0.0f);
        }
        [[nodiscard]] float total() const noexcept {
            alignas(k_alignment) float places[k_sums];
            for (std::size_t p = 0; p < parts; ++p) {
                part[p].store_aligned(places + p * Batch::size);
            }
            double sum = 0.0;
            for (const float place : places) sum += static_cast<double>(place);
            return static_cast<float>(sum);
        }
    };

    bool is_usable(float scale) const noexcept {
        const float size = __builtin_fabsf(scale);
        return size >= 1e-20f && size <= (type_ == AffineScale::f16 ? 65504.0f : 1e30f);
    }

    float neighbour(float value, int by) const noexcept {
        switch (type_) {
            case AffineScale::f16:
                return half_to_float(static_cast<std::uint16_t>(float_to_half(value) + by));
            case AffineScale::bf16:
                return bfloat_to_float(static_cast<std::uint16_t>(float_to_bfloat(value) + by));
            case AffineScale::f32:
                break;
        }
        return value;
    }

    XSIMD_INLINE Batch code_of(Batch value, Batch inverse, Batch zero) const noexcept {
        return nearest_code<Arch, Range::limited>(value * inverse + zero, most_);
    }

    /// Calls `add(values, weights, part)` for the whole row; what is behind its end is zero.
    template <class Add>
    XSIMD_INLINE void for_values(const Add& add) const noexcept {
        const auto step = [&](const float* values, const float* weights) noexcept {
            for (std::size_t p = 0; p < parts; ++p) {
                const std::size_t at = p * Batch::size;
                Batch weight(1.0f);
                if constexpr (weighted) weight = Batch::load_unaligned(weights + at);
                add(Batch::load_unaligned(values + at), weight, p);
            }
        };
        std::uint64_t i = 0;
        for (; i + k_sums <= count_; i += k_sums) {
            step(values_ + i, weighted ? weights_ + i : nullptr);
        }
        if (i == count_) return;
        float values[k_sums] = {}, weights[k_sums] = {};
        const std::size_t left = static_cast<std::size_t>(count_ - i);
        std::memcpy(values, values_ + i, left * sizeof(float));
        if constexpr (weighted) std::memcpy(weights, weights_ + i, left * sizeof(float));
        step(values, weights);
    }

    /// Codes of `together` trial scales, the least-squares scale for each, and whether that is
    /// better than what `fit` holds.
    template <std::size_t together>
    void try_fits(const float* scale, float zero, Fit& fit) const noexcept {
        Batch inverse[together];
        for (std::size_t t = 0; t < together; ++t) {
            inverse[t] = Batch(is_usable(scale[t]) ? 1.0f / scale[t] : 0.0f);
        }
        const Batch from(zero);
        Sum product[together], square[together];
        for_values([&](Batch value, Batch weight, std::size_t p) noexcept {
            for (std::size_t t = 0; t < together; ++t) {
                const Batch step = code_of(value, inverse[t], from) - from;
                Batch counted = step;
                if constexpr (weighted) counted = weight * step;
                product[t].part[p] = product[t].part[p] + counted * value;
                square[t].part[p] = square[t].part[p] + counted * step;
            }
        });
        for (std::size_t t = 0; t < together; ++t) {
            const float divisor = square[t].total(), dividend = product[t].total();
            if (!(divisor > 0.0f)) continue;
            const float wanted = dividend / divisor, gain = wanted * dividend;
            if (is_usable(wanted) && gain > fit.gain) fit = {wanted, zero, gain};
        }
    }

    void try_parts(unsigned bits, float covering, float zero, Fit& fit) const noexcept {
        const float finer = bits > 4 ? static_cast<float>(1u << (bits - 4)) : 1.0f;
        for (std::size_t trial = 0; trial < 9; trial += 3) {
            float scale[3];
            for (std::size_t t = 0; t < 3; ++t) {
                scale[t] = covering * (1.0f - (1.0f - k_parts[trial + t]) / finer);
            }
            try_fits<3>(scale, zero, fit);
        }
    }

    void search_scales(unsigned bits, Fit& fit) const noexcept {
        const Extremes range = extremes_of<Arch>(values_, count_);
        const float middle = static_cast<float>(1u << (bits - 1));
        const float largest = range.most > -range.least ? range.most : -range.least;
        try_parts(bits, largest / middle, middle, fit);
        try_parts(bits, -largest / middle, middle, fit);
    }

    void search_zero_points(unsigned bits, Fit& fit) const noexcept {
        Extremes range = extremes_of<Arch>(values_, count_);
        const float low = range.least < 0.0f ? -range.least : 0.0f;
        const float high = range.most > 0.0f ? range.most : 0.0f;
        if (!(low + high > 0.0f)) return;
        const float exact = low * most_ / (low + high);
        for (const float aside : {-1.0f, 0.0f, 1.0f}) {
            float at = ((exact + aside) + k_magic) - k_magic;
            at = at < 0.0f ? 0.0f : at > most_ ? most_ : at;
            // The least scale with which codes reach both ends of the range, where they can.
            const float down = at > 0.0f ? low / at : 0.0f;
            const float up = at < most_ ? high / (most_ - at) : 0.0f;
            try_parts(bits, down > up ? down : up, at, fit);
        }
    }

    float error_of(float scale, float zero) const noexcept {
        const Batch inverse(is_usable(scale) ? 1.0f / scale : 0.0f), step(scale), from(zero);
        Sum sum;
        for_values([&](Batch value, Batch weight, std::size_t p) noexcept {
            const Batch off = (code_of(value, inverse, from) - from) * step - value;
            Batch counted = off * off;
            if constexpr (weighted) counted = weight * counted;
            sum.part[p] = sum.part[p] + counted;
        });
        return sum.total();
    }

    const float *values_ = nullptr, *weights_ = nullptr;
    std::uint64_t count_ = 0;
    AffineScale type_ = AffineScale::f32;
    float most_ = 0.0f;
};

/// Better parameters than those of a rule, which `out` holds, for groups that are whole rows.
template <class Arch>
void improve_rows(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    const float most = static_cast<float>((1u << grid.bits) - 1);
    const auto search = [&]<bool weighted>() noexcept {
        RowSearch<Arch, weighted> found;
        for (std::uint64_t row = 0; row < rows.rows; ++row) {
            const float* values = rows.values + row * rows.columns;
            float scale = out.scales[row], zero = out.zeros[row];
            found.run(grid, values, rows.importance, rows.columns, scale, zero);
            // Where the rule's parameters are the best, so are its codes.
            if (scale == out.scales[row] && zero == out.zeros[row]) continue;
            round_away(values, rows.columns, 1.0f / scale, zero, most,
                       out.codes + row * rows.columns);
            out.scales[row] = scale;
            out.zeros[row] = zero;
        }
    };
    if (rows.importance != nullptr) {
        search.template operator()<true>();
    } else {
        search.template operator()<false>();
    }
}

}  // namespace phiquant::kernels
