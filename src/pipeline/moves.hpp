// Outputs whose codes are not their own rule's: moved from the source, or another codec's.
#pragma once

#include "pipeline/plan.hpp"
#include "pipeline/stages.hpp"

namespace phiquant::pipeline {

/// A tile as it was read: its bytes by plane (blocks have one), and the values that they stand for.
struct ReadTile {
    const codecs::Codec* codec;
    const codecs::Planes* planes;  ///< of the part it was read from; null for blocks
    PlanePieces pieces;
    const float* values;
};

/// The pieces of an output that has a `via`, in the scratch; of blocks the first one. The values
/// that they stand for are left in `scratch.decoded()`. Throws Error(unsupported) unless these are
/// the values that `via` holds, every single one.
[[nodiscard]] PlanePieces move_tile(const kernels::Table& table, const PlannedOutput& output,
                                    const codecs::Planes& planes, const ReadTile& read,
                                    const Tile& at, Scratch& scratch);

}  // namespace phiquant::pipeline
