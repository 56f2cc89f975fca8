// Tensors cut where their parts and outputs begin and end, then into tiles.
#include "pipeline/pieces.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace phiquant::pipeline {
namespace {

OutputPlanes described(const PlannedTensor& tensor, const PlannedOutput& output) {
    OutputPlanes found;
    if (!has_planes(output)) return found;
    found.planes = codecs::planes_of(*output.codec, output.rows, tensor.columns);
    for (const codecs::Plane& plane : found.planes) {
        if (plane.transposed) found.line_shifts.emplace_back(plane.line_bits / 8);
    }
    return found;
}

// Whether an output is made of larger tiles, as it is written or read by columns: lines of planes
// are a call to the system each.
bool is_wide(const PlannedTensor& tensor, const PlannedOutput& output) {
    return output.codec->by_columns() ||
           std::ranges::any_of(tensor.parts,
                               [](const SourcePart& part) { return part.codec->by_columns(); });
}

}  // namespace

Pieces::Pieces(const Plan& plan) : plan_(plan) {
    for (const PlannedTensor& tensor : plan.tensors) {
        std::vector<OutputPlanes>& outputs = output_planes_.emplace_back();
        for (const PlannedOutput& output : tensor.outputs) {
            outputs.push_back(described(tensor, output));
        }
        std::vector<codecs::Planes>& parts = part_planes_.emplace_back();
        for (const SourcePart& part : tensor.parts) {
            parts.push_back(part.codec->layout == codecs::Layout::blocks
                                ? codecs::Planes{}
                                : codecs::planes_of(*part.codec, part.rows, tensor.columns));
        }
        // What is written by columns takes larger tiles: it reads the source for itself.
        cut(tensor, false);
        cut(tensor, true);
    }
}

void Pieces::cut(const PlannedTensor& tensor, bool wide) {
    std::vector<std::uint64_t> ends;
    std::uint64_t rows = 0, step = codecs::k_row_step, values = k_tile_values;
    bool whole_rows = false;
    for (const SourcePart& part : tensor.parts) {
        if (wide) values = std::max(values, wide_tile_values(*part.codec));
        ends.push_back(rows += part.rows);
        whole_rows = whole_rows || part.codec->layout != codecs::Layout::blocks;
        step = std::max(step, codecs::row_step(*part.codec));
    }
    for (const PlannedOutput& output : tensor.outputs) {
        if (is_wide(tensor, output) != wide) continue;
        ends.push_back(output.first_row);
        ends.push_back(output.first_row + output.rows);
        whole_rows = whole_rows || has_planes(output) || output.via != nullptr;
        step = std::max(step, codecs::row_step(*output.codec));
        if (wide) values = std::max(values, wide_tile_values(*output.codec));
        if (output.via != nullptr) step = std::max(step, codecs::row_step(*output.via));
    }
    std::ranges::sort(ends);
    std::uint64_t begin = 0, part_begin = 0;
    std::size_t part = 0;
    for (const std::uint64_t end : ends) {
        if (end == begin) continue;
        while (begin == part_begin + tensor.parts[part].rows) {
            part_begin += tensor.parts[part++].rows;
        }
        const std::uint64_t count = end - begin, columns = tensor.columns;
        const Tiling tiling =
            wide || whole_rows ? Tiling(count, columns, step, values) : Tiling(count, columns);
        const SourcePart& from = tensor.parts[part];
        const auto& part_planes =
            part_planes_[static_cast<std::size_t>(&tensor - plan_.tensors.data())];
        Piece piece{&tensor,
                    &from,
                    from.codec->layout == codecs::Layout::blocks ? nullptr : &part_planes[part],
                    begin,
                    begin - part_begin,
                    tiles_,
                    outputs_,
                    planes_,
                    {},
                    0,
                    tiling};
        for (std::size_t i = 0; i < tensor.outputs.size(); ++i) {
            const PlannedOutput& output = tensor.outputs[i];
            if (is_wide(tensor, output) != wide || begin < output.first_row ||
                end > output.first_row + output.rows) {
                continue;
            }
            piece.outputs.push_back(i);
            piece.planes += output.planes.size();
        }
        begin = end;
        if (piece.outputs.empty()) continue;
        tiles_ += tiling.count();
        outputs_ += tiling.count() * piece.outputs.size();
        planes_ += tiling.count() * piece.planes;
        most_values_ = std::max(most_values_, tiling.most_values());
        pieces_.push_back(std::move(piece));
    }
}

std::vector<Piece>::const_iterator Pieces::of_tile(std::uint64_t tile) const noexcept {
    return std::prev(std::ranges::upper_bound(pieces_, tile, {}, &Piece::first_tile));
}

const OutputPlanes& Pieces::planes_of(const PlannedTensor& tensor,
                                      std::size_t output) const noexcept {
    return output_planes_[static_cast<std::size_t>(&tensor - plan_.tensors.data())][output];
}

}  // namespace phiquant::pipeline
