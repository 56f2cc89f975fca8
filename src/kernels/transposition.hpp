// Rows or sub-blocks to batches with one of them a lane.
#pragma once

#include "kernels/simd.hpp"

namespace phiquant::kernels {
namespace transposition {

// `place(lane)` points to a lane's values.
template <class Arch, std::size_t size, class Place, class Tag>
XSIMD_INLINE void to_lanes(Place place, F32<Arch>* out, std::size_t stride, Tag) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    static_assert(size % lanes == 0);
    for (std::size_t from = 0; from < size; from += lanes) {
        F32<Arch> tile[lanes];
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            tile[lane] = F32<Arch>::load_unaligned(place(lane) + from);
        }
        xsimd::transpose(tile, tile + lanes);
        for (std::size_t i = 0; i < lanes; ++i) out[(from + i) * stride] = tile[i];
    }
}

#if XSIMD_WITH_AVX512BW
// xsimd's own goes through memory, float by float. Here batches are put together from quarters of
// four sub-blocks, so that 4 x 4 transpositions within the quarters are all that is left.
template <class Arch, std::size_t size, class Place>
XSIMD_INLINE void to_lanes(Place place, F32<Arch>* out, std::size_t stride,
                           xsimd::avx512bw) noexcept {
    static_assert(size % 4 == 0);
    for (std::size_t from = 0; from < size; from += 4) {
        __m512 row[4];
        for (std::size_t i = 0; i < 4; ++i) {
            row[i] = _mm512_castps128_ps512(_mm_loadu_ps(place(i) + from));
            row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(place(i + 4) + from), 1);
            row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(place(i + 8) + from), 2);
            row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(place(i + 12) + from), 3);
        }
        const __m512d low_01 = _mm512_castps_pd(_mm512_unpacklo_ps(row[0], row[1]));
        const __m512d low_23 = _mm512_castps_pd(_mm512_unpacklo_ps(row[2], row[3]));
        const __m512d high_01 = _mm512_castps_pd(_mm512_unpackhi_ps(row[0], row[1]));
        const __m512d high_23 = _mm512_castps_pd(_mm512_unpackhi_ps(row[2], row[3]));
        out[(from + 0) * stride] = _mm512_castpd_ps(_mm512_unpacklo_pd(low_01, low_23));
        out[(from + 1) * stride] = _mm512_castpd_ps(_mm512_unpackhi_pd(low_01, low_23));
        out[(from + 2) * stride] = _mm512_castpd_ps(_mm512_unpacklo_pd(high_01, high_23));
        out[(from + 3) * stride] = _mm512_castpd_ps(_mm512_unpackhi_pd(high_01, high_23));
    }
}
#endif

}  // namespace transposition

/// `out[i * stride]` gets value i of as many runs of `size` values as there are lanes;
/// `place(lane)` points to each.
template <class Arch, std::size_t size, class Place>
XSIMD_INLINE void transpose_runs(Place place, F32<Arch>* out, std::size_t stride) noexcept {
    transposition::to_lanes<Arch, size>(place, out, stride, Arch{});
}

/// The same for consecutive sub-blocks of `size` values.
template <class Arch, std::size_t size>
XSIMD_INLINE void transpose_sub_blocks(const float* values, F32<Arch>* out,
                                       std::size_t stride) noexcept {
    transpose_runs<Arch, size>([values](std::size_t lane) { return values + lane * size; }, out,
                               stride);
}

}  // namespace phiquant::kernels
