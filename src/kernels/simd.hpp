// The few words that all kernels share: batches, widening loads, rounding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <xsimd/xsimd.hpp>

static_assert(XSIMD_VERSION_MAJOR == 14, "phiquant's kernels are written for xsimd 14");

namespace phiquant::kernels {

template <class Arch>
using F32 = xsimd::batch<float, Arch>;
template <class Arch>
using I32 = xsimd::batch<std::int32_t, Arch>;

/// Widest batch of float32 among the instruction sets; buffers are aligned and padded to it.
inline constexpr std::size_t k_alignment = 64;

/// Whether minima and maxima of 32-bit integers are single instructions.
template <class Arch>
inline constexpr bool k_has_integer_extremes = !std::is_same_v<Arch, xsimd::sse2>;

// Adding 1.5 * 2^23 leaves a float's nearest integer (ties to even) in the low mantissa bits.
inline constexpr float k_magic = 12582912.0f;

/// A batch of integers from consecutive narrower ones. The loop compiles to one widening load.
template <class Arch, class Narrow>
XSIMD_INLINE I32<Arch> load_widened(const Narrow* from) noexcept {
    alignas(k_alignment) std::int32_t wide[I32<Arch>::size];
    for (std::size_t i = 0; i < I32<Arch>::size; ++i) wide[i] = from[i];
    return I32<Arch>::load_aligned(wide);
}

/// Ask for `count` floats to be brought into the cache.
template <class Arch>
XSIMD_INLINE void prefetch(const float* from, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; i += 16) __builtin_prefetch(from + i);
}

template <class Arch>
XSIMD_INLINE I32<Arch> bits_of(F32<Arch> value) noexcept {
    return xsimd::bitwise_cast<std::int32_t>(value);
}

template <class Arch>
XSIMD_INLINE F32<Arch> float_of_bits(I32<Arch> bits) noexcept {
    return xsimd::bitwise_cast<float>(bits);
}

/// -value, of zeros too: with AVX-512 xsimd subtracts from zero.
template <class Arch>
XSIMD_INLINE F32<Arch> negated(F32<Arch> value) noexcept {
    return float_of_bits<Arch>(bits_of<Arch>(value) ^ I32<Arch>(INT32_MIN));
}

// On ARM, xsimd divides by refining an estimate of the reciprocal, which is a bit off now and then,
// and roots and rounds in more steps than need be. So these three are named here.

template <class Arch>
XSIMD_INLINE F32<Arch> quotient(F32<Arch> dividend, F32<Arch> divisor) noexcept {
#if XSIMD_WITH_NEON64
    return vdivq_f32(dividend, divisor);
#else
    return dividend / divisor;
#endif
}

template <class Arch>
XSIMD_INLINE F32<Arch> square_root(F32<Arch> value) noexcept {
#if XSIMD_WITH_NEON64
    return vsqrtq_f32(value);
#else
    return xsimd::sqrt(value);
#endif
}

/// The nearest integer, ties to even.
template <class Arch>
XSIMD_INLINE F32<Arch> nearest_even(F32<Arch> value) noexcept {
#if XSIMD_WITH_NEON64
    return vrndnq_f32(value);
#else
    return xsimd::nearbyint(value);
#endif
}

/// Clamp positive floats. Their bits are in the same order, and processors have more units for the
/// integers' minima and maxima, which moreover don't compete with additions; not so before SSE4.1.
template <class Arch>
XSIMD_INLINE F32<Arch> clamp_positive(F32<Arch> value, float low, float high) noexcept {
    if constexpr (k_has_integer_extremes<Arch>) {
        const I32<Arch> least(__builtin_bit_cast(std::int32_t, low));
        const I32<Arch> most(__builtin_bit_cast(std::int32_t, high));
        return float_of_bits<Arch>(xsimd::min(xsimd::max(bits_of<Arch>(value), least), most));
    } else {
        return xsimd::min(xsimd::max(value, F32<Arch>(low)), F32<Arch>(high));
    }
}

/// The larger of positive floats, for the same reasons.
template <class Arch>
XSIMD_INLINE F32<Arch> larger_positive(F32<Arch> a, F32<Arch> b) noexcept {
    if constexpr (k_has_integer_extremes<Arch>) {
        return float_of_bits<Arch>(xsimd::max(bits_of<Arch>(a), bits_of<Arch>(b)));
    } else {
        return xsimd::max(a, b);
    }
}

/// The smaller of positive floats.
template <class Arch>
XSIMD_INLINE F32<Arch> smaller_positive(F32<Arch> a, F32<Arch> b) noexcept {
    if constexpr (k_has_integer_extremes<Arch>) {
        return float_of_bits<Arch>(xsimd::min(bits_of<Arch>(a), bits_of<Arch>(b)));
    } else {
        return xsimd::min(a, b);
    }
}

/// How much of the float range `nearest_biased` must be right for.
enum class Range : bool {
    limited,  ///< |value| <= 4194303, no NaN: the caller has checked
    any       ///< everything, with the very integers that ggml's nearest_int makes of it
};

/// The nearest integer, ties to even, clamped to low..high, plus k_magic (so that its low bits are
/// the integer's). ggml's nearest_int keeps 22 bits of the sum with k_magic, whatever the value: a
/// NaN gives 0, an infinity -4194304. Putting the exponent back makes floats of those integers.
template <class Arch, Range range>
XSIMD_INLINE F32<Arch> nearest_biased(F32<Arch> value, float low, float high) noexcept {
    const F32<Arch> sum = value + F32<Arch>(k_magic);
    if constexpr (range == Range::any) {
        const I32<Arch> mantissa = bits_of<Arch>(sum) & I32<Arch>(0x007fffff);
        return clamp_positive<Arch>(float_of_bits<Arch>(mantissa | I32<Arch>(0x4b000000)),
                                    k_magic + low, k_magic + high);
    } else {
        return clamp_positive<Arch>(sum, k_magic + low, k_magic + high);
    }
}

/// The nearest integer, ties to even, clamped to 0..high.
template <class Arch, Range range>
XSIMD_INLINE F32<Arch> nearest_code(F32<Arch> value, float high) noexcept {
    if constexpr (range == Range::limited && k_has_integer_extremes<Arch>) {
        // One rounding instruction in place of an addition and a subtraction. Negative floats have
        // negative bits, so that integers' clamping still works with 0 as the lower end.
        const I32<Arch> nearest = bits_of<Arch>(nearest_even<Arch>(value));
        const I32<Arch> most(__builtin_bit_cast(std::int32_t, high));
        return float_of_bits<Arch>(xsimd::min(xsimd::max(nearest, I32<Arch>(0)), most));
    } else {
        return nearest_biased<Arch, range>(value, 0.0f, high) - F32<Arch>(k_magic);
    }
}

/// ggml's nearest_int for one float, for any value.
static inline std::int32_t nearest_int(float value) noexcept {
    const auto bits = __builtin_bit_cast(std::int32_t, value + k_magic);
    return (bits & 0x007fffff) - 0x00400000;
}

}  // namespace phiquant::kernels
