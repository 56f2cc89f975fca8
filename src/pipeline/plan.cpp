// The check that a plan keeps inside its files, made once before anything is opened for writing.
#include "pipeline/plan.hpp"

#include <algorithm>
#include <utility>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "codecs/moving.hpp"
#include "codecs/planes.hpp"
#include "pipeline/tiles.hpp"

namespace phiquant::pipeline {
namespace {

struct Region {
    std::uint64_t begin, end;
};

[[noreturn]] void broken(const std::string& tensor, const std::string& what) {
    throw Error(ErrorKind::internal, {}, tensor, "the plan is inconsistent: " + what);
}

std::uint64_t byte_count(const codecs::Codec& codec, std::uint64_t rows, std::uint64_t columns,
                         const std::string& tensor) {
    if (columns == 0 || rows == 0) broken(tensor, "it is empty");
    if (codec.layout != codecs::Layout::blocks) broken(tensor, "it is no codec of blocks");
    if (columns % codec.block_values != 0) {
        broken(tensor, std::to_string(columns) + " columns in blocks of " +
                           std::to_string(codec.block_values));
    }
    const auto blocks = try_multiply(rows, columns / codec.block_values);
    const auto bytes = blocks ? try_multiply(*blocks, codec.block_bytes) : std::nullopt;
    if (!bytes) broken(tensor, "its size overflows");
    return *bytes;
}

void check_vector(const Plan& plan, const PlannedTensor& tensor, std::int64_t index,
                  std::uint64_t length) {
    if (index < 0) return;
    const auto at = static_cast<std::uint64_t>(index);
    if (at >= plan.vectors.size()) broken(tensor.name, "there is no such vector");
    if (plan.vectors[at].size() != length) {
        broken(tensor.name, "its importance or scale is of another length");
    }
}

void check_importance(const Plan& plan, const PlannedTensor& tensor, const PlannedOutput& output) {
    check_vector(plan, tensor, output.importance, tensor.columns);
    if (output.importance < 0) return;
    // With importance some codecs look at whole rows, and only shorter ones stay in one tile.
    if (tensor.columns > k_tile_values) {
        throw Error(ErrorKind::unsupported, {}, tensor.name,
                    "rows of more than " + std::to_string(k_tile_values) +
                        " columns are not quantized with importance");
    }
}

void check_transforms(const Plan& plan, const PlannedTensor& tensor, const PlannedOutput& output) {
    check_vector(plan, tensor, output.column_scale, tensor.columns);
    check_vector(plan, tensor, output.row_scale, output.rows);
    if (output.scaled_in != nullptr && output.scaled_in->grid != codecs::Grid::floating) {
        broken(tensor.name, "its scaled values are rounded to no plain float");
    }
    if (output.via == nullptr) return;
    if (output.best || output.importance >= 0 || output.is_scaled()) {
        broken(tensor.name, "codes that are moved are neither searched for nor scaled");
    }
    const auto holds = [&](const codecs::Codec& codec) {
        return codecs::has_elements(codec, tensor.columns);
    };
    const bool plain = output.codec->grid == codecs::Grid::floating;
    bool is_held = true;  // the source holds the very codes
    for (const SourcePart& part : tensor.parts) {
        is_held = is_held && part.codec == output.via;
        if (part.codec != output.via && part.codec->grid != codecs::Grid::floating) {
            broken(tensor.name, "parts of it are in another codec than the one that is moved");
        }
    }
    const bool can_pack =
        plain ? is_held || holds(*output.via) : holds(*output.via) && holds(*output.codec);
    if (tensor.columns > k_tile_values) {
        throw Error(
            ErrorKind::unsupported, {}, tensor.name,
            "rows of more than " + std::to_string(k_tile_values) + " columns are not moved");
    }
    if (!can_pack) {
        broken(tensor.name, "its codes cannot be moved");
    }
}

void check_source(const Plan& plan, const PlannedTensor& tensor, const SourcePart& part) {
    const auto inside = [&](const SourcePlane& plane, std::uint64_t bytes) {
        if (plane.source >= plan.sources.size()) broken(tensor.name, "there is no such source");
        const auto end = try_add(plane.offset, bytes);
        if (!end || *end > plan.sources[plane.source].size()) {
            broken(tensor.name, "it ends past its source file");
        }
    };
    if (part.codec->layout == codecs::Layout::blocks) {
        if (part.planes.size() != 1) broken(tensor.name, "its source has one plane");
        inside(part.planes[0], byte_count(*part.codec, part.rows, tensor.columns, tensor.name));
        return;
    }
    if (part.rows == 0 || tensor.columns == 0) broken(tensor.name, "it is empty");
    if (tensor.columns > k_tile_values) {
        throw Error(ErrorKind::unsupported, {}, tensor.name,
                    "rows of more than " + std::to_string(k_tile_values) +
                        " columns are not read from planes");
    }
    const codecs::Planes planes = codecs::planes_of(*part.codec, part.rows, tensor.columns);
    if (part.planes.size() != planes.size()) broken(tensor.name, "a source plane has no place");
    for (std::size_t i = 0; i < planes.size(); ++i) inside(part.planes[i], planes[i].bytes());
}

// Every output's rows must begin a byte in the source, too.
void check_cuts(const PlannedTensor& tensor, const SourcePart& part, std::uint64_t begin) {
    if (part.codec->layout == codecs::Layout::blocks) return;
    const codecs::Planes planes = codecs::planes_of(*part.codec, part.rows, tensor.columns);
    const auto cut = [&](std::uint64_t row) {
        if (row <= begin || row >= begin + part.rows) return;
        for (const codecs::Plane& plane : planes) {
            if (!plane.begins_byte(row - begin)) {
                broken(tensor.name, "its source's rows are cut within a byte");
            }
        }
    };
    for (const PlannedOutput& output : tensor.outputs) {
        cut(output.first_row);
        cut(output.first_row + output.rows);
    }
}

using PlaneBytes = std::pair<PlannedPlane, std::uint64_t>;

std::vector<PlaneBytes> planes_of(const PlannedTensor& tensor, const PlannedOutput& output,
                                  std::uint64_t rows) {
    const auto end = try_add(output.first_row, output.rows);
    if (output.rows == 0 || !end || *end > rows) broken(tensor.name, "there are no such rows");
    const codecs::Codec& codec = *output.codec;
    std::vector<PlaneBytes> found;
    if (codec.layout == codecs::Layout::blocks) {
        if (output.planes.size() != 1) broken(tensor.name, "its codec has one plane");
        found.emplace_back(output.planes[0],
                           byte_count(codec, output.rows, tensor.columns, tensor.name));
        return found;
    }
    if (tensor.columns == 0 || tensor.columns > k_tile_values) {
        throw Error(ErrorKind::unsupported, {}, tensor.name,
                    "rows of more than " + std::to_string(k_tile_values) +
                        " columns are not written in planes");
    }
    const codecs::Planes planes = codecs::planes_of(codec, output.rows, tensor.columns);
    if (output.planes.size() != planes.size()) broken(tensor.name, "a plane has no place");
    for (std::size_t i = 0; i < planes.size(); ++i) {
        found.emplace_back(output.planes[i], planes[i].bytes());
    }
    // A worker's first row must begin a byte wherever the rows are cut.
    const auto cut = [&](std::uint64_t row) {
        if (row <= output.first_row || row >= *end) return;
        for (const codecs::Plane& plane : planes) {
            if (!plane.begins_byte(row - output.first_row)) {
                broken(tensor.name, "its rows are cut within a byte");
            }
        }
    };
    std::uint64_t row = 0;
    for (const SourcePart& part : tensor.parts) cut(row += part.rows);
    for (const PlannedOutput& other : tensor.outputs) {
        cut(other.first_row);
        cut(other.first_row + other.rows);
    }
    return found;
}

}  // namespace

void check(const Plan& plan) {
    std::vector<std::vector<Region>> written(plan.files.size());
    const auto write = [&](std::uint32_t file, std::uint64_t offset, std::uint64_t bytes,
                           const std::string& tensor) {
        if (file >= plan.files.size()) broken(tensor, "there is no such output file");
        const auto end = try_add(offset, bytes);
        if (!end || *end > plan.files[file].size) broken(tensor, "it ends past its output file");
        if (bytes > 0) written[file].push_back({offset, *end});
    };
    for (const PlannedTensor& tensor : plan.tensors) {
        std::uint64_t rows = 0;
        for (const SourcePart& part : tensor.parts) {
            check_source(plan, tensor, part);
            check_cuts(tensor, part, rows);
            rows = checked_add(rows, part.rows);
        }
        if (rows == 0) broken(tensor.name, "it has no rows");
        for (const PlannedOutput& output : tensor.outputs) {
            check_importance(plan, tensor, output);
            check_transforms(plan, tensor, output);
            for (const auto& [plane, bytes] : planes_of(tensor, output, rows)) {
                write(plane.file, plane.offset, bytes, tensor.name);
            }
        }
    }
    for (std::uint32_t file = 0; file < plan.files.size(); ++file) {
        const std::int64_t folder = plan.files[file].folder;
        if (folder >= 0 && static_cast<std::uint64_t>(folder) >= plan.folders.size()) {
            broken({}, "there is no such folder");
        }
        for (const PlannedLiteral& literal : plan.files[file].literals) {
            write(file, literal.offset, literal.bytes.size(), {});
        }
        std::vector<Region>& regions = written[file];
        std::ranges::sort(regions, {}, &Region::begin);
        for (std::size_t i = 1; i < regions.size(); ++i) {
            if (regions[i].begin < regions[i - 1].end) broken({}, "two outputs overlap");
        }
    }
}

}  // namespace phiquant::pipeline
