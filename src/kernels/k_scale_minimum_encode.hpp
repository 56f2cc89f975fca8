// Encoding of Q2_K, Q4_K and Q5_K, with importance and without.
#pragma once

#include "kernels/fit_codes.hpp"
#include "kernels/importance.hpp"
#include "kernels/k_scale_minimum.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

// Two groups of lanes are searched at a time: the sums are chains of dependent additions, and one
// group's fill the waits of the other's.
inline constexpr std::size_t k_searched_groups = 2;

/// Without importance: parameters are rounded against a super-block's largest.
template <class Arch, class Format>
class PlainScaleMinimum {
    static constexpr std::size_t searched = k_searched_groups * F32<Arch>::size;
    static constexpr std::size_t each = k_sub_blocks<Format>;

public:
    /// Super-blocks that go through the stages together.
    static constexpr std::size_t unit = searched > each ? searched / each : 1;
    using Found = ScalesAndMinima<unit * each>;

    explicit PlainScaleMinimum(const Rows&) noexcept {}

    /// The second argument is the number of the unit's first super-block.
    void search(const float* values, std::uint64_t, Found& found) noexcept {
        for (std::size_t j = 0; j < unit * each; j += searched) {
            search_.run(values + j * Format::sub_block, nullptr, j, found);
        }
    }

    void round(const Found& found, std::size_t b, ScaleMinimumParameters& out) const noexcept {
        round_parameters<Arch, Format>(found.scale + b * each, found.minimum + b * each, out);
    }

private:
    ScaleMinimumSearch<Arch, Format, k_searched_groups> search_;
};

/// With importance: parameters are fitted to what the search found, one lane a super-block.
template <class Arch, class Format>
class WeightedScaleMinimum {
    static constexpr std::size_t searched = k_searched_groups * F32<Arch>::size;
    static constexpr std::size_t each = k_sub_blocks<Format>;

public:
    static constexpr std::size_t unit = F32<Arch>::size;
    using Found = ScalesAndMinima<unit * each>;

    explicit WeightedScaleMinimum(const Rows& rows) noexcept
        : importance_(rows.importance), super_blocks_(rows.columns / k_super_block) {}

    void search(const float* values, std::uint64_t super_block, Found& found) noexcept {
        const auto place = [values](std::size_t b) { return values + b * k_super_block; };
        const F32<Arch> squares = sum_squares<Arch>(place, k_super_block);
        alignas(k_alignment) float variance[unit];
        (F32<Arch>(Format::variance_factor) * squares * F32<Arch>(1.0f / k_super_block))
            .store_aligned(variance);
        for (std::size_t b = 0; b < unit; ++b) {
            const std::uint64_t column = (super_block + b) % super_blocks_ * k_super_block;
            weigh<Arch>(place(b), importance_ + column, variance[b], k_super_block,
                        weights_ + b * k_super_block);
        }
        for (std::size_t j = 0; j < unit * each; j += searched) {
            const std::size_t from = j * Format::sub_block;
            search_.run(values + from, weights_ + from, j, found);
        }
        fit_.run(found.scale, found.weight, scales_);
        fit_.run(found.minimum, found.weight, minima_);
    }

    void round(const Found&, std::size_t b, ScaleMinimumParameters& out) const noexcept {
        constexpr bool clamps = Format::clamps_fitted;
        for (std::size_t j = 0; j < each; ++j) {
            out.scales[j] = stored_parameter<Arch, Format, clamps>(scales_.codes[j][b]);
            out.minima[j] = stored_parameter<Arch, Format, clamps>(minima_.codes[j][b]);
        }
        out.scale = static_cast<std::uint16_t>(scales_.scale[b]);
        out.minimum = static_cast<std::uint16_t>(minima_.scale[b]);
    }

private:
    const float* importance_;
    std::uint64_t super_blocks_;  // a row
    ScaleMinimumSearch<Arch, ImportanceRule<Format::sub_block, Format::largest_code>,
                       k_searched_groups>
        search_;
    CodeFit<Arch, each, Format::largest_parameter> fit_;
    FittedCodes<Arch, each> scales_, minima_;
    alignas(k_alignment) float weights_[unit * k_super_block];
};

template <class Arch, class Format, class Stages>
void encode_scale_minimum(const Rows& rows, typename Format::Block* block) noexcept {
    constexpr std::size_t unit = Stages::unit;
    const float* values = rows.values;
    Stages stages(rows);
    typename Stages::Found found;
    const std::uint64_t super_blocks = rows.rows * rows.columns / k_super_block;
    for (std::uint64_t done = 0; done < super_blocks;) {
        const std::uint64_t left = super_blocks - done;
        const std::size_t count = left < unit ? static_cast<std::size_t>(left) : unit;
        // The search is long and reads nothing new: have the next values come meanwhile.
        if (left >= 2 * unit) prefetch<Arch>(values + unit * k_super_block, unit * k_super_block);
        if (count == unit) {
            stages.search(values, done, found);
        } else {
            alignas(k_alignment) float padded[unit * k_super_block];
            std::memset(padded, 0, sizeof(padded));
            std::memcpy(padded, values, count * k_super_block * sizeof(float));
            stages.search(padded, done, found);
        }
        for (std::size_t b = 0; b < count; ++b) {
            ScaleMinimumParameters parameters;
            alignas(k_alignment) std::uint8_t codes[k_super_block];
            stages.round(found, b, parameters);
            block->scale = parameters.scale;
            block->minimum = parameters.minimum;
            // What does not fit is cut off by packing, and the codes are for what is stored.
            pack_parameters<Arch>(parameters, *block);
            unpack_parameters<Arch>(*block, parameters);
            round_codes<Arch, Format>(values, parameters, found, b * k_sub_blocks<Format>, codes);
            pack_codes<Arch>(codes, *block);
            values += k_super_block;
            ++block;
        }
        done += count;
    }
}

template <class Arch, class Format>
void encode_scale_minimum(const Rows& rows, std::byte* const* planes) noexcept {
    auto* block = reinterpret_cast<typename Format::Block*>(planes[0]);
    if (rows.importance != nullptr) {
        encode_scale_minimum<Arch, Format, WeightedScaleMinimum<Arch, Format>>(rows, block);
    } else {
        encode_scale_minimum<Arch, Format, PlainScaleMinimum<Arch, Format>>(rows, block);
    }
}

}  // namespace phiquant::kernels
