// ggml's plain formats: blocks of 32 values with one scale (q8_0, q4_0, q5_0), or with a scale and
// a minimum (q5_1).
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/narrowing.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

/// How a block's values become codes before truncation: (value - offset) * inverse + bias. Where
/// the inverse of a tiny scale overflows, the reference's casts of infinities and NaNs come to
/// code 0 (the low byte of x86's "integer indefinite"); a zero inverse and bias say the same
/// on every processor.
struct BlockGrid {
    float offset, inverse, bias;
};

template <class Arch>
XSIMD_INLINE float inverse_of(float scale) noexcept {
    return scale != 0.0f ? 1.0f / scale : 0.0f;
}

template <class Arch>
XSIMD_INLINE bool overflows(float inverse) noexcept {
    return !(__builtin_fabsf(inverse) <= __FLT_MAX__);
}

/// One block of 32 values in registers.
template <class Arch>
struct BlockValues {
    static constexpr std::size_t lanes = F32<Arch>::size;
    static constexpr std::size_t parts = k_block / lanes;
    F32<Arch> x[parts];

    XSIMD_INLINE explicit BlockValues(const float* values) noexcept {
        for (std::size_t p = 0; p < parts; ++p) x[p] = F32<Arch>::load_unaligned(values + p * lanes);
    }

    XSIMD_INLINE float largest_magnitude() const noexcept {
        F32<Arch> most = xsimd::abs(x[0]);
        for (std::size_t p = 1; p < parts; ++p) most = xsimd::max(most, xsimd::abs(x[p]));
        return xsimd::reduce_max(most);
    }
};

/// The value of the largest magnitude with its sign; the first one of equals.
template <class Arch>
XSIMD_INLINE float signed_largest(const BlockValues<Arch>& block, const float* values) noexcept {
    const float magnitude = block.largest_magnitude();
    // Which batch holds it is anyone's guess: one mask of all, as a branch would be mispredicted.
    std::uint32_t places = 0;
    for (std::size_t p = 0; p < block.parts; ++p) {
        const auto here = xsimd::abs(block.x[p]) == F32<Arch>(magnitude);
        places |= static_cast<std::uint32_t>(here.mask()) << (p * block.lanes);
    }
    return magnitude == 0.0f ? 0.0f : values[__builtin_ctz(places)];
}

/// Fit q4_0 and q5_0: the largest value takes the lowest code, -half_range.
template <class Arch>
XSIMD_INLINE BlockGrid fit_signed(const BlockValues<Arch>& block, const float* values,
                                  float half_range, std::uint16_t& stored_scale) noexcept {
    const float scale = signed_largest(block, values) / -half_range;
    const float inverse = inverse_of<Arch>(scale);
    stored_scale = float_to_half(scale);
    if (overflows<Arch>(inverse)) return {0.0f, 0.0f, 0.0f};
    return {0.0f, inverse, half_range + 0.5f};
}

/// Fit q5_1: codes 0 to 31 span the values.
template <class Arch>
XSIMD_INLINE BlockGrid fit_range(const BlockValues<Arch>& block, const float* values,
                                 std::uint16_t& stored_scale,
                                 std::uint16_t& stored_minimum) noexcept {
    F32<Arch> least = block.x[0], most = block.x[0];
    for (std::size_t p = 1; p < block.parts; ++p) {
        least = xsimd::min(least, block.x[p]);
        most = xsimd::max(most, block.x[p]);
    }
    float low = xsimd::reduce_min(least);
    const float high = xsimd::reduce_max(most);
    if (low == 0.0f) {
        // The first zero's sign is stored.
        std::size_t i = 0;
        while (values[i] != 0.0f) ++i;
        low = values[i];
    }
    // Equal ends may still be zeros of two signs, whose difference is not always +0.
    const float scale = (high == low ? 0.0f : high - low) / 31.0f;
    const float inverse = inverse_of<Arch>(scale);
    stored_scale = float_to_half(scale);
    stored_minimum = float_to_half(low);
    // A range past the largest float: its inverse is 0, and value - low may be infinite.
    if (inverse == 0.0f || overflows<Arch>(inverse)) return {0.0f, 0.0f, 0.0f};
    return {low, inverse, 0.5f};
}

template <class Arch>
XSIMD_INLINE void round_codes(const BlockValues<Arch>& block, const BlockGrid& grid, int largest,
                              I32<Arch>* codes) noexcept {
    using Batch = F32<Arch>;
    for (std::size_t p = 0; p < block.parts; ++p) {
        const Batch steps =
            (block.x[p] - Batch(grid.offset)) * Batch(grid.inverse) + Batch(grid.bias);
        // Not negative, so that truncation is the floor; the reference clamps above only.
        codes[p] = xsimd::min(xsimd::batch_cast<std::int32_t>(steps), I32<Arch>(largest));
    }
}

template <class Arch>
XSIMD_INLINE void pack_nibbles(const I32<Arch>* codes, std::uint8_t* nibbles) noexcept {
    alignas(k_alignment) std::uint8_t bytes[k_block];
    store_32_bytes<Arch>(codes, bytes);
    join_nibbles<Arch, 16>(bytes, bytes + 16, nibbles);
}

template <class Arch>
XSIMD_INLINE void pack_fifth_bits(const I32<Arch>* codes, std::uint8_t* fifth_bits) noexcept {
    using Integers = I32<Arch>;
    std::uint32_t bits = 0;
    for (std::size_t p = 0; p < k_block / Integers::size; ++p) {
        const auto set = codes[p] > Integers(15);
        bits |= static_cast<std::uint32_t>(set.mask()) << (p * Integers::size);
    }
    std::memcpy(fifth_bits, &bits, sizeof(bits));
}

template <class Arch>
XSIMD_INLINE void encode_block(const float* values, BlockQ80& out) noexcept {
    using Batch = F32<Arch>;
    const BlockValues<Arch> block(values);
    const float scale = block.largest_magnitude() / 127.0f;
    float inverse = inverse_of<Arch>(scale);
    out.scale = float_to_half(scale);
    if (overflows<Arch>(inverse)) inverse = 0.0f;  // see BlockGrid
    I32<Arch> codes[block.parts];
    for (std::size_t p = 0; p < block.parts; ++p) {
        // roundf: halves away from zero. The float below a half keeps 0.49999997 from reaching 1.
        const Batch steps = block.x[p] * Batch(inverse);
        const Batch away = steps + xsimd::copysign(Batch(0x1.fffffep-2f), steps);
        codes[p] = xsimd::batch_cast<std::int32_t>(away);
    }
    store_32_bytes<Arch>(codes, out.codes);
}

template <class Arch>
XSIMD_INLINE void encode_block(const float* values, BlockQ40& out) noexcept {
    const BlockValues<Arch> block(values);
    I32<Arch> codes[block.parts];
    round_codes(block, fit_signed(block, values, 8.0f, out.scale), 15, codes);
    pack_nibbles<Arch>(codes, out.nibbles);
}

template <class Arch>
XSIMD_INLINE void encode_block(const float* values, BlockQ50& out) noexcept {
    const BlockValues<Arch> block(values);
    I32<Arch> codes[block.parts];
    round_codes(block, fit_signed(block, values, 16.0f, out.scale), 31, codes);
    pack_nibbles<Arch>(codes, out.nibbles);
    pack_fifth_bits<Arch>(codes, out.fifth_bits);
}

template <class Arch>
XSIMD_INLINE void encode_block(const float* values, BlockQ51& out) noexcept {
    const BlockValues<Arch> block(values);
    I32<Arch> codes[block.parts];
    round_codes(block, fit_range(block, values, out.scale, out.minimum), 31, codes);
    pack_nibbles<Arch>(codes, out.nibbles);
    pack_fifth_bits<Arch>(codes, out.fifth_bits);
}

/// Codes of one batch, from value `i` on.
template <class Arch>
XSIMD_INLINE I32<Arch> unpack_nibbles(const std::uint8_t* nibbles, std::size_t i) noexcept {
    return i < 16 ? load_widened<Arch>(nibbles + i) & I32<Arch>(15)
                  : load_widened<Arch>(nibbles + i - 16) >> 4;
}

template <class Arch, class Block>
XSIMD_INLINE I32<Arch> unpack_five_bits(const Block& block, std::size_t i) noexcept {
    using Integers = I32<Arch>;
    std::uint32_t bits;
    std::memcpy(&bits, block.fifth_bits, sizeof(bits));
    alignas(k_alignment) static constexpr std::int32_t places[16] = {
        1 << 0, 1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
        1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
    const Integers here(static_cast<std::int32_t>(bits >> i));
    const auto set = (here & Integers::load_aligned(places)) != Integers(0);
    return unpack_nibbles<Arch>(block.nibbles, i) |
           xsimd::select(set, Integers(16), Integers(0));
}

template <class Arch>
XSIMD_INLINE F32<Arch> decode_batch(const BlockQ80& block, F32<Arch> scale, F32<Arch>,
                                    std::size_t i) noexcept {
    return xsimd::batch_cast<float>(load_widened<Arch>(block.codes + i)) * scale;
}

template <class Arch>
XSIMD_INLINE F32<Arch> decode_batch(const BlockQ40& block, F32<Arch> scale, F32<Arch>,
                                    std::size_t i) noexcept {
    const auto code = unpack_nibbles<Arch>(block.nibbles, i) - I32<Arch>(8);
    return xsimd::batch_cast<float>(code) * scale;
}

template <class Arch>
XSIMD_INLINE F32<Arch> decode_batch(const BlockQ50& block, F32<Arch> scale, F32<Arch>,
                                    std::size_t i) noexcept {
    return xsimd::batch_cast<float>(unpack_five_bits<Arch>(block, i) - I32<Arch>(16)) * scale;
}

template <class Arch>
XSIMD_INLINE F32<Arch> decode_batch(const BlockQ51& block, F32<Arch> scale, F32<Arch> minimum,
                                    std::size_t i) noexcept {
    return xsimd::batch_cast<float>(unpack_five_bits<Arch>(block, i)) * scale + minimum;
}

template <class Arch, class Block>
void encode_blocks(const Rows& rows, std::byte* const* planes) noexcept {
    auto* block = reinterpret_cast<Block*>(planes[0]);
    const float* values = rows.values;
    for (std::uint64_t left = rows.rows * rows.columns / k_block; left > 0; --left) {
        encode_block<Arch>(values, *block++);
        values += k_block;
    }
}

template <class Arch, class Block>
void decode_blocks(const std::byte* const* planes, std::uint64_t values, float* out) noexcept {
    using Batch = F32<Arch>;
    const auto* block = reinterpret_cast<const Block*>(planes[0]);
    for (std::uint64_t left = values / k_block; left > 0; --left, ++block) {
        const Batch scale(half_to_float(block->scale));
        Batch minimum(0.0f);
        if constexpr (requires { block->minimum; }) minimum = Batch(half_to_float(block->minimum));
        for (std::size_t i = 0; i < k_block; i += Batch::size, out += Batch::size) {
            decode_batch<Arch>(*block, scale, minimum, i).store_unaligned(out);
        }
    }
}

}  // namespace phiquant::kernels
