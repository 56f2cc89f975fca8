// ggml's plain formats: blocks of 32 values with one scale (q8_0, q4_0, q5_0), or with a scale and
// a minimum (q4_1, q5_1). Here all of q8_0 and, of the others, what takes no importance.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/halves.hpp"
#include "kernels/narrowing.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

/// Blocks fitted together, one lane a block: divisions and conversions of single floats would take
/// longer than all else.
inline constexpr std::size_t k_fitted_together = 16;

/// The ends of each block's values: magnitude, signed largest, or least and largest.
struct BlockEnds {
    alignas(k_alignment) float low[k_fitted_together];
    alignas(k_alignment) float high[k_fitted_together];
};

/// How blocks' values become codes: (value - offset) * inverse + bias, truncated. Where the inverse
/// of a tiny scale overflows, the reference's casts of infinities and NaNs come to code 0 (the low
/// byte of x86's "integer indefinite"); a zero inverse and bias say the same on every processor.
struct BlockGrids {
    alignas(k_alignment) float offset[k_fitted_together];
    alignas(k_alignment) float inverse[k_fitted_together];
    alignas(k_alignment) float bias[k_fitted_together];
    alignas(k_alignment) std::int32_t scale[k_fitted_together];    // float16
    alignas(k_alignment) std::int32_t minimum[k_fitted_together];  // float16
};

/// One block of 32 values in registers.
template <class Arch>
struct BlockValues {
    static constexpr std::size_t lanes = F32<Arch>::size;
    static constexpr std::size_t parts = k_block / lanes;
    F32<Arch> x[parts];

    XSIMD_INLINE explicit BlockValues(const float* values) noexcept {
        for (std::size_t p = 0; p < parts; ++p)
            x[p] = F32<Arch>::load_unaligned(values + p * lanes);
    }

    XSIMD_INLINE float largest_magnitude() const noexcept {
        F32<Arch> most = xsimd::abs(x[0]);
        for (std::size_t p = 1; p < parts; ++p) most = xsimd::max(most, xsimd::abs(x[p]));
        return xsimd::reduce_max(most);
    }
};

/// The value of the largest magnitude with its sign; the first one of equals.
template <class Arch>
XSIMD_INLINE float signed_largest(const float* values) noexcept {
    const BlockValues<Arch> block(values);
    const float magnitude = block.largest_magnitude();
    // Which batch holds it is anyone's guess: one mask of all, as a branch would be mispredicted.
    std::uint32_t places = 0;
    for (std::size_t p = 0; p < block.parts; ++p) {
        const auto here = xsimd::abs(block.x[p]) == F32<Arch>(magnitude);
        places |= static_cast<std::uint32_t>(here.mask()) << (p * block.lanes);
    }
    return magnitude == 0.0f ? 0.0f : values[__builtin_ctz(places)];
}

/// Least and largest value; of a least value of zero the first one's sign, which is stored.
template <class Arch>
XSIMD_INLINE void measure_range(const float* values, float& low, float& high) noexcept {
    const BlockValues<Arch> block(values);
    F32<Arch> least = block.x[0], most = block.x[0];
    for (std::size_t p = 1; p < block.parts; ++p) {
        least = xsimd::min(least, block.x[p]);
        most = xsimd::max(most, block.x[p]);
    }
    low = xsimd::reduce_min(least);
    high = xsimd::reduce_max(most);
    if (low == 0.0f) {
        std::size_t i = 0;
        while (values[i] != 0.0f) ++i;
        low = values[i];
    }
}

/// Scales of `lanes` blocks to grids. `bias` is what is added before truncation.
template <class Arch>
XSIMD_INLINE void fit_grids(F32<Arch> scale, F32<Arch> offset, float bias, std::size_t first,
                            BlockGrids& grids) noexcept {
    using Batch = F32<Arch>;
    const Batch zero(0.0f);
    const Batch inverse = quotient<Arch>(Batch(1.0f), scale);
    // Not for a zero scale, not where the inverse overflows, and not where the range of values did
    // (the inverse is zero then, and value - offset may be infinite).
    const auto usable = (xsimd::abs(inverse) <= Batch(__FLT_MAX__)) & (inverse != zero);
    // A zero scale keeps its bias: all values are its code for zero.
    const auto biased = usable | (scale == zero);
    xsimd::select(usable, inverse, zero).store_aligned(grids.inverse + first);
    xsimd::select(usable, offset, zero).store_aligned(grids.offset + first);
    xsimd::select(biased, Batch(bias), zero).store_aligned(grids.bias + first);
    halves_of<Arch>(scale).store_aligned(grids.scale + first);
}

template <class Arch>
XSIMD_INLINE void round_codes(const float* values, const BlockGrids& grids, std::size_t b,
                              int largest, I32<Arch>* codes) noexcept {
    using Batch = F32<Arch>;
    const Batch offset(grids.offset[b]), inverse(grids.inverse[b]), bias(grids.bias[b]);
    const BlockValues<Arch> block(values);
    for (std::size_t p = 0; p < block.parts; ++p) {
        const Batch steps = (block.x[p] - offset) * inverse + bias;
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

/// The stages of each format: `measure` one block, `fit` a batch of blocks, `encode` one block.
template <class Arch>
struct StagesQ80 {
    using Block = BlockQ80;

    static XSIMD_INLINE void measure(const float* values, std::size_t b, BlockEnds& ends) noexcept {
        ends.high[b] = BlockValues<Arch>(values).largest_magnitude();
    }

    static XSIMD_INLINE void fit(const BlockEnds& ends, std::size_t b, BlockGrids& grids) noexcept {
        const auto high = F32<Arch>::load_aligned(ends.high + b);
        const auto scale = quotient<Arch>(high, F32<Arch>(127.0f));
        fit_grids<Arch>(scale, F32<Arch>(0.0f), 0.0f, b, grids);
    }

    static XSIMD_INLINE void encode(const float* values, const BlockGrids& grids, std::size_t b,
                                    Block& out) noexcept {
        using Batch = F32<Arch>;
        const BlockValues<Arch> block(values);
        const Batch inverse(grids.inverse[b]);
        I32<Arch> codes[block.parts];
        for (std::size_t p = 0; p < block.parts; ++p) {
            // roundf: halves away from zero. The float below a half keeps 0.49999997 from 1.
            const Batch steps = block.x[p] * inverse;
            const Batch away = steps + xsimd::copysign(Batch(0x1.fffffep-2f), steps);
            codes[p] = xsimd::batch_cast<std::int32_t>(away);
        }
        store_32_bytes<Arch>(codes, out.codes);
    }
};

/// q4_0 and q5_0: the largest value takes the lowest code, -half_range.
template <class Arch, class BlockType, int half_range>
struct StagesSigned {
    using Block = BlockType;

    static XSIMD_INLINE void measure(const float* values, std::size_t b, BlockEnds& ends) noexcept {
        ends.high[b] = signed_largest<Arch>(values);
    }

    static XSIMD_INLINE void fit(const BlockEnds& ends, std::size_t b, BlockGrids& grids) noexcept {
        const auto high = F32<Arch>::load_aligned(ends.high + b);
        const float range = half_range;
        const auto scale = quotient<Arch>(high, F32<Arch>(-range));
        fit_grids<Arch>(scale, F32<Arch>(0.0f), range + 0.5f, b, grids);
    }

    static XSIMD_INLINE void encode(const float* values, const BlockGrids& grids, std::size_t b,
                                    Block& out) noexcept {
        I32<Arch> codes[k_block / I32<Arch>::size];
        round_codes<Arch>(values, grids, b, 2 * half_range - 1, codes);
        pack_nibbles<Arch>(codes, out.nibbles);
        if constexpr (half_range == 16) pack_fifth_bits<Arch>(codes, out.fifth_bits);
    }
};

/// q4_1 and q5_1: codes 0 to `largest` span the values.
template <class Arch, class BlockType, int largest>
struct StagesMinimum {
    using Block = BlockType;

    static XSIMD_INLINE void measure(const float* values, std::size_t b, BlockEnds& ends) noexcept {
        measure_range<Arch>(values, ends.low[b], ends.high[b]);
    }

    static XSIMD_INLINE void fit(const BlockEnds& ends, std::size_t b, BlockGrids& grids) noexcept {
        using Batch = F32<Arch>;
        const auto low = Batch::load_aligned(ends.low + b);
        const auto high = Batch::load_aligned(ends.high + b);
        // Equal ends may still be zeros of two signs, whose difference is not always +0.
        const Batch range = xsimd::select(high == low, Batch(0.0f), high - low);
        fit_grids<Arch>(quotient<Arch>(range, Batch(largest)), low, 0.5f, b, grids);
        halves_of<Arch>(low).store_aligned(grids.minimum + b);
    }

    static XSIMD_INLINE void encode(const float* values, const BlockGrids& grids, std::size_t b,
                                    Block& out) noexcept {
        I32<Arch> codes[k_block / I32<Arch>::size];
        round_codes<Arch>(values, grids, b, largest, codes);
        pack_nibbles<Arch>(codes, out.nibbles);
        if constexpr (largest == 31) pack_fifth_bits<Arch>(codes, out.fifth_bits);
        out.minimum = static_cast<std::uint16_t>(grids.minimum[b]);
    }
};

template <class Arch, class Stages>
void encode_blocks(const Rows& rows, std::byte* const* planes) noexcept {
    auto* block = reinterpret_cast<typename Stages::Block*>(planes[0]);
    const float* values = rows.values;
    BlockEnds ends{};
    BlockGrids grids;
    for (std::uint64_t left = rows.rows * rows.columns / k_block; left > 0;) {
        const std::size_t count =
            left < k_fitted_together ? static_cast<std::size_t>(left) : k_fitted_together;
        for (std::size_t b = 0; b < count; ++b) Stages::measure(values + b * k_block, b, ends);
        for (std::size_t b = 0; b < k_fitted_together; b += F32<Arch>::size) {
            Stages::fit(ends, b, grids);
        }
        for (std::size_t b = 0; b < count; ++b) {
            Stages::encode(values + b * k_block, grids, b, block[b]);
            block[b].scale = static_cast<std::uint16_t>(grids.scale[b]);
        }
        values += count * k_block;
        block += count;
        left -= count;
    }
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
    return unpack_nibbles<Arch>(block.nibbles, i) | xsimd::select(set, Integers(16), Integers(0));
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
XSIMD_INLINE F32<Arch> decode_batch(const BlockQ41& block, F32<Arch> scale, F32<Arch> minimum,
                                    std::size_t i) noexcept {
    const auto code = unpack_nibbles<Arch>(block.nibbles, i);
    return xsimd::batch_cast<float>(code) * scale + minimum;
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
