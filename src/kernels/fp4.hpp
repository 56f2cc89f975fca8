// MXFP4 and NVFP4: 4-bit floats (E2M1) with a shared scale, a power of two for 32 values or an
// 8-bit float for 16.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/largest.hpp"
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
XSIMD_INLINE void shared_exponents(F32<Arch> value, std::int32_t* out) noexcept {
    using Integers = I32<Arch>;
    if (!xsimd::all(value >= F32<Arch>(0x1p-126f))) {
        alignas(k_alignment) float largest[Integers::size];
        value.store_aligned(largest);
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

// Between the levels' middles and the scales' products with them (7 bits) lie many floats. So
// magnitudes may be rounded up to 13 bits, and then be divided by way of a reciprocal: it is a bit
// too small, so that quotients at a middle come out below it, where the lower level counts.
inline constexpr float k_just_below_one = 1.0f - 0x1p-15f;

/// Codes of one batch of values: with their magnitudes over the scale, the nearest of 0, 1, 2, 3,
/// 4, 6, 8 and 12, the lower one of two as near; 8 more for the sign, of zeros too. `inverse` is
/// k_just_below_one over the scale.
template <class Arch>
XSIMD_INLINE I32<Arch> nearest_e2m1(F32<Arch> value, F32<Arch> inverse) noexcept {
    using Integers = I32<Arch>;
    using Unsigned = xsimd::batch<std::uint32_t, Arch>;
    const Integers bits = bits_of<Arch>(value);
    const Integers magnitude = (bits + Integers(0x7ff)) & Integers(0x7ffff800);
    const F32<Arch> ratio = float_of_bits<Arch>(magnitude) * inverse;
    // From 2 on levels have one bit of mantissa, to which half a unit is added. Below 2 they are
    // the integers, as in what follows 2. The formula that does not apply gives less. Either way
    // the codes lie above bit 22, on top of 256.
    const F32<Arch> large =
        float_of_bits<Arch>(bits_of<Arch>(ratio) + Integers((1 << 21) + (2 << 22)));
    const F32<Arch> small = ratio + F32<Arch>(2.5f);
    const F32<Arch> most(__builtin_bit_cast(float, (264 << 22) - 1));
    const F32<Arch> code = smaller_positive<Arch>(larger_positive<Arch>(large, small), most);
    const auto placed = xsimd::bitwise_cast<std::uint32_t>(bits_of<Arch>(code) << 7) >> 1;
    const auto sign = xsimd::bitwise_cast<std::uint32_t>(bits) & Unsigned(0x80000000u);
    return xsimd::bitwise_cast<std::int32_t>((placed | sign) >> 28);
}

/// Join `count` codes each, as bytes: `low` below `high`. Zeros lose their sign.
template <class Arch, std::size_t count>
XSIMD_INLINE void join_e2m1(const std::uint8_t* low, const std::uint8_t* high,
                            std::uint8_t* out) noexcept {
    for (std::size_t i = 0; i < count; i += 8) {
        const std::uint64_t codes =
            EightBytes::load<Arch>(low + i) | EightBytes::load<Arch>(high + i) << 4;
        const std::uint64_t not_zero = codes << 1 | codes << 2 | codes << 3;  // its sign bit
        const std::uint64_t joined = codes & (not_zero | 0x7777777777777777u);
        std::memcpy(out + i, &joined, sizeof(joined));
    }
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

/// Scales are made for this many values together: one by one, their latencies would add up.
inline constexpr std::size_t k_values_together = 1024;

/// The scales, 2^(exponent - 128), of k_values_together values.
template <class Arch>
struct ScalesMXFP4 {
    static constexpr std::size_t count = k_values_together / k_block;
    alignas(k_alignment) std::int32_t exponent[count];
    alignas(k_alignment) float inverse[count];  // k_just_below_one over the scale; 0 for all zero
    bool far;                                   // some distances to levels overflow or underflow

    XSIMD_INLINE explicit ScalesMXFP4(const float* values) noexcept {
        using Integers = I32<Arch>;
        const F32<Arch> zero(0.0f);
        Integers out_of_reach(0);
        for (std::size_t b = 0; b < count; b += F32<Arch>::size) {
            const F32<Arch> most = largest_of_runs<Arch, k_block>(values + b * k_block);
            shared_exponents<Arch>(most, exponent + b);
            const auto exponents = Integers::load_aligned(exponent + b);
            const auto not_zero = most > zero;
            const F32<Arch> power = float_of_bits<Arch>((Integers(255) - exponents) << 23);
            xsimd::select(not_zero, power * F32<Arch>(k_just_below_one), zero)
                .store_aligned(inverse + b);
            const auto reached = (exponents > Integers(0)) & (exponents < Integers(250));
            const Integers some = xsimd::select(reached, Integers(0), Integers(1));
            out_of_reach =
                out_of_reach |
                xsimd::select(xsimd::batch_bool_cast<std::int32_t>(not_zero), some, Integers(0));
        }
        far = xsimd::any(out_of_reach != Integers(0));
    }

    float scale(std::size_t b) const noexcept {
        return half_power(static_cast<std::uint32_t>(exponent[b]));
    }
};

/// Blocks whose codes `round` makes: of the batch from value `i` on, which is in block `b`.
template <class Arch, class Round>
XSIMD_INLINE void store_blocks(const ScalesMXFP4<Arch>& scales, Round round,
                               BlockMXFP4* block) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    for (std::size_t b = 0; b < scales.count; ++b) {
        I32<Arch> codes[k_block / lanes];
        for (std::size_t p = 0; p < k_block / lanes; ++p) {
            codes[p] = round(b * k_block + p * lanes, b);
        }
        alignas(k_alignment) std::uint8_t bytes[k_block];
        store_32_bytes<Arch>(codes, bytes);
        join_e2m1<Arch, 16>(bytes, bytes + 16, block[b].nibbles);
        block[b].exponent = static_cast<std::uint8_t>(scales.exponent[b]);
    }
}

/// The scales of k_values_together values.
template <class Arch>
struct ScalesNVFP4 {
    static constexpr std::size_t count = k_values_together / 16;
    alignas(k_alignment) std::int32_t stored[count];
    alignas(k_alignment) float inverse[count];  // k_just_below_one over the scale, or 0
    bool far;  // scales end at 448: of values far beyond, the reference rounds all distances alike

    XSIMD_INLINE explicit ScalesNVFP4(const float* values) noexcept {
        const F32<Arch> zero(0.0f);
        F32<Arch> largest = zero;
        for (std::size_t i = 0; i < count; i += F32<Arch>::size) {
            const F32<Arch> most = largest_of_runs<Arch, 16>(values + i * 16);
            largest = xsimd::max(largest, most);
            const I32<Arch> code = encode_e4m3<Arch>(quotient<Arch>(most, F32<Arch>(6.0f)));
            const F32<Arch> normal = float_of_bits<Arch>((code << 20) + I32<Arch>(119 << 23));
            const F32<Arch> subnormal = xsimd::batch_cast<float>(code) * F32<Arch>(0x1p-10f);
            const auto small = xsimd::batch_bool_cast<float>(code < I32<Arch>(8));
            const F32<Arch> scales = xsimd::select(small, subnormal, normal);
            // With a zero scale all levels are equally near, and the first one counts.
            const F32<Arch> inverses = xsimd::select(
                scales > zero, quotient<Arch>(F32<Arch>(k_just_below_one), scales), zero);
            code.store_aligned(stored + i);
            inverses.store_aligned(inverse + i);
        }
        far = xsimd::any(largest > F32<Arch>(0x1p30f));
    }

    float scale(std::size_t i) const noexcept {
        return decode_e4m3(static_cast<std::uint32_t>(stored[i]));
    }
};

/// The same, of sub-blocks `j`.
template <class Arch, class Round>
XSIMD_INLINE void store_blocks(const ScalesNVFP4<Arch>& scales, Round round,
                               BlockNVFP4* block) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    for (std::size_t j = 0; j < scales.count; j += 2) {
        I32<Arch> codes[32 / lanes];
        for (std::size_t p = 0; p < 16 / lanes; ++p) {
            codes[p] = round(j * 16 + p * lanes, j);
            codes[p + 16 / lanes] = round(j * 16 + 16 + p * lanes, j + 1);
        }
        alignas(k_alignment) std::uint8_t bytes[32];
        store_32_bytes<Arch>(codes, bytes);
        BlockNVFP4& out = block[j / 4];
        const std::size_t first = j % 4;
        join_e2m1<Arch, 8>(bytes, bytes + 8, out.nibbles + first * 8);
        join_e2m1<Arch, 8>(bytes + 16, bytes + 24, out.nibbles + first * 8 + 8);
        out.scales[first] = static_cast<std::uint8_t>(scales.stored[j]);
        out.scales[first + 1] = static_cast<std::uint8_t>(scales.stored[j + 1]);
    }
}

// Not inlined: the compiler would otherwise keep this one's constants in registers, not those of
// the usual way.
template <class Arch, class Scales, class Block>
[[gnu::noinline]] void encode_far(const Scales& scales, const float* values,
                                  Block* block) noexcept {
    const auto round = [&](std::size_t i, std::size_t j) {
        return search_e2m1<Arch>(F32<Arch>::load_unaligned(values + i), scales.scale(j));
    };
    store_blocks<Arch>(scales, round, block);
}

/// k_values_together values.
template <class Arch, class Scales, class Block>
XSIMD_INLINE void encode_together(const float* values, Block* block) noexcept {
    const Scales scales(values);
    if (scales.far) return encode_far<Arch>(scales, values, block);
    const auto round = [&](std::size_t i, std::size_t j) {
        return nearest_e2m1<Arch>(F32<Arch>::load_unaligned(values + i),
                                  F32<Arch>(scales.inverse[j]));
    };
    store_blocks<Arch>(scales, round, block);
}

template <class Arch, class Scales, std::size_t size, class Block>
XSIMD_INLINE void encode_fp4(const Rows& rows, Block* block) noexcept {
    constexpr std::size_t together = k_values_together / size;
    const float* values = rows.values;
    std::uint64_t left = rows.rows * rows.columns / size;
    for (; left >= together; left -= together) {
        // The first look at a unit would wait for memory with little to do meanwhile.
        if (left >= 2 * together) prefetch<Arch>(values + k_values_together, k_values_together);
        encode_together<Arch, Scales>(values, block);
        values += k_values_together;
        block += together;
    }
    if (left == 0) return;
    const std::size_t count = static_cast<std::size_t>(left);
    alignas(k_alignment) float padded[k_values_together] = {};
    std::memcpy(padded, values, count * size * sizeof(float));
    Block blocks[together];
    encode_together<Arch, Scales>(padded, blocks);
    std::memcpy(block, blocks, count * sizeof(Block));
}

template <class Arch>
void encode_rows(const Rows& rows, BlockMXFP4* block) noexcept {
    encode_fp4<Arch, ScalesMXFP4<Arch>, k_block>(rows, block);
}

template <class Arch>
void encode_rows(const Rows& rows, BlockNVFP4* block) noexcept {
    encode_fp4<Arch, ScalesNVFP4<Arch>, 64>(rows, block);
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
            const float scale = decode_e4m3(block->scales[j]);
            if constexpr (F32<Arch>::size == 8) {
                const I32<Arch> pair = load_widened<Arch>(block->nibbles + j * 8);
                const auto low = lookup_16<Arch>(k_e2m1_levels, pair & I32<Arch>(15));
                const auto high = lookup_16<Arch>(k_e2m1_levels, pair >> 4);
                (low * F32<Arch>(scale)).store_unaligned(out);
                (high * F32<Arch>(scale)).store_unaligned(out + 8);
            } else {
                decode_e2m1<Arch>(block->nibbles + j * 8, 8, scale, out);
            }
        }
    }
}

}  // namespace phiquant::kernels
