// Floats of eight and four bits: the numbers that their codes stand for.
#pragma once

#include <cstdint>

#include "codecs/codec.hpp"

namespace phiquant::codecs {

/// E8M0: 2^(code - 127), of which 2^-127 is no normal number.
inline float number_of_e8m0(std::uint8_t code) noexcept {
    return __builtin_bit_cast(float,
                              code == 0 ? 0x00400000u : static_cast<std::uint32_t>(code) << 23);
}

/// Of a power of two.
inline std::uint8_t e8m0_of(float power) noexcept {
    return static_cast<std::uint8_t>(__builtin_bit_cast(std::uint32_t, power) >> 23);
}

/// E4M3 with sign; its one NaN is left a number, as mlx has it.
inline float number_of_e4m3(std::uint8_t code) noexcept {
    const std::uint32_t exponent = code >> 3 & 15u, mantissa = code & 7u;
    const float magnitude =
        exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                      : __builtin_bit_cast(float, (exponent + 120) << 23 | mantissa << 20);
    return (code & 0x80u) != 0 ? -magnitude : magnitude;
}

/// Of a number that E4M3 has, and that is not negative.
inline std::uint8_t e4m3_of(float number) noexcept {
    if (number < 0x1p-6f) return static_cast<std::uint8_t>(number * 0x1p9f);
    return static_cast<std::uint8_t>((__builtin_bit_cast(std::uint32_t, number) >> 20) -
                                     (120 << 3));
}

/// E2M1, with sign.
inline float number_of_e2m1(std::uint8_t code) noexcept {
    constexpr float levels[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    return (code & 8u) != 0 ? -levels[code & 7u] : levels[code & 7u];
}

/// NF4: quantiles of the normal distribution, as QLoRA (https://arxiv.org/abs/2305.14314) has them.
inline float number_of_nf4(std::uint8_t code) noexcept {
    constexpr float levels[16] = {-1.0f,
                                  -0.6961928009986877f,
                                  -0.5250730514526367f,
                                  -0.39491748809814453f,
                                  -0.28444138169288635f,
                                  -0.18477343022823334f,
                                  -0.09105003625154495f,
                                  0.0f,
                                  0.07958029955625534f,
                                  0.16093020141124725f,
                                  0.24611230194568634f,
                                  0.33791524171829224f,
                                  0.44070982933044434f,
                                  0.5626170039176941f,
                                  0.7229568362236023f,
                                  1.0f};
    return levels[code & 15u];
}

/// The number of any levels but integers.
inline float number_of(Levels levels, std::uint8_t code) noexcept {
    switch (levels) {
        case Levels::e2m1:
            return number_of_e2m1(code);
        case Levels::e4m3:
            return number_of_e4m3(code);
        case Levels::nf4:
            return number_of_nf4(code);
        case Levels::integers:
            break;
    }
    return code;
}

}  // namespace phiquant::codecs
