// Batches of float16 and bfloat16, as 32-bit integers: the vector forms of base/half.hpp.
#pragma once

#include "kernels/simd.hpp"

namespace phiquant::kernels {

// Integer arithmetic for all instruction sets alike: F16C would save a few operations in loops
// that wait for memory anyway, and would treat NaNs in its own way.

/// float32 to float16 (see float_to_half), in the low 16 bits.
template <class Arch>
XSIMD_INLINE I32<Arch> halves_of(F32<Arch> value) noexcept {
    using Integers = I32<Arch>;
    const Integers bits = bits_of<Arch>(value);
    const Integers magnitude = bits & Integers(0x7fffffff);
    const Integers sign = (bits >> 16) & Integers(0x8000);
    const Integers odd = (magnitude >> 13) & Integers(1);
    const Integers normal = (magnitude + odd + Integers(0x0fff - 0x38000000)) >> 13;
    const Integers subnormal =
        bits_of<Arch>(float_of_bits<Arch>(magnitude) + F32<Arch>(0.5f)) - Integers(0x3f000000);
    const Integers finite = xsimd::select(magnitude < Integers(0x38800000), subnormal, normal);
    const Integers special =
        xsimd::select(magnitude > Integers(0x7f800000), Integers(0x7e00), Integers(0x7c00));
    return sign | xsimd::select(magnitude < Integers(0x477ff000), finite, special);
}

/// float16 in the low 16 bits (the high ones zero) to float32.
template <class Arch>
XSIMD_INLINE F32<Arch> floats_of_halves(I32<Arch> half) noexcept {
    using Integers = I32<Arch>;
    const Integers magnitude = half & Integers(0x7fff);
    const Integers sign = (half & Integers(0x8000)) << 16;
    const Integers exponent =
        xsimd::select(magnitude < Integers(0x7c00), Integers(0x38000000), Integers(0x70000000));
    const Integers normal = (magnitude << 13) + exponent;
    const Integers subnormal =
        bits_of<Arch>(xsimd::batch_cast<float>(magnitude) * F32<Arch>(0x1p-24f));
    return float_of_bits<Arch>(sign |
                               xsimd::select(magnitude < Integers(0x0400), subnormal, normal));
}

/// float32 to bfloat16 (see float_to_bfloat), in the low 16 bits; the high ones are not cleared.
template <class Arch>
XSIMD_INLINE I32<Arch> bfloats_of(F32<Arch> value) noexcept {
    using Integers = I32<Arch>;
    const Integers bits = bits_of<Arch>(value);
    const Integers high = bits >> 16;
    const Integers rounded = (bits + Integers(0x7fff) + (high & Integers(1))) >> 16;
    const auto is_nan = (bits & Integers(0x7fffffff)) > Integers(0x7f800000);
    return xsimd::select(is_nan, high | Integers(64), rounded);
}

}  // namespace phiquant::kernels
