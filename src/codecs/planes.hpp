// The planes of affine codecs: how large each is, and how codes, scales and zero points are packed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "codecs/codec.hpp"

namespace phiquant::codecs {

enum class Content : std::uint8_t { blocks, codes, scales, zero_points, biases };

/// One plane of an encoded matrix: lines of elements. A line is a row of the matrix or several, or
/// (where transposed) all rows' element at one place.
struct Plane {
    Content content;
    unsigned bits;                ///< of an element; of GPTQ's codes, of a word of them
    bool transposed;              ///< line i holds element i of every row
    std::uint64_t row_elements;   ///< elements that a row has here: values (filled up), or groups
    std::uint64_t rows_per_line;  ///< whose elements share 32-bit words, a line's one after another
    std::uint64_t lines;
    std::uint64_t line_bits;  ///< not always whole bytes: lines may follow each other without a gap

    [[nodiscard]] std::uint64_t bytes() const noexcept { return (lines * line_bits + 7) / 8; }
    /// Whether `row` (of the matrix) begins a byte, so that a tile can.
    [[nodiscard]] bool begins_byte(std::uint64_t row) const noexcept {
        return row % rows_per_line == 0 &&
               (transposed ? row * bits : row / rows_per_line * line_bits) % 8 == 0;
    }
};

/// Up to three planes, in the order codes, scales, zero points or biases.
class Planes {
public:
    void add(const Plane& plane) noexcept { planes_[count_++] = plane; }
    [[nodiscard]] std::span<const Plane> all() const noexcept { return {planes_.data(), count_}; }
    [[nodiscard]] std::size_t size() const noexcept { return count_; }
    [[nodiscard]] const Plane& operator[](std::size_t index) const noexcept {
        return planes_[index];
    }
    [[nodiscard]] auto begin() const noexcept { return planes_.begin(); }
    [[nodiscard]] auto end() const noexcept { return planes_.begin() + count_; }

private:
    std::array<Plane, 3> planes_{};
    std::size_t count_ = 0;
};

/// The planes of a matrix of `rows` x `columns` (both at least 1). Throws Error(shape) where the
/// codec cannot hold such a matrix, Error(unsupported) for a layout that has no such grid.
[[nodiscard]] Planes planes_of(const Codec& codec, std::uint64_t rows, std::uint64_t columns);

/// Some rows of an affine encoding, an element each: what kernels make and take.
struct Elements {
    std::uint8_t* codes;    ///< [rows, groups * group]
    float *scales, *zeros;  ///< [rows, groups]
};

/// Rows a tile's worth must be a multiple of, so that every plane's piece begins at a whole byte;
/// `row_step` says which codecs need more.
inline constexpr std::uint64_t k_row_step = 16;

/// Rows that tiles of one codec must be a multiple of: 32 where zero points of several rows share
/// words that they don't fill.
[[nodiscard]] std::uint64_t row_step(const Codec& codec) noexcept;

/// Bytes of one plane for `rows` rows that begin at a whole byte.
[[nodiscard]] std::uint64_t piece_bytes(const Plane& plane, std::uint64_t rows) noexcept;

/// Pack `rows` rows into a plane's piece: its lines one after the other, of a transposed plane
/// `row_elements` short lines of the rows' elements.
void pack(const Codec& codec, const Plane& plane, const Elements& from, std::uint64_t rows,
          std::byte* out) noexcept;

/// The inverse of pack. Zero points that no plane holds are set, too, when codes are unpacked.
void unpack(const Codec& codec, const Plane& plane, const std::byte* piece, std::uint64_t rows,
            const Elements& out) noexcept;

/// Values of `rows` rows: (code - zero point) * scale, or code * scale + bias.
void dequantize(const Codec& codec, const Elements& from, std::uint64_t rows, std::uint64_t columns,
                float* values) noexcept;

/// Write a matrix of elements of 1, 2 or 4 bytes as its transpose: out[c][r] = from[r][c].
void transpose(const std::byte* from, std::uint64_t rows, std::uint64_t columns,
               std::uint32_t element_bytes, std::byte* out) noexcept;

}  // namespace phiquant::codecs
