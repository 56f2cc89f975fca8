// The rule of onnxruntime.quantization for weights that QuantizeLinear's grid holds:
// quantize_dynamic, quantize_static, and its blocks for DequantizeLinear. Scales are positive.
#pragma once

#include "kernels/affine_mlx.hpp"
#include "kernels/affine_ort.hpp"

namespace phiquant::kernels {

/// Symmetric: with 8 bits the code -128 is not used; with fewer, the whole range spans twice the
/// largest magnitude, and the largest positive values are cut by half a step. The scale is a
/// quotient of doubles; where it is no normal number of its type it becomes 1. Ties to even.
/// onnxruntime 1.31, quant_utils.py: compute_scale_zp, compute_scale_zp_blocked, quantize_nparray.
template <class Arch>
void encode_qdq(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    constexpr std::uint64_t k_piece = 256;
    const unsigned last = (1u << grid.bits) - 1;
    const float most = static_cast<float>(last), middle = static_cast<float>(1u << (grid.bits - 1));
    const double steps = grid.bits == 8 ? last - 1 : last;
    const bool half = grid.scale == AffineScale::f16;
    const float least = half ? 0x1p-24f : 0x1p-126f;
    const auto fit = [&](const float* values, const float*, std::uint64_t count,
                         std::uint8_t* codes, float& scale, float& zero) noexcept {
        Extremes range = extremes_of<Arch>(values, count);
        if (half) {
            // Rounding keeps the order.
            round_to_halves<Arch>(&range.least, 1, &range.least);
            round_to_halves<Arch>(&range.most, 1, &range.most);
        }
        const float below = __builtin_fabsf(range.least), above = __builtin_fabsf(range.most);
        const double exact = 2.0 * static_cast<double>(below > above ? below : above) / steps;
        scale = stored_scale(static_cast<float>(exact), grid.scale);
        if (half ? scale < least : exact < static_cast<double>(least)) scale = 1.0f;
        zero = middle;
        const F32<Arch> step(scale), centre(middle);
        const auto round = [&](const float* x, std::uint64_t n, std::uint8_t* to) noexcept {
            round_codes<Arch>(
                n, most,
                [&](std::uint64_t i) noexcept {
                    const auto value = F32<Arch>::load_unaligned(x + i);
                    return nearest_even<Arch>(quotient<Arch>(value, step)) + centre;
                },
                [&](std::uint64_t i) noexcept {
                    return ((x[i] / scale + k_magic) - k_magic) + middle;
                },
                to);
        };
        if (!half) return round(values, count, codes);
        float rounded[k_piece];
        for (std::uint64_t i = 0; i < count; i += k_piece) {
            const std::uint64_t piece = count - i < k_piece ? count - i : k_piece;
            round_to_halves<Arch>(values + i, piece, rounded);
            round(rounded, piece, codes + i);
        }
    };
    // DequantizeLinear has no short groups; MatMulNBits fills them up with zeros.
    for_each_group(grid, rows, out, fit,
                   [](float zero) noexcept { return static_cast<std::uint8_t>(zero); });
}

}  // namespace phiquant::kernels
