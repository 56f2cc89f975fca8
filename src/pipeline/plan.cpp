// The check that a plan keeps inside its files, made once before anything is opened for writing.
#include "pipeline/plan.hpp"

#include <algorithm>
#include <utility>

#include "base/checked.hpp"
#include "base/error.hpp"
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
            write(output.file, output.offset,
                  byte_count(*output.codec, rows, tensor.columns, tensor.name), tensor.name);
        }
    }
    for (std::uint32_t file = 0; file < plan.files.size(); ++file) {
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
