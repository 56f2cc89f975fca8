// Sizes of planes: what a codec makes of a matrix.
#include "codecs/planes.hpp"

#include <string>

#include "base/error.hpp"
#include "codecs/stored_scales.hpp"

namespace phiquant::codecs {
namespace {

[[noreturn]] void refuse(const Codec& codec, const std::string& what) {
    throw Error(ErrorKind::shape, std::string(codec.name) + " cannot hold it: " + what,
                "Choose another group or codec for this tensor.");
}

}  // namespace

Planes planes_of(const Codec& codec, std::uint64_t rows, std::uint64_t columns) {
    Planes planes;
    const bool transposed = codec.by_columns();
    const auto add = [&](Content content, unsigned bits, std::uint64_t elements) {
        Plane plane{content, bits, transposed, elements, 1, rows, elements * bits};
        if (transposed) {
            plane.lines = elements;
            plane.line_bits = rows * bits;
            if (plane.line_bits % 8 != 0) {
                refuse(codec, std::to_string(rows) + " rows do not end at a whole byte");
            }
        }
        planes.add(plane);
        return planes.size() - 1;
    };
    if (!codec.is_affine()) {
        if (transposed) {
            add(Content::codes, 8 * codec.block_bytes, columns);
        } else {
            if (columns % codec.block_values != 0) {
                refuse(codec, std::to_string(columns) + " columns are no multiple of its block");
            }
            planes.add({Content::blocks, 8 * codec.block_bytes, false, columns / codec.block_values,
                        1, rows, columns / codec.block_values * codec.block_bytes * 8});
        }
        return planes;
    }
    const Affine& affine = codec.affine;
    const std::uint64_t groups = affine.groups_of(columns);
    const std::uint64_t filled = groups * affine.group_of(columns);
    if (codec.layout != Layout::rows && filled != columns) {
        refuse(codec, std::to_string(columns) + " columns are no multiple of its group of " +
                          std::to_string(affine.group));
    }
    // Words of 32 bits along a row: mlx's and compressed-tensors' own unit.
    const bool words = codec.layout == Layout::mlx || codec.layout == Layout::packed;
    if (words && filled * affine.bits % 32 != 0) {
        refuse(codec, std::to_string(columns) + " codes do not fill words of 32 bits");
    }
    // Words of a row's codes, and words of several rows' zero points (or codes, AWQ's).
    if (codec.is_gptq() && columns % 32 != 0) {
        refuse(codec, std::to_string(columns) + " columns are no multiple of 32");
    }
    const bool words_of_rows = codec.is_gptq() || codec.layout == Layout::awq;
    if (words_of_rows && rows * affine.bits % 32 != 0) {
        refuse(codec, std::to_string(rows) + " rows do not fill words of 32 bits");
    }
    if (row_step(codec) > k_row_step && rows % 32 != 0) {
        refuse(codec, std::to_string(rows) + " rows are no multiple of 32");
    }
    Plane codes{Content::codes, affine.bits, transposed, filled, 1, rows, filled * affine.bits};
    if (codec.is_gptq()) {
        add(Content::codes, 32, filled * affine.bits / 32);
    } else if (transposed) {
        add(Content::codes, affine.bits, filled);
    } else {
        // Rows that end within a byte are filled up where the format says so; elsewhere they follow
        // each other.
        if (codec.layout == Layout::rows) codes.line_bits = (codes.line_bits + 7) / 8 * 8;
        planes.add(codes);
    }
    add(Content::scales, scale_bits(affine), groups);
    if (affine.levels != Levels::integers) return planes;
    if (codec.layout == Layout::mlx) {
        add(Content::biases, scale_bits(affine), groups);
    } else if (!affine.symmetric || words_of_rows) {
        if (codec.layout == Layout::packed) {
            // As many rows as fill a word, or as many words as bits.
            const bool whole = 32 % affine.bits == 0;
            const std::uint64_t together = whole ? 32 / affine.bits : 32;
            planes.add({Content::zero_points, affine.bits, false, groups, together,
                        (rows + together - 1) / together, groups * 32 * (whole ? 1 : affine.bits)});
        } else if (transposed) {
            add(Content::zero_points, affine.bits, groups);
        } else {
            Plane zeros{Content::zero_points, affine.bits, false, groups, 1, rows,
                        groups * affine.bits};
            if (codec.layout == Layout::rows) zeros.line_bits = (zeros.line_bits + 7) / 8 * 8;
            planes.add(zeros);
        }
    }
    return planes;
}

std::uint64_t row_step(const Codec& codec) noexcept {
    const bool shared =
        codec.layout == Layout::packed && !codec.affine.symmetric && 32 % codec.affine.bits != 0;
    return shared ? 32 : k_row_step;
}

std::uint64_t piece_bytes(const Plane& plane, std::uint64_t rows) noexcept {
    if (plane.transposed) return plane.row_elements * (rows * plane.bits / 8);
    return ((rows + plane.rows_per_line - 1) / plane.rows_per_line * plane.line_bits + 7) / 8;
}

}  // namespace phiquant::codecs
