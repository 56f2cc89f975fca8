// The search for the scales of formats without minima: Q4_0, Q3_K, Q6_K, IQ4_NL and IQ4_XS.
//
// Weighted least squares over trial grids of both signs, then coordinate descent: fit the scale to
// the codes, round to new codes, and so on. Units for a super-block are ranked by how much each
// sub-block minds a rounded scale. From each of the best units, the rounded scales are moved by one
// where that is better, the unit is fitted to them again, and so on; the best of all that was found
// stays.
#pragma once

#include "base/half.hpp"
#include "kernels/best_tile.hpp"
#include "kernels/halves.hpp"
#include "kernels/narrowing.hpp"

namespace phiquant::kernels::best {

template <class Arch, class Format>
class ScaleSearch {
    using Batch = F32<Arch>;
    using Values = Tile<Arch, Format::sub_block>;
    static constexpr std::size_t lanes = Batch::size, groups = Values::groups;
    static constexpr std::size_t size = Format::sub_block, each = Format::sub_blocks;
    static constexpr std::size_t blocks = k_together / each;
    using Levels = typename Format::Levels;

public:
    void run(const Values& tile) noexcept {
        for (std::size_t g = 0; g < groups; ++g) search(tile, g);
        if constexpr (each == 1) {
            finish_blocks(tile);
        } else {
            for (std::size_t b = 0; b < blocks; ++b) rank_units(b);
            start();
            for (std::size_t attempt = 0; attempt < Format::tries; ++attempt) {
                for (std::size_t b = 0; b < blocks; ++b) set_unit(b, ranked_[attempt][b]);
                round_scales();
                improve(tile);
                for (std::size_t b = 0; b < blocks; ++b) keep_better(b);
                for (int again = 0; again < 2; ++again) {
                    fit_units(tile);
                    improve(tile);
                    for (std::size_t b = 0; b < blocks; ++b) keep_better(b);
                }
            }
        }
    }

    [[nodiscard]] float error(std::size_t b) const noexcept {
        return total<Arch, each>(kept_.error, b);
    }

    void write(std::size_t b, const float* values, typename Format::Block& block) const noexcept {
        alignas(k_alignment) std::uint8_t codes[each * size];
        const std::size_t first = b * each;
        for (std::size_t i = 0; i < each * size; i += 32) {
            I32<Arch> rounded[32 / lanes];
            for (std::size_t p = 0; p < 32 / lanes; ++p) {
                const std::size_t at = i + p * lanes;
                const Batch inverse = inverse_of<Arch>(Batch(scale_of(first + at / size)));
                rounded[p] =
                    Levels::template code<Arch>(inverse * Batch::load_unaligned(values + at));
            }
            store_32_bytes<Arch>(rounded, codes + i);
        }
        Format::template pack<Arch>(kept_.unit[first], kept_.scale.of + first, codes, block);
    }

private:
    /// The parameters as stored: a float16 unit, and whole scales. (Without super-blocks: 1.)
    struct Parameters {
        std::uint16_t unit[k_together];
        PerSubBlock unit_value, scale, error;
    };

    [[nodiscard]] float scale_of(std::size_t j) const noexcept {
        return kept_.unit_value.of[j] * kept_.scale.of[j];
    }

    struct Sums {
        Batch xl, l2;
    };

    /// Several grids at once: they share the loads, and fill each other's waits.
    template <std::size_t together>
    static XSIMD_INLINE void sum(const Values& tile, std::size_t g, const Batch* inverse,
                                 Sums* sums) noexcept {
        const Batch *x = tile.x(g), *w = tile.w(g);
        for (std::size_t t = 0; t < together; ++t) sums[t] = {Batch(0.0f), Batch(0.0f)};
        for (std::size_t i = 0; i < size; ++i) {
            const Batch wx = w[i] * x[i];
            for (std::size_t t = 0; t < together; ++t) {
                const Batch level = Levels::template nearest<Arch>(inverse[t] * x[i]);
                sums[t].xl = sums[t].xl + wx * level;
                sums[t].l2 = sums[t].l2 + (w[i] * level) * level;
            }
        }
    }

    void search(const Values& tile, std::size_t g) noexcept {
        constexpr std::size_t together = 4, trials = sizeof(Format::trials) / sizeof(float);
        static_assert(trials % together == 0);
        const Batch zero(0.0f);
        Batch largest = zero, magnitude = zero;
        for (std::size_t i = 0; i < size; ++i) {
            const Batch here = xsimd::abs(tile.x(g)[i]);
            const auto larger = here > magnitude;
            magnitude = xsimd::select(larger, here, magnitude);
            largest = xsimd::select(larger, tile.x(g)[i], largest);
        }
        const Batch per_step = inverse_of<Arch>(largest);
        Batch scale = zero, gain = zero, weight = zero;
        const auto take = [&](const Sums& tried) {
            const auto fits = tried.l2 > zero;
            const Batch fit = quotient<Arch>(tried.xl, xsimd::select(fits, tried.l2, Batch(1.0f)));
            const auto better =
                fits & (fit * tried.xl > gain) & (xsimd::abs(fit) <= Batch(k_largest_value));
            gain = xsimd::select(better, fit * tried.xl, gain);
            scale = xsimd::select(better, fit, scale);
            weight = xsimd::select(better, tried.l2, weight);
        };
        for (std::size_t trial = 0; trial < trials; trial += together) {
            Batch inverse[together];
            Sums sums[together];
            for (std::size_t t = 0; t < together; ++t) {
                inverse[t] = Batch(Format::trials[trial + t]) * per_step;
            }
            sum<together>(tile, g, inverse, sums);
            for (const Sums& tried : sums) take(tried);
        }
        for (int pass = 0; pass < Format::passes; ++pass) {
            const Batch inverse = inverse_of<Arch>(scale);
            Sums refitted;
            sum<1>(tile, g, &inverse, &refitted);
            take(refitted);
        }
        scale.store_aligned(found_.of + g * lanes);
        weight.store_aligned(weight_.of + g * lanes);
    }

    /// Errors of all sub-blocks for whole scales of theirs.
    Batch error_of(const Values& tile, std::size_t g, Batch scale) const noexcept {
        const Batch inverse = inverse_of<Arch>(scale);
        Batch error(0.0f);
        for (std::size_t i = 0; i < size; ++i) {
            const Batch x = tile.x(g)[i];
            const Batch off = scale * Levels::template nearest<Arch>(inverse * x) - x;
            error = error + tile.w(g)[i] * off * off;
        }
        return error;
    }

    void finish_blocks(const Values& tile) noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            const I32<Arch> half = halves_of<Arch>(Batch::load_aligned(found_.of + g * lanes));
            alignas(k_alignment) std::int32_t halves[lanes];
            half.store_aligned(halves);
            for (std::size_t i = 0; i < lanes; ++i) {
                kept_.unit[g * lanes + i] = static_cast<std::uint16_t>(halves[i]);
            }
            const Batch scale = floats_of_halves<Arch>(half);
            scale.store_aligned(kept_.unit_value.of + g * lanes);
            Batch(1.0f).store_aligned(kept_.scale.of + g * lanes);
            error_of(tile, g, scale).store_aligned(kept_.error.of + g * lanes);
        }
    }

    void set_unit(std::size_t b, float unit) noexcept {
        const std::uint16_t half = float_to_half(unit);
        for (std::size_t j = b * each; j < (b + 1) * each; ++j) {
            at_.unit[j] = half;
            at_.unit_value.of[j] = half_to_float(half);
        }
    }

    /// One lane a candidate: the largest scale becomes one of the largest whole numbers.
    void rank_units(std::size_t b) noexcept {
        const float *scales = found_.of + b * each, *weights = weight_.of + b * each;
        float largest = 0.0f;
        for (std::size_t j = 0; j < each; ++j) {
            if (__builtin_fabsf(scales[j]) > __builtin_fabsf(largest)) largest = scales[j];
        }
        constexpr std::size_t candidates = sizeof(Format::units) / sizeof(float);
        alignas(k_alignment) float units[candidates], costs[candidates];
        for (std::size_t c = 0; c < candidates; c += lanes) {
            const Batch wanted =
                quotient<Arch>(Batch(largest), Batch::load_aligned(Format::units + c));
            const Batch unit = floats_of_halves<Arch>(halves_of<Arch>(wanted));
            const Batch inverse = inverse_of<Arch>(unit);
            Batch cost(0.0f);
            for (std::size_t j = 0; j < each; ++j) {
                const Batch scale = round_within<Arch>(inverse * Batch(scales[j]),
                                                       Format::lowest_scale, Format::highest_scale);
                const Batch off = unit * scale - Batch(scales[j]);
                cost = cost + Batch(weights[j]) * off * off;
            }
            unit.store_aligned(units + c);
            cost.store_aligned(costs + c);
        }
        for (std::size_t rank = 0; rank < Format::tries; ++rank) {
            std::size_t best = 0;
            for (std::size_t c = 1; c < candidates; ++c) {
                if (costs[c] < costs[best]) best = c;
            }
            ranked_[rank][b] = units[best];
            costs[best] = __builtin_inff();
        }
    }

    void round_scales() noexcept {
        for (std::size_t j = 0; j < k_together; j += lanes) {
            const Batch inverse = inverse_of<Arch>(Batch::load_aligned(at_.unit_value.of + j));
            round_within<Arch>(inverse * Batch::load_aligned(found_.of + j), Format::lowest_scale,
                               Format::highest_scale)
                .store_aligned(at_.scale.of + j);
        }
    }

    /// Move each sub-block's scale by one where that is better.
    void improve(const Values& tile) noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            const std::size_t j = g * lanes;
            const Batch unit = Batch::load_aligned(at_.unit_value.of + j);
            const Batch middle = Batch::load_aligned(at_.scale.of + j);
            Batch best = middle, error = error_of(tile, g, unit * middle);
            for (const float step : {-1.0f, 1.0f}) {
                const Batch scale =
                    xsimd::min(xsimd::max(middle + Batch(step), Batch(Format::lowest_scale)),
                               Batch(Format::highest_scale));
                const Batch tried = error_of(tile, g, unit * scale);
                const auto better = tried < error;
                error = xsimd::select(better, tried, error);
                best = xsimd::select(better, scale, best);
            }
            best.store_aligned(at_.scale.of + j);
            error.store_aligned(at_.error.of + j);
        }
    }

    /// Least squares of each super-block's unit, given all codes and whole scales.
    void fit_units(const Values& tile) noexcept {
        PerSubBlock xl, l2;
        for (std::size_t g = 0; g < groups; ++g) {
            const std::size_t j = g * lanes;
            const Batch whole = Batch::load_aligned(at_.scale.of + j);
            const Batch inverse =
                inverse_of<Arch>(Batch::load_aligned(at_.unit_value.of + j) * whole);
            Sums sums;
            sum<1>(tile, g, &inverse, &sums);
            (sums.xl * whole).store_aligned(xl.of + j);
            (sums.l2 * whole * whole).store_aligned(l2.of + j);
        }
        for (std::size_t b = 0; b < blocks; ++b) {
            const float weight = total<Arch, each>(l2, b);
            // Where the unit overflowed, there are no codes to fit to.
            if (weight > 0.0f && is_finite<Arch>(total<Arch, each>(at_.error, b))) {
                set_unit(b, total<Arch, each>(xl, b) / weight);
            }
        }
    }

    /// Nothing is known yet: anything is better.
    void start() noexcept {
        kept_ = {};
        for (float& error : kept_.error.of) error = __builtin_inff();
    }

    void keep_better(std::size_t b) noexcept {
        if (!(total<Arch, each>(at_.error, b) < error(b))) return;
        for (std::size_t j = b * each; j < (b + 1) * each; ++j) {
            kept_.unit[j] = at_.unit[j];
            kept_.unit_value.of[j] = at_.unit_value.of[j];
            kept_.scale.of[j] = at_.scale.of[j];
            kept_.error.of[j] = at_.error.of[j];
        }
    }

    float ranked_[Format::tries][blocks];
    PerSubBlock found_, weight_;
    Parameters at_, kept_;
};

}  // namespace phiquant::kernels::best
