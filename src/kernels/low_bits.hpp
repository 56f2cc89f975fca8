// Q1_0 (a sign a value), Q2_0, TQ1_0 and TQ2_0 (three levels a value): one scale a block, no
// search.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/narrowing.hpp"
#include "kernels/point_decode.hpp"
#include "kernels/small_blocks.hpp"
#include "kernels/table.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

template <class Arch>
XSIMD_INLINE float largest_magnitude(const float* values, std::size_t count) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    F32<Arch> most[2] = {F32<Arch>(0.0f), F32<Arch>(0.0f)};
    for (std::size_t i = 0; i < count; i += 2 * lanes) {
        most[0] = xsimd::max(most[0], xsimd::abs(F32<Arch>::load_unaligned(values + i)));
        most[1] = xsimd::max(most[1], xsimd::abs(F32<Arch>::load_unaligned(values + i + lanes)));
    }
    return xsimd::reduce_max(xsimd::max(most[0], most[1]));
}

/// Values over the block's largest as -1, 0 or 1, halves away from zero, plus 1.
template <class Arch>
XSIMD_INLINE I32<Arch> three_levels(const float* values, float inverse) noexcept {
    const F32<Arch> ratio = F32<Arch>::load_unaligned(values) * F32<Arch>(inverse);
    // As roundf: the float below a half keeps 0.49999997 from 1.
    const F32<Arch> away = ratio + xsimd::copysign(F32<Arch>(0x1.fffffep-2f), ratio);
    return xsimd::batch_cast<std::int32_t>(away) + I32<Arch>(1);
}

// Q1_0 ------------------------------------------------------------------------------------------

inline constexpr std::size_t k_q1_0_values = 128;

/// Means of magnitudes, summed in the values' order, one lane a block.
template <class Arch>
XSIMD_INLINE void mean_magnitudes(const float* values, float* means) noexcept {
    using Batch = F32<Arch>;
    Batch x[k_q1_0_values];
    transpose_sub_blocks<Arch, k_q1_0_values>(values, x, 1);
    Batch sum(0.0f);
    for (const Batch& value : x) sum = sum + xsimd::abs(value);
    (sum * Batch(1.0f / 128.0f)).store_aligned(means);
}

template <class Arch>
XSIMD_INLINE void pack_signs(const float* values, std::uint8_t* bits) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    for (std::size_t i = 0; i < k_q1_0_values; i += 32) {
        std::uint32_t word = 0;
        for (std::size_t p = 0; p < 32; p += lanes) {
            const auto set = F32<Arch>::load_unaligned(values + i + p) >= F32<Arch>(0.0f);
            word |= static_cast<std::uint32_t>(set.mask()) << p;
        }
        std::memcpy(bits + i / 8, &word, sizeof(word));
    }
}

template <class Arch>
void encode_rows(const Rows& rows, BlockQ10* block) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    const float* values = rows.values;
    std::uint64_t left = rows.rows * rows.columns / k_q1_0_values;
    alignas(k_alignment) float means[lanes];
    while (left >= lanes) {
        mean_magnitudes<Arch>(values, means);
        for (std::size_t b = 0; b < lanes; ++b, ++block, values += k_q1_0_values) {
            block->scale = float_to_half(means[b]);
            pack_signs<Arch>(values, block->bits);
        }
        left -= lanes;
    }
    for (; left > 0; --left, ++block, values += k_q1_0_values) {
        float sum = 0.0f;
        for (std::size_t i = 0; i < k_q1_0_values; ++i) sum += __builtin_fabsf(values[i]);
        block->scale = float_to_half(sum / 128.0f);
        pack_signs<Arch>(values, block->bits);
    }
}

template <class Arch>
void decode_values(const BlockQ10* block, std::uint64_t values, float* out) noexcept {
    using Integers = I32<Arch>;
    alignas(k_alignment) static constexpr std::int32_t shifts[16] = {
        31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16};
    for (std::uint64_t left = values / k_q1_0_values; left > 0; --left, ++block) {
        const float scale = half_to_float(block->scale);
        const F32<Arch> negative(-scale);
        for (std::size_t i = 0; i < k_q1_0_values; i += Integers::size, out += Integers::size) {
            // Each value's bit to the sign, which turns -scale around.
            std::uint16_t word = block->bits[i / 8];
            if constexpr (Integers::size == 16) std::memcpy(&word, block->bits + i / 8, 2);
            const Integers moved = Integers(word >> (Integers::size == 4 ? i % 8 : 0))
                                   << Integers::load_aligned(shifts);
            const Integers sign = moved & Integers(__builtin_bit_cast(std::int32_t, 0x80000000u));
            float_of_bits<Arch>(bits_of<Arch>(negative) ^ sign).store_unaligned(out);
        }
    }
}

// Q2_0 ------------------------------------------------------------------------------------------

inline constexpr std::size_t k_q2_0_values = 64;

template <class Arch>
void encode_rows(const Rows& rows, BlockQ20* block) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    const float* values = rows.values;
    for (std::uint64_t left = rows.rows * rows.columns / k_q2_0_values; left > 0; --left, ++block) {
        const float scale = largest_magnitude<Arch>(values, k_q2_0_values);
        const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        block->scale = float_to_half(scale);
        if (inverse > __FLT_MAX__) {
            // The reference's casts of infinities and NaNs give the least code.
            std::memset(block->codes, 0, sizeof(block->codes));
            values += k_q2_0_values;
            continue;
        }
        alignas(k_alignment) std::uint8_t codes[k_q2_0_values];
        for (std::size_t half = 0; half < 2; ++half) {
            I32<Arch> rounded[32 / lanes];
            for (I32<Arch>& each : rounded) {
                each = three_levels<Arch>(values, inverse);
                values += lanes;
            }
            store_32_bytes<Arch>(rounded, codes + half * 32);
        }
        for (std::size_t i = 0; i < 16; i += 2) {
            std::uint64_t word = EightBytes::load<Arch>(codes + i * 4);
            word |= word >> 6;
            word |= word >> 12;
            block->codes[i] = static_cast<std::uint8_t>(word);
            block->codes[i + 1] = static_cast<std::uint8_t>(word >> 32);
        }
    }
}

static constexpr PointTable k_q2_0_levels({-1, 0, 1, 2, -1, 0, 1, 2});

template <class Arch>
void decode_values(const BlockQ20* block, std::uint64_t values, float* out) noexcept {
    for (std::uint64_t left = values / k_q2_0_values; left > 0; --left, ++block) {
        const float scale = half_to_float(block->scale);
        for (std::size_t i = 0; i < sizeof(block->codes); i += 4, out += 16) {
            std::uint16_t words[2];
            std::memcpy(words, block->codes + i, sizeof(words));
            decode_points<Arch, 2>(words[0], words[1], k_q2_0_levels, scale, 0, out);
        }
    }
}

// TQ1_0, TQ2_0 ----------------------------------------------------------------------------------

/// The scale of 256 values, and its inverse; 0 where that overflows, as the reference's casts of
/// infinities and NaNs come to level 0.
template <class Arch>
XSIMD_INLINE float ternary_inverse(const float* values, std::uint16_t& scale) noexcept {
    const float largest = largest_magnitude<Arch>(values, k_super_block);
    scale = float_to_half(largest);
    const float inverse = largest != 0.0f ? 1.0f / largest : 0.0f;
    return inverse > __FLT_MAX__ ? 0.0f : inverse;
}

template <class Arch>
void encode_rows(const Rows& rows, BlockTQ20* block) noexcept {
    using Integers = I32<Arch>;
    constexpr std::size_t lanes = Integers::size;
    const float* values = rows.values;
    for (std::uint64_t left = rows.rows * rows.columns / k_super_block; left > 0; --left, ++block) {
        const float inverse = ternary_inverse<Arch>(values, block->scale);
        for (std::size_t half = 0; half < 2; ++half, values += 128) {
            Integers joined[32 / lanes];
            for (std::size_t p = 0; p < 32 / lanes; ++p) {
                const float* first = values + p * lanes;
                const Integers codes = three_levels<Arch>(first, inverse) |
                                       three_levels<Arch>(first + 32, inverse) << 2 |
                                       three_levels<Arch>(first + 64, inverse) << 4;
                const Integers bits = codes | three_levels<Arch>(first + 96, inverse) << 6;
                joined[p] = bits << 24 >> 24;  // signed bytes, as narrowing wants them
            }
            store_32_bytes<Arch>(joined, block->codes + half * 32);
        }
    }
}

template <class Arch>
void decode_values(const BlockTQ20* block, std::uint64_t values, float* out) noexcept {
    using Integers = I32<Arch>;
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const F32<Arch> scale(half_to_float(block->scale));
        for (std::size_t i = 0; i < k_super_block; i += Integers::size, out += Integers::size) {
            const Integers codes = load_widened<Arch>(block->codes + i / 128 * 32 + i % 32) >>
                                   static_cast<int>(i % 128 / 32 * 2);
            const Integers level = (codes & Integers(3)) - Integers(1);
            (xsimd::batch_cast<float>(level) * scale).store_unaligned(out);
        }
    }
}

/// Base-3 numbers below 243 to bytes: q · 256 / 243, rounded up. For all of them a product with 270
/// and a shift by 16 do what a division by 243 would.
template <class Arch>
XSIMD_INLINE I32<Arch> fraction_bytes(I32<Arch> number) noexcept {
    const I32<Arch> excess = (number * I32<Arch>(13) + I32<Arch>(242)) * I32<Arch>(270) >> 16;
    return (number + excess) << 24 >> 24;  // signed bytes, as narrowing wants them
}

template <class Arch>
void encode_rows(const Rows& rows, BlockTQ10* block) noexcept {
    using Integers = I32<Arch>;
    constexpr std::size_t lanes = Integers::size;
    const Integers three(3);
    const float* values = rows.values;
    for (std::uint64_t left = rows.rows * rows.columns / k_super_block; left > 0; --left, ++block) {
        const float inverse = ternary_inverse<Arch>(values, block->scale);
        const auto number = [&](const float* first, std::size_t stride) {
            Integers sum = three_levels<Arch>(first, inverse);
            for (std::size_t n = 1; n < 5; ++n) {
                sum = sum * three + three_levels<Arch>(first + n * stride, inverse);
            }
            return fraction_bytes<Arch>(sum);
        };
        Integers bytes[32 / lanes];
        for (std::size_t p = 0; p < 32 / lanes; ++p) bytes[p] = number(values + p * lanes, 32);
        store_32_bytes<Arch>(bytes, block->fives);
        alignas(k_alignment) std::uint8_t rest[32];
        for (std::size_t p = 0; p < 32 / lanes; ++p) {
            // Only 16 bytes are left: the second half repeats them.
            bytes[p] = number(values + 160 + p * lanes % 16, 16);
        }
        store_32_bytes<Arch>(bytes, rest);
        std::memcpy(block->fives + 32, rest, 16);
        for (std::size_t i = 0; i < 4; ++i) {
            unsigned sum = 0;
            for (std::size_t n = 0; n < 4; ++n) {
                const float ratio = values[240 + i + n * 4] * inverse;
                sum = sum * 3 + (ratio >= 0.5f ? 2u : ratio <= -0.5f ? 0u : 1u);
            }
            // The first value's digit is the most significant of five.
            block->fours[i] = static_cast<std::uint8_t>((sum * 3 * 256 + 242) / 243);
        }
        values += k_super_block;
    }
}

template <class Arch>
void decode_values(const BlockTQ10* block, std::uint64_t values, float* out) noexcept {
    static constexpr unsigned powers[5] = {1, 3, 9, 27, 81};
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const F32<Arch> scale(half_to_float(block->scale));
        // A byte is a fraction whose next digit is the integral part of three times it.
        const auto digits = [&](const std::uint8_t* bytes, std::size_t count, std::size_t n) {
            alignas(k_alignment) float levels[32];
            for (std::size_t i = 0; i < count; ++i) {
                const unsigned rest = bytes[i] * powers[n] & 255u;
                levels[i] = static_cast<float>(static_cast<int>(rest * 3 >> 8) - 1);
            }
            for (std::size_t i = 0; i < count; i += F32<Arch>::size) {
                const F32<Arch> level = F32<Arch>::load_aligned(levels + i);
                (level * scale).store_aligned(levels + i);
            }
            std::memcpy(out, levels, count * sizeof(float));
            out += count;
        };
        for (std::size_t n = 0; n < 5; ++n) digits(block->fives, 32, n);
        for (std::size_t n = 0; n < 5; ++n) digits(block->fives + 32, 16, n);
        for (std::size_t n = 0; n < 4; ++n) digits(block->fours, 4, n);
    }
}

}  // namespace phiquant::kernels
