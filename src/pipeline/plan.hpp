// A plan as plain structs: which rows are read from where, and where their codes go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "codecs/codec.hpp"
#include "io/file.hpp"

namespace phiquant::pipeline {

/// A source file as the planner saw it; if it is another one now, the run stops.
struct PlannedSource {
    std::string path;
    io::FileIdentity identity;
};

/// Rows that stand contiguously in a source, in any codec that phiquant decodes.
struct SourcePart {
    std::uint32_t source;  ///< index into Plan::sources
    const codecs::Codec* codec;
    std::uint64_t offset;  ///< of the first row's first byte
    std::uint64_t rows;
};

/// Where one plane of an encoding goes.
struct PlannedPlane {
    std::uint32_t file;    ///< index into Plan::files
    std::uint64_t offset;  ///< of the plane's first byte
};

/// One encoding of some rows of a tensor.
struct PlannedOutput {
    const codecs::Codec* codec;
    std::vector<PlannedPlane> planes;  ///< as many as the codec has, in its order
    std::uint64_t first_row, rows;
    std::int64_t importance = -1;  ///< index into Plan::importances, or none
    bool best = false;             ///< by the search of quality "best", which the codec must have
};

/// A matrix (a vector is one row): the parts' rows, one after the other, for all its outputs. Each
/// is read once for all outputs that are written by rows, and once for those by columns.
struct PlannedTensor {
    std::string name;  ///< in the source, for messages
    std::uint64_t columns;
    std::vector<SourcePart> parts;
    std::vector<PlannedOutput> outputs;
};

/// Bytes that are known already: headers, small tensors made from the config.
struct PlannedLiteral {
    std::uint64_t offset;
    std::string bytes;
};

/// A folder that is published as a whole.
struct PlannedFolder {
    std::string path;
    std::vector<std::string> names;  ///< of its files: what may be replaced if it exists already
};

struct PlannedFile {
    std::string path;    ///< of a folder's file: its name in there
    std::uint64_t size;  ///< bytes that nothing writes are zero
    std::vector<PlannedLiteral> literals;
    std::int64_t folder = -1;  ///< index into Plan::folders, or none
};

struct Plan {
    std::vector<PlannedSource> sources;
    std::vector<PlannedTensor> tensors;
    std::vector<PlannedFile> files;
    std::vector<PlannedFolder> folders;
    /// Weights of columns: what an importance matrix holds for one tensor.
    std::vector<std::vector<float>> importances;

    /// One weight a column for an output, or null.
    [[nodiscard]] const float* importance(const PlannedOutput& output) const noexcept {
        return output.importance < 0
                   ? nullptr
                   : importances[static_cast<std::size_t>(output.importance)].data();
    }
};

/// Throws Error(internal) unless every index is valid, every read lies inside its source, every
/// write inside its file, no two writes overlap, and columns are multiples of the blocks.
void check(const Plan& plan);

}  // namespace phiquant::pipeline
