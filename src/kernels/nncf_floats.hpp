// The rule of NNCF for small floats, which OpenVINO's nf4, mxfp4 and mxfp8 weights are made with.
#pragma once

#include "kernels/affine_ct.hpp"
#include "kernels/affine_nncf.hpp"

namespace phiquant::kernels {

/// A value's NF4 code is the number of these that are below it: halfway between the levels, as
/// OpenVINO and NNCF (weight_compression/constants.py) both have them.
inline constexpr float k_nf4_middles[15] = {-0.84809643f, -0.6106329f,  -0.45999527f,  -0.33967942f,
                                            -0.2346074f,  -0.13791174f, -0.045525018f, 0.03979015f,
                                            0.120255254f, 0.20352125f,  0.29201376f,   0.38931254f,
                                            0.5016634f,   0.6427869f,   0.8614784f};

template <class Arch>
XSIMD_INLINE I32<Arch> nf4_of(F32<Arch> ratio) noexcept {
    I32<Arch> code(0);
    for (const float middle : k_nf4_middles) {
        const auto above = xsimd::batch_bool_cast<std::int32_t>(ratio > F32<Arch>(middle));
        code = code + xsimd::select(above, I32<Arch>(1), I32<Arch>(0));
    }
    return code;
}

/// The largest magnitude of a group.
static inline float nncf_largest(Extremes range) noexcept {
    const float low = __builtin_fabsf(range.least), high = __builtin_fabsf(range.most);
    const float largest = low > high ? low : high;
    return largest < k_nncf_least ? k_nncf_least : largest;
}

/// Codes of a group's values by `code_of(batch)`.
template <class Arch, class CodeOf>
XSIMD_INLINE void put_codes(const float* values, std::uint64_t count, const CodeOf& code_of,
                            std::uint8_t* codes) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    std::int32_t found[lanes];
    for (std::uint64_t i = 0; i < count; i += lanes) {
        const std::uint64_t some = count - i < lanes ? count - i : lanes;
        float padded[lanes] = {};
        std::memcpy(padded, values + i, some * sizeof(float));
        code_of(F32<Arch>::load_unaligned(padded)).store_unaligned(found);
        for (std::uint64_t k = 0; k < some; ++k) {
            codes[i + k] = static_cast<std::uint8_t>(found[k]);
        }
    }
}

/// NF4: levels from -1 to 1 times the largest magnitude, which is rounded after codes are made.
template <class Arch>
void encode_nncf_nf4(const AffineGrid& grid, const AffineRows& rows,
                     const AffineCodes& out) noexcept {
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        const float largest = nncf_largest(extremes_of<Arch>(values, count));
        const F32<Arch> step(largest);
        put_codes<Arch>(
            values, count,
            [&](F32<Arch> value) noexcept { return nf4_of<Arch>(quotient<Arch>(value, step)); },
            codes);
        scale = stored_scale(largest, grid.scale);
        zero = 0.0f;
    };
    for_each_group(grid, rows, out, fit, [](float) noexcept { return std::uint8_t{0}; });
}

/// MXFP4 (E2M1) or MXFP8 (E4M3): the least power of two with which no value is beyond the codes.
template <class Arch, unsigned bits>
void encode_nncf_mx(const AffineGrid& grid, const AffineRows& rows,
                    const AffineCodes& out) noexcept {
    constexpr float most = bits == 4 ? 6.0f : 448.0f;
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        const float ratio = nncf_largest(extremes_of<Arch>(values, count)) / most;
        scale = power_above(ratio);
        // NNCF divides logarithms in float32 and rounds up: of these two powers of two the quotient
        // is just above the exponent.
        if (ratio == 0x1p-13f || ratio == 0x1p-15f) scale *= 2.0f;
        zero = 0.0f;
        const F32<Arch> inverse(1.0f / scale);
        put_codes<Arch>(
            values, count,
            [&](F32<Arch> value) noexcept {
                if constexpr (bits == 4) {
                    return e2m1_even<Arch>(value * inverse);
                } else {
                    // OpenVINO rounds to a half first, and that to eight bits.
                    return e4m3_of<Arch>(of_type<Arch, AffineScale::f16>(value * inverse));
                }
            },
            codes);
    };
    for_each_group(grid, rows, out, fit, [](float) noexcept { return std::uint8_t{0}; });
}

}  // namespace phiquant::kernels
