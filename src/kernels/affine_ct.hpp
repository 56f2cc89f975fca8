// The rule of compressed-tensors, which checkpoints for transformers and vLLM are made with.
#pragma once

#include "kernels/mlx_floats.hpp"

namespace phiquant::kernels {

/// What a scale of zero becomes: the epsilon of its type.
static inline float ct_least(AffineScale type) noexcept {
    return type == AffineScale::f16 ? 0x1p-10f : type == AffineScale::bf16 ? 0x1p-7f : 0x1p-23f;
}

/// Scale, and zero point as a code.
struct CtParameters {
    float scale, zero;
};

/// Every step's result is a number of the weights' own type, as torch computes it. Symmetric: the
/// codes' whole range, 2^bits - 1 steps, spans twice the largest magnitude. Asymmetric: zero is
/// within the range.
template <AffineScale type>
CtParameters ct_parameters(Extremes range, unsigned bits, bool symmetric) noexcept {
    const float middle = static_cast<float>(1u << (bits - 1));
    const float most = static_cast<float>((1u << bits) - 1);
    const float low = range.least < 0.0f ? range.least : 0.0f;
    const float high = range.most > 0.0f ? range.most : 0.0f;
    CtParameters found{0.0f, middle};
    if (symmetric) {
        found.scale = stored_scale((high > -low ? high : -low) / (most / 2), type);
    } else {
        found.scale = stored_scale(stored_scale(high - low, type) / most, type);
        // Signed codes are what the tool rounds; a group of zeros divides zero by zero, and its
        // zero point becomes 0.
        if (found.scale != 0.0f || low != 0.0f) {
            float zero = stored_scale(-middle - stored_scale(low / found.scale, type), type);
            // In this order NaN becomes a code, too: of a range that overflows, to be refused.
            zero = zero > -middle ? zero : -middle;
            zero = zero < middle - 1 ? zero : middle - 1;
            found.zero = ((zero + k_magic) - k_magic) + middle;
        }
    }
    if (found.scale == 0.0f) found.scale = ct_least(type);
    return found;
}

template <class Arch, AffineScale type>
void encode_ct_as(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    const float most = static_cast<float>((1u << grid.bits) - 1);
    const float middle = static_cast<float>(1u << (grid.bits - 1));
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        // Rounding keeps the order, so the extremes need no rounded values.
        Extremes range = extremes_of<Arch>(values, count);
        range = {stored_scale(range.least, type), stored_scale(range.most, type)};
        const CtParameters found = ct_parameters<type>(range, grid.bits, grid.symmetric);
        const float from = found.zero - middle;
        const F32<Arch> step(found.scale), start(from), centre(middle);
        round_codes<Arch>(
            count, most,
            [&](std::uint64_t i) noexcept {
                const auto value = of_type<Arch, type>(F32<Arch>::load_unaligned(values + i));
                const auto at = of_type<Arch, type>(quotient<Arch>(value, step));
                return nearest_even<Arch>(of_type<Arch, type>(at + start)) + centre;
            },
            [&](std::uint64_t i) noexcept {
                const float at = stored_scale(stored_scale(values[i], type) / found.scale, type);
                return ((stored_scale(at + from, type) + k_magic) - k_magic) + middle;
            },
            codes);
        scale = found.scale;
        zero = found.zero;
    };
    // The layout has no short groups; codes behind a row's end are never read.
    for_each_group(grid, rows, out, fit,
                   [](float zero) noexcept { return static_cast<std::uint8_t>(zero); });
}

/// compressed_tensors 0.20 on processors: calculate_qparams of a group's extremes, and quantize.
template <class Arch>
void encode_ct(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    switch (grid.scale) {
        case AffineScale::f16:
            return encode_ct_as<Arch, AffineScale::f16>(grid, rows, out);
        case AffineScale::bf16:
            return encode_ct_as<Arch, AffineScale::bf16>(grid, rows, out);
        case AffineScale::f32:
            return encode_ct_as<Arch, AffineScale::f32>(grid, rows, out);
    }
}

template <class Arch, AffineScale type>
void encode_ct_fp8_as(const AffineGrid& grid, const AffineRows& rows,
                      const AffineCodes& out) noexcept {
    constexpr float most = 448.0f;
    constexpr std::size_t lanes = F32<Arch>::size;
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        const Extremes range = extremes_of<Arch>(values, count);
        const float low = __builtin_fabsf(range.least), high = __builtin_fabsf(range.most);
        scale = stored_scale(stored_scale(low > high ? low : high, type) / most, type);
        if (scale == 0.0f) scale = ct_least(type);
        zero = 0.0f;
        const F32<Arch> step(scale);
        std::int32_t found[lanes];
        for (std::uint64_t i = 0; i < count; i += lanes) {
            const std::uint64_t some = count - i < lanes ? count - i : lanes;
            float padded[lanes] = {};
            std::memcpy(padded, values + i, some * sizeof(float));
            const auto value = of_type<Arch, type>(F32<Arch>::load_unaligned(padded));
            // The tool adds a zero point of 0, too: -0 becomes 0.
            const auto at = of_type<Arch, type>(quotient<Arch>(value, step)) + F32<Arch>(0.0f);
            e4m3_of<Arch>(at).store_unaligned(found);
            for (std::uint64_t k = 0; k < some; ++k) {
                codes[i + k] = static_cast<std::uint8_t>(found[k]);
            }
        }
    };
    for_each_group(grid, rows, out, fit, [](float) noexcept { return std::uint8_t{0}; });
}

/// 8-bit floats (E4M3) of the same tool: the largest magnitude of a group becomes 448.
template <class Arch>
void encode_ct_fp8(const AffineGrid& grid, const AffineRows& rows,
                   const AffineCodes& out) noexcept {
    switch (grid.scale) {
        case AffineScale::f16:
            return encode_ct_fp8_as<Arch, AffineScale::f16>(grid, rows, out);
        case AffineScale::bf16:
            return encode_ct_fp8_as<Arch, AffineScale::bf16>(grid, rows, out);
        case AffineScale::f32:
            return encode_ct_fp8_as<Arch, AffineScale::f32>(grid, rows, out);
    }
}

/// E2M1 codes of ratios: the nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6, of two as near the one with
/// an even code; what is below zero has a sign, also where it becomes zero.
template <class Arch>
XSIMD_INLINE I32<Arch> e2m1_even(F32<Arch> ratio) noexcept {
    using Integers = I32<Arch>;
    const F32<Arch> magnitude = xsimd::abs(ratio);
    const auto counted = [](auto is) noexcept {
        return xsimd::select(xsimd::batch_bool_cast<std::int32_t>(is), Integers(1), Integers(0));
    };
    Integers code = counted(ratio < F32<Arch>(0.0f)) << 3;
    for (const float above : {0.25f, 1.25f, 2.5f, 5.0f}) {
        code = code + counted(magnitude > F32<Arch>(above));
    }
    for (const float from : {0.75f, 1.75f, 3.5f}) {
        code = code + counted(magnitude >= F32<Arch>(from));
    }
    return code;
}

template <class Arch, AffineScale type>
void encode_ct_mxfp4_as(const AffineGrid& grid, const AffineRows& rows,
                        const AffineCodes& out) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        const Extremes range = extremes_of<Arch>(values, count);
        const float low = __builtin_fabsf(range.least), high = __builtin_fabsf(range.most);
        // The power of two below the largest magnitude, or above it from 1.75 times that power on;
        // two less, for codes reach to 6. What is subnormal counts as zero.
        const float largest = stored_scale(low > high ? low : high, type);
        const auto bits = __builtin_bit_cast(std::uint32_t, largest);
        const bool normal = type != AffineScale::f16 || largest >= 0x1p-14f;
        const std::uint32_t power = normal ? (bits + (1u << 21)) >> 23 : 0u;
        const std::uint32_t code = power > 2 ? power - 2 : 0u;
        scale = code == 0 ? 0x1p-127f : __builtin_bit_cast(float, code << 23);
        if (stored_scale(scale, type) == 0.0f) scale = 1.0f;
        zero = 0.0f;
        const F32<Arch> step(scale);
        std::int32_t found[lanes];
        for (std::uint64_t i = 0; i < count; i += lanes) {
            const auto value = of_type<Arch, type>(F32<Arch>::load_unaligned(values + i));
            e2m1_even<Arch>(of_type<Arch, type>(quotient<Arch>(value, step)))
                .store_unaligned(found);
            for (std::size_t k = 0; k < lanes; ++k) {
                codes[i + k] = static_cast<std::uint8_t>(found[k]);
            }
        }
    };
    for_each_group(grid, rows, out, fit, [](float) noexcept { return std::uint8_t{0}; });
}

/// MXFP4 of the same tool: groups of 32 4-bit floats (E2M1) with a power of two.
template <class Arch>
void encode_ct_mxfp4(const AffineGrid& grid, const AffineRows& rows,
                     const AffineCodes& out) noexcept {
    switch (grid.scale) {
        case AffineScale::f16:
            return encode_ct_mxfp4_as<Arch, AffineScale::f16>(grid, rows, out);
        case AffineScale::bf16:
            return encode_ct_mxfp4_as<Arch, AffineScale::bf16>(grid, rows, out);
        case AffineScale::f32:
            return encode_ct_mxfp4_as<Arch, AffineScale::f32>(grid, rows, out);
    }
}

template <class Arch, AffineScale type>
void encode_ct_nvfp4_as(const AffineGrid& grid, const AffineRows& rows,
                        const AffineCodes& out) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        const Extremes range = extremes_of<Arch>(values, count);
        const float low = __builtin_fabsf(range.least), high = __builtin_fabsf(range.most);
        const float largest = stored_scale(low > high ? low : high, type);
        scale = number_of_e4m3(e4m3_of_one<Arch>(grid.global * stored_scale(largest / 6, type)));
        if (scale == 0.0f) scale = 0.125f;  // the epsilon of its type
        zero = 0.0f;
        const F32<Arch> step(scale / grid.global);
        std::int32_t found[lanes];
        for (std::uint64_t i = 0; i < count; i += lanes) {
            const auto value = of_type<Arch, type>(F32<Arch>::load_unaligned(values + i));
            e2m1_even<Arch>(quotient<Arch>(value, step)).store_unaligned(found);
            for (std::size_t k = 0; k < lanes; ++k) {
                codes[i + k] = static_cast<std::uint8_t>(found[k]);
            }
        }
    };
    for_each_group(grid, rows, out, fit, [](float) noexcept { return std::uint8_t{0}; });
}

/// NVFP4 of the same tool: groups of 16 4-bit floats (E2M1) with an 8-bit float (E4M3), which
/// `grid.global` was multiplied into: 2688 over the tensor's largest magnitude, so that scales
/// reach to 448. Scales are those 8-bit floats; divided by `grid.global`, they are in float32.
template <class Arch>
void encode_ct_nvfp4(const AffineGrid& grid, const AffineRows& rows,
                     const AffineCodes& out) noexcept {
    switch (grid.scale) {
        case AffineScale::f16:
            return encode_ct_nvfp4_as<Arch, AffineScale::f16>(grid, rows, out);
        case AffineScale::bf16:
            return encode_ct_nvfp4_as<Arch, AffineScale::bf16>(grid, rows, out);
        case AffineScale::f32:
            return encode_ct_nvfp4_as<Arch, AffineScale::f32>(grid, rows, out);
    }
}

}  // namespace phiquant::kernels
