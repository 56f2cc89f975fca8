// In-memory encoding: the executor's stages without its files.
#include "pipeline/memory.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/workers.hpp"
#include "kernels/dispatch.hpp"
#include "pipeline/plane_runs.hpp"
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

namespace {

// Every tile of a matrix on some threads: work(tile, scratch).
template <class Work>
void for_each_tile(const Tiling& tiling, unsigned threads, const Observer& observe,
                   const Work& work) {
    std::atomic<std::uint64_t> next{0};
    Progress progress;
    run_workers(
        useful_threads(threads, tiling.count()), progress,
        [&](unsigned) {
            Scratch scratch(tiling.most_values());
            while (!progress.stop.load(std::memory_order_relaxed)) {
                const std::uint64_t index = next.fetch_add(1, std::memory_order_relaxed);
                if (index >= tiling.count()) return;
                const Tile tile = tiling[index];
                work(tile, scratch);
                progress.done.fetch_add(tile.values(), std::memory_order_relaxed);
            }
        },
        [&] {
            if (observe) observe(progress.done.load(std::memory_order_relaxed));
        });
    // The last worker may have finished while the observer was at work.
    if (observe) observe(progress.done.load(std::memory_order_relaxed));
}

Tiling planes_tiling(const codecs::Codec& codec, std::uint64_t rows, std::uint64_t columns) {
    return {rows, columns, codecs::row_step(codec),
            codec.by_columns() ? k_transposed_tile_values : k_tile_values};
}

// The pieces of a tile, where they stand or (lines apart) gathered in the scratch.
PlanePieces gather_pieces(const codecs::Planes& planes, const std::vector<const std::byte*>& from,
                          const Tile& tile, Scratch& scratch) {
    std::uint64_t total = 0;
    for (const codecs::Plane& plane : planes) total += piece_bytes(plane, tile.rows);
    std::byte* room = scratch.pieces(total);
    PlanePieces pieces;
    for (std::size_t i = 0; i < planes.size(); ++i) {
        const std::uint64_t bytes = piece_bytes(planes[i], tile.rows);
        pieces[i] = {room, bytes};
        for_each_run(planes[i], tile.row, tile.rows,
                     [&](std::uint64_t there, std::uint64_t here, std::uint64_t count) {
                         if (planes[i].transposed) {
                             std::memcpy(room + here, from[i] + there, count);
                         } else {
                             pieces[i] = {from[i] + there, count};
                         }
                     });
        room += bytes;
    }
    return pieces;
}

}  // namespace

void encode_rows(const RowView& from, const codecs::Codec& to, const Encoding& how,
                 std::byte* blocks, unsigned threads, const Observer& observe) {
    const std::uint64_t columns = from.columns();
    const kernels::Table& table = kernels::active();
    for_each_tile(Tiling(from.rows(), columns), threads, observe,
                  [&](const Tile& tile, Scratch& scratch) {
                      const float* values = gather(table, from, tile, scratch);
                      encode(table, to, values, tile, how,
                             blocks + bytes_of(to, tile.row * columns + tile.column), scratch);
                  });
}

void decode_rows(const codecs::Codec& from, const std::byte* blocks, std::uint64_t rows,
                 std::uint64_t columns, float* out, unsigned threads, const Observer& observe) {
    const kernels::Table& table = kernels::active();
    for_each_tile(Tiling(rows, columns), threads, observe, [&](const Tile& tile, Scratch&) {
        const std::uint64_t at = tile.row * columns + tile.column;
        decode(table, from, blocks + bytes_of(from, at), tile.values(), out + at);
    });
}

void encode_planes(const RowView& from, const codecs::Codec& to, const Encoding& how,
                   const std::vector<std::byte*>& planes, unsigned threads,
                   const Observer& observe) {
    const kernels::Table& table = kernels::active();
    const codecs::Planes described = planes_of(to, from.rows(), from.columns());
    for_each_tile(planes_tiling(to, from.rows(), from.columns()), threads, observe,
                  [&](const Tile& tile, Scratch& scratch) {
                      const float* values = gather(table, from, tile, scratch);
                      const PlanePieces pieces =
                          encode_planes(table, to, described, values, tile, how, scratch);
                      for (std::size_t i = 0; i < described.size(); ++i) {
                          for_each_run(
                              described[i], tile.row, tile.rows,
                              [&](std::uint64_t there, std::uint64_t here, std::uint64_t count) {
                                  std::memcpy(planes[i] + there, pieces[i].data() + here, count);
                              });
                      }
                  });
}

void decode_planes(const codecs::Codec& from, const std::vector<const std::byte*>& planes,
                   std::uint64_t rows, std::uint64_t columns, float* out, unsigned threads,
                   const Observer& observe) {
    const kernels::Table& table = kernels::active();
    const codecs::Planes described = planes_of(from, rows, columns);
    for_each_tile(planes_tiling(from, rows, columns), threads, observe,
                  [&](const Tile& tile, Scratch& scratch) {
                      const PlanePieces pieces = gather_pieces(described, planes, tile, scratch);
                      decode_planes(table, from, described, pieces, tile.rows, columns, scratch,
                                    out + tile.row * columns);
                  });
}

void unpack_planes(const codecs::Codec& from, const std::vector<const std::byte*>& planes,
                   std::uint64_t rows, std::uint64_t columns, const codecs::Elements& out) {
    const codecs::Planes described = planes_of(from, rows, columns);
    for (std::size_t i = 0; i < described.size(); ++i) {
        unpack(from, described[i], planes[i], rows, out);
    }
}

}  // namespace phiquant::pipeline
