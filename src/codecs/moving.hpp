// Moves between formats: codes, scales and zero points of one codec as those of another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codecs/planes.hpp"

namespace phiquant::codecs {

/// Whether rows of `columns` values in this codec are codes with a scale (and a zero point or a
/// bias) a group, so that they can be moved: affine codecs, and ggml's blocks of 32 values.
[[nodiscard]] bool has_elements(const Codec& codec, std::uint64_t columns) noexcept;

/// The grid of a codec that has elements; ggml's blocks have one, too.
[[nodiscard]] const Affine& grid_of(const Codec& codec) noexcept;

/// Codes, scales and minima of `rows` rows of ggml blocks as elements: codes unsigned, scales as
/// they are, and the zero point or (q4_1, q5_1) the bias.
void unpack_blocks(const Codec& codec, const std::byte* blocks, std::uint64_t rows,
                   std::uint64_t columns, const Elements& out) noexcept;

/// The inverse of unpack_blocks; scales and biases are rounded to float16.
void pack_blocks(const Codec& codec, const Elements& from, std::uint64_t rows,
                 std::uint64_t columns, std::byte* out) noexcept;

/// What keeps a group from being moved.
enum class MoveFault : std::uint8_t {
    none,
    groups,      ///< values that have scales of their own would have to share one
    codes,       ///< a code that the other grid does not have
    zero_point,  ///< a zero point that the other grid does not have
    levels       ///< codes stand for other levels
};

struct MoveResult {
    MoveFault fault = MoveFault::none;
    std::uint64_t row = 0, column = 0;  ///< of the first value of the group
};

/// Elements of `from`'s grid as those of `to`'s; the numbers they stand for stay, but for what
/// storing scales and biases rounds. `out` has room for `rows` rows of `to`. Group lengths may
/// differ: scales are repeated, or shared where they are alike.
[[nodiscard]] MoveResult move_elements(const Codec& from, const Elements& elements, const Codec& to,
                                       std::uint64_t rows, std::uint64_t columns,
                                       const Elements& out) noexcept;

}  // namespace phiquant::codecs
