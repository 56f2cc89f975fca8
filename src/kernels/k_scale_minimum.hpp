// Q2_K, Q4_K and Q5_K: super-blocks of sub-blocks, each with a rounded scale and a rounded minimum.
// The formats: how parameters and codes are rounded, packed and decoded.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/narrowing.hpp"
#include "kernels/search_scale_minimum.hpp"

namespace phiquant::kernels {

// Each format is also the rule of its search without importance, as ImportanceRule is of that with
// it. `clamps` tells whether parameters wrapped to large bytes become the largest before they are
// packed; `clamps_fitted` the same of those fitted with importance.

struct FormatQ2K {
    using Block = BlockQ2K;
    static constexpr std::size_t sub_block = 16;
    static constexpr int largest_code = 3;
    static constexpr int largest_parameter = 15;
    static constexpr bool clamps = false, clamps_fitted = false;
    static constexpr Weighting weighting = Weighting::magnitude;
    static constexpr bool absolute_errors = true;
    static constexpr float first_step = -0.5f, step = 0.1f;
    static constexpr int last_step = 15;
    static constexpr float variance_factor = 1.0f;  // with importance, of the mean square
};

struct FormatQ4K {
    using Block = BlockQ4K;
    static constexpr std::size_t sub_block = 32;
    static constexpr int largest_code = 15;
    static constexpr int largest_parameter = 63;
    static constexpr bool clamps = true, clamps_fitted = false;
    static constexpr Weighting weighting = Weighting::magnitude_and_mean;
    static constexpr bool absolute_errors = false;
    static constexpr float first_step = -1.0f, step = 0.1f;
    static constexpr int last_step = 20;
    static constexpr float variance_factor = 2.0f;
};

struct FormatQ5K {
    using Block = BlockQ5K;
    static constexpr std::size_t sub_block = 32;
    static constexpr int largest_code = 31;
    static constexpr int largest_parameter = 63;
    static constexpr bool clamps = true, clamps_fitted = true;
    static constexpr Weighting weighting = Weighting::magnitude_and_mean;
    static constexpr bool absolute_errors = false;
    static constexpr float first_step = -0.5f, step = 0.1f;
    static constexpr int last_step = 15;
    static constexpr float variance_factor = 2.0f;
};

template <class Format>
inline constexpr std::size_t k_sub_blocks = k_super_block / Format::sub_block;

/// The parameters of one super-block, rounded as they are stored.
struct ScaleMinimumParameters {
    std::uint16_t scale, minimum;  // float16
    std::uint8_t scales[16], minima[16];
};

/// Negative parameters wrap to large bytes, as in the reference; packing cuts what is left of them.
template <class Arch, class Format, bool clamps>
XSIMD_INLINE std::uint8_t stored_parameter(std::int32_t rounded) noexcept {
    constexpr std::uint8_t most = Format::largest_parameter;
    const auto byte = static_cast<std::uint8_t>(rounded);
    return clamps && byte > most ? most : byte;
}

/// Round the parameters of a super-block's sub-blocks, against the largest.
template <class Arch, class Format>
void round_parameters(const float* scales, const float* minima,
                      ScaleMinimumParameters& out) noexcept {
    constexpr float most = Format::largest_parameter;
    float largest_scale = 0.0f, largest_minimum = 0.0f;
    for (std::size_t j = 0; j < k_sub_blocks<Format>; ++j) {
        if (scales[j] > largest_scale) largest_scale = scales[j];
        if (minima[j] > largest_minimum) largest_minimum = minima[j];
    }
    const float per_scale = largest_scale > 0.0f ? most / largest_scale : 0.0f;
    const float per_minimum = largest_minimum > 0.0f ? most / largest_minimum : 0.0f;
    for (std::size_t j = 0; j < k_sub_blocks<Format>; ++j) {
        out.scales[j] =
            stored_parameter<Arch, Format, Format::clamps>(nearest_int(per_scale * scales[j]));
        out.minima[j] =
            stored_parameter<Arch, Format, Format::clamps>(nearest_int(per_minimum * minima[j]));
    }
    out.scale = float_to_half(largest_scale / most);
    out.minimum = float_to_half(largest_minimum / most);
}

/// The codes of a super-block, against the parameters as stored. `found` and `first` give the
/// search's own codes to sub-blocks whose scale is zero: the reference keeps those.
template <class Arch, class Format, std::size_t count>
void round_codes(const float* values, const ScaleMinimumParameters& parameters,
                 const ScalesAndMinima<count>& found, std::size_t first,
                 std::uint8_t* codes) noexcept {
    using Batch = F32<Arch>;
    constexpr std::size_t lanes = Batch::size, size = Format::sub_block;
    constexpr float largest = Format::largest_code;
    const float unit = half_to_float(parameters.scale);
    const float minimum_unit = half_to_float(parameters.minimum);
    for (std::size_t from = 0; from < k_super_block; from += 32) {
        I32<Arch> rounded[32 / lanes];
        for (std::size_t part = 0; part < 32; part += size) {
            const std::size_t j = (from + part) / size;
            const float scale = unit * static_cast<float>(parameters.scales[j]);
            const float minimum = minimum_unit * static_cast<float>(parameters.minima[j]);
            for (std::size_t i = part; i < part + size; i += lanes) {
                const Batch x = Batch::load_unaligned(values + from + i);
                const Batch steps =
                    scale == 0.0f
                        ? Batch(found.inverse[first + j]) * (x - Batch(found.offset[first + j]))
                        : quotient<Arch>(x + Batch(minimum), Batch(scale));
                const Batch biased = nearest_biased<Arch, Range::any>(steps, 0.0f, largest);
                rounded[i / lanes] = bits_of<Arch>(biased) - bits_of<Arch>(Batch(k_magic));
            }
        }
        store_32_bytes<Arch>(rounded, codes + from);
    }
}

/// 16 scales and 16 minima of 4 bits.
template <class Arch>
void pack_parameters(const ScaleMinimumParameters& parameters, BlockQ2K& block) noexcept {
    for (std::size_t j = 0; j < 16; ++j) {
        block.parameters[j] =
            static_cast<std::uint8_t>(parameters.scales[j] | (parameters.minima[j] << 4));
    }
}

template <class Arch>
void unpack_parameters(const BlockQ2K& block, ScaleMinimumParameters& parameters) noexcept {
    for (std::size_t j = 0; j < 16; ++j) {
        parameters.scales[j] = block.parameters[j] & 15;
        parameters.minima[j] = block.parameters[j] >> 4;
    }
}

/// 8 scales and 8 minima of 6 bits in 12 bytes: the first four of each whole, with the high bits
/// of the last four above them.
template <class Arch, class Block>
void pack_parameters(const ScaleMinimumParameters& parameters, Block& block) noexcept {
    const std::uint8_t* scales = parameters.scales;
    const std::uint8_t* minima = parameters.minima;
    std::uint8_t* out = block.parameters;
    for (std::size_t j = 0; j < 4; ++j) {
        out[j] = static_cast<std::uint8_t>(scales[j] | ((scales[j + 4] >> 4) << 6));
        out[j + 4] = static_cast<std::uint8_t>(minima[j] | ((minima[j + 4] >> 4) << 6));
        out[j + 8] = static_cast<std::uint8_t>((scales[j + 4] & 15) | ((minima[j + 4] & 15) << 4));
    }
}

template <class Arch, class Block>
void unpack_parameters(const Block& block, ScaleMinimumParameters& parameters) noexcept {
    const std::uint8_t* in = block.parameters;
    for (std::size_t j = 0; j < 4; ++j) {
        parameters.scales[j] = in[j] & 63;
        parameters.minima[j] = in[j + 4] & 63;
        parameters.scales[j + 4] =
            static_cast<std::uint8_t>((in[j + 8] & 15) | ((in[j] >> 6) << 4));
        parameters.minima[j + 4] =
            static_cast<std::uint8_t>((in[j + 8] >> 4) | ((in[j + 4] >> 6) << 4));
    }
}

template <class Arch>
void pack_codes(const std::uint8_t* codes, BlockQ2K& block) noexcept {
    pack_pairs<Arch>(codes, block.pairs);
}

template <class Arch>
void pack_codes(const std::uint8_t* codes, BlockQ4K& block) noexcept {
    for (std::size_t pair = 0; pair < 4; ++pair) {
        join_nibbles<Arch, 32>(codes + pair * 64, codes + pair * 64 + 32,
                               block.nibbles + pair * 32);
    }
}

template <class Arch>
void pack_codes(const std::uint8_t* codes, BlockQ5K& block) noexcept {
    for (std::size_t pair = 0; pair < 4; ++pair) {
        join_nibbles<Arch, 32>(codes + pair * 64, codes + pair * 64 + 32,
                               block.nibbles + pair * 32);
    }
    pack_bits<Arch>(codes, 4, block.fifth_bits);
}

/// Codes of one batch of sub-block `j`, from `i` on.
template <class Arch>
XSIMD_INLINE I32<Arch> unpack_codes(const BlockQ2K& block, std::size_t j, std::size_t i) noexcept {
    return unpack_pairs<Arch>(block.pairs, j * 16 + i);
}

template <class Arch>
XSIMD_INLINE I32<Arch> unpack_codes(const BlockQ4K& block, std::size_t j, std::size_t i) noexcept {
    const auto nibbles = load_widened<Arch>(block.nibbles + j / 2 * 32 + i);
    return j % 2 == 0 ? nibbles & I32<Arch>(15) : nibbles >> 4;
}

template <class Arch>
XSIMD_INLINE I32<Arch> unpack_codes(const BlockQ5K& block, std::size_t j, std::size_t i) noexcept {
    const auto nibbles = load_widened<Arch>(block.nibbles + j / 2 * 32 + i);
    const auto bits = load_widened<Arch>(block.fifth_bits + i) >> static_cast<int>(j);
    const auto low = j % 2 == 0 ? nibbles & I32<Arch>(15) : nibbles >> 4;
    return low | ((bits & I32<Arch>(1)) << 4);
}

template <class Arch, class Format>
void decode_scale_minimum(const std::byte* const* planes, std::uint64_t values,
                          float* out) noexcept {
    using Batch = F32<Arch>;
    const auto* block = reinterpret_cast<const typename Format::Block*>(planes[0]);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        ScaleMinimumParameters parameters;
        unpack_parameters<Arch>(*block, parameters);
        const float unit = half_to_float(block->scale);
        const float minimum_unit = half_to_float(block->minimum);
        for (std::size_t j = 0; j < k_sub_blocks<Format>; ++j) {
            const Batch scale(unit * static_cast<float>(parameters.scales[j]));
            const Batch minimum(minimum_unit * static_cast<float>(parameters.minima[j]));
            for (std::size_t i = 0; i < Format::sub_block; i += Batch::size, out += Batch::size) {
                const auto code = xsimd::batch_cast<float>(unpack_codes<Arch>(*block, j, i));
                (scale * code - minimum).store_unaligned(out);
            }
        }
    }
}

}  // namespace phiquant::kernels
