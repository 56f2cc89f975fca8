// Q4_K and Q5_K: super-blocks of 8 sub-blocks, each with a 6-bit scale and a 6-bit minimum.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/narrowing.hpp"
#include "kernels/search_scale_minimum.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

struct FormatQ4K {
    using Block = BlockQ4K;
    static constexpr std::size_t sub_block = 32;
    static constexpr int largest_code = 15;
    // Trials of the search: (first_step + 0.1 * step + largest_code) / range.
    static constexpr float first_step = -1.0f;
    static constexpr int last_step = 20;
};

struct FormatQ5K {
    using Block = BlockQ5K;
    static constexpr std::size_t sub_block = 32;
    static constexpr int largest_code = 31;
    static constexpr float first_step = -0.5f;
    static constexpr int last_step = 15;
};

/// The parameters of one super-block, rounded as they are stored.
struct ScaleMinimumParameters {
    std::uint16_t scale, minimum;  // float16
    std::uint8_t scales[8], minima[8];
};

/// Round the parameters of 8 sub-blocks to 6 bits each, against the largest.
template <class Arch>
void round_parameters(const float* scales, const float* minima,
                      ScaleMinimumParameters& out) noexcept {
    float largest_scale = 0.0f, largest_minimum = 0.0f;
    for (std::size_t j = 0; j < 8; ++j) {
        if (scales[j] > largest_scale) largest_scale = scales[j];
        if (minima[j] > largest_minimum) largest_minimum = minima[j];
    }
    const float per_scale = largest_scale > 0.0f ? 63.0f / largest_scale : 0.0f;
    const float per_minimum = largest_minimum > 0.0f ? 63.0f / largest_minimum : 0.0f;
    for (std::size_t j = 0; j < 8; ++j) {
        // A negative scale wraps to a large byte and becomes 63, as in the reference.
        const auto scale = static_cast<std::uint8_t>(nearest_int(per_scale * scales[j]));
        const auto minimum = static_cast<std::uint8_t>(nearest_int(per_minimum * minima[j]));
        out.scales[j] = scale < 63 ? scale : std::uint8_t{63};
        out.minima[j] = minimum < 63 ? minimum : std::uint8_t{63};
    }
    out.scale = float_to_half(largest_scale / 63.0f);
    out.minimum = float_to_half(largest_minimum / 63.0f);
}

/// The codes of a super-block, against the parameters as stored. `found` and `first` give the
/// search's own codes to sub-blocks whose scale is zero: the reference keeps those.
template <class Arch, class Format, std::size_t count>
void round_codes(const float* values, const ScaleMinimumParameters& parameters,
                 const ScalesAndMinima<count>& found, std::size_t first,
                 std::uint8_t* codes) noexcept {
    using Batch = F32<Arch>;
    constexpr std::size_t lanes = Batch::size;
    constexpr float largest = Format::largest_code;
    const float unit = half_to_float(parameters.scale);
    const float minimum_unit = half_to_float(parameters.minimum);
    for (std::size_t j = 0; j < 8; ++j) {
        const float scale = unit * static_cast<float>(parameters.scales[j]);
        const float minimum = minimum_unit * static_cast<float>(parameters.minima[j]);
        I32<Arch> rounded[32 / lanes];
        for (std::size_t p = 0; p < 32 / lanes; ++p) {
            const Batch x = Batch::load_unaligned(values + j * 32 + p * lanes);
            const Batch steps = scale == 0.0f ? Batch(found.inverse[first + j]) *
                                                    (x - Batch(found.offset[first + j]))
                                              : quotient<Arch>(x + Batch(minimum), Batch(scale));
            const Batch biased = nearest_biased<Arch, Range::any>(steps, 0.0f, largest);
            rounded[p] = bits_of<Arch>(biased) - bits_of<Arch>(Batch(k_magic));
        }
        store_32_bytes<Arch>(rounded, codes + j * 32);
    }
}

/// 8 scales and 8 minima of 6 bits in 12 bytes: the first four of each whole, with the high bits
/// of the last four above them.
template <class Arch>
void pack_parameters(const ScaleMinimumParameters& parameters, std::uint8_t* out) noexcept {
    const std::uint8_t* scales = parameters.scales;
    const std::uint8_t* minima = parameters.minima;
    for (std::size_t j = 0; j < 4; ++j) {
        out[j] = static_cast<std::uint8_t>(scales[j] | ((scales[j + 4] >> 4) << 6));
        out[j + 4] = static_cast<std::uint8_t>(minima[j] | ((minima[j + 4] >> 4) << 6));
        out[j + 8] = static_cast<std::uint8_t>((scales[j + 4] & 15) | ((minima[j + 4] & 15) << 4));
    }
}

template <class Arch>
void unpack_parameters(const std::uint8_t* in, ScaleMinimumParameters& parameters) noexcept {
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
    for (std::size_t i = 0; i < 32; i += 8) {
        std::uint64_t bits = 0;
        for (unsigned j = 0; j < 8; ++j) {
            bits |= EightBytes::field<Arch>(codes + j * 32 + i, 1, 4, j);
        }
        std::memcpy(block.fifth_bits + i, &bits, sizeof(bits));
    }
}

template <class Arch, class Format>
void encode_scale_minimum(const Rows& rows, std::byte* const* planes) noexcept {
    // Two groups of lanes at a time: the sums are chains of dependent additions, and one group's
    // fill the waits of the other's.
    using Search = ScaleMinimumSearch<Arch, Format, 2>;
    constexpr std::size_t unit = Search::sub_blocks / 8;  // super-blocks
    static_assert(Search::sub_blocks % 8 == 0);

    auto* block = reinterpret_cast<typename Format::Block*>(planes[0]);
    const float* values = rows.values;
    Search search;
    ScalesAndMinima<Search::sub_blocks> found;
    for (std::uint64_t left = rows.rows * rows.columns / k_super_block; left > 0;) {
        const std::size_t count = left < unit ? static_cast<std::size_t>(left) : unit;
        // The search is long and reads nothing new: have the next values come meanwhile.
        if (left >= 2 * unit) prefetch<Arch>(values + unit * k_super_block, unit * k_super_block);
        if (count == unit) {
            search.run(values, found);
        } else {
            alignas(k_alignment) float padded[unit * k_super_block];
            std::memset(padded, 0, sizeof(padded));
            std::memcpy(padded, values, count * k_super_block * sizeof(float));
            search.run(padded, found);
        }
        for (std::size_t b = 0; b < count; ++b) {
            ScaleMinimumParameters parameters;
            alignas(k_alignment) std::uint8_t codes[k_super_block];
            round_parameters<Arch>(found.scale + b * 8, found.minimum + b * 8, parameters);
            round_codes<Arch, Format>(values, parameters, found, b * 8, codes);
            block->scale = parameters.scale;
            block->minimum = parameters.minimum;
            pack_parameters<Arch>(parameters, block->parameters);
            pack_codes<Arch>(codes, *block);
            values += k_super_block;
            ++block;
        }
        left -= count;
    }
}

/// Codes of one batch of sub-block `j`, from `i` on.
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
        unpack_parameters<Arch>(block->parameters, parameters);
        const float unit = half_to_float(block->scale);
        const float minimum_unit = half_to_float(block->minimum);
        for (std::size_t j = 0; j < 8; ++j) {
            const Batch scale(unit * static_cast<float>(parameters.scales[j]));
            const Batch minimum(minimum_unit * static_cast<float>(parameters.minima[j]));
            for (std::size_t i = 0; i < 32; i += Batch::size, out += Batch::size) {
                const auto code = xsimd::batch_cast<float>(unpack_codes<Arch>(*block, j, i));
                (scale * code - minimum).store_unaligned(out);
            }
        }
    }
}

}  // namespace phiquant::kernels
