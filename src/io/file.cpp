// Files opened for reading: pread, and the check that nothing changed meanwhile.
#include "io/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/error.hpp"
#include "io/system_error.hpp"

namespace phiquant::io {
namespace {

FileIdentity identity_of(const struct stat& facts) {
#if defined(__APPLE__)
    const auto& time = facts.st_mtimespec;
#else
    const auto& time = facts.st_mtim;
#endif
    return {static_cast<std::uint64_t>(facts.st_dev), static_cast<std::uint64_t>(facts.st_ino),
            static_cast<std::uint64_t>(facts.st_size),
            static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec};
}

const char* const k_changed_remedy =
    "Let the download or copy finish, then run the conversion again.";

}  // namespace

SourceFile::SourceFile(std::string path) : path_(std::move(path)) {
    // O_NONBLOCK: opening a FIFO must not wait for a writer that never comes.
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (descriptor_ < 0) throw system_error(errno, path_, "cannot be opened");
    struct stat facts{};
    if (::fstat(descriptor_, &facts) != 0) {
        const int error = errno;
        ::close(descriptor_);
        throw system_error(error, path_, "cannot be examined");
    }
    if (!S_ISREG(facts.st_mode)) {
        ::close(descriptor_);
        throw Error(ErrorKind::format, path_, {}, "is not a regular file");
    }
    identity_ = identity_of(facts);
}

SourceFile::~SourceFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
}

SourceFile::SourceFile(SourceFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      identity_(other.identity_) {}

void SourceFile::read(std::span<std::byte> out, std::uint64_t offset) const {
    while (!out.empty()) {
        // Linux moves at most 2 GiB a call; smaller pieces also keep cancellation quick.
        const std::size_t wanted = std::min<std::size_t>(out.size(), std::size_t{1} << 30);
        const ssize_t got = ::pread(descriptor_, out.data(), wanted, static_cast<off_t>(offset));
        if (got < 0) {
            if (errno == EINTR) continue;
            throw system_error(errno, path_, "cannot be read");
        }
        if (got == 0) {
            throw Error(ErrorKind::changed, path_, {},
                        "ended at byte " + std::to_string(offset) +
                            " while it was read, though it held " + std::to_string(size()) +
                            " bytes at the start",
                        k_changed_remedy);
        }
        out = out.subspan(static_cast<std::size_t>(got));
        offset += static_cast<std::uint64_t>(got);
    }
}

void SourceFile::will_read(std::uint64_t offset, std::uint64_t bytes) const noexcept {
#if defined(__linux__)
    ::posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(bytes),
                    POSIX_FADV_WILLNEED);
#else
    static_cast<void>(offset);
    static_cast<void>(bytes);
#endif
}

void SourceFile::check_unchanged() const {
    struct stat open_file{}, named_file{};
    if (::fstat(descriptor_, &open_file) != 0)
        throw system_error(errno, path_, "cannot be examined");
    const bool gone = ::stat(path_.c_str(), &named_file) != 0;
    if (gone || identity_of(open_file) != identity_ || identity_of(named_file) != identity_) {
        throw Error(ErrorKind::changed, path_, {}, "changed while it was read", k_changed_remedy);
    }
}

}  // namespace phiquant::io
