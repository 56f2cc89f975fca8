// The search for scales and minima of Q2_K, Q4_K and Q5_K.
//
// Pairs of units for a super-block are ranked by how much each sub-block minds rounded parameters.
// From each of the best pairs, parameters are moved where that is better, and the units fitted to
// them again; the best of all that was found is moved once more, farther.
#pragma once

#include <type_traits>

#include "base/half.hpp"
#include "kernels/best_scale_minimum_fit.hpp"
#include "kernels/best_tile.hpp"
#include "kernels/halves.hpp"
#include "kernels/k_scale_minimum.hpp"
#include "kernels/narrowing.hpp"

namespace phiquant::kernels::best {

template <class Arch, class Format>
class ScaleMinimumSearch {
    using Batch = F32<Arch>;
    using Values = Tile<Arch, Format::sub_block>;
    using Fit = ScaleMinimumFit<Arch, Format>;
    static constexpr std::size_t lanes = Batch::size, groups = Values::groups;
    static constexpr std::size_t size = Format::sub_block, each = Format::sub_blocks;
    static constexpr std::size_t blocks = k_together / each;
    static constexpr std::size_t tries = Format::tries;
    static constexpr float largest_code = Format::largest_code;
    static constexpr float largest_parameter = Format::largest_parameter;

public:
    void run(const Values& tile) noexcept {
        for (std::size_t g = 0; g < groups; ++g) search(tile, g);
        for (std::size_t b = 0; b < blocks; ++b) rank_units(b);
        start();
        for (std::size_t attempt = 0; attempt < tries; ++attempt) {
            for (std::size_t b = 0; b < blocks; ++b) set_units(b, ranked_[attempt][b]);
            round_parameters();
            improve<1, 1>(tile);
            keep_better();
            fit_units(tile);
            improve<1, 0>(tile);
            keep_better();
        }
        // Codes change with the parameters, so that others are good, too, some of them far away.
        at_ = kept_;
        improve<3, 4>(tile);
        keep_better();
        fit_units(tile);
        improve<1, 0>(tile);
        keep_better();
    }

    [[nodiscard]] float error(std::size_t b) const noexcept {
        return total<Arch, each>(kept_.error, b);
    }

    void write(std::size_t b, const float* values, typename Format::Block& block) const noexcept {
        alignas(k_alignment) std::uint8_t codes[each * size];
        const std::size_t first = b * each;
        ScaleMinimumParameters parameters{};
        for (std::size_t j = 0; j < each; ++j) {
            parameters.scales[j] = static_cast<std::uint8_t>(kept_.scale.of[first + j]);
            parameters.minima[j] = static_cast<std::uint8_t>(kept_.minimum.of[first + j]);
        }
        for (std::size_t i = 0; i < each * size; i += 32) {
            I32<Arch> rounded[32 / lanes];
            for (std::size_t p = 0; p < 32 / lanes; ++p) {
                const std::size_t at = i + p * lanes, j = first + at / size;
                const Batch inverse =
                    inverse_of<Arch>(Batch(kept_.scale_unit.of[j] * kept_.scale.of[j]));
                const Batch minimum(kept_.minimum_unit.of[j] * kept_.minimum.of[j]);
                const Batch x = Batch::load_unaligned(values + at);
                rounded[p] = xsimd::batch_cast<std::int32_t>(
                    round_within<Arch>((x + minimum) * inverse, 0.0f, largest_code));
            }
            store_32_bytes<Arch>(rounded, codes + i);
        }
        pack_parameters<Arch>(parameters, block);
        pack_codes<Arch>(codes, block);
        block.scale = float_to_half(kept_.scale_unit.of[first]);
        block.minimum = float_to_half(kept_.minimum_unit.of[first]);
    }

private:
    /// As stored: float16 units (here as floats), and whole parameters.
    struct Parameters {
        PerSubBlock scale_unit, minimum_unit, scale, minimum, error;
    };

    void search(const Values& tile, std::size_t g) noexcept {
        const Batch zero(0.0f);
        const auto fit = Fit::fit(tile, g);
        const std::size_t j = g * lanes;
        fit.scale.store_aligned(found_.scale.of + j);
        fit.minimum.store_aligned(found_.minimum.of + j);
        fit.l.store_aligned(l_.of + j);
        fit.l2.store_aligned(l2_.of + j);
        fit.w.store_aligned(w_.of + j);
        fit.wx.store_aligned(wx_.of + j);
        const auto known = fit.w > zero;
        xsimd::select(known, quotient<Arch>(fit.l, xsimd::select(known, fit.w, Batch(1.0f))), zero)
            .store_aligned(mean_.of + j);
    }

    static XSIMD_INLINE Batch whole(Batch value) noexcept {
        return round_within<Arch>(value, 0.0f, largest_parameter);
    }

    static XSIMD_INLINE float largest_of(const PerSubBlock& values, std::size_t b) noexcept {
        float largest = 0.0f;
        for (std::size_t j = b * each; j < (b + 1) * each; ++j) {
            if (values.of[j] > largest) largest = values.of[j];
        }
        return largest;
    }

    struct Units {
        float scale, minimum;
    };

    void set_units(std::size_t b, Units units) noexcept {
        const float scale_unit = half_to_float(float_to_half(units.scale));
        const float minimum_unit = half_to_float(float_to_half(units.minimum));
        for (std::size_t j = b * each; j < (b + 1) * each; ++j) {
            at_.scale_unit.of[j] = scale_unit;
            at_.minimum_unit.of[j] = minimum_unit;
        }
    }

    /// One lane a pair of candidates.
    void rank_units(std::size_t b) noexcept {
        constexpr std::size_t candidates = sizeof(Format::units) / sizeof(float);
        constexpr std::size_t pairs = candidates * candidates;
        static_assert(pairs % k_together == 0 && tries <= pairs);
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
                const Batch wanted(found_.minimum.of[j]);
                const Batch off =
                    unit * whole(inverse * Batch(found_.scale.of[j])) - Batch(found_.scale.of[j]);
                const Batch follows = wanted + off * Batch(mean_.of[j]);
                const Batch shift = minimum_unit * whole(minimum_inverse * follows) - wanted;
                cost = cost +
                       (off * off * Batch(l2_.of[j]) - Batch(2.0f) * off * shift * Batch(l_.of[j]) +
                        shift * shift * Batch(w_.of[j]));
            }
            unit.store_aligned(scales + c);
            minimum_unit.store_aligned(minima + c);
            cost.store_aligned(costs + c);
        }
        for (std::size_t rank = 0; rank < tries; ++rank) {
            std::size_t best = 0;
            for (std::size_t c = 1; c < pairs; ++c) {
                if (costs[c] < costs[best]) best = c;
            }
            ranked_[rank][b] = {scales[best], minima[best]};
            costs[best] = __builtin_inff();
        }
    }

    void round_parameters() noexcept {
        for (std::size_t j = 0; j < k_together; j += lanes) {
            const Batch unit = Batch::load_aligned(at_.scale_unit.of + j);
            const Batch wanted = Batch::load_aligned(found_.scale.of + j);
            const Batch scale = whole(inverse_of<Arch>(unit) * wanted);
            // The best minimum for a scale that is off, given the codes.
            const Batch minimum = Batch::load_aligned(found_.minimum.of + j) +
                                  (unit * scale - wanted) * Batch::load_aligned(mean_.of + j);
            scale.store_aligned(at_.scale.of + j);
            whole(inverse_of<Arch>(Batch::load_aligned(at_.minimum_unit.of + j)) * minimum)
                .store_aligned(at_.minimum.of + j);
        }
    }

    /// Move each sub-block's scale by up to `reach`, and its minimum, which follows the scale, by
    /// up to `aside` (of 1 + 3 n): where that is better. `aside` 0: by one, but not both at once.
    template <int reach, int aside>
    void improve(const Values& tile) noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            const std::size_t j = g * lanes;
            const Batch scale_unit = Batch::load_aligned(at_.scale_unit.of + j);
            const Batch minimum_unit = Batch::load_aligned(at_.minimum_unit.of + j);
            const Batch scale = Batch::load_aligned(at_.scale.of + j);
            const Batch minimum = Batch::load_aligned(at_.minimum.of + j);
            const Batch slope =
                (scale_unit * Batch::load_aligned(mean_.of + j)) * inverse_of<Arch>(minimum_unit);
            Batch best_scale = scale, best_minimum = minimum, best;
            const auto attempt = [&](auto count, bool first, Batch s, Batch middle) {
                const Batch one(1.0f);
                const Batch m[3] = {middle, whole(middle - one), whole(middle + one)};
                const Batch minima[3] = {minimum_unit * m[0], minimum_unit * m[1],
                                         minimum_unit * m[2]};
                Batch errors[count];
                Fit::template errors_of<count>(tile, g, scale_unit * s, minima, errors);
                if (first) best = errors[0];
                for (std::size_t t = 0; t < count; ++t) {
                    const auto better = errors[t] < best;
                    best = xsimd::select(better, errors[t], best);
                    best_scale = xsimd::select(better, s, best_scale);
                    best_minimum = xsimd::select(better, m[t], best_minimum);
                }
            };
            constexpr std::integral_constant<std::size_t, 1> alone;
            constexpr std::integral_constant<std::size_t, 3> three;
            attempt(three, true, scale, minimum);
            for (int step = -reach; step <= reach; ++step) {
                const Batch by(static_cast<float>(step));
                const Batch s = whole(scale + by), follows = minimum + slope * by;
                if constexpr (aside == 0) {
                    if (step != 0) attempt(alone, false, s, whole(follows));
                } else {
                    for (int far = 1 - aside; far < aside; far += 3) {
                        if (step == 0 && far == 0) continue;
                        const Batch off(static_cast<float>(far));
                        attempt(three, false, s, whole(follows + off));
                    }
                }
            }
            best_scale.store_aligned(at_.scale.of + j);
            best_minimum.store_aligned(at_.minimum.of + j);
            best.store_aligned(at_.error.of + j);
        }
    }

    /// Least squares of each super-block's two units, given all codes and whole parameters.
    void fit_units(const Values& tile) noexcept {
        PerSubBlock ss, sm, mm, xs, xm;
        for (std::size_t g = 0; g < groups; ++g) {
            const std::size_t j = g * lanes;
            const Batch s = Batch::load_aligned(at_.scale.of + j);
            const Batch m = Batch::load_aligned(at_.minimum.of + j);
            const typename Fit::Sums sums =
                Fit::sum_nearest(tile, g, Batch::load_aligned(at_.scale_unit.of + j) * s,
                                 Batch::load_aligned(at_.minimum_unit.of + j) * m);
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
            if (!(determinant > 0.0f) || !is_finite<Arch>(total<Arch, each>(at_.error, b))) {
                continue;
            }
            const float scale = (u * c - v * mixed) / determinant;
            const float minimum = (u * mixed - v * a) / determinant;
            if (scale > 0.0f && minimum > 0.0f) set_units(b, {scale, minimum});
        }
    }

    /// Nothing is known yet: anything is better.
    void start() noexcept {
        kept_ = {};
        for (float& error : kept_.error.of) error = __builtin_inff();
    }

    void keep_better() noexcept {
        for (std::size_t b = 0; b < blocks; ++b) {
            if (!(total<Arch, each>(at_.error, b) < error(b))) continue;
            for (std::size_t j = b * each; j < (b + 1) * each; ++j) {
                kept_.scale_unit.of[j] = at_.scale_unit.of[j];
                kept_.minimum_unit.of[j] = at_.minimum_unit.of[j];
                kept_.scale.of[j] = at_.scale.of[j];
                kept_.minimum.of[j] = at_.minimum.of[j];
                kept_.error.of[j] = at_.error.of[j];
            }
        }
    }

    struct Found {
        PerSubBlock scale, minimum;
    };
    Found found_;
    PerSubBlock l_, l2_, w_, wx_;
    PerSubBlock mean_;  // of the codes
    Units ranked_[tries][blocks];
    Parameters at_, kept_;
};

}  // namespace phiquant::kernels::best
