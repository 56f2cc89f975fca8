// IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: magnitudes of 8 or 4 values are a point of a lattice,
// signs are stored apart, and each sub-block has a 4-bit scale.
#pragma once

#include "base/half.hpp"
#include "kernels/lattice_search.hpp"
#include "kernels/small_blocks.hpp"

namespace phiquant::kernels {

/// What the search does for each format; see LatticeSearch. `fudge` is what ggml multiplies the
/// stored scale of the super-block with.
struct FormatIQ2XXS {
    static constexpr GridName grid = GridName::iq2_xxs;
    static constexpr std::size_t values = 8, sub_block = 32;
    static constexpr int trials = 6;
    static constexpr float step = 0.1f, negligible = 1e-15f, spread = 1.0f, fudge = 1.0f;
    static constexpr bool searched_start = true, even_signs = true;
    static constexpr PlainWeight plain = PlainWeight::none;
    static constexpr Refinement refinement = Refinement::always;
};

struct FormatIQ2XS {
    static constexpr GridName grid = GridName::iq2_xs;
    static constexpr std::size_t values = 8, sub_block = 16;
    static constexpr int trials = 9;
    static constexpr float step = 0.1f, negligible = 1e-15f, spread = 1.0f, fudge = 1.0f;
    static constexpr bool searched_start = false, even_signs = true;
    static constexpr PlainWeight plain = PlainWeight::none;
    static constexpr Refinement refinement = Refinement::points_off_grid;
};

struct FormatIQ2S {
    static constexpr GridName grid = GridName::iq2_s;
    static constexpr std::size_t values = 8, sub_block = 16;
    static constexpr int trials = 9;
    static constexpr float step = 0.1f, negligible = 1e-8f, spread = 2.0f, fudge = 0.9875f;
    static constexpr bool searched_start = false, even_signs = false;
    static constexpr PlainWeight plain = PlainWeight::square_and_spread;
    static constexpr Refinement refinement = Refinement::points_off_grid;
};

struct FormatIQ3XXS {
    static constexpr GridName grid = GridName::iq3_xxs;
    static constexpr std::size_t values = 4, sub_block = 32;
    static constexpr int trials = 15;
    static constexpr float step = 0.2f, negligible = 1e-8f, spread = 2.0f, fudge = 1.0125f;
    static constexpr bool searched_start = false, even_signs = true;
    static constexpr PlainWeight plain = PlainWeight::square;
    static constexpr Refinement refinement = Refinement::points_off_grid;
};

struct FormatIQ3S {
    static constexpr GridName grid = GridName::iq3_s;
    static constexpr std::size_t values = 4, sub_block = 32;
    static constexpr int trials = 9;
    static constexpr float step = 0.2f, negligible = 0.0f, spread = 2.0f, fudge = 1.033f;
    static constexpr bool searched_start = false, even_signs = false;
    static constexpr PlainWeight plain = PlainWeight::square;
    static constexpr Refinement refinement = Refinement::all_if_any_off_grid;
};

/// One super-block's part of a tile: its sub-blocks from `first` on.
template <class Arch, class Format>
struct LatticeView {
    static constexpr std::size_t count = k_super_block / Format::sub_block;
    static constexpr std::size_t points = Format::sub_block / Format::values;
    const LatticeTile& tile;
    std::size_t first;

    bool live(std::size_t j) const noexcept { return !tile.negligible[first + j]; }

    unsigned index(std::size_t j, std::size_t point) const noexcept {
        return tile.indices[(first + j) * points + point];
    }

    /// The signs of eight values; seven bits where the eighth is implied.
    unsigned signs(std::size_t j, std::size_t eight) const noexcept {
        const unsigned stored = tile.signs[(first + j) * (Format::sub_block / 8) + eight];
        const unsigned turned = tile.inverted[first + j] ? ~stored : stored;
        return turned & (Format::even_signs ? 127u : 255u);
    }

    /// Codes of 4 bits (l stands for 2l + 1) for the scales, against the largest; its share of 31
    /// is stored. False when all are zero.
    bool round_scales(std::uint8_t* codes, std::uint16_t& stored) const noexcept {
        float largest = 0.0f;
        for (std::size_t j = 0; j < count; ++j) {
            const float scale = tile.scales[first + j];
            largest = scale > largest ? scale : largest;
        }
        stored = 0;
        std::memset(codes, 0, count);
        if (largest == 0.0f) return false;
        const float unit = largest / 31.0f;
        stored = float_to_half(unit * Format::fudge);
        const float inverse = 1.0f / unit;
        for (std::size_t j = 0; j < count; ++j) {
            const int code = nearest_int(0.5f * (inverse * tile.scales[first + j] - 1.0f));
            codes[j] = static_cast<std::uint8_t>(code < 0 ? 0 : code > 15 ? 15 : code);
        }
        return true;
    }
};

// `pack` for each format: the layouts.

/// Two scales a byte.
static inline void join_scales(const std::uint8_t* codes, std::uint8_t* out,
                               std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = static_cast<std::uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    }
}

template <class Arch>
void pack(const LatticeView<Arch, FormatIQ2XXS>& from, BlockIQ2XXS& out) noexcept {
    std::uint8_t codes[8];
    std::memset(&out, 0, sizeof(out));
    if (!from.round_scales(codes, out.scale)) return;
    for (std::size_t j = 0; j < 8; ++j) {
        std::uint32_t words[2] = {0, static_cast<std::uint32_t>(codes[j]) << 28};
        for (unsigned k = 0; from.live(j) && k < 4; ++k) {
            words[0] |= from.index(j, k) << (8 * k);
            words[1] |= from.signs(j, k) << (7 * k);
        }
        std::memcpy(out.codes + 4 * j, words, sizeof(words));
    }
}

template <class Arch>
void pack(const LatticeView<Arch, FormatIQ2XS>& from, BlockIQ2XS& out) noexcept {
    std::uint8_t codes[16];
    std::memset(&out, 0, sizeof(out));
    if (!from.round_scales(codes, out.scale)) return;
    for (std::size_t j = 0; j < 16; ++j) {
        for (std::size_t k = 0; from.live(j) && k < 2; ++k) {
            out.codes[2 * j + k] =
                static_cast<std::uint16_t>(from.index(j, k) | from.signs(j, k) << 9);
        }
    }
    join_scales(codes, out.scales, 8);
}

template <class Arch>
void pack(const LatticeView<Arch, FormatIQ2S>& from, BlockIQ2S& out) noexcept {
    std::uint8_t codes[16];
    std::memset(&out, 0, sizeof(out));
    from.round_scales(codes, out.scale);
    for (std::size_t j = 0; j < 16; ++j) {
        for (std::size_t k = 0; from.live(j) && k < 2; ++k) {
            const std::size_t place = 2 * j + k;
            const unsigned index = from.index(j, k);
            out.indices[place] = static_cast<std::uint8_t>(index);
            out.indices_high[place / 4] = static_cast<std::uint8_t>(
                out.indices_high[place / 4] | index >> 8 << (2 * (place % 4)));
            out.signs[place] = static_cast<std::uint8_t>(from.signs(j, k));
        }
    }
    join_scales(codes, out.scales, 8);
}

template <class Arch>
void pack(const LatticeView<Arch, FormatIQ3XXS>& from, BlockIQ3XXS& out) noexcept {
    std::uint8_t codes[8];
    std::memset(&out, 0, sizeof(out));
    if (!from.round_scales(codes, out.scale)) return;
    for (std::size_t j = 0; j < 8; ++j) {
        std::uint32_t word = static_cast<std::uint32_t>(codes[j]) << 28;
        for (unsigned k = 0; from.live(j) && k < 8; ++k) {
            out.indices[8 * j + k] = static_cast<std::uint8_t>(from.index(j, k));
            if (k < 4) word |= from.signs(j, k) << (7 * k);
        }
        std::memcpy(out.signs_and_scales + 4 * j, &word, sizeof(word));
    }
}

template <class Arch>
void pack(const LatticeView<Arch, FormatIQ3S>& from, BlockIQ3S& out) noexcept {
    std::uint8_t codes[8];
    std::memset(&out, 0, sizeof(out));
    from.round_scales(codes, out.scale);
    // The reference does not step over the places of sub-blocks that are all zero, except in the
    // high bits: what follows them in the super-block lies too far ahead. Its bits are the promise.
    std::size_t written = 0;
    for (std::size_t j = 0; j < 8; ++j) {
        if (!from.live(j)) continue;
        for (unsigned k = 0; k < 8; ++k) {
            const unsigned index = from.index(j, k);
            out.indices[8 * written + k] = static_cast<std::uint8_t>(index);
            out.indices_high[j] = static_cast<std::uint8_t>(out.indices_high[j] | index >> 8 << k);
        }
        for (unsigned k = 0; k < 4; ++k) {
            out.signs[4 * written + k] = static_cast<std::uint8_t>(from.signs(j, k));
        }
        ++written;
    }
    join_scales(codes, out.scales, 4);
}

template <class Arch, class Format, class Block>
void encode_lattice(const Rows& rows, Block* block) noexcept {
    LatticeTile tile;
    LatticeSearch<Arch, Format> search;
    const std::uint64_t blocks = rows.rows * rows.columns / k_super_block;
    for (std::uint64_t first = 0; first < blocks; first += 2) {
        fill_tile<Arch>(rows, first, blocks, Format::spread, tile);
        take_apart<Arch, Format::plain>(tile);
        if (Format::even_signs) make_signs_even<Arch>(tile);
        search.run(tile);
        for (std::size_t s = 0; s < tile.count; ++s, ++block) {
            const LatticeView<Arch, Format> view{tile, s * (k_super_block / Format::sub_block)};
            pack<Arch>(view, *block);
        }
    }
}

template <class Arch>
void encode_rows(const Rows& rows, BlockIQ2XXS* block) noexcept {
    encode_lattice<Arch, FormatIQ2XXS>(rows, block);
}
template <class Arch>
void encode_rows(const Rows& rows, BlockIQ2XS* block) noexcept {
    encode_lattice<Arch, FormatIQ2XS>(rows, block);
}
template <class Arch>
void encode_rows(const Rows& rows, BlockIQ2S* block) noexcept {
    encode_lattice<Arch, FormatIQ2S>(rows, block);
}
template <class Arch>
void encode_rows(const Rows& rows, BlockIQ3XXS* block) noexcept {
    encode_lattice<Arch, FormatIQ3XXS>(rows, block);
}
template <class Arch>
void encode_rows(const Rows& rows, BlockIQ3S* block) noexcept {
    encode_lattice<Arch, FormatIQ3S>(rows, block);
}

}  // namespace phiquant::kernels
