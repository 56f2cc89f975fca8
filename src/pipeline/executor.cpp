// The executor: workers take tiles in the plan's order and write their codes at known offsets.
#include "pipeline/executor.hpp"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "base/crc32c.hpp"
#include "codecs/planes.hpp"
#include "io/staged.hpp"
#include "io/staged_folder.hpp"
#include "kernels/dispatch.hpp"
#include "pipeline/stages.hpp"

namespace phiquant::pipeline {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Rows of one part of one tensor that the same outputs take: tiles never straddle pieces, so that
/// a tile has one source and the same outputs throughout.
struct Piece {
    const PlannedTensor* tensor;
    const SourcePart* part;
    std::uint64_t first_row;           ///< in the tensor
    std::uint64_t part_row;            ///< the same row, in the part
    std::uint64_t first_tile;          ///< in the run
    std::uint64_t first_output;        ///< where the piece's tiles begin in `tile_outputs`
    std::uint64_t first_plane;         ///< and in `tile_planes`
    std::vector<std::size_t> outputs;  ///< of the tensor
    std::uint64_t planes;              ///< of all these outputs
    Tiling tiling;
};

/// What a tile leaves for the report; joined in order at the end, so that neither checksums nor
/// sums depend on who did what when.
struct TilePlane {
    std::uint64_t bytes = 0;
    std::uint32_t crc = 0;  ///< CRC-32C, or (of transposed planes) the raw one in its place
};

/// An output's planes, and how far a transposed one's lines are apart.
struct OutputPlanes {
    codecs::Planes planes;
    std::vector<Crc32cShift> line_shifts;  ///< one a plane, where transposed
};

bool is_transposed(const PlannedOutput& output) {
    return output.codec->layout == codecs::Layout::transposed;
}

bool has_planes(const PlannedOutput& output) {
    return output.codec->layout != codecs::Layout::blocks;
}

// How far ahead of the tiles at work the source is asked for, and in which steps: some 64 MiB and 8
// MiB of bfloat16. Workers would otherwise wait for the disk in turns instead of encoding
// meanwhile.
constexpr std::uint64_t k_ahead_tiles = 512, k_ahead_step = 64;

class Run {
public:
    Run(const Plan& plan, const Options& options)
        : plan_(plan), options_(options), table_(kernels::active()) {
        for (const PlannedSource& source : plan.sources) {
            sources_.emplace_back(source.path);
            if (sources_.back().identity() != source.identity) {
                throw Error(ErrorKind::changed, source.path, {}, "changed since it was planned",
                            "Let the download or copy finish, then run the conversion again.");
            }
        }
        for (const PlannedTensor& tensor : plan.tensors) {
            std::vector<OutputPlanes>& described = output_planes_.emplace_back();
            for (const PlannedOutput& output : tensor.outputs)
                described.push_back(planes(tensor, output));
            // What is written by columns takes larger tiles: it reads the source for itself.
            cut(tensor, false);
            cut(tensor, true);
        }
        tile_sums_.resize(tile_outputs_);
        tile_planes_.resize(plane_count_);
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
            options_.threads, 1, std::max<std::uint64_t>(tile_count_, 1)));
        const auto observe = [&] {
            if (watch.progress) watch.progress(progress.done.load(std::memory_order_relaxed));
        };
        run_workers(threads, progress, [&](unsigned) { work(progress); }, observe);
        observe();
        write_literals();
        for (const io::SourceFile& source : sources_) source.check_unchanged();
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
    static OutputPlanes planes(const PlannedTensor& tensor, const PlannedOutput& output) {
        OutputPlanes found;
        if (!has_planes(output)) return found;
        found.planes = codecs::planes_of(*output.codec, output.rows, tensor.columns);
        for (const codecs::Plane& plane : found.planes) {
            if (plane.transposed) found.line_shifts.emplace_back(plane.line_bits / 8);
        }
        return found;
    }

    // Cut a tensor into pieces for its outputs that are (or are not) written by columns.
    void cut(const PlannedTensor& tensor, bool transposed) {
        std::vector<std::uint64_t> ends;
        std::uint64_t rows = 0;
        bool planes = false;
        for (const SourcePart& part : tensor.parts) ends.push_back(rows += part.rows);
        for (const PlannedOutput& output : tensor.outputs) {
            if (is_transposed(output) != transposed) continue;
            ends.push_back(output.first_row);
            ends.push_back(output.first_row + output.rows);
            planes = planes || has_planes(output);
        }
        std::ranges::sort(ends);
        std::uint64_t begin = 0, part_begin = 0;
        const SourcePart* part = tensor.parts.data();
        for (const std::uint64_t end : ends) {
            if (end == begin) continue;
            while (begin == part_begin + part->rows) part_begin += (part++)->rows;
            const std::uint64_t count = end - begin, columns = tensor.columns;
            const Tiling tiling =
                transposed ? Tiling(count, columns, codecs::k_row_step, k_transposed_tile_values)
                : planes   ? Tiling(count, columns, codecs::k_row_step, k_tile_values)
                           : Tiling(count, columns);
            Piece piece{&tensor,     part,          begin,        begin - part_begin,
                        tile_count_, tile_outputs_, plane_count_, {},
                        0,           tiling};
            for (std::size_t i = 0; i < tensor.outputs.size(); ++i) {
                const PlannedOutput& output = tensor.outputs[i];
                if (is_transposed(output) != transposed || begin < output.first_row ||
                    end > output.first_row + output.rows) {
                    continue;
                }
                piece.outputs.push_back(i);
                piece.planes += output.planes.size();
            }
            begin = end;
            if (piece.outputs.empty()) continue;
            tile_count_ += tiling.count();
            tile_outputs_ += tiling.count() * piece.outputs.size();
            plane_count_ += tiling.count() * piece.planes;
            scratch_values_ = std::max(scratch_values_, tiling.most_values());
            pieces_.push_back(std::move(piece));
        }
    }

    void work(Progress& progress) {
        Scratch scratch(scratch_values_);
        while (!progress.stop.load(std::memory_order_relaxed)) {
            const std::uint64_t index = next_tile_.fetch_add(1, std::memory_order_relaxed);
            if (index >= tile_count_) return;
            ask_ahead(index);
            const auto after = std::ranges::upper_bound(pieces_, index, {}, &Piece::first_tile);
            const Piece& piece = *std::prev(after);
            try {
                encode_tile(piece, index - piece.first_tile, scratch, progress);
            } catch (const Error& error) {
                const bool ours = error.kind() == ErrorKind::io;
                throw error.at(ours ? std::string() : plan_.sources[piece.part->source].path,
                               piece.tensor->name);
            }
        }
    }

    void ask_ahead(std::uint64_t index) noexcept {
        const std::uint64_t wanted = std::min(index + k_ahead_tiles, tile_count_);
        std::uint64_t begin = asked_tiles_.load(std::memory_order_relaxed);
        while (begin < wanted) {
            const std::uint64_t end = std::min(begin + k_ahead_step, tile_count_);
            if (end > wanted && end != tile_count_) return;
            if (!asked_tiles_.compare_exchange_weak(begin, end, std::memory_order_relaxed))
                continue;
            ask_for(begin, end);
            begin = end;
        }
    }

    // Tell the system of the bytes of tiles begin to end, a stretch for each part of a tensor.
    void ask_for(std::uint64_t begin, std::uint64_t end) const noexcept {
        auto piece = std::prev(std::ranges::upper_bound(pieces_, begin, {}, &Piece::first_tile));
        while (begin < end) {
            const std::uint64_t columns = piece->tensor->columns;
            const std::uint64_t behind = piece->first_tile + piece->tiling.count();
            const Tile first = piece->tiling[begin - piece->first_tile];
            const Tile last = piece->tiling[std::min(end, behind) - 1 - piece->first_tile];
            const codecs::Codec& codec = *piece->part->codec;
            const std::uint64_t row = piece->part_row;
            const std::uint64_t from = bytes_of(codec, (row + first.row) * columns + first.column);
            const std::uint64_t to =
                bytes_of(codec, (row + last.row) * columns + last.column + last.values());
            sources_[piece->part->source].will_read(piece->part->offset + from, to - from);
            begin = behind;
            ++piece;
        }
    }

    void encode_tile(const Piece& piece, std::uint64_t index, Scratch& scratch,
                     Progress& progress) {
        const PlannedTensor& tensor = *piece.tensor;
        const SourcePart& part = *piece.part;
        const codecs::Codec& from = *part.codec;
        Tile tile = piece.tiling[index];
        const std::uint64_t values = tile.values();
        const std::uint64_t bytes = bytes_of(from, values);
        const std::uint64_t first =
            bytes_of(from, (piece.part_row + tile.row) * tensor.columns + tile.column);
        const std::span<std::byte> read(scratch.source(), bytes);
        sources_[part.source].read(read, part.offset + first);
        decode(table_, from, read.data(), values, scratch.values());
        tile.row += piece.first_row;

        ErrorSums* sums = &tile_sums_[piece.first_output + index * piece.outputs.size()];
        TilePlane* planes = &tile_planes_[piece.first_plane + index * piece.planes];
        for (const std::size_t output : piece.outputs) {
            if (has_planes(tensor.outputs[output])) {
                *sums++ = write_planes(tensor, output, tile, scratch, planes);
            } else {
                *sums++ = write_blocks(tensor, output, from, tile, scratch, *planes);
            }
            planes += tensor.outputs[output].planes.size();
        }
        progress.done.fetch_add(bytes, std::memory_order_relaxed);
    }

    ErrorSums write_blocks(const PlannedTensor& tensor, std::size_t index,
                           const codecs::Codec& from, const Tile& tile, Scratch& scratch,
                           TilePlane& report) {
        const PlannedOutput& output = tensor.outputs[index];
        const codecs::Codec& to = *output.codec;
        const std::uint64_t values = tile.values();
        std::byte* codes = scratch.codes();
        ErrorSums sums;
        if (&to == &from) {
            // Nothing to encode: the very bytes go through, once they are known to be finite.
            check_finite(table_, scratch.values(), tile);
            codes = scratch.source();
        } else {
            encode(table_, to, scratch.values(), tile, {plan_.importance(output), output.best},
                   codes, scratch);
            decode(table_, to, codes, values, scratch.decoded());
            sums = error_sums(table_, scratch.values(), scratch.decoded(), values);
        }
        const std::span<const std::byte> written(codes, bytes_of(to, values));
        report = {written.size(), crc32c(written)};
        const std::uint64_t row = tile.row - output.first_row;
        files_[output.planes[0].file]->write(
            written, output.planes[0].offset + bytes_of(to, row * tensor.columns + tile.column));
        return sums;
    }

    ErrorSums write_planes(const PlannedTensor& tensor, std::size_t index, const Tile& tile,
                           Scratch& scratch, TilePlane* reports) {
        const PlannedOutput& output = tensor.outputs[index];
        const auto at = static_cast<std::size_t>(&tensor - plan_.tensors.data());
        const OutputPlanes& described = output_planes_[at][index];
        const PlanePieces pieces =
            encode_planes(table_, *output.codec, described.planes, scratch.values(), tile,
                          {plan_.importance(output), output.best}, scratch);
        const std::uint64_t row = tile.row - output.first_row;
        for (std::size_t i = 0; i < described.planes.size(); ++i) {
            const codecs::Plane& plane = described.planes[i];
            io::StagedFile& file = *files_[output.planes[i].file];
            const std::uint64_t offset = output.planes[i].offset;
            reports[i].bytes = pieces[i].size();
            if (!plane.transposed) {
                reports[i].crc = crc32c(pieces[i]);
                file.write(pieces[i], offset + row / plane.rows_per_line * plane.line_bits / 8);
                continue;
            }
            const std::uint64_t run = tile.rows * plane.bits / 8, stride = plane.line_bits / 8;
            const std::uint64_t begin = row * plane.bits / 8;
            std::uint32_t raw = 0;
            for (std::uint64_t line = 0; line < plane.lines; ++line) {
                const auto bytes = pieces[i].subspan(line * run, run);
                raw = described.line_shifts[i](raw) ^ crc32c_raw(bytes);
                file.write(bytes, offset + line * stride + begin);
            }
            reports[i].crc = crc32c_raw_shift(raw, stride - begin - run);
        }
        decode_planes(table_, *output.codec, described.planes, pieces, tile.rows, tile.columns,
                      scratch, scratch.decoded());
        return error_sums(table_, scratch.values(), scratch.decoded(), tile.values());
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
        for (const Piece& piece : pieces_) {
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
                    const bool transposed = is_transposed(piece.tensor->outputs[index]);
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
                if (!is_transposed(plan_.tensors[i].outputs[k])) continue;
                for (PlaneReport& plane : report.tensors[i][k].planes) {
                    plane.crc32c = crc32c_of_raw(plane.crc32c, plane.bytes);
                }
            }
        }
    }

    const Plan& plan_;
    const Options& options_;
    const kernels::Table& table_;
    std::vector<io::SourceFile> sources_;
    std::vector<Piece> pieces_;
    std::vector<std::vector<OutputPlanes>> output_planes_;  ///< [tensor][output]
    std::vector<ErrorSums> tile_sums_;
    std::vector<TilePlane> tile_planes_;
    std::vector<std::unique_ptr<io::StagedFolder>> folders_;
    std::vector<std::unique_ptr<io::StagedFile>> files_;  // let go of before their folders
    std::uint64_t tile_count_ = 0, tile_outputs_ = 0, plane_count_ = 0;
    std::uint64_t scratch_values_ = 1;
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
