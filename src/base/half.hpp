// Scalar conversions between float32 and its 16-bit relatives, bit for bit as ggml does them.
#pragma once

#include <cstdint>

// `static`, and `__builtin_bit_cast` for `std::bit_cast`: kernels include this header once per
// instruction set, and a shared weak symbol could be resolved to code that the processor lacks.
namespace phiquant {

/// float32 to float16 (IEEE binary16), round to nearest even, overflow to infinity, NaN to 0x7e00
/// with its sign. ggml stores every block scale this way.
static constexpr std::uint16_t float_to_half(float value) noexcept {
    const auto bits = __builtin_bit_cast(std::uint32_t, value);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // >= 65520
    if (magnitude < 0x38800000u) {
        // Below 2^-14 halves are multiples of 2^-24: adding 0.5 rounds to one of them, and leaves
        // their count in the low bits.
        const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
        const auto count = __builtin_bit_cast(std::uint32_t, shifted) - 0x3f000000u;
        return static_cast<std::uint16_t>(sign | count);
    }
    const std::uint32_t odd = (magnitude >> 13) & 1u;
    const std::uint32_t rebased = magnitude - 0x38000000u + 0x0fffu + odd;
    return static_cast<std::uint16_t>(sign | (rebased >> 13));
}

/// float16 to float32, exact; a NaN keeps its payload.
static constexpr float half_to_float(std::uint16_t half) noexcept {
    const std::uint32_t sign = (half & 0x8000u) << 16;
    const std::uint32_t magnitude = half & 0x7fffu;
    if (magnitude < 0x0400u) {
        const float value = static_cast<float>(magnitude) * 0x1p-24f;
        return __builtin_bit_cast(float, sign | __builtin_bit_cast(std::uint32_t, value));
    }
    const std::uint32_t exponent = magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;
    return __builtin_bit_cast(float, sign | ((magnitude << 13) + exponent));
}

/// float32 to bfloat16, round to nearest even; NaNs become quiet.
static constexpr std::uint16_t float_to_bfloat(float value) noexcept {
    const auto bits = __builtin_bit_cast(std::uint32_t, value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 64u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// bfloat16 to float32, exact.
static constexpr float bfloat_to_float(std::uint16_t bfloat) noexcept {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(bfloat) << 16);
}

}  // namespace phiquant
