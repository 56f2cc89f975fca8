// The one immutable table of codecs: what numbers each can hold, by whose rule, laid out how.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/table.hpp"

namespace phiquant::codecs {

enum class Grid : std::uint8_t {
    floating,       ///< no blocks: each value by itself
    scale,          ///< codes times a scale a block
    scale_minimum,  ///< codes times a scale a block, plus a minimum
    levels,         ///< codes name unevenly spaced levels, times a scale a block
    lattice         ///< codes name points, each the levels of several values, times a scale a block
};

enum class Rule : std::uint8_t { ggml };  ///< whose fitting and rounding the encoder reproduces

struct Codec {
    std::string_view name;  ///< as users write it: "q4_k"
    Grid grid;
    Rule rule;
    std::uint32_t block_values;      ///< values a block; 1 for plain floats
    std::uint32_t sub_block_values;  ///< values that share one scale
    std::uint32_t block_bytes;       ///< bytes a block in the (only) plane
    std::uint32_t ggml_type;         ///< the id in GGUF files
    float largest;  ///< |x| up to here can never overflow the codec; beyond, results are checked
    kernels::Kernel kernels::Table::* kernel;
    bool needs_importance = false;  ///< cannot be encoded without an importance of its columns

    [[nodiscard]] constexpr double bits_per_weight() const noexcept {
        return 8.0 * block_bytes / block_values;
    }
};

/// All codecs, in the order in which `phiquant formats` shows them.
std::span<const Codec> all() noexcept;

/// A codec by name (lower case), or null.
const Codec* find(std::string_view name) noexcept;

/// A codec by ggml type id, or null.
const Codec* find_ggml(std::uint32_t type) noexcept;

}  // namespace phiquant::codecs
