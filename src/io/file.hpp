// Files opened for reading: positioned reads into memory, and the identity that shows a change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace phiquant::io {

/// What tells one state of a file from another: if any part differs, the file changed.
struct FileIdentity {
    std::uint64_t device = 0, inode = 0, size = 0;
    std::int64_t modified_ns = 0;
    bool operator==(const FileIdentity&) const = default;
};

/// A regular file open for reading. Movable, closed on destruction; reads are thread-safe.
class SourceFile {
public:
    /// Throws Error(io) when it cannot be opened, Error(format) when it is no regular file.
    explicit SourceFile(std::string path);
    ~SourceFile();
    SourceFile(SourceFile&& other) noexcept;
    SourceFile& operator=(SourceFile&&) = delete;

    [[nodiscard]] const std::string& path() const noexcept { return path_; }
    [[nodiscard]] std::uint64_t size() const noexcept { return identity_.size; }
    [[nodiscard]] const FileIdentity& identity() const noexcept { return identity_; }
    [[nodiscard]] int descriptor() const noexcept { return descriptor_; }

    /// Fill `out` from the bytes at `offset`. A short file is Error(changed): its size was checked
    /// when it was planned.
    void read(std::span<std::byte> out, std::uint64_t offset) const;

    /// Say that these bytes will be read soon. A hint: nothing is waited for, nothing can fail.
    void will_read(std::uint64_t offset, std::uint64_t bytes) const noexcept;

    /// Throws Error(changed) when the open file, or what its path now names, is not as it was.
    void check_unchanged() const;

private:
    std::string path_;
    int descriptor_ = -1;
    FileIdentity identity_;
};

}  // namespace phiquant::io
