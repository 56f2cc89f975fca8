// The nearest of a lattice's candidate points to a few values, by weighted squared distance.
#pragma once

#include "kernels/iq_grids.hpp"
#include "kernels/simd.hpp"

namespace phiquant::kernels {

/// The levels that a value can take: 3 where a point has 8 values, 8 where it has 4. `each` has
/// them as often as they fit into 16 floats, 3 of them padded to 4.
struct PointLevels {
    alignas(k_alignment) float each[16];
};

template <std::size_t values>
static constexpr PointLevels repeat_levels(const float* levels) noexcept {
    PointLevels out{};
    constexpr std::size_t known = values == 8 ? 3 : 8, stride = values == 8 ? 4 : 8;
    for (std::size_t i = 0; i < 16; ++i) out.each[i] = levels[i % stride < known ? i % stride : 0];
    return out;
}

namespace nearest_point {

/// The least lane.
template <class Arch, class Tag>
XSIMD_INLINE float least_lane(F32<Arch> x, Tag) noexcept {
    return xsimd::reduce_min(x);
}

// Halves are put upon each other. xsimd's way moves whole registers about, which takes as long as
// the distances of a batch.
#if XSIMD_WITH_AVX2
template <class Arch>
XSIMD_INLINE float least_of(__m256 x) noexcept {
    const __m128 four = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}

template <class Arch>
XSIMD_INLINE float least_lane(F32<Arch> x, xsimd::avx2) noexcept {
    return least_of<Arch>(x);
}
#endif

#if XSIMD_WITH_AVX512BW
template <class Arch>
XSIMD_INLINE float least_lane(F32<Arch> x, xsimd::avx512bw) noexcept {
    return least_of<Arch>(_mm256_min_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
}
#endif

/// A candidate's distance is Σ w_i (scale · level_i - x_i)², summed in the values' order, as the
/// reference does. One lane a candidate: `Terms` holds the term of each value at each level.
template <class Arch, std::size_t values, class Tag>
struct Terms;

#if XSIMD_WITH_AVX2
template <class Arch, std::size_t values>
struct Terms<Arch, values, xsimd::avx2> {
    __m256 terms[4];  // of two values of 3 levels, or one of 8

    XSIMD_INLINE Terms(const PointLevels& levels, const float* x, const float* w,
                       float scale) noexcept {
        const __m256 scaled = _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_load_ps(levels.each));
        for (int m = 0; m < 4; ++m) {
            __m256 value, weight;
            if constexpr (values == 8) {
                const __m256i two = _mm256_setr_epi32(2 * m, 2 * m, 2 * m, 2 * m, 2 * m + 1,
                                                      2 * m + 1, 2 * m + 1, 2 * m + 1);
                value = _mm256_permutevar8x32_ps(_mm256_loadu_ps(x), two);
                weight = _mm256_permutevar8x32_ps(_mm256_loadu_ps(w), two);
            } else {
                value = _mm256_set1_ps(x[m]);
                weight = _mm256_set1_ps(w[m]);
            }
            const __m256 difference = _mm256_sub_ps(scaled, value);
            terms[m] = _mm256_mul_ps(_mm256_mul_ps(weight, difference), difference);
        }
    }

    XSIMD_INLINE F32<Arch> distances(const std::uint32_t* candidates) const noexcept {
        __m256i words = _mm256_load_si256(reinterpret_cast<const __m256i*>(candidates));
        __m256 sum = _mm256_permutevar8x32_ps(terms[0], words);
        for (std::size_t i = 1; i < values; ++i) {
            words = _mm256_srli_epi32(words, 4);
            sum = _mm256_add_ps(sum, _mm256_permutevar8x32_ps(terms[i * 4 / values], words));
        }
        return F32<Arch>(sum);
    }
};
#endif

#if XSIMD_WITH_AVX512BW
template <class Arch, std::size_t values>
struct Terms<Arch, values, xsimd::avx512bw> {
    __m512 terms[2];  // of four values of 3 levels, or two of 8

    XSIMD_INLINE Terms(const PointLevels& levels, const float* x, const float* w,
                       float scale) noexcept {
        const __m512 scaled = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_load_ps(levels.each));
        const auto load = [](const float* from) {
            return values == 8 ? _mm512_castps256_ps512(_mm256_loadu_ps(from))
                               : _mm512_castps128_ps512(_mm_loadu_ps(from));
        };
        const __m512i first =
            values == 8 ? _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
                        : _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        const __m512i second =
            _mm512_add_epi32(first, _mm512_set1_epi32(static_cast<int>(values / 2)));
        for (int m = 0; m < 2; ++m) {
            const __m512i places = m == 0 ? first : second;
            const __m512 value = _mm512_permutexvar_ps(places, load(x));
            const __m512 weight = _mm512_permutexvar_ps(places, load(w));
            const __m512 difference = _mm512_sub_ps(scaled, value);
            terms[m] = _mm512_mul_ps(_mm512_mul_ps(weight, difference), difference);
        }
    }

    XSIMD_INLINE F32<Arch> distances(const std::uint32_t* candidates) const noexcept {
        __m512i words = _mm512_loadu_si512(candidates);
        __m512 sum = _mm512_permutexvar_ps(words, terms[0]);
        for (std::size_t i = 1; i < values; ++i) {
            words = _mm512_srli_epi32(words, 4);
            sum = _mm512_add_ps(sum, _mm512_permutexvar_ps(words, terms[i * 2 / values]));
        }
        return F32<Arch>(sum);
    }
};
#endif

/// Without permutations of a register: candidates one by one, their terms from memory.
template <class Arch, std::size_t values>
XSIMD_INLINE std::size_t find_one_by_one(const GridTable& grid, const GridPlace& place,
                                         const PointLevels& levels, const float* x, const float* w,
                                         float scale) noexcept {
    constexpr std::size_t stride = values == 8 ? 4 : 8;
    float terms[values * stride];
    for (std::size_t i = 0; i < values; ++i) {
        for (std::size_t l = 0; l < stride; ++l) {
            const float difference = scale * levels.each[l] - x[i];
            terms[i * stride + l] = w[i] * difference * difference;
        }
    }
    float best = __FLT_MAX__;
    std::size_t found = 0;
    for (std::size_t j = 0; j < place.count; ++j) {
        const std::uint32_t word = grid.candidates[place.first + j];
        float sum = terms[word % stride];
        for (std::size_t i = 1; i < values; ++i) {
            sum += terms[i * stride + (word >> (4 * i)) % stride];
        }
        if (sum < best) {
            best = sum;
            found = j;
        }
    }
    return found;
}

template <class Arch>
inline constexpr bool k_permutes =
    std::is_same_v<Arch, xsimd::avx2> || std::is_same_v<Arch, xsimd::avx512bw>;

}  // namespace nearest_point

/// Which candidate of `place` is the nearest (the first of equals), counted from the first one.
/// Where none has a finite distance (the reference aborts there) it is the first.
template <class Arch, std::size_t values>
XSIMD_INLINE std::size_t find_nearest(const GridTable& grid, const GridPlace& place,
                                      const PointLevels& levels, const float* x, const float* w,
                                      float scale) noexcept {
    if constexpr (nearest_point::k_permutes<Arch>) {
        constexpr std::size_t lanes = F32<Arch>::size;
        const nearest_point::Terms<Arch, values, Arch> terms(levels, x, w, scale);
        const std::uint32_t* candidates = grid.candidates + place.first;
        F32<Arch> distances[320 / lanes];
        F32<Arch> least(__FLT_MAX__);
        std::size_t used = 0;
        for (std::size_t j = 0; j < place.count; j += lanes) {
            const F32<Arch> here = terms.distances(candidates + j);
            distances[used++] = here;
            least = xsimd::min(here, least);  // in this order NaNs don't count
        }
        const F32<Arch> smallest(nearest_point::least_lane<Arch>(least, Arch{}));
        for (std::size_t v = 0; v < used; ++v) {
            const auto mask = static_cast<std::uint32_t>((distances[v] == smallest).mask());
            if (mask != 0) {
                const std::size_t found = v * lanes + static_cast<std::size_t>(__builtin_ctz(mask));
                return found < place.count ? found : 0;
            }
        }
        return 0;
    } else {
        return nearest_point::find_one_by_one<Arch, values>(grid, place, levels, x, w, scale);
    }
}

}  // namespace phiquant::kernels
