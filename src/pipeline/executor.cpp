// The executor: workers take tiles in the plan's order and write their codes at known offsets.
#include "pipeline/executor.hpp"

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>

#include "base/crc32c.hpp"
#include "io/staged.hpp"
#include "kernels/dispatch.hpp"
#include "pipeline/stages.hpp"

namespace phiquant::pipeline {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// One part of one tensor: tiles never straddle parts, so that a tile has one source.
struct Piece {
    const PlannedTensor* tensor;
    const SourcePart* part;
    std::uint64_t first_row;     ///< of the part, in the tensor
    std::uint64_t first_tile;    ///< in the run
    std::uint64_t first_output;  ///< where the piece's tiles begin in `tile_outputs`
    Tiling tiling;
};

/// What a tile leaves for the report; joined in order at the end, so that neither checksums nor
/// sums depend on who did what when.
struct TileOutput {
    std::uint64_t bytes = 0;
    std::uint32_t crc32c = 0;
    ErrorSums sums;
};

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
        std::uint64_t tiles = 0, outputs = 0;
        for (const PlannedTensor& tensor : plan.tensors) {
            std::uint64_t row = 0;
            for (const SourcePart& part : tensor.parts) {
                const Tiling tiling(part.rows, tensor.columns);
                pieces_.push_back({&tensor, &part, row, tiles, outputs, tiling});
                tiles += tiling.count();
                outputs += tiling.count() * tensor.outputs.size();
                row += part.rows;
            }
        }
        tile_count_ = tiles;
        tile_outputs_.resize(outputs);
        for (const PlannedFile& file : plan.files) {
            files_.push_back(
                std::make_unique<io::StagedFile>(file.path, file.size, options.overwrite));
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
        for (const auto& file : files_) file->keep();
        return report;
    }

private:
    void work(Progress& progress) {
        Scratch scratch;
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
            const std::uint64_t from = bytes_of(codec, first.row * columns + first.column);
            const std::uint64_t to =
                bytes_of(codec, last.row * columns + last.column + last.values());
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
        const std::uint64_t first = bytes_of(from, tile.row * tensor.columns + tile.column);
        const std::span<std::byte> read(scratch.source(), bytes);
        sources_[part.source].read(read, part.offset + first);
        decode(table_, from, read.data(), values, scratch.values());
        tile.row += piece.first_row;

        TileOutput* reports = &tile_outputs_[piece.first_output + index * tensor.outputs.size()];
        for (const PlannedOutput& output : tensor.outputs) {
            const codecs::Codec& to = *output.codec;
            const std::uint64_t size = bytes_of(to, values);
            std::byte* codes = scratch.codes();
            if (&to == &from) {
                // Nothing to encode: the very bytes go through, once they are known to be finite.
                check_finite(table_, scratch.values(), tile);
                codes = scratch.source();
            } else {
                encode(table_, to, scratch.values(), tile, {plan_.importance(output), output.best},
                       codes, scratch);
            }
            TileOutput& report = *reports++;
            if (options_.measure && &to != &from) {
                decode(table_, to, codes, values, scratch.decoded());
                report.sums = error_sums(table_, scratch.values(), scratch.decoded(), values);
            }
            const std::span<const std::byte> written(codes, size);
            report.bytes = size;
            report.crc32c = crc32c(written);
            files_[output.file]->write(
                written, output.offset + bytes_of(to, tile.row * tensor.columns + tile.column));
        }
        progress.done.fetch_add(bytes, std::memory_order_relaxed);
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
        report.tensors.resize(plan_.tensors.size());
        for (const Piece& piece : pieces_) {
            auto& outputs =
                report.tensors[static_cast<std::size_t>(piece.tensor - plan_.tensors.data())];
            const std::size_t width = piece.tensor->outputs.size();
            outputs.resize(width);
            const TileOutput* at = &tile_outputs_[piece.first_output];
            for (std::uint64_t tile = 0; tile < piece.tiling.count(); ++tile) {
                for (OutputReport& output : outputs) {
                    output.crc32c = crc32c_join(output.crc32c, at->crc32c, at->bytes);
                    output.bytes += at->bytes;
                    output.squared_error += at->sums.error;
                    output.squared_signal += at->sums.signal;
                    ++at;
                }
            }
        }
    }

    const Plan& plan_;
    const Options& options_;
    const kernels::Table& table_;
    std::vector<io::SourceFile> sources_;
    std::vector<Piece> pieces_;
    std::vector<TileOutput> tile_outputs_;
    std::vector<std::unique_ptr<io::StagedFile>> files_;
    std::uint64_t tile_count_ = 0;
    std::atomic<std::uint64_t> next_tile_{0};
    std::atomic<std::uint64_t> asked_tiles_{0};  ///< the source was asked for up to here
};

}  // namespace

std::uint64_t source_bytes(const Plan& plan) {
    std::uint64_t total = 0;
    for (const PlannedTensor& tensor : plan.tensors) {
        for (const SourcePart& part : tensor.parts) {
            total += bytes_of(*part.codec, part.rows * tensor.columns);
        }
    }
    return total;
}

Report execute(const Plan& plan, const Options& options, const Watch& watch) {
    check(plan);
    Run run(plan, options);
    return run(watch);
}

}  // namespace phiquant::pipeline
