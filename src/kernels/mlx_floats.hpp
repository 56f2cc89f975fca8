// mlx.core.quantize's modes of small floats: mxfp4, mxfp8 and nvfp4, as mlx 0.32 computes them on
// processors (ops.cpp, fp_quantize), in the type of the weights.
//
// One difference is on purpose: groups whose scale would be below 2^-127 get that scale, where
// mlx's exponent wraps around to the largest one.
#pragma once

#include "kernels/affine_mlx.hpp"

namespace phiquant::kernels {

/// The power of two at or above a positive number, at least 2^-127.
static inline float power_above(float value) noexcept {
    const auto bits = __builtin_bit_cast(std::uint32_t, value);
    if (bits <= 0x00400000u) return 0x1p-127f;
    if (bits <= 0x00800000u) return 0x1p-126f;
    const std::uint32_t up = (bits & 0x7fffffu) != 0 ? 0x00800000u : 0u;
    return __builtin_bit_cast(float, (bits & 0x7f800000u) + up);
}

/// E4M3's number without sign, of codes up to 0x7e.
static constexpr float number_of_e4m3(std::uint32_t code) noexcept {
    const std::uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
    if (exponent == 0) return static_cast<float>(mantissa) * 0x1p-9f;
    return __builtin_bit_cast(float, (exponent + 120) << 23 | mantissa << 20);
}

/// E4M3 codes of floats, halves to even, the largest number for what is beyond it; zero has a sign.
template <class Arch>
XSIMD_INLINE I32<Arch> e4m3_of(F32<Arch> value) noexcept {
    using Integers = I32<Arch>;
    const Integers bits = bits_of<Arch>(value), magnitude = bits & Integers(0x7fffffff);
    // Below 2^-6 codes are multiples of 2^-9: adding 2^14 leaves their count in the low bits.
    const Integers subnormal =
        bits_of<Arch>(float_of_bits<Arch>(magnitude) + F32<Arch>(0x1p14f)) - Integers(141 << 23);
    const Integers odd = (magnitude >> 20) & Integers(1);
    const Integers normal = (magnitude + odd + Integers(0x7ffff - (120 << 23))) >> 20;
    const Integers code =
        xsimd::select(magnitude < Integers(121 << 23), subnormal,
                      xsimd::select(magnitude < Integers(543 << 21), normal, Integers(0x7e)));
    return code | ((bits >> 24) & Integers(0x80));
}

/// The same of one float.
template <class Arch>
XSIMD_INLINE std::uint32_t e4m3_of_one(float value) noexcept {
    return static_cast<std::uint32_t>(e4m3_of<Arch>(F32<Arch>(value)).get(0));
}

/// E2M1 codes of ratios: the nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6, the smaller one of two as
/// near, and the sign, which zero has not.
template <class Arch>
XSIMD_INLINE I32<Arch> e2m1_of(F32<Arch> ratio) noexcept {
    using Integers = I32<Arch>;
    // From 1 on levels have one bit of mantissa; adding just less than half of the rest rounds
    // halves down. Below 1 they are halves, and the first formula is never above the second.
    const Integers one(1), zero(0);
    const F32<Arch> magnitude = xsimd::abs(ratio);
    const Integers large = ((bits_of<Arch>(magnitude) + Integers(0x1fffff)) >> 22) - Integers(252);
    const auto above_half = xsimd::batch_bool_cast<std::int32_t>(magnitude > F32<Arch>(0.25f));
    const auto above_middle = xsimd::batch_bool_cast<std::int32_t>(magnitude > F32<Arch>(0.75f));
    const Integers small =
        xsimd::select(above_half, one, zero) + xsimd::select(above_middle, one, zero);
    const Integers code = xsimd::min(xsimd::max(large, small), Integers(7));
    const Integers sign = (bits_of<Arch>(ratio) >> 28) & Integers(8);
    return code | xsimd::select(code > zero, sign, zero);
}

template <class Arch, AffineScale type>
struct Mxfp4 {
    static constexpr std::uint64_t group = 32;
    static constexpr float most = 6.0f;
    static float scale_of(float ratio) noexcept {
        return ratio == 0.0f ? 1.0f : power_above(ratio);
    }
    /// Codes of `value` over the scale, whose inverse is exact.
    static XSIMD_INLINE I32<Arch> codes(F32<Arch> value, F32<Arch>, F32<Arch> inverse) noexcept {
        return e2m1_of<Arch>(value * inverse);
    }
};

template <class Arch, AffineScale type>
struct Mxfp8 {
    static constexpr std::uint64_t group = 32;
    static constexpr float most = 448.0f;
    static float scale_of(float ratio) noexcept {
        return ratio == 0.0f ? 1.0f : power_above(ratio);
    }
    static XSIMD_INLINE I32<Arch> codes(F32<Arch> value, F32<Arch>, F32<Arch> inverse) noexcept {
        return e4m3_of<Arch>(value * inverse);
    }
};

template <class Arch, AffineScale type>
struct Nvfp4 {
    static constexpr std::uint64_t group = 16;
    static constexpr float most = 6.0f;
    static float scale_of(float ratio) noexcept { return number_of_e4m3(e4m3_of_one<Arch>(ratio)); }
    /// All zero under a scale of zero, as mlx's argmin over infinities has it.
    static XSIMD_INLINE I32<Arch> codes(F32<Arch> value, F32<Arch> scale, F32<Arch>) noexcept {
        const auto is_zero = scale == F32<Arch>(0.0f);
        const F32<Arch> divisor = xsimd::select(is_zero, F32<Arch>(1.0f), scale);
        const F32<Arch> ratio = of_type<Arch, type>(quotient<Arch>(value, divisor));
        const I32<Arch> code = e2m1_of<Arch>(ratio);
        return xsimd::select(xsimd::batch_bool_cast<std::int32_t>(is_zero), I32<Arch>(0), code);
    }
};

template <class Arch, AffineScale type, template <class, AffineScale> class Format>
void encode_mlx_float_as(const AffineRows& rows, const AffineCodes& out) noexcept {
    using Mode = Format<Arch, type>;
    constexpr std::size_t lanes = F32<Arch>::size, parts = 32 / lanes, group = Mode::group;
    constexpr std::size_t groups = 32 / group;  // that are stored together
    const std::uint64_t count = rows.rows * rows.columns / 32;
    const float* values = rows.values;
    for (std::uint64_t block = 0; block < count; ++block, values += 32) {
        I32<Arch> found[parts];
        for (std::size_t g = 0; g < groups; ++g) {
            const std::size_t first = g * group / lanes;
            F32<Arch> x[group / lanes], largest(0.0f);
            for (std::size_t p = 0; p < group / lanes; ++p) {
                x[p] = of_type<Arch, type>(F32<Arch>::load_unaligned(values + (first + p) * lanes));
                largest = xsimd::max(largest, xsimd::abs(x[p]));
            }
            const float ratio = stored_scale(xsimd::reduce_max(largest) / Mode::most, type);
            const float scale = Mode::scale_of(ratio);
            const F32<Arch> step(scale), inverse(1.0f / scale);
            for (std::size_t p = 0; p < group / lanes; ++p) {
                found[first + p] = Mode::codes(x[p], step, inverse);
            }
            out.scales[block * groups + g] = scale;
            out.zeros[block * groups + g] = 0.0f;
        }
        // Bytes are stored with a sign.
        for (I32<Arch>& codes : found) codes = codes - I32<Arch>(128);
        std::uint64_t bytes[4];
        store_32_bytes<Arch>(found, bytes);
        for (std::uint64_t& word : bytes) word ^= 0x8080808080808080u;
        std::memcpy(out.codes + block * 32, bytes, sizeof(bytes));
    }
}

/// Rows of a multiple of 32 values. The grid's scale type is that of the weights, which mlx
/// computes in; scales are bytes, E8M0 or E4M3.
template <class Arch, template <class, AffineScale> class Format>
void encode_mlx_float(const AffineGrid& grid, const AffineRows& rows,
                      const AffineCodes& out) noexcept {
    switch (grid.scale) {
        case AffineScale::f16:
            return encode_mlx_float_as<Arch, AffineScale::f16, Format>(rows, out);
        case AffineScale::bf16:
            return encode_mlx_float_as<Arch, AffineScale::bf16, Format>(rows, out);
        case AffineScale::f32:
            return encode_mlx_float_as<Arch, AffineScale::f32, Format>(rows, out);
    }
}

}  // namespace phiquant::kernels
