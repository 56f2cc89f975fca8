// The executor: workers take tiles in the plan's order and write their codes at known offsets.
#include "pipeline/executor.hpp"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "base/crc32c.hpp"
#include "io/staged.hpp"
#include "io/staged_folder.hpp"
#include "kernels/dispatch.hpp"
#include "pipeline/moves.hpp"
#include "pipeline/pieces.hpp"
#include "pipeline/plane_runs.hpp"
#include "pipeline/stages.hpp"
#include "pipeline/tile_source.hpp"

namespace phiquant::pipeline {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// What a tile leaves for the report; joined in order at the end, so that neither checksums nor
/// sums depend on who did what when.
struct TilePlane {
    std::uint64_t bytes = 0;
    std::uint32_t crc = 0;  ///< CRC-32C, or (of transposed planes) the raw one in its place
};

// How far ahead of the tiles at work the source is asked for, and in which steps: some 64 MiB and 8
// MiB of bfloat16. Workers would otherwise wait for the disk in turns instead of encoding
// meanwhile.
constexpr std::uint64_t k_ahead_tiles = 512, k_ahead_step = 64;

class Run {
public:
    Run(const Plan& plan, const Options& options)
        : plan_(plan), options_(options), table_(kernels::active()), pieces_(plan) {
        for (const PlannedSource& source : plan.sources) sources_.emplace_back(source);
        tile_sums_.resize(pieces_.outputs());
        tile_planes_.resize(pieces_.planes());
        for (const PlannedFolder& folder : plan.folders) {
            folders_.push_back(
                std::make_unique<io::StagedFolder>(folder.path, folder.names, options.overwrite));
        }
        for (const PlannedFile& file : plan.files) {
            if (file.folder >= 0) {
                const io::StagedFolder& folder = *folders_[static_cast<std::size_t>(file.folder)];
                files_.push_back(std::make_unique<io::StagedFile>(folder, file.path, file.size));
            } else {
                files_.push_back(
                    std::make_unique<io::StagedFile>(file.path, file.size, options.overwrite));
            }
        }
    }

    Report operator()(const Watch& watch) {
        Report report;
        const auto start = Clock::now();
        Progress progress;
        const unsigned threads = static_cast<unsigned>(std::clamp<std::uint64_t>(
            options_.threads, 1, std::max<std::uint64_t>(pieces_.tiles(), 1)));
        const auto observe = [&] {
            if (watch.progress) watch.progress(progress.done.load(std::memory_order_relaxed));
        };
        run_workers(threads, progress, [&](unsigned) { work(progress); }, observe);
        observe();
        write_literals();
        for (const TileSource& source : sources_) source.check_unchanged();
        report.seconds_encoding = seconds_since(start);

        const auto sync_start = Clock::now();
        sync(watch, progress);
        report.seconds_syncing = seconds_since(sync_start);
        if (watch.inspect) {
            std::vector<std::string> staged;
            for (const auto& file : files_) staged.push_back(file->path());
            watch.inspect(staged);
        }
        summarize(report);
        // All or none: whoever is published goes back where a later one cannot be.
        for (const auto& file : files_) file->publish();
        for (const auto& folder : folders_) folder->publish();
        for (const auto& file : files_) file->keep();
        for (const auto& folder : folders_) folder->keep();
        return report;
    }

private:
    void work(Progress& progress) {
        Scratch scratch(pieces_.most_values());
        while (!progress.stop.load(std::memory_order_relaxed)) {
            const std::uint64_t index = next_tile_.fetch_add(1, std::memory_order_relaxed);
            if (index >= pieces_.tiles()) return;
            ask_ahead(index);
            const Piece& piece = *pieces_.of_tile(index);
            try {
                encode_tile(piece, index - piece.first_tile, scratch, progress);
            } catch (const Error& error) {
                const bool ours = error.kind() == ErrorKind::io;
                throw error.at(
                    ours ? std::string() : plan_.sources[piece.part->planes[0].source].path,
                    piece.tensor->name);
            }
        }
    }

    void ask_ahead(std::uint64_t index) noexcept {
        const std::uint64_t wanted = std::min(index + k_ahead_tiles, pieces_.tiles());
        std::uint64_t begin = asked_tiles_.load(std::memory_order_relaxed);
        while (begin < wanted) {
            const std::uint64_t end = std::min(begin + k_ahead_step, pieces_.tiles());
            if (end > wanted && end != pieces_.tiles()) return;
            if (!asked_tiles_.compare_exchange_weak(begin, end, std::memory_order_relaxed))
                continue;
            ask_for(begin, end);
            begin = end;
        }
    }

    // Tell the system of the bytes of tiles begin to end, a stretch for each plane of a part.
    void ask_for(std::uint64_t begin, std::uint64_t end) const noexcept {
        auto piece = pieces_.of_tile(begin);
        while (begin < end) {
            const std::uint64_t behind = piece->first_tile + piece->tiling.count();
            const Tile first = piece->tiling[begin - piece->first_tile];
            const Tile last = piece->tiling[std::min(end, behind) - 1 - piece->first_tile];
            if (piece->part_planes == nullptr) {
                const std::uint64_t columns = piece->tensor->columns;
                const codecs::Codec& codec = *piece->part->codec;
                const std::uint64_t row = piece->part_row;
                const SourcePlane& plane = piece->part->planes[0];
                const std::uint64_t from =
                    bytes_of(codec, (row + first.row) * columns + first.column);
                const std::uint64_t to =
                    bytes_of(codec, (row + last.row) * columns + last.column + last.values());
                sources_[plane.source].will_read(plane.offset + from, to - from);
            } else {
                ask_for_planes(*piece, first.row, last.row + last.rows);
            }
            begin = behind;
            ++piece;
        }
    }

    void ask_for_planes(const Piece& piece, std::uint64_t begin, std::uint64_t end) const noexcept {
        for (std::size_t i = 0; i < piece.part_planes->size(); ++i) {
            const codecs::Plane& plane = (*piece.part_planes)[i];
            const SourcePlane& place = piece.part->planes[i];
            const TileSource& source = sources_[place.source];
            if (!plane.transposed) {
                for_each_run(plane, piece.part_row + begin, end - begin,
                             [&](std::uint64_t at, std::uint64_t, std::uint64_t bytes) {
                                 source.will_read(place.offset + at, bytes);
                             });
            } else if (begin == 0) {
                source.will_read(place.offset, plane.bytes());
            }
        }
    }

    // Read a tile's bytes and decode them. `tile` counts rows from the piece's first.
    ReadTile read_tile(const Piece& piece, const Tile& tile, Scratch& scratch) {
        const SourcePart& part = *piece.part;
        ReadTile read{part.codec, piece.part_planes, {}, scratch.values()};
        const std::uint64_t row = piece.part_row + tile.row;
        if (piece.part_planes == nullptr) {
            const SourcePlane& plane = part.planes[0];
            const std::uint64_t first =
                bytes_of(*part.codec, row * piece.tensor->columns + tile.column);
            const std::span<std::byte> bytes(scratch.source(),
                                             bytes_of(*part.codec, tile.values()));
            sources_[plane.source].read(bytes, plane.offset + first);
            decode(table_, *part.codec, bytes.data(), tile.values(), scratch.values());
            read.pieces[0] = bytes;
            return read;
        }
        const codecs::Planes& planes = *piece.part_planes;
        std::uint64_t total = 0;
        for (const codecs::Plane& plane : planes) total += piece_bytes(plane, tile.rows);
        std::byte* room = scratch.source_pieces(total);
        for (std::size_t i = 0; i < planes.size(); ++i) {
            const SourcePlane& place = part.planes[i];
            for_each_run(planes[i], row, tile.rows,
                         [&](std::uint64_t there, std::uint64_t here, std::uint64_t bytes) {
                             sources_[place.source].read({room + here, bytes},
                                                         place.offset + there);
                         });
            const std::uint64_t bytes = piece_bytes(planes[i], tile.rows);
            read.pieces[i] = {room, bytes};
            room += bytes;
        }
        decode_planes(table_, *part.codec, planes, read.pieces, tile.rows, tile.columns, scratch,
                      scratch.values());
        return read;
    }

    void encode_tile(const Piece& piece, std::uint64_t index, Scratch& scratch,
                     Progress& progress) {
        const PlannedTensor& tensor = *piece.tensor;
        Tile tile = piece.tiling[index];
        ReadTile read = read_tile(piece, tile, scratch);
        tile.row += piece.first_row;

        ErrorSums* sums = &tile_sums_[piece.first_output + index * piece.outputs.size()];
        TilePlane* planes = &tile_planes_[piece.first_plane + index * piece.planes];
        for (const std::size_t number : piece.outputs) {
            const PlannedOutput& output = tensor.outputs[number];
            read.values = scaled(output, tile, scratch);
            const codecs::Planes& described = pieces_.planes_of(tensor, number).planes;
            const PlanePieces made = encoded(output, described, read, tile, scratch);
            if (made[0].data() == scratch.source()) {
                *sums++ = {};
            } else {
                *sums++ = error_sums(table_, read.values, scratch.decoded(), tile.values());
            }
            write(tensor, number, made, tile, planes);
            planes += output.planes.size();
        }
        std::uint64_t bytes = 0;
        for (const auto& part : read.pieces) bytes += part.size();
        progress.done.fetch_add(bytes, std::memory_order_relaxed);
    }

    // The values that an output takes: the source's, or these times the output's scales.
    const float* scaled(const PlannedOutput& output, const Tile& tile, Scratch& scratch) const {
        if (!output.is_scaled()) return scratch.values();
        float* out = scratch.changed(tile.values());
        const float* columns = plan_.vector(output.column_scale);
        const float* rows = plan_.vector(output.row_scale);
        if (columns != nullptr) columns += tile.column;
        if (rows != nullptr) rows += tile.row - output.first_row;
        scale(tile, columns, rows, scratch.values(), out);
        if (output.scaled_in != nullptr) {
            std::byte* rounded = scratch.codes();
            (table_.*output.scaled_in->kernel).encode({out, tile.rows, tile.columns}, &rounded);
            decode(table_, *output.scaled_in, rounded, tile.values(), out);
        }
        return out;
    }

    // The bytes of all of an output's planes, and in `scratch.decoded()` what they stand for.
    PlanePieces encoded(const PlannedOutput& output, const codecs::Planes& planes,
                        const ReadTile& read, const Tile& tile, Scratch& scratch) {
        const codecs::Codec& to = *output.codec;
        if (output.via != nullptr) return move_tile(table_, output, planes, read, tile, scratch);
        const Encoding how{plan_.vector(output.importance), output.best};
        if (has_planes(output)) {
            const PlanePieces made =
                encode_planes(table_, to, planes, read.values, tile, how, scratch);
            decode_planes(table_, to, planes, made, tile.rows, tile.columns, scratch,
                          scratch.decoded());
            return made;
        }
        PlanePieces made;
        if (&to == read.codec && !output.is_scaled()) {
            // Nothing to encode: the very bytes go through, once they are known to be finite.
            check_finite(table_, read.values, tile);
            made[0] = read.pieces[0];
            return made;
        }
        encode(table_, to, read.values, tile, how, scratch.codes(), scratch);
        decode(table_, to, scratch.codes(), tile.values(), scratch.decoded());
        made[0] = {scratch.codes(), bytes_of(to, tile.values())};
        return made;
    }

    void write(const PlannedTensor& tensor, std::size_t number, const PlanePieces& made,
               const Tile& tile, TilePlane* reports) {
        const PlannedOutput& output = tensor.outputs[number];
        const std::uint64_t row = tile.row - output.first_row;
        if (!has_planes(output)) {
            reports[0] = {made[0].size(), crc32c(made[0])};
            const std::uint64_t at = row * tensor.columns + tile.column;
            files_[output.planes[0].file]->write(
                made[0], output.planes[0].offset + bytes_of(*output.codec, at));
            return;
        }
        const OutputPlanes& described = pieces_.planes_of(tensor, number);
        for (std::size_t i = 0; i < described.planes.size(); ++i) {
            const codecs::Plane& plane = described.planes[i];
            io::StagedFile& file = *files_[output.planes[i].file];
            reports[i].bytes = made[i].size();
            std::uint32_t raw = 0;
            std::uint64_t end = 0;  // of the line's run, in the line
            for_each_run(plane, row, tile.rows,
                         [&](std::uint64_t there, std::uint64_t here, std::uint64_t count) {
                             const auto bytes = made[i].subspan(here, count);
                             file.write(bytes, output.planes[i].offset + there);
                             if (!plane.transposed) return;
                             raw = described.line_shifts[i](raw) ^ crc32c_raw(bytes);
                             end = row * plane.bits / 8 + count;
                         });
            reports[i].crc = plane.transposed ? crc32c_raw_shift(raw, plane.line_bits / 8 - end)
                                              : crc32c(made[i]);
        }
    }

    void write_literals() {
        for (std::size_t file = 0; file < files_.size(); ++file) {
            for (const PlannedLiteral& literal : plan_.files[file].literals) {
                files_[file]->write(std::as_bytes(std::span(literal.bytes)), literal.offset);
            }
        }
    }

    // On a thread of its own: waiting for a slow disk must not keep Ctrl-C waiting.
    void sync(const Watch& watch, Progress& progress) {
        run_workers(
            1, progress,
            [&](unsigned) {
                for (const auto& file : files_) file->sync(progress.stop);
            },
            [&] {
                if (watch.progress) watch.progress(progress.done.load(std::memory_order_relaxed));
            });
    }

    void summarize(Report& report) const {
        for (std::size_t i = 0; i < plan_.tensors.size(); ++i) {
            auto& outputs = report.tensors.emplace_back();
            for (const PlannedOutput& output : plan_.tensors[i].outputs) {
                outputs.emplace_back().planes.resize(output.planes.size());
            }
        }
        for (const Piece& piece : pieces_.all()) {
            auto& outputs =
                report.tensors[static_cast<std::size_t>(piece.tensor - plan_.tensors.data())];
            const ErrorSums* sums = &tile_sums_[piece.first_output];
            const TilePlane* from = &tile_planes_[piece.first_plane];
            for (std::uint64_t tile = 0; tile < piece.tiling.count(); ++tile) {
                for (const std::size_t index : piece.outputs) {
                    OutputReport& output = outputs[index];
                    output.squared_error += sums->error;
                    output.squared_signal += sums->signal;
                    ++sums;
                    const bool transposed = piece.tensor->outputs[index].codec->by_columns();
                    for (PlaneReport& plane : output.planes) {
                        plane.crc32c = transposed
                                           ? plane.crc32c ^ from->crc
                                           : crc32c_join(plane.crc32c, from->crc, from->bytes);
                        plane.bytes += from->bytes;
                        ++from;
                    }
                }
            }
        }
        for (std::size_t i = 0; i < plan_.tensors.size(); ++i) {
            for (std::size_t k = 0; k < report.tensors[i].size(); ++k) {
                if (!plan_.tensors[i].outputs[k].codec->by_columns()) continue;
                for (PlaneReport& plane : report.tensors[i][k].planes) {
                    plane.crc32c = crc32c_of_raw(plane.crc32c, plane.bytes);
                }
            }
        }
    }

    const Plan& plan_;
    const Options& options_;
    const kernels::Table& table_;
    Pieces pieces_;
    std::vector<TileSource> sources_;
    std::vector<ErrorSums> tile_sums_;
    std::vector<TilePlane> tile_planes_;
    std::vector<std::unique_ptr<io::StagedFolder>> folders_;
    std::vector<std::unique_ptr<io::StagedFile>> files_;  // let go of before their folders
    std::atomic<std::uint64_t> next_tile_{0};
    std::atomic<std::uint64_t> asked_tiles_{0};  ///< the source was asked for up to here
};

}  // namespace

Report execute(const Plan& plan, const Options& options, const Watch& watch) {
    check(plan);
    Run run(plan, options);
    return run(watch);
}

}  // namespace phiquant::pipeline
