// Q3_K: super-blocks of 16 sub-blocks, each with a 6-bit scale.
#pragma once

#include "base/half.hpp"
#include "kernels/blocks.hpp"
#include "kernels/halves.hpp"
#include "kernels/importance.hpp"
#include "kernels/narrowing.hpp"
#include "kernels/search_scale.hpp"
#include "kernels/search_scale_descent.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

/// The parameters of one super-block of Q3_K, rounded as they are stored.
struct ScaleParametersQ3K {
    std::uint16_t scale;      // float16
    std::uint8_t scales[16];  // of 6 bits; 32 is zero
};

/// Without importance: scales are rounded against a super-block's largest.
template <class Arch>
class PlainQ3K {
public:
    /// Super-blocks that go through the stages together.
    static constexpr std::size_t unit = 16;

    explicit PlainQ3K(const Rows&) noexcept {}

    /// The second argument is the number of the unit's first super-block.
    void search(const float* values, std::uint64_t, std::size_t count) noexcept {
        Search::run(values, count * 16, scales_);
        codes_of_ = unit;
    }

    void round(std::size_t b, ScaleParametersQ3K& out) const noexcept {
        const float* scales = scales_ + b * 16;
        float largest = 0.0f, magnitude = 0.0f;
        for (std::size_t j = 0; j < 16; ++j) {
            const float size = __builtin_fabsf(scales[j]);
            if (size > magnitude) {
                magnitude = size;
                largest = scales[j];
            }
        }
        out = {};
        if (largest == 0.0f) return;  // the reference stores zero bytes, not the scales' zero
        const float inverse = -32.0f / largest;
        out.scale = float_to_half(1.0f / inverse);
        for (std::size_t j = 0; j < 16; ++j) {
            const auto scale = static_cast<std::int8_t>(nearest_int(inverse * scales[j]));
            const int clamped = scale < -32 ? -32 : scale > 31 ? 31 : scale;
            out.scales[j] = static_cast<std::uint8_t>(clamped + 32);
        }
    }

    /// The search's own codes of a sub-block; `values` are the super-block's. They are seldom
    /// asked for: the search is run again rather than to store all codes.
    void keep_codes(std::size_t b, std::size_t j, const float* values,
                    std::uint8_t* codes) noexcept {
        if (codes_of_ != b) {
            for (std::size_t i = 0; i < k_super_block; i += F32<Arch>::size * 16) {
                Search::run_for_codes(values + i, codes_ + i);
            }
            codes_of_ = b;
        }
        std::memcpy(codes, codes_ + j * 16, 16);
    }

private:
    using Search = ScaleDescents<Arch, unit * 16>;
    alignas(k_alignment) float scales_[unit * 16];
    std::size_t codes_of_ = unit;  // the super-block of
    std::uint8_t codes_[k_super_block];
};

/// With importance: scales are fitted to what the search found, one lane a super-block.
template <class Arch>
class WeightedQ3K {
public:
    static constexpr std::size_t unit = F32<Arch>::size;

    explicit WeightedQ3K(const Rows& rows) noexcept
        : importance_(rows.importance), super_blocks_(rows.columns / k_super_block) {}

    void search(const float* values, std::uint64_t super_block, std::size_t count) noexcept {
        alignas(k_alignment) float padded[unit * k_super_block];
        if (count < unit) {
            std::memset(padded, 0, sizeof(padded));
            std::memcpy(padded, values, count * k_super_block * sizeof(float));
            values = padded;
        }
        const auto place = [values](std::size_t b) { return values + b * k_super_block; };
        const F32<Arch> squares = sum_squares<Arch>(place, k_super_block);
        alignas(k_alignment) float variance[unit];
        (F32<Arch>(2.0f) * squares * F32<Arch>(1.0f / k_super_block)).store_aligned(variance);
        for (std::size_t b = 0; b < unit; ++b) {
            const std::uint64_t column = (super_block + b) % super_blocks_ * k_super_block;
            alignas(k_alignment) float weights[k_super_block];
            weigh<Arch>(place(b), importance_ + column, variance[b], k_super_block, weights);
            for (std::size_t j = 0; j < 16; j += F32<Arch>::size) {
                search_.run(place(b) + j * 16, weights + j * 16, b * 16 + j, found_);
            }
        }
        fit_.run(found_.scale, found_.weight, 0, fitted_);
        halves_of<Arch>(F32<Arch>::load_aligned(fitted_.scale)).store_aligned(halves_);
    }

    void round(std::size_t b, ScaleParametersQ3K& out) const noexcept {
        out.scale = static_cast<std::uint16_t>(halves_[b]);
        round_codes(found_.scale + b * 16, 32, fitted_.inverse[b], fitted_.middle[b], out.scales);
    }

    void keep_codes(std::size_t b, std::size_t j, const float* values,
                    std::uint8_t* codes) const noexcept {
        round_codes(values + j * 16, 4, found_.inverse[b * 16 + j], found_.middle[b * 16 + j],
                    codes);
    }

private:
    static XSIMD_INLINE void round_codes(const float* values, int half_range, float inverse,
                                         float middle, std::uint8_t* codes) noexcept {
        const float range = static_cast<float>(half_range);
        for (std::size_t i = 0; i < 16; ++i) {
            const std::int32_t code = nearest_int(inverse * values[i]);
            const std::int32_t clamped = code < -half_range      ? -half_range
                                         : code > half_range - 1 ? half_range - 1
                                                                 : code;
            codes[i] = static_cast<std::uint8_t>(middle == range ? clamped + half_range : 0);
        }
    }

    const float* importance_;
    std::uint64_t super_blocks_;  // a row
    ScaleSearch<Arch, ScaleRule<16, 4, true>> search_;
    ScaleSearch<Arch, ScaleRule<16, 32, true, Range::any>> fit_;  // scales need not be finite
    Scales<unit * 16> found_;
    Scales<unit> fitted_;
    alignas(k_alignment) std::int32_t halves_[unit];
};

/// Four bits of each scale in eight bytes, two in the other four.
template <class Arch>
void pack_scales(const std::uint8_t* scales, std::uint8_t* out) noexcept {
    for (std::size_t j = 0; j < 8; ++j) {
        out[j] = static_cast<std::uint8_t>((scales[j] & 15) | ((scales[j + 8] & 15) << 4));
    }
    for (std::size_t j = 0; j < 4; ++j) {
        out[8 + j] =
            static_cast<std::uint8_t>((scales[j] >> 4) | ((scales[j + 4] >> 4) << 2) |
                                      ((scales[j + 8] >> 4) << 4) | ((scales[j + 12] >> 4) << 6));
    }
}

template <class Arch>
void unpack_scales(const std::uint8_t* in, std::uint8_t* scales) noexcept {
    for (std::size_t j = 0; j < 16; ++j) {
        const int low = j < 8 ? in[j] & 15 : in[j - 8] >> 4;
        const int high = (in[8 + j % 4] >> (2 * (j / 4))) & 3;
        scales[j] = static_cast<std::uint8_t>(low | (high << 4));
    }
}

/// The codes (0 to 7) of a super-block, against the parameters as stored; sub-blocks whose scale
/// is zero keep the search's.
template <class Arch, class Stages>
void round_codes(const float* values, const ScaleParametersQ3K& parameters, Stages& stages,
                 std::size_t b, std::uint8_t* codes) noexcept {
    using Batch = F32<Arch>;
    constexpr std::size_t lanes = Batch::size;
    const float unit = half_to_float(parameters.scale);
    const auto scale_of = [&](std::size_t j) {
        return unit * static_cast<float>(parameters.scales[j] - 32);
    };
    const I32<Arch> bias = bits_of<Arch>(Batch(k_magic - 4.0f));
    for (std::size_t pair = 0; pair < 8; ++pair) {
        I32<Arch> rounded[32 / lanes];
        for (std::size_t p = 0; p < 32 / lanes; ++p) {
            const Batch scale(scale_of(pair * 2 + p * lanes / 16));
            const Batch x = Batch::load_unaligned(values + pair * 32 + p * lanes);
            const Batch biased =
                nearest_biased<Arch, Range::any>(quotient<Arch>(x, scale), -4.0f, 3.0f);
            rounded[p] = bits_of<Arch>(biased) - bias;
        }
        store_32_bytes<Arch>(rounded, codes + pair * 32);
        for (std::size_t j = pair * 2; j < pair * 2 + 2; ++j) {
            if (scale_of(j) == 0.0f) stages.keep_codes(b, j, values, codes + j * 16);
        }
    }
}

template <class Arch, class Stages>
void encode_q3_k(const Rows& rows, BlockQ3K* block) noexcept {
    constexpr std::size_t unit = Stages::unit;
    const float* values = rows.values;
    Stages stages(rows);
    const std::uint64_t super_blocks = rows.rows * rows.columns / k_super_block;
    for (std::uint64_t done = 0; done < super_blocks;) {
        const std::uint64_t left = super_blocks - done;
        const std::size_t count = left < unit ? static_cast<std::size_t>(left) : unit;
        // The search is long and reads nothing new: have the next values come meanwhile.
        if (left >= 2 * unit) prefetch<Arch>(values + unit * k_super_block, unit * k_super_block);
        stages.search(values, done, count);
        for (std::size_t b = 0; b < count; ++b) {
            ScaleParametersQ3K parameters;
            alignas(k_alignment) std::uint8_t codes[k_super_block];
            stages.round(b, parameters);
            round_codes<Arch>(values, parameters, stages, b, codes);
            pack_pairs<Arch>(codes, block->pairs);
            pack_bits<Arch>(codes, 2, block->high_bits);
            pack_scales<Arch>(parameters.scales, block->scales);
            block->scale = parameters.scale;
            values += k_super_block;
            ++block;
        }
        done += count;
    }
}

template <class Arch>
void encode_q3_k(const Rows& rows, std::byte* const* planes) noexcept {
    auto* block = reinterpret_cast<BlockQ3K*>(planes[0]);
    if (rows.importance != nullptr) {
        encode_q3_k<Arch, WeightedQ3K<Arch>>(rows, block);
    } else {
        encode_q3_k<Arch, PlainQ3K<Arch>>(rows, block);
    }
}

template <class Arch>
void decode_q3_k(const std::byte* const* planes, std::uint64_t values, float* out) noexcept {
    using Batch = F32<Arch>;
    using Integers = I32<Arch>;
    const auto* block = reinterpret_cast<const BlockQ3K*>(planes[0]);
    for (std::uint64_t left = values / k_super_block; left > 0; --left, ++block) {
        const float unit = half_to_float(block->scale);
        std::uint8_t scales[16];
        unpack_scales<Arch>(block->scales, scales);
        for (std::size_t i = 0; i < k_super_block; i += Batch::size, out += Batch::size) {
            const Batch scale(unit * static_cast<float>(scales[i / 16] - 32));
            const auto bits =
                load_widened<Arch>(block->high_bits + i % 32) >> static_cast<int>(i / 32);
            const Integers low = unpack_pairs<Arch>(block->pairs, i);
            const Integers code = (low | ((bits & Integers(1)) << 2)) - Integers(4);
            (scale * xsimd::batch_cast<float>(code)).store_unaligned(out);
        }
    }
}

}  // namespace phiquant::kernels
