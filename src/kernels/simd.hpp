// The few words that all kernels share: batches, widening loads, rounding, transposition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <xsimd/xsimd.hpp>

static_assert(XSIMD_VERSION_MAJOR == 14, "phiquant's kernels are written for xsimd 14");

namespace phiquant::kernels {

template <class Arch>
using F32 = xsimd::batch<float, Arch>;
template <class Arch>
using I32 = xsimd::batch<std::int32_t, Arch>;

/// Widest batch of float32 among the instruction sets; buffers are aligned and padded to it.
inline constexpr std::size_t k_alignment = 64;

// Adding 1.5 * 2^23 leaves a float's nearest integer (ties to even) in the low mantissa bits.
inline constexpr float k_magic = 12582912.0f;

/// A batch of integers from consecutive narrower ones. The loop compiles to one widening load.
template <class Arch, class Narrow>
XSIMD_INLINE I32<Arch> load_widened(const Narrow* from) noexcept {
    alignas(k_alignment) std::int32_t wide[I32<Arch>::size];
    for (std::size_t i = 0; i < I32<Arch>::size; ++i) wide[i] = from[i];
    return I32<Arch>::load_aligned(wide);
}

template <class Arch>
XSIMD_INLINE I32<Arch> bits_of(F32<Arch> value) noexcept {
    return xsimd::bitwise_cast<std::int32_t>(value);
}

template <class Arch>
XSIMD_INLINE F32<Arch> float_of_bits(I32<Arch> bits) noexcept {
    return xsimd::bitwise_cast<float>(bits);
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
    F32<Arch> sum = value + F32<Arch>(k_magic);
    if constexpr (range == Range::any) {
        const I32<Arch> mantissa = bits_of<Arch>(sum) & I32<Arch>(0x007fffff);
        sum = float_of_bits<Arch>(mantissa | I32<Arch>(0x4b000000));
    }
    return xsimd::min(xsimd::max(sum, F32<Arch>(k_magic + low)), F32<Arch>(k_magic + high));
}

/// ggml's nearest_int for one float, for any value.
static inline std::int32_t nearest_int(float value) noexcept {
    const auto bits = __builtin_bit_cast(std::int32_t, value + k_magic);
    return (bits & 0x007fffff) - 0x00400000;
}

/// Rows of one sub-block a lane: `out[i]` holds value i of `lanes` consecutive sub-blocks.
template <class Arch, std::size_t size>
XSIMD_INLINE void transpose_sub_blocks(const float* values, F32<Arch>* out,
                                       std::size_t stride) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size;
    static_assert(size % lanes == 0);
    for (std::size_t from = 0; from < size; from += lanes) {
        F32<Arch> tile[lanes];
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            tile[lane] = F32<Arch>::load_unaligned(values + lane * size + from);
        }
        xsimd::transpose(tile, tile + lanes);
        for (std::size_t i = 0; i < lanes; ++i) out[(from + i) * stride] = tile[i];
    }
}

}  // namespace phiquant::kernels
