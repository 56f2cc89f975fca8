// In-memory encoding: the executor's stages without its files.
#include "pipeline/memory.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/workers.hpp"
#include "kernels/dispatch.hpp"
#include "pipeline/stages.hpp"
#include "pipeline/tiles.hpp"

namespace phiquant::pipeline {
namespace {

unsigned useful_threads(unsigned threads, std::uint64_t tiles) {
    return static_cast<unsigned>(
        std::clamp<std::uint64_t>(threads, 1, std::max<std::uint64_t>(tiles, 1)));
}

// The source rows of a tile as float32, where they stand if they are float32 and adjacent.
const float* gather(const kernels::Table& table, const RowView& from, const Tile& tile,
                    Scratch& scratch) {
    const codecs::Codec& codec = *from.codec;
    const std::uint64_t item = codec.block_bytes;
    const std::uint64_t row_bytes = tile.columns * item;
    const std::byte* first = from.row(tile.row) + tile.column * item;
    bool adjacent = reinterpret_cast<std::uintptr_t>(first) % item == 0;
    for (std::uint64_t r = 1; adjacent && r < tile.rows; ++r) {
        adjacent = from.row(tile.row + r) == first + r * row_bytes;
    }
    if (adjacent && codec.name == "f32") return reinterpret_cast<const float*>(first);
    for (std::uint64_t r = 0; r < tile.rows; ++r) {
        const std::byte* row = from.row(tile.row + r) + tile.column * item;
        // Rows of odd alignment go through the scratch: kernels take aligned items.
        if (reinterpret_cast<std::uintptr_t>(row) % item != 0) {
            std::memcpy(scratch.source(), row, row_bytes);
            row = scratch.source();
        }
        decode(table, codec, row, tile.columns, scratch.values() + r * tile.columns);
    }
    return scratch.values();
}

}  // namespace

std::uint64_t RowView::rows() const noexcept {
    std::uint64_t count = 1;
    for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) count *= shape[axis];
    return count;
}

const std::byte* RowView::row(std::uint64_t index) const noexcept {
    std::int64_t offset = 0;
    for (std::size_t axis = shape.size() - 1; axis-- > 0;) {
        offset += static_cast<std::int64_t>(index % shape[axis]) * strides[axis];
        index /= shape[axis];
    }
    return data + offset;
}

void encode_rows(const RowView& from, const codecs::Codec& to, const Encoding& how,
                 std::byte* blocks, unsigned threads, const Observer& observe) {
    const std::uint64_t columns = from.columns();
    const Tiling tiling(from.rows(), columns);
    const kernels::Table& table = kernels::active();
    std::atomic<std::uint64_t> next{0};
    Progress progress;
    run_workers(
        useful_threads(threads, tiling.count()), progress,
        [&](unsigned) {
            Scratch scratch;
            while (!progress.stop.load(std::memory_order_relaxed)) {
                const std::uint64_t index = next.fetch_add(1, std::memory_order_relaxed);
                if (index >= tiling.count()) return;
                const Tile tile = tiling[index];
                const float* values = gather(table, from, tile, scratch);
                encode(table, to, values, tile, how,
                       blocks + bytes_of(to, tile.row * columns + tile.column), scratch);
                progress.done.fetch_add(tile.values(), std::memory_order_relaxed);
            }
        },
        [&] {
            if (observe) observe(progress.done.load(std::memory_order_relaxed));
        });
    // The last worker may have finished while the observer was at work.
    if (observe) observe(progress.done.load(std::memory_order_relaxed));
}

void decode_rows(const codecs::Codec& from, const std::byte* blocks, std::uint64_t rows,
                 std::uint64_t columns, float* out, unsigned threads, const Observer& observe) {
    const Tiling tiling(rows, columns);
    const kernels::Table& table = kernels::active();
    std::atomic<std::uint64_t> next{0};
    Progress progress;
    run_workers(
        useful_threads(threads, tiling.count()), progress,
        [&](unsigned) {
            while (!progress.stop.load(std::memory_order_relaxed)) {
                const std::uint64_t index = next.fetch_add(1, std::memory_order_relaxed);
                if (index >= tiling.count()) return;
                const Tile tile = tiling[index];
                const std::uint64_t at = tile.row * columns + tile.column;
                decode(table, from, blocks + bytes_of(from, at), tile.values(), out + at);
                progress.done.fetch_add(tile.values(), std::memory_order_relaxed);
            }
        },
        [&] {
            if (observe) observe(progress.done.load(std::memory_order_relaxed));
        });
    // The last worker may have finished while the observer was at work.
    if (observe) observe(progress.done.load(std::memory_order_relaxed));
}

}  // namespace phiquant::pipeline
