// Encoding and decoding of matrices in memory, on all cores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "codecs/codec.hpp"
#include "pipeline/stages.hpp"

namespace phiquant::pipeline {

/// A matrix of any leading shape, seen as rows: contiguous along its last axis, anything else
/// (steps, transposed leading axes, negative strides) along the others.
struct RowView {
    const std::byte* data;
    std::vector<std::uint64_t> shape;   ///< leading axes, then columns
    std::vector<std::int64_t> strides;  ///< bytes; the last one is the item's size
    const codecs::Codec* codec;         ///< f32, f16 or bf16

    [[nodiscard]] std::uint64_t columns() const noexcept { return shape.back(); }
    [[nodiscard]] std::uint64_t rows() const noexcept;
    [[nodiscard]] const std::byte* row(std::uint64_t index) const noexcept;
};

using Observer = std::function<void(std::uint64_t values_done)>;

/// Encode all rows into `blocks`, row after row. Throws Error(value) for weights that the codec
/// cannot hold, or what `observe` throws; Error(unsupported) where `how` asks for a search that
/// the codec lacks. Importance is for rows of at most k_tile_values columns.
void encode_rows(const RowView& from, const codecs::Codec& to, const Encoding& how,
                 std::byte* blocks, unsigned threads, const Observer& observe);

/// Decode `rows` x `columns` values that stand row after row.
void decode_rows(const codecs::Codec& from, const std::byte* blocks, std::uint64_t rows,
                 std::uint64_t columns, float* out, unsigned threads, const Observer& observe);

/// Encode all rows into the planes of a codec that has several; each as long as it must be.
void encode_planes(const RowView& from, const codecs::Codec& to, const Encoding& how,
                   const std::vector<std::byte*>& planes, unsigned threads,
                   const Observer& observe);

/// Decode a matrix from its planes.
void decode_planes(const codecs::Codec& from, const std::vector<const std::byte*>& planes,
                   std::uint64_t rows, std::uint64_t columns, float* out, unsigned threads,
                   const Observer& observe);

/// Codes (as unsigned bytes, groups filled up), scales, zero points or biases of all rows.
void unpack_planes(const codecs::Codec& from, const std::vector<const std::byte*>& planes,
                   std::uint64_t rows, std::uint64_t columns, const codecs::Elements& out);

}  // namespace phiquant::pipeline
