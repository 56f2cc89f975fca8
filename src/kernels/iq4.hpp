// IQ4_NL and IQ4_XS: codes name one of 16 unevenly spaced levels; IQ4_XS has super-blocks of 8
// sub-blocks with a 6-bit scale each.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/iq4_levels.hpp"
#include "kernels/lookup.hpp"
#include "kernels/narrowing.hpp"
#include "kernels/small_blocks.hpp"
#include "kernels/table.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

/// Sub-blocks of 32 values that are fitted together: a multiple of every batch, two super-blocks.
inline constexpr std::size_t k_iq4_together = 16;

/// Sixteen sub-blocks, with what the fit needs of them. `values` may be the source itself.
struct Iq4Tile {
    const float* values;
    bool weighted;  ///< whether `importance` and `spread` count
    alignas(k_alignment) float importance[k_iq4_together * k_block];
    alignas(k_alignment) float spread[k_iq4_together];          ///< σ² of the block or super-block
    alignas(k_alignment) float scales[k_iq4_together];          ///< result
    alignas(k_alignment) float copy[k_iq4_together * k_block];  ///< of values, when fewer are left
};

/// The search for the scales (ggml's quantize_row_iq4_nl_impl), one lane a sub-block.
template <class Arch>
class Iq4Search {
    using Batch = F32<Arch>;
    static constexpr std::size_t lanes = Batch::size;
    static constexpr int steps = 7;

public:
    /// `own_spread`: σ² belongs to the sub-block itself, and is not yet known.
    void run(Iq4Tile& tile, bool own_spread) noexcept {
        for (std::size_t b = 0; b < k_iq4_together; b += lanes) {
            load(tile, b, own_spread);
            search().store_aligned(tile.scales + b);
        }
    }

private:
    void load(const Iq4Tile& tile, std::size_t b, bool own_spread) noexcept {
        transpose_sub_blocks<Arch, k_block>(tile.values + b * k_block, x_, 1);
        const Batch zero(0.0f);
        Batch magnitude = zero, largest = zero;
        for (const Batch& x : x_) {
            const Batch here = xsimd::abs(x);
            const auto larger = here > magnitude;  // so that the first of equals wins
            magnitude = xsimd::select(larger, here, magnitude);
            largest = xsimd::select(larger, x, largest);
        }
        negligible_ = magnitude < Batch(1e-15f);
        largest_ = xsimd::select(negligible_, Batch(1.0f), largest);
        if (!tile.weighted) {
            for (std::size_t i = 0; i < k_block; ++i) w_[i] = x_[i] * x_[i];
            return;
        }
        Batch spread = Batch::load_aligned(tile.spread + b);
        if (own_spread) {
            spread = zero;
            for (const Batch& x : x_) spread = spread + x * x;
            spread = spread * Batch(2.0f / 32.0f);
        }
        transpose_sub_blocks<Arch, k_block>(tile.importance + b * k_block, w_, 1);
        for (std::size_t i = 0; i < k_block; ++i) {
            w_[i] = w_[i] * square_root<Arch>(spread + x_[i] * x_[i]);
        }
    }

    XSIMD_INLINE void measure(Batch inverse, Batch& qx, Batch& q2) const noexcept {
        qx = q2 = Batch(0.0f);
        for (std::size_t i = 0; i < k_block; ++i) {
            const Batch level = iq4_levels::nearest<Arch>(inverse * x_[i]);
            const Batch weighted = w_[i] * level;
            qx = qx + weighted * x_[i];
            q2 = q2 + weighted * level;
        }
    }

    Batch search() const noexcept {
        const Batch zero(0.0f);
        Batch qx, q2;
        // -largest / -127 is a division of its own, whose inverse is another float than step 0's.
        const Batch first = quotient<Arch>(-largest_, Batch(iq4_levels::k_levels[0]));
        measure(quotient<Arch>(Batch(1.0f), first), qx, q2);
        Batch scale = xsimd::select(q2 > zero, quotient<Arch>(qx, q2), zero);
        Batch best = scale * qx;
        for (int step = -steps; step <= steps; ++step) {
            const float numerator = static_cast<float>(step) + iq4_levels::k_levels[0];
            measure(quotient<Arch>(Batch(numerator), largest_), qx, q2);
            const auto better = (q2 > zero) & (qx * qx > best * q2);
            const Batch tried = quotient<Arch>(qx, q2);
            scale = xsimd::select(better, tried, scale);
            best = xsimd::select(better, tried * qx, best);
        }
        return xsimd::select(negligible_, zero, scale);
    }

    Batch x_[k_block], w_[k_block];
    Batch largest_;
    xsimd::batch_bool<float, Arch> negligible_;
};

/// Codes of 32 values, two a byte.
template <class Arch>
XSIMD_INLINE void encode_iq4_block(const float* values, float inverse,
                                   std::uint8_t* nibbles) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    I32<Arch> codes[k_block / lanes];
    for (std::size_t p = 0; p < k_block / lanes; ++p) {
        const F32<Arch> x = F32<Arch>::load_unaligned(values + p * lanes);
        codes[p] = iq4_levels::nearest_code<Arch>(F32<Arch>(inverse) * x);
    }
    alignas(k_alignment) std::uint8_t bytes[k_block];
    store_32_bytes<Arch>(codes, bytes);
    join_nibbles<Arch, 16>(bytes, bytes + 16, nibbles);
}

/// The next (at most 16) blocks of 32 values, from block `first` of all on.
template <class Arch>
void fill_tile(const Rows& rows, std::uint64_t first, std::size_t count, Iq4Tile& tile) noexcept {
    tile.values = rows.values + first * k_block;
    tile.weighted = rows.importance != nullptr;
    if (count < k_iq4_together) {
        std::memset(tile.copy, 0, sizeof(tile.copy));
        std::memcpy(tile.copy, tile.values, count * k_block * sizeof(float));
        tile.values = tile.copy;
    }
    if (!tile.weighted) return;
    std::uint64_t column = first * k_block % rows.columns;
    for (std::size_t b = 0; b < k_iq4_together; ++b) {
        std::memcpy(tile.importance + b * k_block, rows.importance + column,
                    k_block * sizeof(float));
        column += k_block;
        if (column == rows.columns) column = 0;
    }
}

template <class Arch>
void encode_rows(const Rows& rows, BlockIQ4NL* block) noexcept {
    Iq4Tile tile;
    Iq4Search<Arch> search;
    const std::uint64_t blocks = rows.rows * rows.columns / k_block;
    for (std::uint64_t first = 0; first < blocks; first += k_iq4_together) {
        const std::uint64_t left = blocks - first;
        const std::size_t count =
            left < k_iq4_together ? static_cast<std::size_t>(left) : k_iq4_together;
        fill_tile<Arch>(rows, first, count, tile);
        search.run(tile, true);
        for (std::size_t b = 0; b < count; ++b, ++block) {
            const float scale = tile.scales[b];
            block->scale = float_to_half(scale);
            encode_iq4_block<Arch>(tile.values + b * k_block, scale != 0.0f ? 1.0f / scale : 0.0f,
                                   block->nibbles);
        }
    }
}

/// One super-block: 8 scales rounded to 6 bits against the largest, and the codes.
template <class Arch>
void encode_iq4_xs_block(const float* values, const float* scales, BlockIQ4XS& out) noexcept {
    float largest = 0.0f, magnitude = 0.0f;
    for (std::size_t j = 0; j < 8; ++j) {
        const float here = __builtin_fabsf(scales[j]);
        if (here > magnitude) {
            magnitude = here;
            largest = scales[j];
        }
    }
    const float unit = -largest / 32.0f;
    const float inverse = unit != 0.0f ? 1.0f / unit : 0.0f;
    out.scale = float_to_half(unit);
    out.scales_high = 0;
    std::memset(out.scales_low, 0, sizeof(out.scales_low));
    for (unsigned j = 0; j < 8; ++j) {
        std::int32_t code = nearest_int(inverse * scales[j]);
        code = code < -32 ? -32 : code > 31 ? 31 : code;
        const float scale = unit * static_cast<float>(code);
        encode_iq4_block<Arch>(values + j * k_block, scale != 0.0f ? 1.0f / scale : 0.0f,
                               out.nibbles + j * 16);
        const auto stored = static_cast<unsigned>(code + 32);
        out.scales_low[j / 2] =
            static_cast<std::uint8_t>(out.scales_low[j / 2] | (stored & 15u) << (4 * (j % 2)));
        out.scales_high = static_cast<std::uint16_t>(out.scales_high | (stored >> 4) << (2 * j));
    }
}

template <class Arch>
void encode_rows(const Rows& rows, BlockIQ4XS* block) noexcept {
    constexpr std::size_t each = k_super_block / k_block;
    Iq4Tile tile;
    Iq4Search<Arch> search;
    const std::uint64_t blocks = rows.rows * rows.columns / k_block;
    for (std::uint64_t first = 0; first < blocks; first += k_iq4_together) {
        const std::uint64_t left = blocks - first;
        const std::size_t count = left < k_iq4_together ? each : k_iq4_together;
        fill_tile<Arch>(rows, first, count, tile);
        if (tile.weighted) {
            // In the values' order: two sums at once are all that the additions' order leaves.
            float sums[2] = {};
            for (std::size_t i = 0; i < k_super_block; ++i) {
                const float* x = tile.values + i;
                sums[0] += x[0] * x[0];
                sums[1] += x[k_super_block] * x[k_super_block];
            }
            for (std::size_t b = 0; b < k_iq4_together; ++b) {
                tile.spread[b] = sums[b / each] * (2.0f / 256.0f);
            }
        }
        search.run(tile, false);
        for (std::size_t b = 0; b < count; b += each, ++block) {
            encode_iq4_xs_block<Arch>(tile.values + b * k_block, tile.scales + b, *block);
        }
    }
}

/// 32 values from their nibbles.
template <class Arch>
XSIMD_INLINE void decode_iq4_block(const std::uint8_t* nibbles, float scale, float* out) noexcept {
    using Integers = I32<Arch>;
    for (std::size_t i = 0; i < 16; i += Integers::size) {
        const Integers pair = load_widened<Arch>(nibbles + i);
        const F32<Arch> low = lookup_16<Arch>(iq4_levels::k_levels, pair & Integers(15));
        const F32<Arch> high = lookup_16<Arch>(iq4_levels::k_levels, pair >> 4);
        (F32<Arch>(scale) * low).store_unaligned(out + i);
        (F32<Arch>(scale) * high).store_unaligned(out + 16 + i);
    }
}

template <class Arch>
void decode_values(const BlockIQ4NL* block, std::uint64_t values, float* out) noexcept {
    for (std::uint64_t left = values / k_block; left > 0; --left, ++block, out += k_block) {
        decode_iq4_block<Arch>(block->nibbles, half_to_float(block->scale), out);
    }
}

template <class Arch>
void decode_values(const BlockIQ4XS* block, std::uint64_t values, float* out) noexcept {
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (unsigned j = 0; j < 8; ++j, out += k_block) {
            const int low = block->scales_low[j / 2] >> (4 * (j % 2)) & 15;
            const int high = block->scales_high >> (2 * j) & 3;
            const float scale = unit * static_cast<float>((low | high << 4) - 32);
            decode_iq4_block<Arch>(block->nibbles + j * 16, scale, out);
        }
    }
}

}  // namespace phiquant::kernels
