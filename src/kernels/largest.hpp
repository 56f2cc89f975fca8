// The largest magnitude of each of several runs of values, one lane a run.
#pragma once

#include "kernels/simd.hpp"

namespace phiquant::kernels {
namespace largest {

/// Lane j becomes the largest of batch j's lanes, which are positive.
template <class Arch, class Tag>
XSIMD_INLINE F32<Arch> across(F32<Arch>* from, Tag) noexcept {
    xsimd::transpose(from, from + F32<Arch>::size);
    F32<Arch> most = from[0];
    for (std::size_t i = 1; i < F32<Arch>::size; ++i) most = larger_positive<Arch>(most, from[i]);
    return most;
}

#if XSIMD_WITH_AVX512BW
// A transposition that takes maxima as it goes, so that each step has half as much to move.
template <class Arch>
XSIMD_INLINE F32<Arch> across(F32<Arch>* from, xsimd::avx512bw) noexcept {
    const auto bits = [&](std::size_t i) { return _mm512_castps_si512(from[i]); };
    __m512i pairs[8], fours[4], eights[2];
    for (std::size_t i = 0; i < 8; ++i) {
        const __m512i a = bits(2 * i), b = bits(2 * i + 1);
        pairs[i] = _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    for (std::size_t i = 0; i < 4; ++i) {
        const __m512i a = pairs[2 * i], b = pairs[2 * i + 1];
        fours[i] = _mm512_max_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    for (std::size_t i = 0; i < 2; ++i) {
        const __m512i a = fours[2 * i], b = fours[2 * i + 1];
        eights[i] =
            _mm512_max_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
    }
    const __m512i low = _mm512_shuffle_i32x4(eights[0], eights[1], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(eights[0], eights[1], 0xdd);
    return F32<Arch>(_mm512_castsi512_ps(_mm512_max_epi32(low, high)));
}
#endif

}  // namespace largest

/// The largest magnitude of each of as many consecutive runs of `size` values as there are lanes.
template <class Arch, std::size_t size>
XSIMD_INLINE F32<Arch> largest_of_runs(const float* values) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    static_assert(size % lanes == 0);
    F32<Arch> most[lanes];
    for (std::size_t run = 0; run < lanes; ++run, values += size) {
        most[run] = xsimd::abs(F32<Arch>::load_unaligned(values));
        for (std::size_t i = lanes; i < size; i += lanes) {
            const F32<Arch> magnitude = xsimd::abs(F32<Arch>::load_unaligned(values + i));
            most[run] = larger_positive<Arch>(most[run], magnitude);
        }
    }
    return largest::across<Arch>(most, Arch{});
}

}  // namespace phiquant::kernels
