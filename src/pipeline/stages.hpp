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

/// Room for codes, scales and zero points, which grows as it must.
class ElementRoom {
public:
    /// For so many rows of a codec that has elements.
    [[nodiscard]] codecs::Elements of(const codecs::Codec& codec, std::uint64_t rows,
                                      std::uint64_t columns);

private:
    std::vector<std::uint8_t> codes_;
    std::vector<float> parameters_;
};

/// Memory for one worker's tile: source bytes, float32 values, codes, values decoded again.
class Scratch {
public:
    /// For tiles of up to `values` values.
    explicit Scratch(std::uint64_t values = k_tile_values);
    [[nodiscard]] std::byte* source() noexcept { return source_.get(); }
    [[nodiscard]] float* values() noexcept { return values_.get(); }
    [[nodiscard]] std::byte* codes() noexcept { return codes_.get(); }
    [[nodiscard]] float* decoded() noexcept { return decoded_.get(); }

    /// Room for elements; `moved` is that for the same in another codec.
    [[nodiscard]] ElementRoom& elements() noexcept { return elements_; }
    [[nodiscard]] ElementRoom& moved() noexcept { return moved_; }

    /// Room for the pieces of all planes that are written, one after the other.
    [[nodiscard]] std::byte* pieces(std::uint64_t bytes) { return room(pieces_, bytes); }
    /// And of those that were read.
    [[nodiscard]] std::byte* source_pieces(std::uint64_t bytes) {
        return room(source_pieces_, bytes);
    }
    /// Room for the values that an output takes instead of the source's.
    [[nodiscard]] float* changed(std::uint64_t values) { return room(changed_, values); }

    /// Bytes of one worker's scratch for tiles of `values` values, at most.
    static constexpr std::uint64_t bytes(std::uint64_t values = k_tile_values) noexcept {
        return 4 * 4 * values;
    }

private:
    template <class Item>
    static Item* room(std::vector<Item>& items, std::uint64_t count) {
        if (items.size() < count) items.resize(count);
        return items.data();
    }

    // Uninitialized on purpose: pages that a tile never reaches are never touched.
    std::unique_ptr<std::byte[]> source_, codes_;
    std::unique_ptr<float[]> values_, decoded_;
    ElementRoom elements_, moved_;
    std::vector<std::byte> pieces_, source_pieces_;
    std::vector<float> changed_;
};

/// Squared error of an encoding and the squared sum of what was encoded.
struct ErrorSums {
    double error = 0, signal = 0;
};

[[nodiscard]] constexpr std::uint64_t bytes_of(const codecs::Codec& codec,
                                               std::uint64_t values) noexcept {
    return values / codec.block_values * codec.block_bytes;
}

/// Multiply a tile's columns and rows by their scales; null for none. Both begin at the tile's.
void scale(const Tile& tile, const float* columns, const float* rows, const float* values,
           float* out) noexcept;

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

/// Codes, scales and zero points by the codec's rule. Throws as encode() does for values that are
/// not finite, and Error(unsupported) where the rule is not built.
[[nodiscard]] codecs::Elements fit(const kernels::Table& table, const codecs::Codec& codec,
                                   const float* values, const Tile& at, const Encoding& how,
                                   ElementRoom& room);

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

/// Pack elements into the pieces of all planes, which stand in the scratch.
[[nodiscard]] PlanePieces pack(const codecs::Codec& codec, const codecs::Planes& planes,
                               const codecs::Elements& elements, std::uint64_t rows,
                               Scratch& scratch);

/// Throws Error(value) when a value is NaN or infinite.
void check_finite(const kernels::Table& table, const float* values, const Tile& at);

/// Throws Error(value) where one of the values from `first` on did not survive: beyond the codec's
/// range, they come back as something else.
void refuse_lost(const codecs::Codec& codec, std::uint64_t block, const float* values,
                 const float* decoded, const Tile& at, std::uint64_t first);

/// Sums for the report, always in the same order.
[[nodiscard]] ErrorSums error_sums(const kernels::Table& table, const float* values,
                                   const float* decoded, std::uint64_t count) noexcept;

}  // namespace phiquant::pipeline
