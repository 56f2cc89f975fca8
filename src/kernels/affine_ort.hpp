// The rule of ONNX Runtime's blockwise quantizer (MLAS): what MatMulNBits weights are made with.
#pragma once

#include "kernels/affine_group.hpp"
#include "kernels/halves.hpp"

namespace phiquant::kernels {

/// Weights as ONNX Runtime's quantizer is given them: in the type of the scales. What float16
/// cannot hold stays as it is.
template <class Arch>
void round_to_halves(const float* values, std::uint64_t count, float* rounded) noexcept {
    constexpr std::uint64_t lanes = F32<Arch>::size;
    std::uint64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        const auto value = F32<Arch>::load_unaligned(values + i);
        const auto half = floats_of_halves<Arch>(halves_of<Arch>(value) & I32<Arch>(0xffff));
        const auto fits = xsimd::abs(value) < F32<Arch>(65520.0f);
        xsimd::select(fits, half, value).store_unaligned(rounded + i);
    }
    for (; i < count; ++i) {
        const bool fits = __builtin_fabsf(values[i]) < 65520.0f;
        rounded[i] = fits ? half_to_float(float_to_half(values[i])) : values[i];
    }
}

/// Symmetric: the value that is largest by magnitude gets the code 0, so that scales are often
/// negative. Asymmetric: zero is within the range; the zero point comes of the scale before it is
/// rounded to its type, the codes of the scale after that. Rounds halves away from zero. Codes
/// behind a row's end are 0.
template <class Arch>
void encode_ort(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    constexpr std::uint64_t k_piece = 256;
    const float most = static_cast<float>((1u << grid.bits) - 1);
    const float middle = static_cast<float>(1u << (grid.bits - 1));
    const bool half = grid.scale == AffineScale::f16;
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        Extremes found = extremes_of<Arch>(values, count);
        if (half) {
            // Rounding keeps the order.
            round_to_halves<Arch>(&found.least, 1, &found.least);
            round_to_halves<Arch>(&found.most, 1, &found.most);
        }
        if (grid.symmetric) {
            const bool above = __builtin_fabsf(found.most) > __builtin_fabsf(found.least);
            scale = (above ? found.most : found.least) / -middle;
            // Of zeros alone the first one's sign stays.
            if (scale == 0.0f && found.most == found.least) scale = values[0] / -middle;
            zero = middle;
        } else {
            const float low = found.least < 0.0f ? found.least : 0.0f;
            const float high = found.most > 0.0f ? found.most : 0.0f;
            scale = (high - low) / most;
            const float exact = scale != 0.0f ? 0.0f - low / scale : low;
            zero = exact < 0.0f ? 0.0f : exact > most ? most : __builtin_roundf(exact);
        }
        scale = stored_scale(scale, grid.scale);
        const float reciprocal = scale != 0.0f ? 1.0f / scale : 0.0f;
        if (!half) return round_away(values, count, reciprocal, zero, most, codes);
        float rounded[k_piece];
        for (std::uint64_t i = 0; i < count; i += k_piece) {
            const std::uint64_t piece = count - i < k_piece ? count - i : k_piece;
            round_to_halves<Arch>(values + i, piece, rounded);
            round_away(rounded, piece, reciprocal, zero, most, codes + i);
        }
    };
    for_each_group(grid, rows, out, fit, [](float) noexcept { return std::uint8_t{0}; });
}

}  // namespace phiquant::kernels
