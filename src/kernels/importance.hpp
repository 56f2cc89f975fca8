// What an importance matrix makes of values: the weight of each one's squared error.
#pragma once

#include "kernels/simd.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

/// Sum of the squares of `count` values (a multiple of 16) at `place(lane)`, for each lane in
/// order: the reference sums whole rows so, and float sums depend on the order.
template <class Arch, class Place>
XSIMD_INLINE F32<Arch> sum_squares(Place place, std::uint64_t count) noexcept {
    F32<Arch> sum(0.0f);
    for (std::uint64_t from = 0; from < count; from += 16) {
        F32<Arch> x[16];
        transpose_runs<Arch, 16>([&](std::size_t lane) { return place(lane) + from; }, x, 1);
        for (std::size_t i = 0; i < 16; ++i) sum = sum + x[i] * x[i];
    }
    return sum;
}

/// Weights of `count` values (a multiple of 16): importance * sqrt(variance + x²), where the
/// variance is that of the row or super-block, as its format has it.
template <class Arch>
XSIMD_INLINE void weigh(const float* values, const float* importance, float variance,
                        std::size_t count, float* weights) noexcept {
    using Batch = F32<Arch>;
    for (std::size_t i = 0; i < count; i += Batch::size) {
        const Batch x = Batch::load_unaligned(values + i);
        const Batch spread = square_root<Arch>(Batch(variance) + x * x);
        (Batch::load_unaligned(importance + i) * spread).store_aligned(weights + i);
    }
}

}  // namespace phiquant::kernels
