// MXFP4 and NVFP4: 4-bit floats (E2M1) with a shared scale, a power of two for 32 values or an
// 8-bit float for 16.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/lookup.hpp"
#include "kernels/narrowing.hpp"
#include "kernels/small_blocks.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

/// Twice the numbers of E2M1, as ggml has them; its scales are half the formats'.
alignas(k_alignment) static constexpr float k_e2m1_levels[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                                 0, -1, -2, -3, -4, -6, -8, -12};

/// ggml's halved E4M3 without sign.
static constexpr float decode_e4m3(std::uint32_t code) noexcept {
    if (code == 0 || code == 0x7f) return 0.0f;
    const std::uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
    if (exponent == 0) return static_cast<float>(mantissa) * 0x1p-10f;
    // exponent + 119 = exponent - 7 (its bias) + 127 (float32's) - 1 (the half)
    return __builtin_bit_cast(float, (exponent + 119) << 23 | mantissa << 20);
}

/// Float32 to E4M3 without sign as ggml rounds: halves up, and to 448 from 256 on.
template <class Arch>
XSIMD_INLINE I32<Arch> encode_e4m3(F32<Arch> value) noexcept {
    using Integers = I32<Arch>;
    const F32<Arch> capped = xsimd::min(value, F32<Arch>(448.0f));
    const Integers bits = bits_of<Arch>(capped);
    const Integers rounded = ((bits + Integers(1 << 19)) >> 20) - Integers(120 << 3);
    const Integers normal = xsimd::select(rounded >= Integers(0x78), Integers(0x7e), rounded);
    // Below 2^-6: multiples of 2^-9.
    const F32<Arch> steps = capped * F32<Arch>(512.0f) + F32<Arch>(0.5f);
    const Integers subnormal = xsimd::min(xsimd::batch_cast<std::int32_t>(steps), Integers(7));
    return xsimd::select(bits < Integers(121 << 23), subnormal, normal);
}

/// ggml's halved E8M0: 2^(exponent - 128).
static constexpr float half_power(std::uint32_t exponent) noexcept {
    const std::uint32_t bits = exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23;
    return __builtin_bit_cast(float, bits);
}

/// floor(log2f(largest)) - 2 + 127, cut to 8 bits. Just below a power of two the logarithm, in
/// float32, rounds up to it: the further from 1, the more of the last floats (2^j ln 2 of them,
/// rounded down, with j the exponent of the logarithm that is nearest below).
static constexpr std::uint32_t shared_exponent(float largest) noexcept {
    if (!(largest > 0.0f)) return 0;
    constexpr std::uint32_t rounding_up[7] = {0, 1, 2, 5, 11, 22, 44};
    int exponent = -127;
    if (largest < 0x1p-126f) {
        largest *= 0x1p64f;  // now normal
        exponent -= 64;
    }
    const auto bits = __builtin_bit_cast(std::uint32_t, largest);
    exponent += static_cast<int>(bits >> 23);
    const int next = exponent + 1;
    // From a positive power the next lower float32 logarithm is in the binade below.
    const unsigned size = static_cast<unsigned>(next > 0 ? next - 1 : -next);
    const int j = size == 0 ? 0 : 31 - __builtin_clz(size);
    if ((bits & 0x7fffffu) + rounding_up[j > 6 ? 6 : j] > 0x7fffffu) ++exponent;
    return static_cast<std::uint32_t>(exponent + 125) & 255u;
}

/// shared_exponent of a batch.
template <class Arch>
XSIMD_INLINE void shared_exponents(const float* largest, std::int32_t* out) noexcept {
    using Integers = I32<Arch>;
    const F32<Arch> value = F32<Arch>::load_aligned(largest);
    if (!xsimd::all(value >= F32<Arch>(0x1p-126f))) {
        for (std::size_t i = 0; i < Integers::size; ++i) {
            out[i] = static_cast<std::int32_t>(shared_exponent(largest[i]));
        }
        return;
    }
    const Integers bits = bits_of<Arch>(value);
    const Integers next = (bits >> 23) - Integers(126);
    const Integers size = xsimd::max(next - Integers(1), -next);
    Integers rounding_up(0);
    constexpr int counts[6][2] = {{2, 1}, {4, 2}, {8, 5}, {16, 11}, {32, 22}, {64, 44}};
    for (const auto& [from, count] : counts) {
        rounding_up = xsimd::select(size >= Integers(from), Integers(count), rounding_up);
    }
    // The carry of a mantissa that is close enough to the next power.
    const Integers exponents = ((bits + rounding_up) >> 23) - Integers(2);
    (exponents & Integers(255)).store_aligned(out);
}

/// Codes of one batch of values, whose magnitudes over the scale are `ratio`: the nearest of 0, 1,
/// 2, 3, 4, 6, 8 and 12, the lower one of two as near, then the sign, which zero has not.
template <class Arch>
XSIMD_INLINE I32<Arch> nearest_e2m1(F32<Arch> value, F32<Arch> ratio) noexcept {
    using Integers = I32<Arch>;
    // From 2 on levels have one bit of mantissa; adding just less than half of the rest rounds
    // halves down. Below 2 they are the integers, and the first formula is never above the second.
    const Integers one(1), zero(0);
    const Integers large = ((bits_of<Arch>(ratio) + Integers(0x1fffff)) >> 22) - Integers(254);
    const auto above_half = xsimd::batch_bool_cast<std::int32_t>(ratio > F32<Arch>(0.5f));
    const auto above_middle = xsimd::batch_bool_cast<std::int32_t>(ratio > F32<Arch>(1.5f));
    const Integers small =
        xsimd::select(above_half, one, zero) + xsimd::select(above_middle, one, zero);
    const Integers code = xsimd::min(xsimd::max(large, small), Integers(7));
    const Integers sign = (bits_of<Arch>(value) >> 28) & Integers(8);
    return code | xsimd::select(code > zero, sign, zero);
}

/// The reference's own search, for scales where its distances overflow, underflow or are rounded
/// together.
template <class Arch>
XSIMD_INLINE I32<Arch> search_e2m1(F32<Arch> value, float scale) noexcept {
    I32<Arch> code(0);
    F32<Arch> best = xsimd::abs(value);
    for (int i = 1; i < 16; ++i) {
        const F32<Arch> distance = xsimd::abs(F32<Arch>(k_e2m1_levels[i] * scale) - value);
        const auto nearer = distance < best;
        best = xsimd::select(nearer, distance, best);
        code = xsimd::select(xsimd::batch_bool_cast<std::int32_t>(nearer), I32<Arch>(i), code);
    }
    return code;
}

template <class Arch>
XSIMD_INLINE float largest_of(const float* values, std::size_t count) noexcept {
    F32<Arch> most = xsimd::abs(F32<Arch>::load_unaligned(values));
    for (std::size_t i = F32<Arch>::size; i < count; i += F32<Arch>::size) {
        most = xsimd::max(most, xsimd::abs(F32<Arch>::load_unaligned(values + i)));
    }
    return xsimd::reduce_max(most);
}

/// Scales are made for this many sub-blocks together: one by one, their latencies would add up.
inline constexpr std::size_t k_scales_together = 16;

/// Codes of a block against the scale 2^(exponent - 128).
template <class Arch>
XSIMD_INLINE void encode_mxfp4(const float* values, std::uint32_t exponent,
                               BlockMXFP4& out) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    I32<Arch> codes[k_block / lanes];
    if (exponent > 0 && exponent < 250) {
        // 1 / scale = 2^(128 - exponent): the products are exact, or far below 0.5.
        const F32<Arch> inverse(__builtin_bit_cast(float, (255 - exponent) << 23));
        for (std::size_t p = 0; p < k_block / lanes; ++p) {
            const F32<Arch> x = F32<Arch>::load_unaligned(values + p * lanes);
            codes[p] = nearest_e2m1<Arch>(x, xsimd::abs(x) * inverse);
        }
    } else {
        const float scale = half_power(exponent);
        for (std::size_t p = 0; p < k_block / lanes; ++p) {
            codes[p] = search_e2m1<Arch>(F32<Arch>::load_unaligned(values + p * lanes), scale);
        }
    }
    out.exponent = static_cast<std::uint8_t>(exponent);
    alignas(k_alignment) std::uint8_t bytes[k_block];
    store_32_bytes<Arch>(codes, bytes);
    join_nibbles<Arch, 16>(bytes, bytes + 16, out.nibbles);
}

template <class Arch>
void encode_rows(const Rows& rows, BlockMXFP4* block) noexcept {
    const float* values = rows.values;
    alignas(k_alignment) float largest[k_scales_together] = {};
    alignas(k_alignment) std::int32_t exponents[k_scales_together];
    for (std::uint64_t left = rows.rows * rows.columns / k_block; left > 0;) {
        const std::size_t count =
            left < k_scales_together ? static_cast<std::size_t>(left) : k_scales_together;
        for (std::size_t b = 0; b < count; ++b) {
            largest[b] = largest_of<Arch>(values + b * k_block, k_block);
        }
        for (std::size_t b = 0; b < k_scales_together; b += F32<Arch>::size) {
            shared_exponents<Arch>(largest + b, exponents + b);
        }
        for (std::size_t b = 0; b < count; ++b, ++block, values += k_block) {
            encode_mxfp4<Arch>(values, static_cast<std::uint32_t>(exponents[b]), *block);
        }
        left -= count;
    }
}

/// Codes of 16 values into 16 / lanes batches.
template <class Arch>
XSIMD_INLINE void round_nvfp4(const float* values, float largest, float scale,
                              I32<Arch>* codes) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    // Scales end at 448: of values far beyond, the distances to all levels are rounded together.
    if (largest > 0x1p30f) {
        for (std::size_t p = 0; p < 16 / lanes; ++p) {
            codes[p] = search_e2m1<Arch>(F32<Arch>::load_unaligned(values + p * lanes), scale);
        }
        return;
    }
    // With a zero scale all levels are equally near, and the first one counts. Quotients cannot
    // round to a middle between levels, as scales have so few bits.
    const F32<Arch> divisor(scale == 0.0f ? __builtin_inff() : scale);
    for (std::size_t p = 0; p < 16 / lanes; ++p) {
        const F32<Arch> x = F32<Arch>::load_unaligned(values + p * lanes);
        codes[p] = nearest_e2m1<Arch>(x, quotient<Arch>(xsimd::abs(x), divisor));
    }
}

template <class Arch>
void encode_rows(const Rows& rows, BlockNVFP4* block) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    const float* values = rows.values;
    alignas(k_alignment) float largest[k_scales_together] = {};
    alignas(k_alignment) float scales[k_scales_together];
    alignas(k_alignment) std::int32_t stored[k_scales_together];
    for (std::uint64_t left = rows.rows * rows.columns / 16; left > 0;) {
        const std::size_t count =
            left < k_scales_together ? static_cast<std::size_t>(left) : k_scales_together;
        for (std::size_t b = 0; b < count; ++b) largest[b] = largest_of<Arch>(values + b * 16, 16);
        for (std::size_t b = 0; b < k_scales_together; b += lanes) {
            const F32<Arch> most = F32<Arch>::load_aligned(largest + b);
            const I32<Arch> code = encode_e4m3<Arch>(quotient<Arch>(most, F32<Arch>(6.0f)));
            const F32<Arch> normal = float_of_bits<Arch>((code << 20) + I32<Arch>(119 << 23));
            const F32<Arch> subnormal = xsimd::batch_cast<float>(code) * F32<Arch>(0x1p-10f);
            const auto small = xsimd::batch_bool_cast<float>(code < I32<Arch>(8));
            code.store_aligned(stored + b);
            xsimd::select(small, subnormal, normal).store_aligned(scales + b);
        }
        for (std::size_t b = 0; b < count; b += 4, ++block) {
            for (std::size_t pair = 0; pair < 4; pair += 2, values += 32) {
                I32<Arch> codes[32 / lanes];
                const std::size_t first = b + pair;
                round_nvfp4<Arch>(values, largest[first], scales[first], codes);
                round_nvfp4<Arch>(values + 16, largest[first + 1], scales[first + 1],
                                  codes + 16 / lanes);
                alignas(k_alignment) std::uint8_t bytes[32];
                store_32_bytes<Arch>(codes, bytes);
                join_nibbles<Arch, 8>(bytes, bytes + 8, block->nibbles + pair * 8);
                join_nibbles<Arch, 8>(bytes + 16, bytes + 24, block->nibbles + pair * 8 + 8);
                block->scales[pair] = static_cast<std::uint8_t>(stored[first]);
                block->scales[pair + 1] = static_cast<std::uint8_t>(stored[first + 1]);
            }
        }
        left -= count;
    }
}

/// `half` values from the low nibbles, then `half` from the high ones.
template <class Arch>
XSIMD_INLINE void decode_e2m1(const std::uint8_t* nibbles, std::size_t half, float scale,
                              float* out) noexcept {
    for (std::size_t i = 0; i < half; ++i) {
        out[i] = k_e2m1_levels[nibbles[i] & 15] * scale;
        out[half + i] = k_e2m1_levels[nibbles[i] >> 4] * scale;
    }
}

template <class Arch>
void decode_values(const BlockMXFP4* block, std::uint64_t values, float* out) noexcept {
    using Integers = I32<Arch>;
    for (std::uint64_t left = values / k_block; left > 0; --left, ++block, out += k_block) {
        const F32<Arch> scale(half_power(block->exponent));
        for (std::size_t i = 0; i < 16; i += Integers::size) {
            const Integers pair = load_widened<Arch>(block->nibbles + i);
            const F32<Arch> low = lookup_16<Arch>(k_e2m1_levels, pair & Integers(15));
            const F32<Arch> high = lookup_16<Arch>(k_e2m1_levels, pair >> 4);
            (low * scale).store_unaligned(out + i);
            (high * scale).store_unaligned(out + 16 + i);
        }
    }
}

template <class Arch>
void decode_values(const BlockNVFP4* block, std::uint64_t values, float* out) noexcept {
    for (std::uint64_t left = values / 64; left > 0; --left, ++block) {
        for (std::size_t j = 0; j < 4; ++j, out += 16) {
            decode_e2m1<Arch>(block->nibbles + j * 8, 8, decode_e4m3(block->scales[j]), out);
        }
    }
}

}  // namespace phiquant::kernels
