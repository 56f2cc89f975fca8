// Tables of 8 or 16 floats, looked up by a batch of indices.
#pragma once

#include "kernels/simd.hpp"

namespace phiquant::kernels {
namespace lookup {

template <class Arch, class Tag>
XSIMD_INLINE F32<Arch> of_16(const float* table, I32<Arch> index, Tag) noexcept {
    alignas(k_alignment) std::int32_t places[F32<Arch>::size];
    alignas(k_alignment) float found[F32<Arch>::size];
    index.store_aligned(places);
    for (std::size_t i = 0; i < F32<Arch>::size; ++i) found[i] = table[places[i]];
    return F32<Arch>::load_aligned(found);
}

#if XSIMD_WITH_AVX2
template <class Arch>
XSIMD_INLINE F32<Arch> of_16(const float* table, I32<Arch> index, xsimd::avx2) noexcept {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_load_ps(table), index);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_load_ps(table + 8), index);
    const __m256i in_high = _mm256_slli_epi32(index, 28);  // bit 3 to the sign
    return F32<Arch>(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(in_high)));
}
#endif

#if XSIMD_WITH_AVX512BW
template <class Arch>
XSIMD_INLINE F32<Arch> of_16(const float* table, I32<Arch> index, xsimd::avx512bw) noexcept {
    return F32<Arch>(_mm512_permutexvar_ps(index, _mm512_load_ps(table)));
}
#endif

template <class Arch, class Tag>
XSIMD_INLINE F32<Arch> of_8(const float* table, I32<Arch> index, Tag) noexcept {
    alignas(k_alignment) std::int32_t places[F32<Arch>::size];
    alignas(k_alignment) float found[F32<Arch>::size];
    index.store_aligned(places);
    for (std::size_t i = 0; i < F32<Arch>::size; ++i) found[i] = table[places[i] & 7];
    return F32<Arch>::load_aligned(found);
}

#if XSIMD_WITH_AVX2
template <class Arch>
XSIMD_INLINE F32<Arch> of_8(const float* table, I32<Arch> index, xsimd::avx2) noexcept {
    return F32<Arch>(_mm256_permutevar8x32_ps(_mm256_load_ps(table), index));
}
#endif

}  // namespace lookup

/// table[index], index 0 to 15; the table is aligned.
template <class Arch>
XSIMD_INLINE F32<Arch> lookup_16(const float* table, I32<Arch> index) noexcept {
    return lookup::of_16<Arch>(table, index, Arch{});
}

/// table[index % 8]; the table is aligned to 32 bytes.
template <class Arch>
XSIMD_INLINE F32<Arch> lookup_8(const float* table, I32<Arch> index) noexcept {
    return lookup::of_8<Arch>(table, index, Arch{});
}

}  // namespace phiquant::kernels
