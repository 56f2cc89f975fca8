// Codes, scales and zero points packed as another codec's, and every value compared.
#include "pipeline/moves.hpp"

#include <cstdio>
#include <string>

#include "base/error.hpp"
#include "codecs/moving.hpp"

namespace phiquant::pipeline {
namespace {

const char* const k_remedy =
    "Choose a target that holds the same numbers (all are float32), or allow a second rounding: "
    "--requantize (requantize=True).";

[[noreturn]] void refuse(const PlannedOutput& output, const Tile& at, std::uint64_t row,
                         std::uint64_t column, const std::string& why) {
    throw Error(ErrorKind::unsupported,
                std::string(output.codec->name) + " cannot hold the numbers of " +
                    std::string(output.via->name) + " at [" + std::to_string(at.row + row) + ", " +
                    std::to_string(at.column + column) + "]: " + why,
                k_remedy);
}

std::string text_of(codecs::MoveFault fault) {
    switch (fault) {
        case codecs::MoveFault::groups:
            return "values with scales of their own would share one";
        case codecs::MoveFault::codes:
            return "it has no such code";
        case codecs::MoveFault::zero_point:
            return "it has no such zero point";
        default:
            return "its codes stand for other levels";
    }
}

std::string text_of(float value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
    return text;
}

// The elements that are to be packed, and in `values` what they stand for.
codecs::Elements elements_of(const kernels::Table& table, const PlannedOutput& output,
                             const ReadTile& read, const Tile& at, Scratch& scratch,
                             const float*& values) {
    const codecs::Codec& via = *output.via;
    if (read.codec != &via) {
        check_finite(table, read.values, at);
        const codecs::Elements made = fit(table, via, read.values, at, {}, scratch.elements());
        float* changed = scratch.changed(at.values());
        dequantize(via, made, at.rows, at.columns, changed);
        const std::uint64_t large = table.find_exceeding(read.values, at.values(), via.largest);
        if (large != at.values()) {
            refuse_lost(via, at.columns, read.values, changed, at, large);
        }
        values = changed;
        return made;
    }
    check_finite(table, read.values, at);
    const codecs::Elements held = scratch.elements().of(via, at.rows, at.columns);
    if (read.planes == nullptr) {
        codecs::unpack_blocks(via, read.pieces[0].data(), at.rows, at.columns, held);
    } else {
        for (std::size_t i = 0; i < read.planes->size(); ++i) {
            unpack(via, (*read.planes)[i], read.pieces[i].data(), at.rows, held);
        }
    }
    values = read.values;
    return held;
}

}  // namespace

PlanePieces move_tile(const kernels::Table& table, const PlannedOutput& output,
                      const codecs::Planes& planes, const ReadTile& read, const Tile& at,
                      Scratch& scratch) {
    const codecs::Codec& to = *output.codec;
    const bool blocks = to.layout == codecs::Layout::blocks;
    const bool plain = to.grid == codecs::Grid::floating;
    const float* values = read.values;
    codecs::Elements held{};
    if (plain && read.codec == output.via) {
        check_finite(table, values, at);
    } else {
        held = elements_of(table, output, read, at, scratch, values);
    }
    PlanePieces pieces;
    if (plain) {
        if (blocks) {
            encode(table, to, values, at, {}, scratch.codes(), scratch);
            pieces[0] = {scratch.codes(), bytes_of(to, at.values())};
        } else {
            pieces = encode_planes(table, to, planes, values, at, {}, scratch);
        }
    } else {
        const codecs::Elements moved = scratch.moved().of(to, at.rows, at.columns);
        const codecs::MoveResult result =
            codecs::move_elements(*output.via, held, to, at.rows, at.columns, moved);
        if (result.fault != codecs::MoveFault::none) {
            refuse(output, at, result.row, result.column, text_of(result.fault));
        }
        if (blocks) {
            const std::uint64_t bytes = bytes_of(to, at.values());
            std::byte* out = scratch.pieces(bytes);
            codecs::pack_blocks(to, moved, at.rows, at.columns, out);
            pieces[0] = {out, bytes};
        } else {
            pieces = pack(to, planes, moved, at.rows, scratch);
        }
    }
    float* decoded = scratch.decoded();
    if (blocks) {
        decode(table, to, pieces[0].data(), at.values(), decoded);
    } else {
        decode_planes(table, to, planes, pieces, at.rows, at.columns, scratch, decoded);
    }
    for (std::uint64_t i = 0; i < at.values(); ++i) {
        if (decoded[i] != values[i]) {
            refuse(output, at, i / at.columns, i % at.columns,
                   text_of(values[i]) + " would become " + text_of(decoded[i]));
        }
    }
    return pieces;
}

}  // namespace phiquant::pipeline
