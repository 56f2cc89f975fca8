// Q6_K: super-blocks of 16 sub-blocks, each with an 8-bit scale.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/narrowing.hpp"
#include "kernels/search_scale.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

/// The parameters of one super-block, rounded as they are stored.
struct ScaleParameters {
    std::uint16_t scale;  // float16
    std::int8_t scales[16];
};

/// Round the scales of 16 sub-blocks to 8 bits against the largest, which becomes -128. False when
/// all are negligible: the reference then stores a block of zero bytes.
template <class Arch>
bool round_parameters(const float* scales, ScaleParameters& out) noexcept {
    float largest = 0.0f, magnitude = 0.0f;
    for (std::size_t j = 0; j < 16; ++j) {
        const float size = __builtin_fabsf(scales[j]);
        if (size > magnitude) {
            magnitude = size;
            largest = scales[j];
        }
    }
    if (magnitude < k_negligible) return false;
    const float inverse = -128.0f / largest;
    out.scale = float_to_half(1.0f / inverse);
    for (std::size_t j = 0; j < 16; ++j) {
        const std::int32_t scale = nearest_int(inverse * scales[j]);
        out.scales[j] = static_cast<std::int8_t>(scale < 127 ? scale : 127);
    }
    return true;
}

/// The codes (0 to 63) of a super-block, against the parameters as stored. Sub-blocks whose scale
/// is zero keep the search's own codes, as in the reference.
template <class Arch>
void round_codes(const float* values, const ScaleParameters& parameters, const Scales<16>& found,
                 std::uint8_t* codes) noexcept {
    using Batch = F32<Arch>;
    constexpr std::size_t lanes = Batch::size;
    const float unit = half_to_float(parameters.scale);
    for (std::size_t pair = 0; pair < 8; ++pair) {
        I32<Arch> rounded[32 / lanes];
        for (std::size_t half = 0; half < 2; ++half) {
            const std::size_t j = pair * 2 + half;
            const float scale = unit * static_cast<float>(parameters.scales[j]);
            const float inverse = found.inverse[j];
            // All-zero sub-blocks get code 0, which is not their middle, 32.
            const float middle = scale == 0.0f ? found.middle[j] : 32.0f;
            const I32<Arch> bias =
                bits_of<Arch>(Batch(k_magic)) - I32<Arch>(static_cast<std::int32_t>(middle));
            for (std::size_t p = 0; p < 16 / lanes; ++p) {
                const Batch x = Batch::load_unaligned(values + j * 16 + p * lanes);
                const Batch steps =
                    scale == 0.0f ? Batch(inverse) * x : quotient<Arch>(x, Batch(scale));
                const Batch biased = nearest_biased<Arch, Range::any>(steps, -32.0f, 31.0f);
                rounded[half * 16 / lanes + p] = bits_of<Arch>(biased) - bias;
            }
        }
        store_32_bytes<Arch>(rounded, codes + pair * 32);
    }
}

/// In each 128 values: nibbles of values i and i + 64, then of i + 32 and i + 96, and the four's
/// high bits.
template <class Arch>
void pack_codes(const std::uint8_t* codes, BlockQ6K& block) noexcept {
    for (std::size_t half = 0; half < 2; ++half) {
        const std::uint8_t* code = codes + half * 128;
        join_nibbles<Arch, 64>(code, code + 64, block.nibbles + half * 64);
        for (std::size_t i = 0; i < 32; i += 8) {
            std::uint64_t bits = 0;
            for (unsigned quarter = 0; quarter < 4; ++quarter) {
                bits |= EightBytes::field<Arch>(code + quarter * 32 + i, 2, 4, 2 * quarter);
            }
            std::memcpy(block.high_bits + half * 32 + i, &bits, sizeof(bits));
        }
    }
}

/// The weights of the values are those of their columns alone, in this format only.
template <class Arch, bool weighted>
void encode_q6_k(const Rows& rows, BlockQ6K* block) noexcept {
    const float* values = rows.values;
    ScaleSearch<Arch, ScaleRule<16, 32, weighted>> search;
    std::uint64_t column = 0;
    for (std::uint64_t left = rows.rows * rows.columns / k_super_block; left > 0; --left) {
        Scales<16> found;
        ScaleParameters parameters;
        // The search is long and reads nothing new: have the next values come meanwhile.
        if (left > 2) prefetch<Arch>(values + 2 * k_super_block, k_super_block);
        for (std::size_t j = 0; j < 16; j += F32<Arch>::size) {
            const float* weights = weighted ? rows.importance + column + j * 16 : nullptr;
            search.run(values + j * 16, weights, j, found);
        }
        if (round_parameters<Arch>(found.scale, parameters)) {
            alignas(k_alignment) std::uint8_t codes[k_super_block];
            round_codes<Arch>(values, parameters, found, codes);
            pack_codes<Arch>(codes, *block);
            std::memcpy(block->scales, parameters.scales, sizeof(block->scales));
            block->scale = parameters.scale;
        } else {
            std::memset(block, 0, sizeof(*block));
        }
        values += k_super_block;
        column += k_super_block;
        if (column == rows.columns) column = 0;
        ++block;
    }
}

template <class Arch>
void encode_q6_k(const Rows& rows, std::byte* const* planes) noexcept {
    auto* block = reinterpret_cast<BlockQ6K*>(planes[0]);
    if (rows.importance != nullptr) {
        encode_q6_k<Arch, true>(rows, block);
    } else {
        encode_q6_k<Arch, false>(rows, block);
    }
}

template <class Arch>
void decode_q6_k(const std::byte* const* planes, std::uint64_t values, float* out) noexcept {
    using Batch = F32<Arch>;
    using Integers = I32<Arch>;
    const auto* block = reinterpret_cast<const BlockQ6K*>(planes[0]);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        for (std::size_t j = 0; j < 16; ++j) {
            const Batch scale(unit * static_cast<float>(block->scales[j]));
            const std::size_t half = j / 8, quarter = j % 8 / 2;  // 32 values a quarter
            const std::uint8_t* nibbles = block->nibbles + half * 64 + quarter % 2 * 32;
            const std::uint8_t* high_bits = block->high_bits + half * 32;
            for (std::size_t i = j % 2 * 16; i < j % 2 * 16 + 16; i += Batch::size) {
                const Integers pair = load_widened<Arch>(nibbles + i);
                const Integers low = quarter < 2 ? pair & Integers(15) : pair >> 4;
                const Integers high =
                    load_widened<Arch>(high_bits + i) >> static_cast<int>(2 * quarter);
                const Integers code = (low | ((high & Integers(3)) << 4)) - Integers(32);
                (scale * xsimd::batch_cast<float>(code)).store_unaligned(out);
                out += Batch::size;
            }
        }
    }
}

}  // namespace phiquant::kernels
