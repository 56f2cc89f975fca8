// Codecs without blocks (f32, f16, bf16), and the scan for values that are too large or NaN.
#pragma once

#include "base/half.hpp"
#include "kernels/halves.hpp"
#include "kernels/narrowing.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

template <class Arch>
void encode_f32(const Rows& rows, std::byte* const* planes) noexcept {
    std::memcpy(planes[0], rows.values, rows.rows * rows.columns * sizeof(float));
}

template <class Arch>
void decode_f32(const std::byte* const* planes, std::uint64_t values, float* out) noexcept {
    std::memcpy(out, planes[0], values * sizeof(float));
}

template <class Arch>
struct HalfCodec {
    static I32<Arch> encode(F32<Arch> value) noexcept { return halves_of<Arch>(value); }
    static std::uint16_t encode(float value) noexcept { return float_to_half(value); }
    static F32<Arch> decode(I32<Arch> half) noexcept { return floats_of_halves<Arch>(half); }
    static float decode(std::uint16_t half) noexcept { return half_to_float(half); }
};

template <class Arch>
struct BfloatCodec {
    static I32<Arch> encode(F32<Arch> value) noexcept { return bfloats_of<Arch>(value); }
    static std::uint16_t encode(float value) noexcept { return float_to_bfloat(value); }
    static F32<Arch> decode(I32<Arch> half) noexcept { return float_of_bits<Arch>(half << 16); }
    static float decode(std::uint16_t half) noexcept { return bfloat_to_float(half); }
};

/// As OpenVINO rounds float32 to bfloat16, in which NNCF keeps scaled weights: an odd last bit is
/// rounded to the nearest, halves up; where the last bit is even, the rest is cut off.
template <class Arch>
struct NncfBfloatCodec : BfloatCodec<Arch> {
    static I32<Arch> encode(F32<Arch> value) noexcept {
        const I32<Arch> bits = bits_of<Arch>(value);
        return (bits + ((bits & I32<Arch>(0x10000)) >> 1)) >> 16;
    }
    static std::uint16_t encode(float value) noexcept {
        const auto bits = __builtin_bit_cast(std::uint32_t, value);
        return static_cast<std::uint16_t>((bits + ((bits & 0x10000u) >> 1)) >> 16);
    }
};

template <class Arch, template <class> class Codec>
void encode_16_bits(const Rows& rows, std::byte* const* planes) noexcept {
    constexpr std::uint64_t lanes = F32<Arch>::size;
    auto* out = reinterpret_cast<std::uint16_t*>(planes[0]);
    const std::uint64_t n = rows.rows * rows.columns;
    std::uint64_t i = 0;
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
        const float* values = rows.values + i;
        const I32<Arch> encoded[2] = {
            Codec<Arch>::encode(F32<Arch>::load_unaligned(values)),
            Codec<Arch>::encode(F32<Arch>::load_unaligned(values + lanes))};
        store_halves<Arch>(encoded, out + i);
    }
    for (; i < n; ++i) out[i] = Codec<Arch>::encode(rows.values[i]);
}

template <class Arch, template <class> class Codec>
void decode_16_bits(const std::byte* const* planes, std::uint64_t n, float* out) noexcept {
    constexpr std::uint64_t lanes = F32<Arch>::size;
    const auto* in = reinterpret_cast<const std::uint16_t*>(planes[0]);
    std::uint64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        Codec<Arch>::decode(load_widened<Arch>(in + i)).store_unaligned(out + i);
    }
    for (; i < n; ++i) out[i] = Codec<Arch>::decode(in[i]);
}

/// See Table::find_exceeding.
template <class Arch>
std::uint64_t find_exceeding(const float* x, std::uint64_t n, float limit) noexcept {
    using Batch = F32<Arch>;
    constexpr std::uint64_t step = 4 * Batch::size;
    const Batch most(limit);
    std::uint64_t i = 0;
    for (; i + step <= n; i += step) {
        auto within = xsimd::abs(Batch::load_unaligned(x + i)) <= most;
        for (std::uint64_t j = Batch::size; j < step; j += Batch::size) {
            within = within & (xsimd::abs(Batch::load_unaligned(x + i + j)) <= most);
        }
        if (!xsimd::all(within)) break;
    }
    for (; i < n; ++i) {
        if (!(__builtin_fabsf(x[i]) <= limit)) return i;
    }
    return n;
}

}  // namespace phiquant::kernels
