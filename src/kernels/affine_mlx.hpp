// The rule of mlx.core.quantize, as mlx computes it on processors: codes times a scale, plus a
// bias.
#pragma once

#include "kernels/affine_group.hpp"
#include "kernels/halves.hpp"
#include "kernels/narrowing.hpp"

namespace phiquant::kernels {

/// The nearest numbers of a scale's type. mlx is given weights of that type, so they are rounded,
/// too; which changes nothing where the source has them already.
template <class Arch, AffineScale type>
XSIMD_INLINE F32<Arch> of_type(F32<Arch> value) noexcept {
    using Integers = I32<Arch>;
    if constexpr (type == AffineScale::f16) {
        return floats_of_halves<Arch>(halves_of<Arch>(value) & Integers(0xffff));
    } else if constexpr (type == AffineScale::bf16) {
        return float_of_bits<Arch>(bfloats_of<Arch>(value) << 16);
    } else {
        return value;
    }
}

/// Parameters are made for this many groups together: one by one, their latencies would add up.
inline constexpr std::size_t k_groups_together = 16;

/// How codes stand for values, of several groups.
struct MlxParameters {
    alignas(k_alignment) float scale[k_groups_together] = {}, bias[k_groups_together] = {};
};

/// Scales and biases before they are rounded to their type: codes are made with these. The bias is
/// the end of the range with the larger magnitude, and zero is a code. `found` holds the ranges,
/// the lowest value as scale and the highest as bias.
template <class Arch, AffineScale type>
XSIMD_INLINE void find_parameters(float most, MlxParameters& found) noexcept {
    using Batch = F32<Arch>;
    for (std::size_t g = 0; g < k_groups_together; g += Batch::size) {
        // Rounding keeps the order, so the extremes needed no rounded values.
        const Batch low = of_type<Arch, type>(Batch::load_aligned(found.scale + g));
        const Batch high = of_type<Arch, type>(Batch::load_aligned(found.bias + g));
        const auto below = xsimd::abs(low) > xsimd::abs(high);
        const Batch size = xsimd::max(quotient<Arch>(high - low, Batch(most)), Batch(1e-7f));
        const Batch scale = xsimd::select(below, size, negated<Arch>(size));
        const Batch edge = xsimd::select(below, low, high);
        // Codes from zero to the edge; at most 2^bits - 1.
        const Batch whole = (quotient<Arch>(edge, scale) + Batch(k_magic)) - Batch(k_magic);
        const auto none = whole == Batch(0.0f);
        const Batch refined = quotient<Arch>(edge, xsimd::select(none, Batch(1.0f), whole));
        xsimd::select(none, scale, refined).store_aligned(found.scale + g);
        xsimd::select(none, Batch(0.0f), edge).store_aligned(found.bias + g);
    }
}

/// codes[i] = clamp(round(place_one(i)), 0, most), halves to even, from `begin` on; NaN gives 0, as
/// mlx's cast has it.
template <class PlaceOne>
XSIMD_INLINE void round_each(std::uint64_t begin, std::uint64_t count, float most,
                             const PlaceOne& place_one, std::uint8_t* codes) noexcept {
    for (std::uint64_t i = begin; i < count; ++i) {
        float at = place_one(i);
        at = at > 0.0f ? at : 0.0f;
        at = at < most ? at : most;
        codes[i] = static_cast<std::uint8_t>((at + k_magic) - k_magic);
    }
}

/// codes = clamp(round(place(i)), 0, most), halves to even. `place` gives batches without NaN; its
/// scalar form serves what is left over, of groups that are no multiple of 32.
template <class Arch, class Place, class PlaceOne>
XSIMD_INLINE void round_codes(std::uint64_t count, float most, const Place& place,
                              const PlaceOne& place_one, std::uint8_t* codes) noexcept {
    constexpr std::size_t lanes = F32<Arch>::size, parts = 32 / lanes;
    // Bytes are stored with a sign.
    const bool wide = most > 127.0f;
    const I32<Arch> shift(wide ? 128 : 0);
    const std::uint64_t back = wide ? 0x8080808080808080u : 0;
    std::uint64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        I32<Arch> found[parts];
        for (std::size_t p = 0; p < parts; ++p) {
            const F32<Arch> code = nearest_code<Arch, Range::limited>(place(i + p * lanes), most);
            found[p] = xsimd::batch_cast<std::int32_t>(code) - shift;
        }
        std::uint64_t bytes[4];
        store_32_bytes<Arch>(found, bytes);
        for (std::uint64_t& word : bytes) word ^= back;
        std::memcpy(codes + i, bytes, sizeof(bytes));
    }
    round_each(i, count, most, place_one, codes);
}

template <class Arch, AffineScale type>
void encode_mlx_as(const AffineGrid& grid, const AffineRows& rows,
                   const AffineCodes& out) noexcept {
    const float most = static_cast<float>((1u << grid.bits) - 1);
    // mlx has no short groups.
    const std::uint64_t group = grid.group, count = rows.rows * (rows.columns / group);
    MlxParameters found;
    for (std::uint64_t first = 0; first < count; first += k_groups_together) {
        const std::size_t here = count - first < k_groups_together
                                     ? static_cast<std::size_t>(count - first)
                                     : k_groups_together;
        for (std::size_t g = 0; g < here; ++g) {
            const Extremes range = extremes_of<Arch>(rows.values + (first + g) * group, group);
            found.scale[g] = range.least;
            found.bias[g] = range.most;
        }
        find_parameters<Arch, type>(most, found);
        for (std::size_t g = 0; g < here; ++g) {
            const float* values = rows.values + (first + g) * group;
            const float scale = found.scale[g], bias = found.bias[g];
            std::uint8_t* codes = out.codes + (first + g) * group;
            const F32<Arch> step(scale), edge(bias);
            const auto place = [&](std::uint64_t i) noexcept {
                const auto value = of_type<Arch, type>(F32<Arch>::load_unaligned(values + i));
                return quotient<Arch>(value - edge, step);
            };
            const auto place_one = [&](std::uint64_t i) noexcept {
                return (stored_scale(values[i], type) - bias) / scale;
            };
            // Equal values beyond 3.4e31 have the scale 0, their edge over 1e-7 being infinite.
            if (__builtin_fabsf(scale) > 0.0f && __builtin_isfinite(scale)) {
                round_codes<Arch>(group, most, place, place_one, codes);
            } else {
                round_each(0, group, most, place_one, codes);
            }
            out.scales[first + g] = stored_scale(scale, type);
            out.zeros[first + g] = stored_scale(bias, type);
        }
    }
}

/// mlx.core.quantize's affine mode (mlx 0.32, backend/cpu/quantized.cpp). Metal and CUDA differ in
/// rounding and in groups of one sign.
template <class Arch>
void encode_mlx(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    switch (grid.scale) {
        case AffineScale::f16:
            return encode_mlx_as<Arch, AffineScale::f16>(grid, rows, out);
        case AffineScale::bf16:
            return encode_mlx_as<Arch, AffineScale::bf16>(grid, rows, out);
        case AffineScale::f32:
            return encode_mlx_as<Arch, AffineScale::f32>(grid, rows, out);
    }
}

}  // namespace phiquant::kernels
