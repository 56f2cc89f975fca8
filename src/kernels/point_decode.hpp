// Values from points of the iq1, iq2 and iq3 formats' lattices.
#pragma once

#include "kernels/lookup.hpp"
#include "kernels/simd.hpp"

namespace phiquant::kernels {
namespace shifts {

// Shifts by a number of its own for each lane; xsimd takes AVX-512's registers apart for them.
template <class Arch, class Tag>
XSIMD_INLINE I32<Arch> right(I32<Arch> value, I32<Arch> by, Tag) noexcept {
    return value >> by;
}

template <class Arch, class Tag>
XSIMD_INLINE I32<Arch> left(I32<Arch> value, I32<Arch> by, Tag) noexcept {
    return value << by;
}

#if XSIMD_WITH_AVX512BW
template <class Arch>
XSIMD_INLINE I32<Arch> right(I32<Arch> value, I32<Arch> by, xsimd::avx512bw) noexcept {
    return I32<Arch>(_mm512_srav_epi32(value, by));
}

template <class Arch>
XSIMD_INLINE I32<Arch> left(I32<Arch> value, I32<Arch> by, xsimd::avx512bw) noexcept {
    return I32<Arch>(_mm512_sllv_epi32(value, by));
}
#endif

}  // namespace shifts

/// The levels that a point's fields stand for: 8 for a first point, and 8 for a second one. Fields
/// of two bits have them twice, as the bit above them belongs to the next field.
struct PointTable {
    alignas(k_alignment) float each[16];

    constexpr explicit PointTable(const float (&levels)[8]) noexcept : PointTable(levels, levels) {}

    constexpr PointTable(const float (&first)[8], const float (&second)[8]) noexcept : each{} {
        for (std::size_t i = 0; i < 8; ++i) {
            each[i] = first[i];
            each[8 + i] = second[i];
        }
    }
};

/// 16 values from two words of 8 fields of `bits` bits, the first field lowest: scale · level,
/// turned where `signs` has the value's bit.
template <class Arch, unsigned bits>
XSIMD_INLINE void decode_points(std::uint32_t first, std::uint32_t second, const PointTable& table,
                                float scale, unsigned signs, float* out) noexcept {
    using Integers = I32<Arch>;
    constexpr std::size_t lanes = Integers::size;
    if constexpr (lanes < 8) {
        // Shifts by a number of their own for each lane are not to be had.
        for (unsigned i = 0; i < 16; ++i) {
            const std::uint32_t field = (i < 8 ? first : second) >> (bits * (i % 8)) & 7u;
            const float value = scale * table.each[i / 8 * 8 + field];
            const std::uint32_t sign = signs >> i << 31;
            out[i] = __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, value) ^ sign);
        }
    } else {
        alignas(k_alignment) static constexpr std::int32_t lane_of[16] = {
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const Integers lane = Integers::load_aligned(lane_of);
        const Integers field_shift = (lane & Integers(7)) * Integers(static_cast<int>(bits));
        const Integers sign_shift = Integers(31) - lane;
        for (std::size_t p = 0; p < 16; p += lanes) {
            const Integers word(static_cast<std::int32_t>(p == 0 ? first : second));
            F32<Arch> level;
            if constexpr (lanes == 8) {
                const Integers fields = shifts::right<Arch>(word, field_shift, Arch{});
                level = lookup_8<Arch>(table.each + p, fields);
            } else {
                const Integers other(static_cast<std::int32_t>(second));
                const Integers words = xsimd::select(lane < Integers(8), word, other);
                const Integers fields = shifts::right<Arch>(words, field_shift, Arch{});
                level = lookup_16<Arch>(table.each, (fields & Integers(7)) | (lane & Integers(8)));
            }
            const F32<Arch> value = F32<Arch>(scale) * level;
            const Integers bit_of_each(static_cast<std::int32_t>(signs >> p));
            const Integers sign =
                shifts::left<Arch>(bit_of_each, sign_shift, Arch{}) & Integers(INT32_MIN);
            float_of_bits<Arch>(bits_of<Arch>(value) ^ sign).store_unaligned(out + p);
        }
    }
}

}  // namespace phiquant::kernels
