// Decode, check, encode and measure one tile.
#include "pipeline/stages.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/error.hpp"
#include "codecs/moving.hpp"

namespace phiquant::pipeline {
namespace {

std::string index_of(const Tile& at, std::uint64_t index) {
    return "[" + std::to_string(at.row + index / at.columns) + ", " +
           std::to_string(at.column + index % at.columns) + "]";
}

std::string text_of(float value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "infinity" : "-infinity";
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
    return text;
}

// The value to blame where one beyond the codec's bound did not survive, else `count`. A scale that
// overflows shows as an infinity or a NaN anywhere in the block; a fit whose sums overflow may
// also have fallen back to zeros, which ggml writes without a word.
std::uint64_t find_lost(const codecs::Codec& codec, std::uint64_t block, const float* values,
                        const float* decoded, std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t begin = first / block * block; begin < count; begin += block) {
        const std::uint64_t end = std::min(count, begin + block);
        std::uint64_t largest = begin;
        bool finite = true;
        for (std::uint64_t i = begin; i < end; ++i) {
            if (std::fabs(values[i]) > std::fabs(values[largest])) largest = i;
            finite = finite && std::isfinite(decoded[i]);
        }
        // Every codec keeps a block's largest value far better than this.
        const float value = values[largest];
        const bool kept = std::fabs(value) <= codec.largest ||
                          std::fabs(decoded[largest] - value) <= std::fabs(value) / 2;
        if (!finite || !kept) return largest;
    }
    return count;
}

}  // namespace

void refuse_lost(const codecs::Codec& codec, std::uint64_t block, const float* values,
                 const float* decoded, const Tile& at, std::uint64_t first) {
    const std::uint64_t count = at.values();
    const std::uint64_t bad = find_lost(codec, block, values, decoded, first, count);
    if (bad == count) return;
    throw Error(ErrorKind::value,
                "holds " + text_of(values[bad]) + " at " + index_of(at, bad) + ", which " +
                    std::string(codec.name) + " cannot hold",
                "Choose a codec with a larger range for this tensor: bf16 or f32.");
}

Scratch::Scratch(std::uint64_t values)
    : source_(new std::byte[4 * values]),
      codes_(new std::byte[4 * values]),
      values_(new float[values]),
      decoded_(new float[values]) {}

codecs::Elements ElementRoom::of(const codecs::Codec& codec, std::uint64_t rows,
                                 std::uint64_t columns) {
    const codecs::Affine& grid = codecs::grid_of(codec);
    const std::uint64_t groups = rows * grid.groups_of(columns);
    const std::uint64_t codes = groups * grid.group_of(columns);
    if (codes_.size() < codes) codes_.resize(codes);
    if (parameters_.size() < 2 * groups) parameters_.resize(2 * groups);
    return {codes_.data(), parameters_.data(), parameters_.data() + groups};
}

void decode(const kernels::Table& table, const codecs::Codec& codec, const std::byte* blocks,
            std::uint64_t values, float* out) noexcept {
    (table.*codec.kernel).decode(&blocks, values, out);
}

void scale(const Tile& tile, const float* columns, const float* rows, const float* values,
           float* out) noexcept {
    for (std::uint64_t row = 0; row < tile.rows; ++row) {
        const float by = rows == nullptr ? 1.0f : rows[row];
        const float* from = values + row * tile.columns;
        float* to = out + row * tile.columns;
        if (columns == nullptr) {
            for (std::uint64_t i = 0; i < tile.columns; ++i) to[i] = from[i] * by;
        } else if (rows == nullptr) {
            for (std::uint64_t i = 0; i < tile.columns; ++i) to[i] = from[i] * columns[i];
        } else {
            for (std::uint64_t i = 0; i < tile.columns; ++i) to[i] = from[i] * columns[i] * by;
        }
    }
}

void check_finite(const kernels::Table& table, const float* values, const Tile& at) {
    const std::uint64_t bad = table.find_exceeding(values, at.values(), FLT_MAX);
    if (bad == at.values()) return;
    throw Error(ErrorKind::value, "holds " + text_of(values[bad]) + " at " + index_of(at, bad),
                "The weights are damaged (a training run that diverged, or a bad download): fetch "
                "or train them again.");
}

void encode(const kernels::Table& table, const codecs::Codec& codec, const float* values,
            const Tile& at, const Encoding& how, std::byte* blocks, Scratch& scratch) {
    if (codec.needs_importance && how.importance == nullptr) {
        throw Error(ErrorKind::usage,
                    std::string(codec.name) + " cannot be encoded without an importance",
                    "Choose another codec, or give it one: a weight for each column.");
    }
    const std::uint64_t count = at.values();
    // One scan in the usual case: whoever is below the codec's bound is finite, too.
    const std::uint64_t large = table.find_exceeding(values, count, codec.largest);
    if (large != count) check_finite(table, values, at);
    const kernels::Kernel& kernel = table.*codec.kernel;
    const kernels::Encode fit = how.best ? kernel.best : kernel.encode;
    if (fit == nullptr) {
        throw Error(ErrorKind::unsupported, std::string(codec.name) + " has no best quality");
    }
    fit({values, at.rows, at.columns, how.importance}, &blocks);
    if (large == count) return;
    decode(table, codec, blocks, count, scratch.decoded());
    refuse_lost(codec, codec.block_values, values, scratch.decoded(), at, large);
}

codecs::Elements fit(const kernels::Table& table, const codecs::Codec& codec, const float* values,
                     const Tile& at, const Encoding& how, ElementRoom& room) {
    const kernels::AffineKernel kernel = affine_kernel(table, codec);
    const kernels::AffineEncode fit = how.best ? kernel.best : kernel.encode;
    if (fit == nullptr) {
        throw Error(ErrorKind::unsupported,
                    std::string(codec.name) +
                        (how.best ? " has no best quality" : " cannot be encoded yet"));
    }
    const codecs::Elements elements = room.of(codec, at.rows, at.columns);
    const codecs::Affine& affine = codec.affine;
    fit(affine.of_rows(at.columns), {values, at.rows, at.columns, how.importance},
        {elements.codes, elements.scales, elements.zeros});
    return elements;
}

PlanePieces pack(const codecs::Codec& codec, const codecs::Planes& planes,
                 const codecs::Elements& elements, std::uint64_t rows, Scratch& scratch) {
    std::uint64_t total = 0;
    for (const codecs::Plane& plane : planes) total += piece_bytes(plane, rows);
    std::byte* out = scratch.pieces(total);
    PlanePieces pieces;
    for (std::size_t i = 0; i < planes.size(); ++i) {
        const std::uint64_t bytes = piece_bytes(planes[i], rows);
        pack(codec, planes[i], elements, rows, out);
        pieces[i] = {out, bytes};
        out += bytes;
    }
    return pieces;
}

PlanePieces encode_planes(const kernels::Table& table, const codecs::Codec& codec,
                          const codecs::Planes& planes, const float* values, const Tile& at,
                          const Encoding& how, Scratch& scratch) {
    const std::uint64_t count = at.values();
    const std::uint64_t large = table.find_exceeding(values, count, codec.largest);
    if (large != count) check_finite(table, values, at);
    PlanePieces pieces;
    if (codec.is_affine()) {
        const codecs::Elements elements = fit(table, codec, values, at, how, scratch.elements());
        pieces = pack(codec, planes, elements, at.rows, scratch);
    } else {
        const std::uint64_t bytes = piece_bytes(planes[0], at.rows);
        std::byte* out = scratch.pieces(bytes);
        std::byte* plain = scratch.codes();
        (table.*codec.kernel).encode({values, at.rows, at.columns, nullptr}, &plain);
        codecs::transpose(plain, at.rows, at.columns, codec.block_bytes, out);
        pieces[0] = {out, bytes};
    }
    if (large == count) return pieces;
    decode_planes(table, codec, planes, pieces, at.rows, at.columns, scratch, scratch.decoded());
    const std::uint64_t block = codec.is_affine() ? codec.affine.group_of(at.columns) : 1;
    refuse_lost(codec, at.columns % block == 0 ? block : at.columns, values, scratch.decoded(), at,
                large);
    return pieces;
}

void decode_planes(const kernels::Table& table, const codecs::Codec& codec,
                   const codecs::Planes& planes, const PlanePieces& pieces, std::uint64_t rows,
                   std::uint64_t columns, Scratch& scratch, float* out) {
    if (!codec.is_affine()) {
        // Its transpose's transpose, then as any float.
        std::byte* plain = scratch.codes();
        codecs::transpose(pieces[0].data(), columns, rows, codec.block_bytes, plain);
        decode(table, codec, plain, rows * columns, out);
        return;
    }
    const codecs::Elements elements = scratch.elements().of(codec, rows, columns);
    for (std::size_t i = 0; i < planes.size(); ++i) {
        unpack(codec, planes[i], pieces[i].data(), rows, elements);
    }
    dequantize(codec, elements, rows, columns, out);
}

ErrorSums error_sums(const kernels::Table& table, const float* values, const float* decoded,
                     std::uint64_t count) noexcept {
    ErrorSums sums;
    table.squared_sums(values, decoded, count, &sums.error, &sums.signal);
    return sums;
}

}  // namespace phiquant::pipeline
