// What the searches of quality "best" work on: sixteen sub-blocks, one lane each, with the weights
// of their values' squared errors.
#pragma once

#include "kernels/simd.hpp"
#include "kernels/table.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels::best {

/// Sub-blocks that are searched together: the lanes of the widest batch, and one or two
/// super-blocks. Every sub-block's sums are its lane's own, so that no result depends on the width.
inline constexpr std::size_t k_together = 16;

// No format holds larger values; up to here sums of squares stay finite, and nothing is a NaN.
inline constexpr float k_largest_value = 65504.0f * 128.0f * 64.0f;

/// 16 numbers, one a sub-block.
struct PerSubBlock {
    alignas(k_alignment) float of[k_together];
};

template <class Arch>
XSIMD_INLINE bool is_finite(float value) noexcept {
    return __builtin_fabsf(value) <= 3.4e38f;
}

/// Inverse of a scale, 0 for 0. Finite, so that it makes 0 of 0.
template <class Arch>
XSIMD_INLINE F32<Arch> inverse_of(F32<Arch> scale) noexcept {
    const F32<Arch> zero(0.0f), one(1.0f), most(3.0e38f);
    const auto is_zero = scale == zero;
    const F32<Arch> inverse = quotient<Arch>(one, xsimd::select(is_zero, one, scale));
    return xsimd::select(is_zero, zero, xsimd::min(xsimd::max(inverse, -most), most));
}

/// The nearest integer, ties to even, within low..high.
template <class Arch>
XSIMD_INLINE F32<Arch> round_within(F32<Arch> value, float low, float high) noexcept {
    const F32<Arch> within = xsimd::min(xsimd::max(value, F32<Arch>(low)), F32<Arch>(high));
    if constexpr (k_has_integer_extremes<Arch>) {
        return nearest_even<Arch>(within);
    } else {
        return (within + F32<Arch>(k_magic)) - F32<Arch>(k_magic);
    }
}

template <class Arch, std::size_t size>
class Tile {
public:
    using Batch = F32<Arch>;
    static constexpr std::size_t lanes = Batch::size;
    static constexpr std::size_t groups = k_together / lanes;
    static constexpr std::size_t values = k_together * size;

    /// `weights` may be null: all values count alike then.
    void load(const float* from, const float* weights) noexcept {
        magnitude_ = 0.0f;
        for (std::size_t g = 0; g < groups; ++g) {
            const std::size_t first = g * lanes * size;
            transpose_sub_blocks<Arch, size>(from + first, x_[g], 1);
            if (weights != nullptr) {
                transpose_sub_blocks<Arch, size>(weights + first, w_[g], 1);
            } else {
                for (Batch& w : w_[g]) w = Batch(1.0f);
            }
            Batch most(0.0f);
            for (const Batch& x : x_[g]) most = xsimd::max(most, xsimd::abs(x));
            const float here = xsimd::reduce_max(most);
            magnitude_ = here > magnitude_ ? here : magnitude_;
        }
    }

    [[nodiscard]] float magnitude() const noexcept { return magnitude_; }
    [[nodiscard]] const Batch* x(std::size_t g) const noexcept { return x_[g]; }
    [[nodiscard]] const Batch* w(std::size_t g) const noexcept { return w_[g]; }

    /// Weighted squared errors of values decoded from elsewhere.
    void measure(const float* decoded, PerSubBlock& errors) const noexcept {
        for (std::size_t g = 0; g < groups; ++g) {
            Batch y[size];
            transpose_sub_blocks<Arch, size>(decoded + g * lanes * size, y, 1);
            Batch error(0.0f);
            for (std::size_t i = 0; i < size; ++i) {
                const Batch off = y[i] - x_[g][i];
                error = error + w_[g][i] * off * off;
            }
            error.store_aligned(errors.of + g * lanes);
        }
    }

private:
    Batch x_[groups][size], w_[groups][size];
    float magnitude_ = 0.0f;
};

/// Sum over the sub-blocks of super-block `b`, in their order.
template <class Arch, std::size_t count>
float total(const PerSubBlock& each, std::size_t b) noexcept {
    float sum = 0.0f;
    for (std::size_t j = 0; j < count; ++j) sum += each.of[b * count + j];
    return sum;
}

/// Encode with the format's own rule, then replace the blocks for which the search finds better
/// ones. `Search::run` leaves what it found of each block, `write` stores it.
template <class Arch, class Format>
void encode(const Rows& rows, std::byte* const* planes) noexcept {
    using Block = typename Format::Block;
    constexpr std::size_t size = Format::sub_block, each = Format::sub_blocks;
    constexpr std::size_t block_values = size * each, unit = k_together / each;
    using Values = Tile<Arch, size>;

    const Kernel& reference = Format::template reference<Arch>();
    reference.encode(rows, planes);
    auto* blocks = reinterpret_cast<Block*>(planes[0]);
    const std::uint64_t count = rows.rows * rows.columns / block_values;
    const std::uint64_t row_blocks = rows.columns / block_values;
    Values tile;
    typename Format::template Search<Arch> search;
    alignas(k_alignment) float weights[Values::values], decoded[Values::values];
    alignas(k_alignment) float padded[Values::values] = {};
    for (std::uint64_t first = 0; first < count; first += unit) {
        const std::size_t here =
            count - first < unit ? static_cast<std::size_t>(count - first) : unit;
        const float* values = rows.values + first * block_values;
        if (here < unit) {
            std::memset(padded, 0, sizeof(padded));
            std::memset(weights, 0, sizeof(weights));
            std::memset(decoded, 0, sizeof(decoded));
            std::memcpy(padded, values, here * block_values * sizeof(float));
            values = padded;
        }
        if (rows.importance != nullptr) {
            std::uint64_t column = first % row_blocks;
            for (std::size_t b = 0; b < here; ++b) {
                std::memcpy(weights + b * block_values, rows.importance + column * block_values,
                            block_values * sizeof(float));
                if (++column == row_blocks) column = 0;
            }
        }
        tile.load(values, rows.importance != nullptr ? weights : nullptr);
        if (!(tile.magnitude() <= k_largest_value)) continue;

        PerSubBlock known;
        const auto* plane = reinterpret_cast<const std::byte*>(blocks + first);
        reference.decode(&plane, here * block_values, decoded);
        tile.measure(decoded, known);
        search.run(tile);
        for (std::size_t b = 0; b < here; ++b) {
            // Not where the errors are equal, nor where one is a NaN.
            if (search.error(b) < total<Arch, each>(known, b)) {
                search.write(b, values + b * block_values, blocks[first + b]);
            }
        }
    }
}

}  // namespace phiquant::kernels::best
