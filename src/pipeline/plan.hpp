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

/// Where weights are read: a file as the planner saw it (if it is another one now, the run stops),
/// or memory that its owner leaves as it is while the run lasts.
struct PlannedSource {
    std::string path;  ///< of memory: what messages call it
    io::FileIdentity identity;
    const std::byte* memory = nullptr;
    [[nodiscard]] std::uint64_t size() const noexcept { return identity.size; }
};

/// Where one plane of a source matrix begins.
struct SourcePlane {
    std::uint32_t source;  ///< index into Plan::sources
    std::uint64_t offset;  ///< of the plane's first byte
};

/// Rows that stand together in a source, in any codec that phiquant decodes.
struct SourcePart {
    const codecs::Codec* codec;
    std::uint64_t rows;
    std::vector<SourcePlane> planes;  ///< as many as the codec has, in its order
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
    std::int64_t importance = -1;  ///< of the columns: index into Plan::vectors, or none
    bool best = false;             ///< by the search of quality "best", which the codec must have
    /// What each column and each row is multiplied by before it is encoded: indexes into
    /// Plan::vectors, or none. Products are rounded to the plain float `scaled_in`.
    std::int64_t column_scale = -1, row_scale = -1;
    const codecs::Codec* scaled_in = nullptr;
    /// Whose codes, scales and zero points are packed, or null for the codec's own: those that the
    /// source holds already where it is in that codec, else those that its rule finds. Every value
    /// is then compared with what that codec holds.
    const codecs::Codec* via = nullptr;

    [[nodiscard]] bool is_scaled() const noexcept { return column_scale >= 0 || row_scale >= 0; }
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
    /// One number a column or a row: importances, scales.
    std::vector<std::vector<float>> vectors;

    /// A vector that an output names, or null for none.
    [[nodiscard]] const float* vector(std::int64_t index) const noexcept {
        return index < 0 ? nullptr : vectors[static_cast<std::size_t>(index)].data();
    }
};

/// Throws Error(internal) unless every index is valid, every read lies inside its source, every
/// write inside its file, no two writes overlap, and columns are multiples of the blocks.
void check(const Plan& plan);

}  // namespace phiquant::pipeline
