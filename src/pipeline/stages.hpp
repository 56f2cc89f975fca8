// What happens to one tile: decode to float32, check, encode, checksum. No files here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "codecs/codec.hpp"
#include "codecs/planes.hpp"
#include "pipeline/tiles.hpp"

namespace phiquant::pipeline {

/// Memory for one worker's tile: source bytes, float32 values, codes, values decoded again.
class Scratch {
public:
    /// For tiles of up to `values` values.
    explicit Scratch(std::uint64_t values = k_tile_values);
    [[nodiscard]] std::byte* source() noexcept { return source_.get(); }
    [[nodiscard]] float* values() noexcept { return values_.get(); }
    [[nodiscard]] std::byte* codes() noexcept { return codes_.get(); }
    [[nodiscard]] float* decoded() noexcept { return decoded_.get(); }

    /// Room for codes, scales and zero points of so many rows; for a codec with planes.
    [[nodiscard]] codecs::Elements elements(const codecs::Codec& codec, std::uint64_t rows,
                                            std::uint64_t columns);

    /// Room for the pieces of all planes, one after the other.
    [[nodiscard]] std::byte* pieces(std::uint64_t bytes);

    /// Bytes of one worker's scratch for tiles of `values` values, at most.
    static constexpr std::uint64_t bytes(std::uint64_t values = k_tile_values) noexcept {
        return 4 * 4 * values;
    }

private:
    // Uninitialized on purpose: pages that a tile never reaches are never touched.
    std::unique_ptr<std::byte[]> source_, codes_;
    std::unique_ptr<float[]> values_, decoded_;
    std::vector<std::uint8_t> element_codes_;
    std::vector<float> element_parameters_;
    std::vector<std::byte> pieces_;
};

/// Squared error of an encoding and the squared sum of what was encoded.
struct ErrorSums {
    double error = 0, signal = 0;
};

[[nodiscard]] constexpr std::uint64_t bytes_of(const codecs::Codec& codec,
                                               std::uint64_t values) noexcept {
    return values / codec.block_values * codec.block_bytes;
}

/// Decode one plane's blocks.
void decode(const kernels::Table& table, const codecs::Codec& codec, const std::byte* blocks,
            std::uint64_t values, float* out) noexcept;

/// How to encode: by the codec's own rule, or by the search of quality "best" (which it must have).
struct Encoding {
    const float* importance = nullptr;  ///< one weight a column, or null
    bool best = false;
};

/// Encode rows after checking that every value is finite and none overflows the codec. Throws
/// Error(value) that names the row and column (`at` says where in the tensor the tile begins).
void encode(const kernels::Table& table, const codecs::Codec& codec, const float* values,
            const Tile& at, const Encoding& how, std::byte* blocks, Scratch& scratch);

/// A plane's bytes for one tile.
using PlanePieces = std::array<std::span<const std::byte>, 3>;

/// As encode(), for codecs with planes; the pieces stand in the scratch. `planes` are those of the
/// whole matrix.
[[nodiscard]] PlanePieces encode_planes(const kernels::Table& table, const codecs::Codec& codec,
                                        const codecs::Planes& planes, const float* values,
                                        const Tile& at, const Encoding& how, Scratch& scratch);

/// Decode `rows` rows from the pieces of all planes.
void decode_planes(const kernels::Table& table, const codecs::Codec& codec,
                   const codecs::Planes& planes, const PlanePieces& pieces, std::uint64_t rows,
                   std::uint64_t columns, Scratch& scratch, float* out);

/// Throws Error(value) when a value is NaN or infinite.
void check_finite(const kernels::Table& table, const float* values, const Tile& at);

/// Sums for the report, always in the same order.
[[nodiscard]] ErrorSums error_sums(const kernels::Table& table, const float* values,
                                   const float* decoded, std::uint64_t count) noexcept;

}  // namespace phiquant::pipeline
