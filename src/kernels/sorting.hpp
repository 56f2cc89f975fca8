// Sorting in every lane at once, by a network of comparisons that is the same for all lanes.
#pragma once

#include "kernels/simd.hpp"

namespace phiquant::kernels {

/// What is sorted: values, where each was, and what belongs to it.
template <class Arch, std::size_t size>
struct Sortable {
    F32<Arch> value[size];
    F32<Arch> weight[size];
    I32<Arch> place[size];

    /// Ascending; equal values (zeros of both signs, too) by place, as the stable qsort of the C
    /// libraries that ggml's results come from.
    XSIMD_INLINE void sort() noexcept {
        // Batcher's odd-even merge sort.
        for (std::size_t p = 1; p < size; p *= 2) {
            for (std::size_t k = p; k >= 1; k /= 2) {
                for (std::size_t j = k % p; j + k < size; j += 2 * k) {
                    for (std::size_t i = j; i < j + k && i + k < size; ++i) {
                        if (i / (2 * p) == (i + k) / (2 * p)) order(i, i + k);
                    }
                }
            }
        }
    }

private:
    XSIMD_INLINE void order(std::size_t a, std::size_t b) noexcept {
        const auto after = xsimd::batch_bool_cast<float>(place[a] > place[b]);
        const auto swapped = (value[a] > value[b]) | ((value[a] == value[b]) & after);
        const auto swapped_places = xsimd::batch_bool_cast<std::int32_t>(swapped);
        const F32<Arch> low = xsimd::select(swapped, value[b], value[a]);
        const F32<Arch> low_weight = xsimd::select(swapped, weight[b], weight[a]);
        const I32<Arch> low_place = xsimd::select(swapped_places, place[b], place[a]);
        value[b] = xsimd::select(swapped, value[a], value[b]);
        weight[b] = xsimd::select(swapped, weight[a], weight[b]);
        place[b] = xsimd::select(swapped_places, place[a], place[b]);
        value[a] = low;
        weight[a] = low_weight;
        place[a] = low_place;
    }
};

}  // namespace phiquant::kernels
