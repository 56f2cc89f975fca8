// The check that a plan keeps inside its files, made once before anything is opened for writing.
#include "pipeline/plan.hpp"

#include <algorithm>
#include <utility>

#include "base/checked.hpp"
#include "base/error.hpp"
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

void check_importance(const Plan& plan, const PlannedTensor& tensor, const PlannedOutput& output) {
    if (output.importance < 0) return;
    const auto index = static_cast<std::uint64_t>(output.importance);
    if (index >= plan.importances.size()) broken(tensor.name, "there is no such importance");
    if (plan.importances[index].size() != tensor.columns) {
        broken(tensor.name, "its importance has another number of columns");
    }
    // With importance some codecs look at whole rows, and only shorter ones stay in one tile.
    if (tensor.columns > k_tile_values) {
        throw Error(ErrorKind::unsupported, {}, tensor.name,
                    "rows of more than " + std::to_string(k_tile_values) +
                        " columns are not quantized with importance");
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
            if (part.source >= plan.sources.size()) broken(tensor.name, "there is no such source");
            const std::uint64_t bytes =
                byte_count(*part.codec, part.rows, tensor.columns, tensor.name);
            const auto end = try_add(part.offset, bytes);
            if (!end || *end > plan.sources[part.source].identity.size) {
                broken(tensor.name, "it ends past its source file");
            }
            rows = checked_add(rows, part.rows);
        }
        if (rows == 0) broken(tensor.name, "it has no rows");
        for (const PlannedOutput& output : tensor.outputs) {
            check_importance(plan, tensor, output);
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
