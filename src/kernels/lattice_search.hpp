// The search for scales and points of the iq2 and iq3 formats, one lane a sub-block.
#pragma once

#include "kernels/lattice_tile.hpp"
#include "kernels/nearest_point.hpp"
#include "kernels/positive_scale.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

/// Which points are chosen once more, with the best scale (where the reference differs by format).
enum class Refinement : std::uint8_t { always, points_off_grid, all_if_any_off_grid };

/// `Format` says: grid, values (in a point), levels, sub_block, trials, step, negligible,
/// refinement, searched_start (whether the trials start from a scale that was searched, not from
/// the largest).
template <class Arch, class Format>
class LatticeSearch {
    using Batch = F32<Arch>;
    using Integers = I32<Arch>;
    static constexpr std::size_t lanes = Batch::size;
    static constexpr std::size_t size = Format::sub_block;
    static constexpr std::size_t values = Format::values;
    static constexpr std::size_t groups = size / values;
    static constexpr int levels = values == 8 ? 3 : 8;
    static constexpr std::uint32_t all_groups = (1u << groups) - 1;

public:
    LatticeSearch() noexcept : grid_(grid_table(Format::grid)) {
        constexpr float odd[8] = {1, 3, 5, 7, 9, 11, 13, 15};
        levels_ = repeat_levels<values>(odd);
    }

    void run(LatticeTile& tile) noexcept {
        for (std::size_t b = 0; b < k_lattice_values / size; b += lanes) run_batch(tile, b);
    }

private:
    /// Points of each lane: their levels as GridTable has them, and their indices.
    struct Points {
        alignas(k_alignment) std::uint32_t words[groups][lanes];
        alignas(k_alignment) std::uint32_t indices[groups][lanes];
        alignas(k_alignment) std::uint32_t off_grid[lanes];  ///< a bit a group
    };

    void run_batch(LatticeTile& tile, std::size_t b) noexcept {
        const Batch zero(0.0f);
        transpose_sub_blocks<Arch, size>(tile.magnitude + b * size, x_, 1);
        transpose_sub_blocks<Arch, size>(tile.weight + b * size, w_, 1);
        magnitude_ = tile.magnitude + b * size;
        root_ = tile.root + b * size;
        Batch largest = x_[0];
        for (const Batch& x : x_) largest = xsimd::max(largest, x);
        auto negligible =
            Format::negligible > 0.0f ? largest < Batch(Format::negligible) : largest == zero;
        largest = xsimd::select(negligible, Batch(1.0f), largest);
        for (std::size_t i = 0; i < size; ++i) wx_[i] = w_[i] * x_[i];

        constexpr float top = 2 * levels - 1;
        Batch scale = quotient<Arch>(largest, Batch(top));
        if constexpr (Format::searched_start) {
            scale = PositiveScale<Arch>::search(x_, w_, largest);
            largest = scale * Batch(3.0f);
            negligible = negligible | (largest <= zero);
        }
        const GridPlace origin = grid_.places[0];
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            for (std::size_t g = 0; g < groups; ++g) {
                best_.words[g][lane] = origin.first;
                best_.indices[g][lane] = origin.index;
            }
            best_.off_grid[lane] =
                Format::refinement == Refinement::all_if_any_off_grid ? all_groups : 0;
        }
        Batch best = zero;
        for (int trial = -Format::trials; trial <= Format::trials; ++trial) {
            const float numerator = top + static_cast<float>(trial) * Format::step;
            const Batch inverse = quotient<Arch>(Batch(numerator), largest);
            const Batch tried = quotient<Arch>(Batch(1.0f), inverse);
            choose(inverse, tried, nullptr, tried_);
            Batch qx, q2;
            measure(tried_, qx, q2);
            const auto better = (q2 > zero) & (qx * qx > best * q2);
            if (!xsimd::any(better)) continue;
            const Batch quality = quotient<Arch>(qx, q2);
            scale = xsimd::select(better, quality, scale);
            best = xsimd::select(better, quality * qx, best);
            keep(better);
        }
        scale = refine(scale);

        xsimd::select(negligible, zero, xsimd::abs(scale)).store_aligned(tile.scales + b);
        const auto dead = static_cast<std::uint32_t>(negligible.mask());
        const auto turned = static_cast<std::uint32_t>((scale < zero).mask());
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            tile.negligible[b + lane] = (dead >> lane & 1) != 0;
            tile.inverted[b + lane] = (turned >> lane & 1) != 0;
            for (std::size_t g = 0; g < groups; ++g) {
                tile.indices[(b + lane) * groups + g] =
                    static_cast<std::uint16_t>(best_.indices[g][lane]);
            }
        }
    }

    /// Round to levels, and off the grid to the nearest candidate. `wanted`: a bit for each group
    /// of each lane that is to be chosen, null for all.
    XSIMD_INLINE void choose(Batch inverse, Batch scale, const std::uint32_t* wanted,
                             Points& points) noexcept {
        alignas(k_alignment) float scales[lanes];
        alignas(k_alignment) std::int32_t numbers[groups][lanes];
        scale.store_aligned(scales);
        for (std::size_t g = 0; g < groups; ++g) {
            Batch number(0.0f);
            for (std::size_t i = values; i-- > 0;) {
                const Batch steps = Batch(0.5f) * (inverse * x_[g * values + i] - Batch(1.0f));
                const Batch level =
                    nearest_biased<Arch, Range::any>(steps, 0.0f, levels - 1.0f) - Batch(k_magic);
                number = number * Batch(static_cast<float>(levels)) + level;
            }
            xsimd::batch_cast<std::int32_t>(number).store_aligned(numbers[g]);
        }
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            std::uint32_t off_grid = 0;
            for (std::size_t g = 0; g < groups; ++g) {
                if (wanted != nullptr && (wanted[lane] >> g & 1) == 0) continue;
                const GridPlace place = grid_.places[numbers[g][lane]];
                std::uint32_t word = place.first, index = place.index;
                if (place.count != 0) {
                    const std::size_t at = lane * size + g * values;
                    const std::size_t found =
                        place.first + find_nearest<Arch, values>(grid_, place, levels_,
                                                                 magnitude_ + at, root_ + at,
                                                                 scales[lane]);
                    word = grid_.candidates[found];
                    index = grid_.indices[found];
                    off_grid |= 1u << g;
                }
                points.words[g][lane] = word;
                points.indices[g][lane] = index;
            }
            points.off_grid[lane] = off_grid;
        }
    }

    /// Σ w·x·level and Σ w·level².
    XSIMD_INLINE void measure(const Points& points, Batch& qx, Batch& q2) const noexcept {
        qx = q2 = Batch(0.0f);
        for (std::size_t g = 0; g < groups; ++g) {
            const Integers words =
                Integers::load_aligned(reinterpret_cast<const std::int32_t*>(points.words[g]));
            for (std::size_t i = 0; i < values; ++i) {
                const Integers field =
                    (words >> static_cast<int>(4 * i)) & Integers(values == 8 ? 3 : 7);
                const Batch level = xsimd::batch_cast<float>(field + field + Integers(1));
                qx = qx + wx_[g * values + i] * level;
                q2 = q2 + (w_[g * values + i] * level) * level;
            }
        }
    }

    XSIMD_INLINE void keep(xsimd::batch_bool<float, Arch> better) noexcept {
        const auto chosen = xsimd::batch_bool_cast<std::int32_t>(better);
        const auto mix = [chosen](std::uint32_t* kept, const std::uint32_t* tried) {
            auto* to = reinterpret_cast<std::int32_t*>(kept);
            const auto* from = reinterpret_cast<const std::int32_t*>(tried);
            xsimd::select(chosen, Integers::load_aligned(from), Integers::load_aligned(to))
                .store_aligned(to);
        };
        for (std::size_t g = 0; g < groups; ++g) {
            mix(best_.words[g], tried_.words[g]);
            mix(best_.indices[g], tried_.indices[g]);
        }
        mix(best_.off_grid, tried_.off_grid);
    }

    /// Choose points once more with the best scale, and fit the scale to them.
    XSIMD_INLINE Batch refine(Batch scale) noexcept {
        const Batch zero(0.0f);
        alignas(k_alignment) std::uint32_t wanted[lanes];
        const auto positive = static_cast<std::uint32_t>((scale > zero).mask());
        std::uint32_t any = 0;
        alignas(k_alignment) float active[lanes];
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            std::uint32_t groups_wanted = best_.off_grid[lane];
            if (Format::refinement == Refinement::always) groups_wanted = all_groups;
            if (Format::refinement == Refinement::all_if_any_off_grid && groups_wanted != 0) {
                groups_wanted = all_groups;
            }
            wanted[lane] = (positive >> lane & 1) != 0 ? groups_wanted : 0;
            active[lane] = wanted[lane] != 0 ? 1.0f : 0.0f;
            any |= wanted[lane];
        }
        if (any == 0) return scale;
        choose(quotient<Arch>(Batch(1.0f), scale), scale, wanted, best_);
        Batch qx, q2;
        measure(best_, qx, q2);
        const auto fitted = (Batch::load_aligned(active) > zero) & (q2 > zero);
        return xsimd::select(fitted, quotient<Arch>(qx, q2), scale);
    }

    const GridTable& grid_;
    PointLevels levels_;
    const float* magnitude_ = nullptr;
    const float* root_ = nullptr;
    Batch x_[size], w_[size], wx_[size];
    Points best_, tried_;
};

}  // namespace phiquant::kernels
