// An output file that is written beside its target under another name and renamed when whole.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace phiquant::io {

/// Positioned, thread-safe writes into a staged file `.NAME.phiquant-XXXXXXXX` in the target's
/// folder. Until commit() the target is as it was; the destructor removes what was not committed.
/// The staged file is locked while its process lives, so that a later run can tell what a killed
/// one left behind, and removes it.
class StagedFile {
public:
    /// Reserves `size` bytes on the disk. Throws Error(io): no space, no permission, a name that is
    /// too long; Error(usage) when the target exists and `overwrite` is false.
    StagedFile(std::string target, std::uint64_t size, bool overwrite);
    ~StagedFile();
    StagedFile(const StagedFile&) = delete;
    StagedFile& operator=(const StagedFile&) = delete;

    [[nodiscard]] const std::string& target() const noexcept { return target_; }
    [[nodiscard]] const std::string& path() const noexcept { return path_; }
    [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

    /// Write all of `bytes` at `offset`, and start them on their way to the disk.
    void write(std::span<const std::byte> bytes, std::uint64_t offset);

    /// Read back what was written.
    void read(std::span<std::byte> out, std::uint64_t offset) const;

    /// Wait until every byte is on the disk, or until `stop` is set. Any error here is final.
    void sync(const std::atomic<bool>& stop);

    /// Give the file its name and make the name durable.
    void commit();

private:
    void remove_abandoned() const;
    void create();

    std::string target_, folder_, name_, path_;
    std::uint64_t size_;
    bool overwrite_;
    bool committed_ = false;
    int descriptor_ = -1;
    std::atomic<std::uint64_t> unflushed_{0};
};

}  // namespace phiquant::io
