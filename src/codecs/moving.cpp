// Codes, scales and zero points of one codec as those of another, without rounding a weight anew.
#include "codecs/moving.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string_view>

#include "base/half.hpp"
#include "codecs/small_floats.hpp"

namespace phiquant::codecs {
namespace {

// ggml's blocks of 32 values whose codes have a scale, and a minimum or none.
struct BlockGrid {
    std::string_view name;
    Affine affine;
    bool biased;  ///< a minimum stands beside the scale
};

constexpr std::array k_block_grids{
    BlockGrid{"q4_0", {4, 32, true, kernels::AffineScale::f16}, false},
    BlockGrid{"q4_1", {4, 32, false, kernels::AffineScale::f16}, true},
    BlockGrid{"q5_0", {5, 32, true, kernels::AffineScale::f16}, false},
    BlockGrid{"q5_1", {5, 32, false, kernels::AffineScale::f16}, true},
    BlockGrid{"q8_0", {8, 32, true, kernels::AffineScale::f16}, false},
    BlockGrid{"mxfp4", {4, 32, true, kernels::AffineScale::f32, Levels::e2m1}, false},
};

constexpr std::uint64_t k_block = 32;

const BlockGrid* block_grid(const Codec& codec) noexcept {
    if (codec.layout != Layout::blocks) return nullptr;
    const auto* found = std::ranges::find(k_block_grids, codec.name, &BlockGrid::name);
    return found == k_block_grids.end() ? nullptr : found;
}

bool is_biased(const Codec& codec) noexcept {
    if (const BlockGrid* blocks = block_grid(codec)) return blocks->biased;
    return codec.layout == Layout::mlx;
}

float middle(const Affine& affine) noexcept { return static_cast<float>(1u << (affine.bits - 1)); }

std::uint16_t half_at(const std::uint8_t* at) noexcept {
    std::uint16_t bits;
    std::memcpy(&bits, at, 2);
    return bits;
}

void put_half(std::uint8_t* at, float value) noexcept {
    const std::uint16_t bits = float_to_half(value);
    std::memcpy(at, &bits, 2);
}

// One block: its scale and minimum, then (5 bits) the codes' top bits, then the codes: the low
// halves of 16 bytes are the first 16 values, the high halves the others; 8 bits: signed bytes.
void unpack_block(const BlockGrid& grid, const std::uint8_t* block, std::uint8_t* codes,
                  float& scale, float& zero) noexcept {
    zero = middle(grid.affine);
    if (grid.affine.levels == Levels::e2m1) {
        scale = number_of_e8m0(*block++);
    } else {
        scale = half_to_float(half_at(block));
        block += 2;
        if (grid.biased) {
            zero = half_to_float(half_at(block));
            block += 2;
        }
    }
    if (grid.affine.bits == 8) {
        for (unsigned i = 0; i < k_block; ++i) {
            codes[i] = static_cast<std::uint8_t>(block[i] ^ 0x80u);
        }
        return;
    }
    std::uint32_t tops = 0;
    if (grid.affine.bits == 5) {
        std::memcpy(&tops, block, 4);
        block += 4;
    }
    for (unsigned i = 0; i < 16; ++i) {
        codes[i] = static_cast<std::uint8_t>((block[i] & 15u) | (tops >> i & 1u) << 4);
        codes[i + 16] = static_cast<std::uint8_t>(block[i] >> 4 | (tops >> (i + 16) & 1u) << 4);
    }
}

void pack_block(const BlockGrid& grid, const std::uint8_t* codes, float scale, float zero,
                std::uint8_t* block) noexcept {
    if (grid.affine.levels == Levels::e2m1) {
        *block++ = e8m0_of(scale);
    } else {
        put_half(block, scale);
        block += 2;
        if (grid.biased) {
            put_half(block, zero);
            block += 2;
        }
    }
    if (grid.affine.bits == 8) {
        for (unsigned i = 0; i < k_block; ++i) {
            block[i] = static_cast<std::uint8_t>(codes[i] ^ 0x80u);
        }
        return;
    }
    if (grid.affine.bits == 5) {
        std::uint32_t tops = 0;
        for (unsigned i = 0; i < k_block; ++i) {
            tops |= static_cast<std::uint32_t>(codes[i] >> 4) << i;
        }
        std::memcpy(block, &tops, 4);
        block += 4;
    }
    for (unsigned i = 0; i < 16; ++i) {
        block[i] = static_cast<std::uint8_t>((codes[i] & 15u) | (codes[i + 16] & 15u) << 4);
    }
}

// A group's zero point as a whole number of codes; of a bias the nearest one.
bool whole_zero(bool biased, float scale, float zero, float& out) noexcept {
    const float wanted = !biased ? zero : scale == 0 ? 0.0f : -zero / scale;
    out = std::nearbyint(wanted);
    return std::fabs(out) <= 255;  // not where it is NaN
}

}  // namespace

bool has_elements(const Codec& codec, std::uint64_t columns) noexcept {
    if (block_grid(codec) != nullptr) return columns % k_block == 0;
    return codec.is_affine();
}

const Affine& grid_of(const Codec& codec) noexcept {
    const BlockGrid* blocks = block_grid(codec);
    return blocks != nullptr ? blocks->affine : codec.affine;
}

void unpack_blocks(const Codec& codec, const std::byte* blocks, std::uint64_t rows,
                   std::uint64_t columns, const Elements& out) noexcept {
    const BlockGrid& grid = *block_grid(codec);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(blocks);
    for (std::uint64_t i = 0; i < rows * (columns / k_block); ++i, bytes += codec.block_bytes) {
        unpack_block(grid, bytes, out.codes + i * k_block, out.scales[i], out.zeros[i]);
    }
}

void pack_blocks(const Codec& codec, const Elements& from, std::uint64_t rows,
                 std::uint64_t columns, std::byte* out) noexcept {
    const BlockGrid& grid = *block_grid(codec);
    auto* bytes = reinterpret_cast<std::uint8_t*>(out);
    for (std::uint64_t i = 0; i < rows * (columns / k_block); ++i, bytes += codec.block_bytes) {
        pack_block(grid, from.codes + i * k_block, from.scales[i], from.zeros[i], bytes);
    }
}

MoveResult move_elements(const Codec& from, const Elements& elements, const Codec& to,
                         std::uint64_t rows, std::uint64_t columns, const Elements& out) noexcept {
    const Affine& grid = grid_of(from);
    const Affine& wanted = grid_of(to);
    const std::uint64_t source_group = grid.group_of(columns), group = wanted.group_of(columns);
    const std::uint64_t source_groups = grid.groups_of(columns), groups = wanted.groups_of(columns);
    const bool was_biased = is_biased(from), biased = is_biased(to);
    const bool levels = grid.levels != Levels::integers;
    if (grid.levels != wanted.levels) return {MoveFault::levels, 0, 0};
    const int largest = static_cast<int>((1u << wanted.bits) - 1);
    for (std::uint64_t row = 0; row < rows; ++row) {
        const std::uint8_t* codes = elements.codes + row * source_groups * source_group;
        std::uint8_t* moved = out.codes + row * groups * group;
        for (std::uint64_t g = 0; g < groups; ++g) {
            const std::uint64_t begin = g * group, end = std::min(begin + group, columns);
            const std::uint64_t first = row * source_groups + begin / source_group;
            const std::uint64_t last = row * source_groups + (end - 1) / source_group;
            const float scale = elements.scales[first], zero = elements.zeros[first];
            for (std::uint64_t i = first + 1; i <= last; ++i) {
                if (elements.scales[i] != scale || (!levels && elements.zeros[i] != zero)) {
                    return {MoveFault::groups, row, begin};
                }
            }
            out.scales[row * groups + g] = scale;
            float& new_zero = out.zeros[row * groups + g];
            new_zero = zero;
            int shift = 0;
            if (levels) {
                new_zero = 0;
            } else if (biased) {
                if (!was_biased) new_zero = -zero * scale;
            } else {
                float whole = 0;
                if (!whole_zero(was_biased, scale, zero, whole)) {
                    return {MoveFault::zero_point, row, begin};
                }
                new_zero = whole;
                if (wanted.symmetric) {
                    new_zero = middle(wanted);
                    shift = static_cast<int>(new_zero - whole);
                } else if (whole < 0 || whole > static_cast<float>(largest)) {
                    return {MoveFault::zero_point, row, begin};
                }
            }
            for (std::uint64_t c = begin; c < end; ++c) {
                const int code = codes[c] + shift;
                if (code < 0 || code > largest) return {MoveFault::codes, row, c};
                moved[c] = static_cast<std::uint8_t>(code);
            }
            // Groups are filled up with what stands for zero, where they can be.
            std::fill(
                moved + end, moved + begin + group,
                static_cast<std::uint8_t>(
                    levels || biased ? 0.0f
                                     : std::clamp(new_zero, 0.0f, static_cast<float>(largest))));
        }
    }
    return {};
}

}  // namespace phiquant::codecs
