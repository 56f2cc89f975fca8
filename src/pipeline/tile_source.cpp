// Tiles from files and from memory.
#include "pipeline/tile_source.hpp"

#include <cstring>

#include "base/error.hpp"

namespace phiquant::pipeline {

TileSource::TileSource(const PlannedSource& planned) : planned_(&planned) {
    if (planned.memory != nullptr) return;
    file_.emplace(planned.path);
    if (file_->identity() != planned.identity) {
        throw Error(ErrorKind::changed, planned.path, {}, "changed since it was planned",
                    "Let the download or copy finish, then run the conversion again.");
    }
}

void TileSource::read(std::span<std::byte> out, std::uint64_t offset) const {
    if (file_) return file_->read(out, offset);
    std::memcpy(out.data(), planned_->memory + offset, out.size());
}

void TileSource::will_read(std::uint64_t offset, std::uint64_t bytes) const noexcept {
    if (file_) file_->will_read(offset, bytes);
}

void TileSource::check_unchanged() const {
    if (file_) file_->check_unchanged();
}

}  // namespace phiquant::pipeline
