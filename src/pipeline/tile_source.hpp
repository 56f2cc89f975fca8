// Where tiles are read: files by pread, or memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "io/file.hpp"
#include "pipeline/plan.hpp"

namespace phiquant::pipeline {

class TileSource {
public:
    /// `planned` must outlive it. Throws Error(changed) when the file is not as it was planned.
    explicit TileSource(const PlannedSource& planned);

    /// Fill `out` from the bytes at `offset`, which the plan has checked to be there.
    void read(std::span<std::byte> out, std::uint64_t offset) const;

    /// Say that these bytes will be read soon. A hint: nothing is waited for, nothing can fail.
    void will_read(std::uint64_t offset, std::uint64_t bytes) const noexcept;

    /// Throws Error(changed) when the file is not as it was; memory is its owner's affair.
    void check_unchanged() const;

private:
    const PlannedSource* planned_;
    std::optional<io::SourceFile> file_;
};

}  // namespace phiquant::pipeline
