// The formats that quality "best" knows: their grids, the trials of their search, their packing.
#pragma once

#include "kernels/best_scale.hpp"
#include "kernels/best_scale_minimum.hpp"
#include "kernels/blocks.hpp"
#include "kernels/iq4_levels.hpp"
#include "kernels/k_scale.hpp"
#include "kernels/k_scale_3_bits.hpp"
#include "kernels/make_table.hpp"
#include "kernels/small_blocks.hpp"

namespace phiquant::kernels::best {

/// Whole levels from -half to half - 1; codes begin at 0.
template <int half>
struct EvenLevels {
    template <class Arch>
    static XSIMD_INLINE F32<Arch> nearest(F32<Arch> value) noexcept {
        return round_within<Arch>(value, -half, half - 1);
    }

    template <class Arch>
    static XSIMD_INLINE I32<Arch> code(F32<Arch> value) noexcept {
        return xsimd::batch_cast<std::int32_t>(nearest<Arch>(value)) + I32<Arch>(half);
    }
};

struct Iq4Levels {
    template <class Arch>
    static XSIMD_INLINE F32<Arch> nearest(F32<Arch> value) noexcept {
        return iq4_levels::nearest<Arch>(value);
    }

    template <class Arch>
    static XSIMD_INLINE I32<Arch> code(F32<Arch> value) noexcept {
        return iq4_levels::nearest_code<Arch>(value);
    }
};

// `trials`: levels that a sub-block's largest value stands for, of both signs as the levels are
// not symmetrical; a level past the last one leaves off the ends. `units`: whole scales that a
// super-block's largest scale stands for; `tries`: how many of them are worked out.

struct Q40 {
    using Block = BlockQ40;
    using Levels = EvenLevels<8>;
    static constexpr std::size_t sub_block = 32, sub_blocks = 1;
    static constexpr float trials[16] = {-9.5f, -9.0f, -8.6f, -8.3f, -8.0f, -7.7f, -7.4f, -7.0f,
                                         -6.5f, 5.5f,  6.0f,  6.4f,  6.8f,  7.2f,  7.6f,  8.2f};
    static constexpr int passes = 2;
    static constexpr std::size_t tries = 1;
    template <class Arch>
    using Search = ScaleSearch<Arch, Q40>;

    template <class Arch>
    static const Kernel& reference() noexcept {
        return table<Arch>().q4_0;
    }

    template <class Arch>
    static void pack(std::uint16_t unit, const float*, const std::uint8_t* codes,
                     Block& block) noexcept {
        block.scale = unit;
        join_nibbles<Arch, 16>(codes, codes + 16, block.nibbles);
    }
};

struct Iq4Trials {
    using Levels = Iq4Levels;
    static constexpr std::size_t sub_block = 32;
    static constexpr float trials[32] = {
        -164.0f, -160.0f, -156.0f, -152.0f, -148.0f, -144.0f, -140.0f, -136.0f,
        -132.0f, -128.0f, -124.0f, -120.0f, -116.0f, -112.0f, -108.0f, -104.0f,
        74.0f,   77.2f,   80.4f,   83.6f,   86.8f,   90.0f,   93.2f,   96.4f,
        99.6f,   102.8f,  106.0f,  109.2f,  112.4f,  115.6f,  118.8f,  122.0f};
    static constexpr int passes = 3;
};

struct Iq4Nl : Iq4Trials {
    using Block = BlockIQ4NL;
    static constexpr std::size_t sub_blocks = 1, tries = 1;
    template <class Arch>
    using Search = ScaleSearch<Arch, Iq4Nl>;

    template <class Arch>
    static const Kernel& reference() noexcept {
        return table<Arch>().iq4_nl;
    }

    template <class Arch>
    static void pack(std::uint16_t unit, const float*, const std::uint8_t* codes,
                     Block& block) noexcept {
        block.scale = unit;
        join_nibbles<Arch, 16>(codes, codes + 16, block.nibbles);
    }
};

/// Scales of 6 bits around zero.
struct SixBitScales {
    static constexpr float lowest_scale = -32.0f, highest_scale = 31.0f;
    alignas(k_alignment) static constexpr float units[16] = {
        -33.0f, -32.5f, -32.0f, -31.5f, -31.0f, -30.5f, -30.0f, -29.5f,
        32.0f,  31.5f,  31.0f,  30.5f,  30.0f,  29.5f,  29.0f,  28.5f};
};

struct Iq4Xs : Iq4Trials, SixBitScales {
    using Block = BlockIQ4XS;
    static constexpr std::size_t sub_blocks = 8, tries = 4;
    template <class Arch>
    using Search = ScaleSearch<Arch, Iq4Xs>;

    template <class Arch>
    static const Kernel& reference() noexcept {
        return table<Arch>().iq4_xs;
    }

    template <class Arch>
    static void pack(std::uint16_t unit, const float* scales, const std::uint8_t* codes,
                     Block& block) noexcept {
        block.scale = unit;
        block.scales_high = 0;
        std::memset(block.scales_low, 0, sizeof(block.scales_low));
        for (unsigned j = 0; j < 8; ++j) {
            const auto stored = static_cast<unsigned>(static_cast<int>(scales[j]) + 32);
            block.scales_low[j / 2] = static_cast<std::uint8_t>(block.scales_low[j / 2] |
                                                                (stored & 15u) << (4 * (j % 2)));
            block.scales_high =
                static_cast<std::uint16_t>(block.scales_high | (stored >> 4) << (2 * j));
            join_nibbles<Arch, 16>(codes + j * 32, codes + j * 32 + 16, block.nibbles + j * 16);
        }
    }
};

struct Q3K : SixBitScales {
    using Block = BlockQ3K;
    using Levels = EvenLevels<4>;
    static constexpr std::size_t sub_block = 16, sub_blocks = 16;
    static constexpr float trials[16] = {-5.6f, -5.2f, -4.9f, -4.6f, -4.3f, -4.0f, -3.7f, -3.4f,
                                         -3.0f, 2.0f,  2.4f,  2.7f,  3.0f,  3.3f,  3.6f,  4.0f};
    static constexpr int passes = 1;
    static constexpr std::size_t tries = 1;
    template <class Arch>
    using Search = ScaleSearch<Arch, Q3K>;

    template <class Arch>
    static const Kernel& reference() noexcept {
        return table<Arch>().q3_k;
    }

    template <class Arch>
    static void pack(std::uint16_t unit, const float* scales, const std::uint8_t* codes,
                     Block& block) noexcept {
        std::uint8_t stored[16];
        for (std::size_t j = 0; j < 16; ++j) {
            stored[j] = static_cast<std::uint8_t>(static_cast<int>(scales[j]) + 32);
        }
        block.scale = unit;
        pack_pairs<Arch>(codes, block.pairs);
        pack_bits<Arch>(codes, 2, block.high_bits);
        pack_scales<Arch>(stored, block.scales);
    }
};

struct Q6K {
    using Block = BlockQ6K;
    using Levels = EvenLevels<32>;
    static constexpr std::size_t sub_block = 16, sub_blocks = 16;
    static constexpr float trials[12] = {-33.0f, -32.5f, -32.0f, -31.5f, -31.0f, -30.5f,
                                         29.5f,  30.0f,  30.5f,  31.0f,  31.5f,  32.0f};
    static constexpr int passes = 2;
    static constexpr std::size_t tries = 1;
    static constexpr float lowest_scale = -128.0f, highest_scale = 127.0f;
    alignas(k_alignment) static constexpr float units[16] = {
        -128.5f, -128.0f, -127.5f, -127.0f, -126.5f, -126.0f, -125.5f, -125.0f,
        127.5f,  127.0f,  126.5f,  126.0f,  125.5f,  125.0f,  124.5f,  124.0f};
    template <class Arch>
    using Search = ScaleSearch<Arch, Q6K>;

    template <class Arch>
    static const Kernel& reference() noexcept {
        return table<Arch>().q6_k;
    }

    template <class Arch>
    static void pack(std::uint16_t unit, const float* scales, const std::uint8_t* codes,
                     Block& block) noexcept {
        for (std::size_t j = 0; j < 16; ++j) {
            block.scales[j] = static_cast<std::int8_t>(static_cast<int>(scales[j]));
        }
        block.scale = unit;
        pack_codes<Arch>(codes, block);
    }
};

// `ends`: steps of the grid that a trial leaves off (or, below zero, adds) at either end of the
// values' range. `units`: whole parameters that a super-block's largest ones stand for; `tries`:
// how many pairs of them are worked out, with scales up to `reach` from the nearest.

struct Q4K : FormatQ4K {
    static constexpr std::size_t sub_blocks = 8;
    static constexpr float ends[6] = {0.5f, 0.1f, -0.3f, -0.7f, -1.1f, -1.6f};
    static constexpr float units[8] = {58.0f, 59.0f, 60.0f, 61.0f, 62.0f, 63.0f, 64.0f, 65.0f};
    static constexpr std::size_t tries = 4;
    template <class Arch>
    using Search = ScaleMinimumSearch<Arch, Q4K>;

    template <class Arch>
    static const Kernel& reference() noexcept {
        return table<Arch>().q4_k;
    }
};

struct Q5K : FormatQ5K {
    static constexpr std::size_t sub_blocks = 8;
    static constexpr float ends[6] = {0.7f, 0.3f, 0.0f, -0.3f, -0.7f, -1.1f};
    static constexpr float units[8] = {58.0f, 59.0f, 60.0f, 61.0f, 62.0f, 63.0f, 64.0f, 65.0f};
    static constexpr std::size_t tries = 4;
    template <class Arch>
    using Search = ScaleMinimumSearch<Arch, Q5K>;

    template <class Arch>
    static const Kernel& reference() noexcept {
        return table<Arch>().q5_k;
    }
};

struct Q2K : FormatQ2K {
    static constexpr std::size_t sub_blocks = 16;
    static constexpr float ends[6] = {0.4f, 0.1f, -0.15f, -0.4f, -0.65f, -0.95f};
    static constexpr float units[8] = {12.0f, 12.6f, 13.2f, 13.8f, 14.4f, 15.0f, 15.6f, 16.2f};
    static constexpr std::size_t tries = 4;
    template <class Arch>
    using Search = ScaleMinimumSearch<Arch, Q2K>;

    template <class Arch>
    static const Kernel& reference() noexcept {
        return table<Arch>().q2_k;
    }
};

}  // namespace phiquant::kernels::best
