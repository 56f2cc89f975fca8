// q4_0, q4_1, q5_0 and q5_1 with importance: each block's scale (and minimum) searched, one lane a
// block.
#pragma once

#include "kernels/blocks32.hpp"
#include "kernels/importance.hpp"
#include "kernels/search_scale.hpp"
#include "kernels/search_scale_minimum.hpp"

namespace phiquant::kernels {

template <class Arch, class Block>
XSIMD_INLINE void pack_codes(const I32<Arch>* codes, Block& out) noexcept {
    pack_nibbles<Arch>(codes, out.nibbles);
    if constexpr (requires { out.fifth_bits; }) pack_fifth_bits<Arch>(codes, out.fifth_bits);
}

/// q4_0 and q5_0: codes from -half_range to half_range - 1, stored with half_range added.
template <class Arch, class BlockType, int half_range>
class WeightedScale {
    static constexpr std::size_t lanes = F32<Arch>::size;

public:
    using Block = BlockType;
    static constexpr std::size_t unit = lanes;  ///< blocks that are searched together

    void search(const float* values, const float* weights) noexcept {
        search_.run(values, weights, 0, found_);
        halves_of<Arch>(F32<Arch>::load_aligned(found_.scale)).store_aligned(scales_);
    }

    void write(const float* values, std::size_t b, Block& out) const noexcept {
        using Batch = F32<Arch>;
        constexpr float range = half_range;
        const I32<Arch> bias =
            bits_of<Arch>(Batch(k_magic)) - I32<Arch>(static_cast<std::int32_t>(found_.middle[b]));
        const BlockValues<Arch> block(values);
        I32<Arch> codes[k_block / lanes];
        for (std::size_t p = 0; p < block.parts; ++p) {
            const Batch steps = Batch(found_.inverse[b]) * block.x[p];
            const Batch biased = nearest_biased<Arch, Range::any>(steps, -range, range - 1.0f);
            codes[p] = bits_of<Arch>(biased) - bias;
        }
        pack_codes<Arch>(codes, out);
        out.scale = static_cast<std::uint16_t>(scales_[b]);
    }

private:
    ScaleSearch<Arch, ScaleRule<k_block, half_range, true>> search_;
    Scales<unit> found_;
    alignas(k_alignment) std::int32_t scales_[unit];  // float16
};

/// q4_1 and q5_1: codes from 0 to `largest`, above a minimum.
template <class Arch, class BlockType, int largest>
class WeightedMinimum {
    // Two groups of lanes: the sums are chains of dependent additions.
    static constexpr std::size_t lanes = F32<Arch>::size, groups = 2;

public:
    using Block = BlockType;
    static constexpr std::size_t unit = groups * lanes;

    void search(const float* values, const float* weights) noexcept {
        using Batch = F32<Arch>;
        search_.run(values, weights, 0, found_);
        for (std::size_t b = 0; b < unit; b += lanes) {
            halves_of<Arch>(Batch::load_aligned(found_.scale + b)).store_aligned(scales_ + b);
            const Batch minima = negated<Arch>(Batch::load_aligned(found_.minimum + b));
            halves_of<Arch>(minima).store_aligned(minima_ + b);
        }
    }

    void write(const float* values, std::size_t b, Block& out) const noexcept {
        using Batch = F32<Arch>;
        const BlockValues<Arch> block(values);
        I32<Arch> codes[k_block / lanes];
        for (std::size_t p = 0; p < block.parts; ++p) {
            const Batch steps = Batch(found_.inverse[b]) * (block.x[p] - Batch(found_.offset[b]));
            const Batch biased = nearest_biased<Arch, Range::any>(steps, 0.0f, largest);
            codes[p] = bits_of<Arch>(biased) - bits_of<Arch>(Batch(k_magic));
        }
        pack_codes<Arch>(codes, out);
        out.scale = static_cast<std::uint16_t>(scales_[b]);
        out.minimum = static_cast<std::uint16_t>(minima_[b]);
    }

private:
    ScaleMinimumSearch<Arch, ImportanceRule<k_block, largest>, groups> search_;
    ScalesAndMinima<unit> found_;
    alignas(k_alignment) std::int32_t scales_[unit], minima_[unit];  // float16
};

/// Blocks of a few whole rows, whose variances are known.
template <class Arch, class Search>
void encode_rows(const float* values, std::uint64_t rows, std::uint64_t columns,
                 const float* importance, const float* variances, Search& search,
                 typename Search::Block* block) noexcept {
    constexpr std::size_t unit = Search::unit;
    std::uint64_t row = 0, column = 0;
    for (std::uint64_t left = rows * columns / k_block; left > 0;) {
        const std::size_t count = left < unit ? static_cast<std::size_t>(left) : unit;
        alignas(k_alignment) float weights[unit * k_block];
        for (std::size_t b = 0; b < count; ++b) {
            weigh<Arch>(values + b * k_block, importance + column, variances[row], k_block,
                        weights + b * k_block);
            column += k_block;
            if (column == columns) {
                column = 0;
                ++row;
            }
        }
        if (count == unit) {
            search.search(values, weights);
        } else {
            alignas(k_alignment) float padded[unit * k_block];
            std::memset(padded, 0, sizeof(padded));
            std::memcpy(padded, values, count * k_block * sizeof(float));
            std::memset(weights + count * k_block, 0, (unit - count) * k_block * sizeof(float));
            search.search(padded, weights);
        }
        for (std::size_t b = 0; b < count; ++b) search.write(values + b * k_block, b, block[b]);
        values += count * k_block;
        block += count;
        left -= count;
    }
}

/// The variance that weights take is the mean square of the whole row, in these formats.
template <class Arch, class Search>
void encode_weighted_blocks(const Rows& rows, typename Search::Block* block) noexcept {
    constexpr std::uint64_t lanes = F32<Arch>::size;
    const F32<Arch> columns(static_cast<float>(rows.columns));
    Search search;
    for (std::uint64_t row = 0; row < rows.rows; row += lanes) {
        const std::uint64_t count = rows.rows - row < lanes ? rows.rows - row : lanes;
        const float* values = rows.values + row * rows.columns;
        const auto place = [&](std::size_t lane) {
            return values + (lane < count ? lane : 0) * rows.columns;
        };
        alignas(k_alignment) float variances[lanes];
        quotient<Arch>(sum_squares<Arch>(place, rows.columns), columns).store_aligned(variances);
        encode_rows<Arch>(values, count, rows.columns, rows.importance, variances, search, block);
        block += count * rows.columns / k_block;
    }
}

/// `Stages` without importance, `Search` with it.
template <class Arch, class Stages, class Search>
void encode_blocks(const Rows& rows, std::byte* const* planes) noexcept {
    if (rows.importance != nullptr) {
        encode_weighted_blocks<Arch, Search>(rows,
                                             reinterpret_cast<typename Search::Block*>(planes[0]));
    } else {
        encode_blocks<Arch, Stages>(rows, planes);
    }
}

}  // namespace phiquant::kernels
