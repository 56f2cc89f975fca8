// How a plan's tensors are cut into pieces, and these into tiles.
#pragma once

#include <cstdint>
#include <vector>

#include "base/crc32c.hpp"
#include "codecs/planes.hpp"
#include "pipeline/plan.hpp"
#include "pipeline/tiles.hpp"

namespace phiquant::pipeline {

/// An output's planes, and how far a transposed one's lines are apart.
struct OutputPlanes {
    codecs::Planes planes;
    std::vector<Crc32cShift> line_shifts;  ///< one a plane, where transposed
};

/// Rows of one part of one tensor that the same outputs take: tiles never straddle pieces, so that
/// a tile has one source and the same outputs throughout.
struct Piece {
    const PlannedTensor* tensor;
    const SourcePart* part;
    const codecs::Planes* part_planes;  ///< null for blocks
    std::uint64_t first_row;            ///< in the tensor
    std::uint64_t part_row;             ///< the same row, in the part
    std::uint64_t first_tile;           ///< in the run
    std::uint64_t first_output;         ///< where the piece's tiles begin among their outputs
    std::uint64_t first_plane;          ///< and among these outputs' planes
    std::vector<std::size_t> outputs;   ///< of the tensor
    std::uint64_t planes;               ///< of all these outputs
    Tiling tiling;
};

[[nodiscard]] inline bool has_planes(const PlannedOutput& output) noexcept {
    return output.codec->layout != codecs::Layout::blocks;
}

/// Values of a tile whose planes are read or written by columns. Codes of less than a byte take
/// larger ones: their lines would be runs of some 200 bytes, each a call to the system.
[[nodiscard]] inline std::uint64_t wide_tile_values(const codecs::Codec& codec) noexcept {
    const bool narrow =
        codec.by_columns() && !codec.is_gptq() && codec.is_affine() && codec.affine.bits < 8;
    return narrow ? 4 * k_transposed_tile_values : k_transposed_tile_values;
}

/// A plan's tiles, in the order in which they are done. The plan must outlive it.
class Pieces {
public:
    explicit Pieces(const Plan& plan);

    [[nodiscard]] const std::vector<Piece>& all() const noexcept { return pieces_; }
    [[nodiscard]] std::uint64_t tiles() const noexcept { return tiles_; }
    [[nodiscard]] std::uint64_t outputs() const noexcept { return outputs_; }
    [[nodiscard]] std::uint64_t planes() const noexcept { return planes_; }
    /// Values of the largest tile.
    [[nodiscard]] std::uint64_t most_values() const noexcept { return most_values_; }

    /// The piece that has a tile.
    [[nodiscard]] std::vector<Piece>::const_iterator of_tile(std::uint64_t tile) const noexcept;

    [[nodiscard]] const OutputPlanes& planes_of(const PlannedTensor& tensor,
                                                std::size_t output) const noexcept;

private:
    void cut(const PlannedTensor& tensor, bool wide);

    const Plan& plan_;
    std::vector<Piece> pieces_;
    std::vector<std::vector<OutputPlanes>> output_planes_;  ///< [tensor][output]
    std::vector<std::vector<codecs::Planes>> part_planes_;  ///< [tensor][part]
    std::uint64_t tiles_ = 0, outputs_ = 0, planes_ = 0, most_values_ = 1;
};

}  // namespace phiquant::pipeline
