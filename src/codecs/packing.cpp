// Codes, scales and zero points as bit streams, and back.
#include <algorithm>
#include <cstring>

#include "base/half.hpp"
#include "codecs/bit_streams.hpp"
#include "codecs/planes.hpp"
#include "codecs/small_floats.hpp"
#include "codecs/stored_scales.hpp"
#include "codecs/words.hpp"

namespace phiquant::codecs {
namespace {

void narrow(const float* values, std::uint64_t count, Stored type, std::byte* out) noexcept {
    if (type == Stored::f32) {
        std::memcpy(out, values, 4 * count);
        return;
    }
    if (type == Stored::e8m0 || type == Stored::e4m3) {
        for (std::uint64_t i = 0; i < count; ++i) {
            out[i] = std::byte{type == Stored::e8m0 ? e8m0_of(values[i]) : e4m3_of(values[i])};
        }
        return;
    }
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint16_t bits =
            type == Stored::f16 ? float_to_half(values[i]) : float_to_bfloat(values[i]);
        std::memcpy(out + 2 * i, &bits, 2);
    }
}

void widen(const std::byte* from, std::uint64_t count, Stored type, float* out) noexcept {
    if (type == Stored::f32) {
        std::memcpy(out, from, 4 * count);
        return;
    }
    if (type == Stored::e8m0 || type == Stored::e4m3) {
        for (std::uint64_t i = 0; i < count; ++i) {
            const auto code = static_cast<std::uint8_t>(from[i]);
            out[i] = type == Stored::e8m0 ? number_of_e8m0(code) : number_of_e4m3(code);
        }
        return;
    }
    for (std::uint64_t i = 0; i < count; ++i) {
        std::uint16_t bits;
        std::memcpy(&bits, from + 2 * i, 2);
        out[i] = type == Stored::f16 ? half_to_float(bits) : bfloat_to_float(bits);
    }
}

// The bit that makes an offset code, or a zero point, a signed one.
std::uint8_t flip_of(const Codec& codec, Content content) noexcept {
    const bool signed_codes =
        codec.affine.symmetric && codec.affine.levels == Levels::integers &&
        (codec.layout == Layout::openvino || codec.layout == Layout::transposed);
    const bool is_signed =
        codec.layout == Layout::bytes || (signed_codes && content == Content::codes);
    return is_signed ? static_cast<std::uint8_t>(1u << (codec.affine.bits - 1)) : std::uint8_t{0};
}

// Rows whose zero points are one stream of bits; of 8 bits, four fill a word.
constexpr std::uint64_t k_most_together = 32;

// Rows and lines of a tile that are transposed together: they stay in the first-level cache.
constexpr std::uint64_t k_rows_at_once = 256, k_lines_at_once = 32;

// Codes of some rows by columns, [elements][rows], as streams of bits.
void pack_lines(const Codec& codec, const Plane& plane, const std::uint8_t* codes,
                std::uint64_t rows, std::uint8_t flip, std::uint8_t* out) noexcept {
    const std::uint64_t elements = plane.row_elements, line_bytes = rows * plane.bits / 8;
    std::uint8_t lines[k_lines_at_once][k_rows_at_once];
    for (std::uint64_t e = 0; e < elements; e += k_lines_at_once) {
        const std::uint64_t width = std::min(k_lines_at_once, elements - e);
        for (std::uint64_t row = 0; row < rows; row += k_rows_at_once) {
            const std::uint64_t count = std::min(k_rows_at_once, rows - row);
            for (std::uint64_t i = 0; i < count; ++i) {
                const std::uint8_t* from = codes + (row + i) * elements + e;
                for (std::uint64_t k = 0; k < width; ++k) lines[k][i] = from[k];
            }
            for (std::uint64_t k = 0; k < width; ++k) {
                if (codec.layout == Layout::awq) to_awq_order(lines[k], count);
                pack_bits(lines[k], count, plane.bits, flip,
                          out + (e + k) * line_bytes + row * plane.bits / 8);
            }
        }
    }
}

void unpack_lines(const Codec& codec, const Plane& plane, const std::uint8_t* bytes,
                  std::uint64_t rows, std::uint8_t flip, std::uint8_t* codes) noexcept {
    const std::uint64_t elements = plane.row_elements, line_bytes = rows * plane.bits / 8;
    std::uint8_t lines[k_lines_at_once][k_rows_at_once];
    for (std::uint64_t e = 0; e < elements; e += k_lines_at_once) {
        const std::uint64_t width = std::min(k_lines_at_once, elements - e);
        for (std::uint64_t row = 0; row < rows; row += k_rows_at_once) {
            const std::uint64_t count = std::min(k_rows_at_once, rows - row);
            for (std::uint64_t k = 0; k < width; ++k) {
                unpack_bits(bytes + (e + k) * line_bytes + row * plane.bits / 8, count, plane.bits,
                            flip, lines[k]);
                if (codec.layout == Layout::awq) from_awq_order(lines[k], count);
            }
            for (std::uint64_t i = 0; i < count; ++i) {
                std::uint8_t* to = codes + (row + i) * elements + e;
                for (std::uint64_t k = 0; k < width; ++k) to[k] = lines[k][i];
            }
        }
    }
}

// Zero points of compressed-tensors: streams of bits down the rows, the words of a stream a row of
// words apart.
void pack_rows(const Plane& plane, const std::uint8_t* codes, std::uint64_t rows,
               std::byte* out) noexcept {
    const std::uint64_t elements = plane.row_elements, together = plane.rows_per_line;
    const std::uint64_t words = plane.line_bits / 32 / elements;  // of a stream
    std::uint8_t stream[k_most_together];
    for (std::uint64_t row = 0; row < rows; row += together) {
        const std::uint64_t count = std::min(together, rows - row);
        for (std::uint64_t e = 0; e < elements; ++e) {
            for (std::uint64_t i = 0; i < count; ++i) stream[i] = codes[(row + i) * elements + e];
            std::uint8_t packed[k_most_together] = {};
            pack_bits(stream, count, plane.bits, 0, packed);
            for (std::uint64_t i = 0; i < words; ++i) {
                const std::uint64_t at = (row / together * words + i) * elements + e;
                std::memcpy(out + 4 * at, packed + 4 * i, 4);
            }
        }
    }
}

void unpack_rows(const Plane& plane, const std::byte* piece, std::uint64_t rows,
                 std::uint8_t* codes) noexcept {
    const std::uint64_t elements = plane.row_elements, together = plane.rows_per_line;
    const std::uint64_t words = plane.line_bits / 32 / elements;
    std::uint8_t stream[k_most_together], packed[k_most_together];
    for (std::uint64_t row = 0; row < rows; row += together) {
        const std::uint64_t count = std::min(together, rows - row);
        for (std::uint64_t e = 0; e < elements; ++e) {
            for (std::uint64_t i = 0; i < words; ++i) {
                const std::uint64_t at = (row / together * words + i) * elements + e;
                std::memcpy(packed + 4 * i, piece + 4 * at, 4);
            }
            unpack_bits(packed, count, plane.bits, 0, stream);
            for (std::uint64_t i = 0; i < count; ++i) codes[(row + i) * elements + e] = stream[i];
        }
    }
}

void pack_codes(const Codec& codec, const Plane& plane, const std::uint8_t* codes,
                std::uint64_t rows, std::uint8_t flip, std::byte* out) noexcept {
    auto* bytes = reinterpret_cast<std::uint8_t*>(out);
    const std::uint64_t elements = plane.row_elements;
    const unsigned bits = plane.bits;
    if (plane.transposed) return pack_lines(codec, plane, codes, rows, flip, bytes);
    if (plane.rows_per_line > 1) return pack_rows(plane, codes, rows, out);
    if (plane.line_bits == elements * bits) {
        pack_bits(codes, rows * elements, bits, flip, bytes);
        return;
    }
    for (std::uint64_t row = 0; row < rows; ++row) {
        pack_bits(codes + row * elements, elements, bits, flip, bytes + row * plane.line_bits / 8);
    }
}

void unpack_codes(const Codec& codec, const Plane& plane, const std::byte* piece,
                  std::uint64_t rows, std::uint8_t flip, std::uint8_t* codes) noexcept {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(piece);
    const std::uint64_t elements = plane.row_elements;
    const unsigned bits = plane.bits;
    if (plane.transposed) return unpack_lines(codec, plane, bytes, rows, flip, codes);
    if (plane.rows_per_line > 1) return unpack_rows(plane, piece, rows, codes);
    if (plane.line_bits == elements * bits) {
        unpack_bits(bytes, rows * elements, bits, flip, codes);
        return;
    }
    for (std::uint64_t row = 0; row < rows; ++row) {
        unpack_bits(bytes + row * plane.line_bits / 8, elements, bits, flip,
                    codes + row * elements);
    }
}

template <class Item>
void transpose_items(const Item* from, std::uint64_t rows, std::uint64_t columns,
                     Item* out) noexcept {
    // Squares that stay in the first-level cache.
    constexpr std::uint64_t k_side = 32;
    for (std::uint64_t row = 0; row < rows; row += k_side) {
        const std::uint64_t row_end = std::min(rows, row + k_side);
        for (std::uint64_t column = 0; column < columns; column += k_side) {
            const std::uint64_t column_end = std::min(columns, column + k_side);
            for (std::uint64_t c = column; c < column_end; ++c) {
                for (std::uint64_t r = row; r < row_end; ++r) {
                    out[c * rows + r] = from[r * columns + c];
                }
            }
        }
    }
}

}  // namespace

void pack(const Codec& codec, const Plane& plane, const Elements& from, std::uint64_t rows,
          std::byte* out) noexcept {
    const Stored type = stored(codec.affine);
    const std::uint64_t elements = plane.row_elements;
    switch (plane.content) {
        case Content::blocks:
            break;
        case Content::codes:
            if (codec.is_gptq()) {
                pack_gptq(from.codes, rows, elements * 32 / codec.affine.bits, codec.affine.bits,
                          out);
            } else {
                pack_codes(codec, plane, from.codes, rows, flip_of(codec, plane.content), out);
            }
            break;
        case Content::scales:
        case Content::biases: {
            const float* values = plane.content == Content::scales ? from.scales : from.zeros;
            if (plane.content == Content::biases && codec.rule == Rule::portable) {
                // Exact, also as a half.
                for (std::uint64_t i = 0; i < rows * elements; ++i) {
                    from.zeros[i] = 0.0f - from.zeros[i] * from.scales[i];
                }
            }
            if (!plane.transposed) {
                narrow(values, rows * elements, type, out);
                break;
            }
            const std::uint32_t bytes = plane.bits / 8;
            for (std::uint64_t row = 0; row < rows; ++row) {
                for (std::uint64_t g = 0; g < elements; ++g) {
                    narrow(values + row * elements + g, 1, type, out + (g * rows + row) * bytes);
                }
            }
            break;
        }
        case Content::zero_points: {
            // In place: a zero point's float makes room for its byte.
            auto* bytes = reinterpret_cast<std::uint8_t*>(from.zeros);
            for (std::uint64_t i = 0; i < rows * elements; ++i) {
                const float zero = from.zeros[i];
                bytes[i] = static_cast<std::uint8_t>(zero);
            }
            if (codec.layout == Layout::gptq_v1) less_one(bytes, rows, elements, plane.bits);
            pack_codes(codec, plane, bytes, rows, flip_of(codec, plane.content), out);
            break;
        }
    }
}

void unpack(const Codec& codec, const Plane& plane, const std::byte* piece, std::uint64_t rows,
            const Elements& out) noexcept {
    const Stored type = stored(codec.affine);
    const std::uint64_t elements = plane.row_elements;
    switch (plane.content) {
        case Content::blocks:
            break;
        case Content::codes:
            if (codec.is_gptq()) {
                unpack_gptq(piece, rows, elements * 32 / codec.affine.bits, codec.affine.bits,
                            out.codes);
            } else {
                unpack_codes(codec, plane, piece, rows, flip_of(codec, plane.content), out.codes);
            }
            break;
        case Content::scales:
        case Content::biases: {
            float* values = plane.content == Content::scales ? out.scales : out.zeros;
            if (plane.content == Content::scales && codec.affine.symmetric) {
                const auto middle = static_cast<float>(1u << (codec.affine.bits - 1));
                std::fill_n(out.zeros, rows * elements, middle);
            }
            if (!plane.transposed) {
                widen(piece, rows * elements, type, values);
                break;
            }
            const std::uint32_t bytes = plane.bits / 8;
            for (std::uint64_t row = 0; row < rows; ++row) {
                for (std::uint64_t g = 0; g < elements; ++g) {
                    widen(piece + (g * rows + row) * bytes, 1, type, values + row * elements + g);
                }
            }
            break;
        }
        case Content::zero_points: {
            auto* bytes = reinterpret_cast<std::uint8_t*>(out.zeros);
            unpack_codes(codec, plane, piece, rows, flip_of(codec, plane.content), bytes);
            if (codec.layout == Layout::gptq_v1) plus_one(bytes, rows, elements, plane.bits);
            for (std::uint64_t i = rows * elements; i-- > 0;) {
                const std::uint8_t zero = bytes[i];
                out.zeros[i] = zero;
            }
            break;
        }
    }
}

void dequantize(const Codec& codec, const Elements& from, std::uint64_t rows, std::uint64_t columns,
                float* values) noexcept {
    const std::uint64_t group = codec.affine.group_of(columns);
    const std::uint64_t groups = codec.affine.groups_of(columns);
    const Levels levels = codec.affine.levels;
    const bool biased = codec.layout == Layout::mlx;
    float table[256];
    if (levels != Levels::integers) {
        for (unsigned code = 0; code < 256; ++code) {
            const auto byte = static_cast<std::uint8_t>(code);
            table[code] = number_of(levels, byte);
        }
    }
    for (std::uint64_t row = 0; row < rows; ++row) {
        for (std::uint64_t g = 0; g < groups; ++g) {
            const std::uint64_t at = row * groups + g;
            const std::uint64_t count = std::min(group, columns - g * group);
            const std::uint8_t* codes = from.codes + at * group;
            float* out = values + row * columns + g * group;
            const float scale = from.scales[at] / codec.affine.global, zero = from.zeros[at];
            if (levels != Levels::integers) {
                for (std::uint64_t i = 0; i < count; ++i) out[i] = table[codes[i]] * scale;
            } else if (biased) {
                for (std::uint64_t i = 0; i < count; ++i) {
                    out[i] = static_cast<float>(codes[i]) * scale + zero;
                }
            } else {
                for (std::uint64_t i = 0; i < count; ++i) {
                    out[i] = (static_cast<float>(codes[i]) - zero) * scale;
                }
            }
        }
    }
}

void transpose(const std::byte* from, std::uint64_t rows, std::uint64_t columns,
               std::uint32_t element_bytes, std::byte* out) noexcept {
    if (element_bytes == 4) {
        transpose_items(reinterpret_cast<const std::uint32_t*>(from), rows, columns,
                        reinterpret_cast<std::uint32_t*>(out));
    } else {
        transpose_items(reinterpret_cast<const std::uint16_t*>(from), rows, columns,
                        reinterpret_cast<std::uint16_t*>(out));
    }
}

}  // namespace phiquant::codecs
