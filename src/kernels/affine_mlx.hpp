// The rule of mlx.core.quantize, as mlx computes it on processors: codes times a scale, plus a
// bias.
#pragma once

#include "kernels/affine_group.hpp"
#include "kernels/halves.hpp"
#include "kernels/narrowing.hpp"

namespace phiquant::kernels {

/// The nearest numbers of a scale's type. mlx is given weights of that type, so they are rounded,
/// too; which changes nothing where the source has them already.
template <class Arch, AffineScale type>
XSIMD_INLINE F32<Arch> of_type(F32<Arch> value) noexcept {
    using Integers = I32<Arch>;
    if constexpr (type == AffineScale::f16) {
        return floats_of_halves<Arch>(halves_of<Arch>(value) & Integers(0xffff));
    } else if constexpr (type == AffineScale::bf16) {
        return float_of_bits<Arch>(bfloats_of<Arch>(value) << 16);
    } else {
        return value;
    }
}

/// How codes stand for values.
struct MlxParameters {
    float scale, bias;
};

/// Scale and bias before they are rounded to their type: codes are made with these. The bias is the
/// end of the range with the larger magnitude, and zero is a code.
static inline MlxParameters mlx_parameters(Extremes range, float most) noexcept {
    const bool below = __builtin_fabsf(range.least) > __builtin_fabsf(range.most);
    float scale = (range.most - range.least) / most;
    scale = scale > 1e-7f ? scale : 1e-7f;
    scale = below ? scale : -scale;
    const float edge = below ? range.least : range.most;
    const float codes = edge / scale;  // from zero to the edge; at most 2^bits - 1
    const float whole = (codes + k_magic) - k_magic;
    if (whole == 0.0f) return {scale, 0.0f};
    return {edge / whole, edge};
}

/// codes = clamp(round(place(i)), 0, most), halves to even. `place` gives batches; its scalar form
/// serves what is left over, of groups that are no multiple of 32.
template <class Arch, class Place, class PlaceOne>
XSIMD_INLINE void round_codes(std::uint64_t count, float most, const Place& place,
                              const PlaceOne& place_one, std::uint8_t* codes) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size, parts = 32 / lanes;
    // Bytes are stored with a sign.
    const bool wide = most > 127.0f;
    const I32<Arch> shift(wide ? 128 : 0);
    const std::uint64_t back = wide ? 0x8080808080808080u : 0;
    std::uint64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        I32<Arch> found[parts];
        for (std::size_t p = 0; p < parts; ++p) {
            const F32<Arch> code = nearest_code<Arch, Range::limited>(place(i + p * lanes), most);
            found[p] = xsimd::batch_cast<std::int32_t>(code) - shift;
        }
        std::uint64_t bytes[4];
        store_32_bytes<Arch>(found, bytes);
        for (std::uint64_t& word : bytes) word ^= back;
        std::memcpy(codes + i, bytes, sizeof(bytes));
    }
    for (; i < count; ++i) {
        float at = place_one(i);
        at = at > 0.0f ? at : 0.0f;
        at = at < most ? at : most;
        codes[i] = static_cast<std::uint8_t>((at + k_magic) - k_magic);
    }
}

template <class Arch, AffineScale type>
void encode_mlx_as(const AffineGrid& grid, const AffineRows& rows,
                   const AffineCodes& out) noexcept {
    const float most = static_cast<float>((1u << grid.bits) - 1);
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& bias) noexcept {
        // Rounding keeps the order, so the extremes need no rounded values.
        Extremes range = extremes_of<Arch>(values, count);
        range = {stored_scale(range.least, type), stored_scale(range.most, type)};
        const MlxParameters found = mlx_parameters(range, most);
        const F32<Arch> step(found.scale), edge(found.bias);
        round_codes<Arch>(
            count, most,
            [&](std::uint64_t i) noexcept {
                const auto value = of_type<Arch, type>(F32<Arch>::load_unaligned(values + i));
                return quotient<Arch>(value - edge, step);
            },
            [&](std::uint64_t i) noexcept {
                return (stored_scale(values[i], type) - found.bias) / found.scale;
            },
            codes);
        scale = stored_scale(found.scale, type);
        bias = stored_scale(found.bias, type);
    };
    // mlx has no short groups; codes behind a row's end are never read.
    for_each_group(grid, rows, out, fit, [](float) noexcept { return std::uint8_t{0}; });
}

/// mlx.core.quantize's affine mode (mlx 0.32, backend/cpu/quantized.cpp). Metal and CUDA differ in
/// rounding and in groups of one sign.
template <class Arch>
void encode_mlx(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    switch (grid.scale) {
        case AffineScale::f16:
            return encode_mlx_as<Arch, AffineScale::f16>(grid, rows, out);
        case AffineScale::bf16:
            return encode_mlx_as<Arch, AffineScale::bf16>(grid, rows, out);
        case AffineScale::f32:
            return encode_mlx_as<Arch, AffineScale::f32>(grid, rows, out);
    }
}

}  // namespace phiquant::kernels
