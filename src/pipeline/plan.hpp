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

/// One encoding of a tensor.
struct PlannedOutput {
    const codecs::Codec* codec;
    std::uint32_t file;            ///< index into Plan::files
    std::uint64_t offset;          ///< of the first row's first byte
    std::int64_t importance = -1;  ///< index into Plan::importances, or none
    bool best = false;             ///< by the search of quality "best", which the codec must have
};

/// A matrix (a vector is one row): the parts' rows, one after the other, for all its outputs.
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

struct PlannedFile {
    std::string path;
    std::uint64_t size;  ///< bytes that nothing writes are zero
    std::vector<PlannedLiteral> literals;
};

struct Plan {
    std::vector<PlannedSource> sources;
    std::vector<PlannedTensor> tensors;
    std::vector<PlannedFile> files;
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
