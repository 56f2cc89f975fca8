// Stores of 32-bit integers as bytes, halves and bit fields: xsimd has no narrowing, and what
// compilers make of the plain loops over bytes ranges from one instruction to hundreds.
#pragma once

#include "kernels/simd.hpp"

namespace phiquant::kernels {
namespace narrowing {

// Each overload takes its instruction set as a tag: sse4_1 finds sse2's through inheritance.

#if XSIMD_WITH_SSE2
XSIMD_INLINE __m128i pack_16(const __m128i* from) noexcept {
    return _mm_packs_epi16(_mm_packs_epi32(from[0], from[1]), _mm_packs_epi32(from[2], from[3]));
}

template <class Batch>
XSIMD_INLINE void bytes(const Batch* from, void* to, xsimd::sse2) noexcept {
    for (std::size_t i = 0; i < 2; ++i) {
        const __m128i quarters[4] = {from[4 * i], from[4 * i + 1], from[4 * i + 2],
                                     from[4 * i + 3]};
        _mm_storeu_si128(static_cast<__m128i*>(to) + i, pack_16(quarters));
    }
}

template <class Batch>
XSIMD_INLINE void halves(const Batch* from, void* to, xsimd::sse2) noexcept {
    // Only the signed pack exists, so the low halves are made signed.
    const auto low = [](__m128i x) { return _mm_srai_epi32(_mm_slli_epi32(x, 16), 16); };
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm_packs_epi32(low(from[0]), low(from[1])));
}
#endif

#if XSIMD_WITH_AVX2
template <class Batch>
XSIMD_INLINE void bytes(const Batch* from, void* to, xsimd::avx2) noexcept {
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(from[0], from[1]),
                                              _mm256_packs_epi32(from[2], from[3]));
    // The packs work within 128 bits each: put the groups of four bytes in order.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(packed, order));
}

template <class Batch>
XSIMD_INLINE void halves(const Batch* from, void* to, xsimd::avx2) noexcept {
    const __m256i low = _mm256_set1_epi32(0xffff);
    const __m256i packed =
        _mm256_packus_epi32(_mm256_and_si256(from[0], low), _mm256_and_si256(from[1], low));
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
}
#endif

#if XSIMD_WITH_AVX512BW
template <class Batch>
XSIMD_INLINE void bytes(const Batch* from, void* to, xsimd::avx512bw) noexcept {
    for (std::size_t i = 0; i < 2; ++i) {
        _mm_storeu_si128(static_cast<__m128i*>(to) + i, _mm512_cvtepi32_epi8(from[i]));
    }
}

template <class Batch>
XSIMD_INLINE void halves(const Batch* from, void* to, xsimd::avx512bw) noexcept {
    for (std::size_t i = 0; i < 2; ++i) {
        _mm256_storeu_si256(static_cast<__m256i*>(to) + i, _mm512_cvtepi32_epi16(from[i]));
    }
}
#endif

#if XSIMD_WITH_NEON64
template <class Batch>
XSIMD_INLINE void bytes(const Batch* from, void* to, xsimd::neon64) noexcept {
    for (std::size_t i = 0; i < 2; ++i) {
        const int16x8_t low = vcombine_s16(vmovn_s32(from[4 * i]), vmovn_s32(from[4 * i + 1]));
        const int16x8_t high = vcombine_s16(vmovn_s32(from[4 * i + 2]), vmovn_s32(from[4 * i + 3]));
        vst1q_s8(static_cast<std::int8_t*>(to) + 16 * i,
                 vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
}

template <class Batch>
XSIMD_INLINE void halves(const Batch* from, void* to, xsimd::neon64) noexcept {
    vst1q_s16(static_cast<std::int16_t*>(to), vcombine_s16(vmovn_s32(from[0]), vmovn_s32(from[1])));
}
#endif

}  // namespace narrowing

/// Store 32 integers of -128 to 127 as bytes; `from` are the batches that hold them.
template <class Arch>
XSIMD_INLINE void store_32_bytes(const I32<Arch>* from, void* to) noexcept {
    narrowing::bytes(from, to, Arch{});
}

/// Store the low 16 bits of the integers of two batches.
template <class Arch>
XSIMD_INLINE void store_halves(const I32<Arch>* from, std::uint16_t* to) noexcept {
    narrowing::halves(from, to, Arch{});
}

/// Eight bytes as one integer, so that bit fields of eight codes are cut and joined at once.
struct EightBytes {
    static constexpr std::uint64_t each = 0x0101010101010101u;

    template <class Arch>
    static XSIMD_INLINE std::uint64_t load(const std::uint8_t* from) noexcept {
        std::uint64_t word;
        std::memcpy(&word, from, sizeof(word));
        return word;
    }

    /// `bits` bits of each byte, from bit `from` on, moved to bit `to`.
    template <class Arch>
    static XSIMD_INLINE std::uint64_t field(const std::uint8_t* bytes, unsigned bits, unsigned from,
                                            unsigned to) noexcept {
        const std::uint64_t mask = each * ((1u << bits) - 1u);
        return ((load<Arch>(bytes) >> from) & mask) << to;
    }
};

/// Join the low nibbles of `count` bytes each: `low` below `high`.
template <class Arch, std::size_t count>
XSIMD_INLINE void join_nibbles(const std::uint8_t* low, const std::uint8_t* high,
                               std::uint8_t* out) noexcept {
    for (std::size_t i = 0; i < count; i += 8) {
        const std::uint64_t joined =
            EightBytes::field<Arch>(low + i, 4, 0, 0) | EightBytes::field<Arch>(high + i, 4, 0, 4);
        std::memcpy(out + i, &joined, sizeof(joined));
    }
}

/// Bit `bit` of 256 codes: bit j of byte i is that of code 32 * j + i.
template <class Arch>
XSIMD_INLINE void pack_bits(const std::uint8_t* codes, unsigned bit, std::uint8_t* out) noexcept {
    for (std::size_t i = 0; i < 32; i += 8) {
        std::uint64_t bits = 0;
        for (unsigned j = 0; j < 8; ++j) {
            bits |= EightBytes::field<Arch>(codes + j * 32 + i, 1, bit, j);
        }
        std::memcpy(out + i, &bits, sizeof(bits));
    }
}

/// Join 256 codes of two bits (higher bits are cut off): in each 128 values, those of i, i + 32,
/// i + 64 and i + 96, from the low end.
template <class Arch>
XSIMD_INLINE void pack_pairs(const std::uint8_t* codes, std::uint8_t* out) noexcept {
    for (std::size_t half = 0; half < 2; ++half, codes += 128, out += 32) {
        for (std::size_t i = 0; i < 32; i += 8) {
            std::uint64_t joined = 0;
            for (unsigned quarter = 0; quarter < 4; ++quarter) {
                joined |= EightBytes::field<Arch>(codes + quarter * 32 + i, 2, 0, 2 * quarter);
            }
            std::memcpy(out + i, &joined, sizeof(joined));
        }
    }
}

/// Codes of one batch of what `pack_pairs` joined, from value `i` on.
template <class Arch>
XSIMD_INLINE I32<Arch> unpack_pairs(const std::uint8_t* pairs, std::size_t i) noexcept {
    const auto bytes = load_widened<Arch>(pairs + i / 128 * 32 + i % 32);
    return (bytes >> static_cast<int>(i % 128 / 32 * 2)) & I32<Arch>(3);
}

}  // namespace phiquant::kernels
