// Staged outputs: reserve, write at offsets, sync, rename once; nothing is left behind.
#include "io/staged.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <random>
#include <string_view>
#include <utility>

#include "base/error.hpp"
#include "io/system_error.hpp"

namespace phiquant::io {
namespace {

constexpr std::string_view k_mark = ".phiquant-";

// Dirty pages pile up until the kernel's limit and then stall the writers all at once; pushing
// them out in steps of this size keeps the disk busy while the next tiles are encoded.
constexpr std::uint64_t k_flush_bytes = std::uint64_t{32} << 20;

std::string random_suffix() {
    std::random_device random;
    char text[9];
    std::snprintf(text, sizeof text, "%08x", random());
    return text;
}

Error exists_error(const std::string& target) {
    return {ErrorKind::usage, target, {}, "exists already",
            "Choose another output, or pass --overwrite (overwrite=True)."};
}

}  // namespace

StagedFile::StagedFile(std::string target, std::uint64_t size, bool overwrite)
    : target_(std::move(target)), size_(size), overwrite_(overwrite) {
    const auto slash = target_.rfind('/');
    folder_ = slash == std::string::npos ? "." : slash == 0 ? "/" : target_.substr(0, slash);
    name_ = slash == std::string::npos ? target_ : target_.substr(slash + 1);
    struct stat facts {};
    if (::lstat(target_.c_str(), &facts) == 0) {
        if (S_ISDIR(facts.st_mode)) {
            throw Error(ErrorKind::usage, target_, {}, "is a folder", "Name a file as the output.");
        }
        if (!overwrite_) throw exists_error(target_);
    } else if (errno != ENOENT) {
        throw system_error(errno, target_, "cannot be written");
    }
    remove_abandoned();
    create();
}

StagedFile::~StagedFile() {
    if (!committed_ && !path_.empty()) ::unlink(path_.c_str());
    if (descriptor_ >= 0) ::close(descriptor_);
}

void StagedFile::remove_abandoned() const {
    DIR* folder = ::opendir(folder_.c_str());
    if (folder == nullptr) return;  // create() reports it
    const std::string prefix = "." + name_.substr(0, 200) + std::string(k_mark);
    while (const dirent* entry = ::readdir(folder)) {
        const std::string_view found = entry->d_name;
        if (!found.starts_with(prefix) || found.size() != prefix.size() + 8) continue;
        const std::string path = folder_ + "/" + std::string(found);
        const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (descriptor < 0) continue;
        // A live writer holds the lock; whoever was killed does not.
        if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) ::unlink(path.c_str());
        ::close(descriptor);
    }
    ::closedir(folder);
}

void StagedFile::create() {
    for (int attempt = 0;; ++attempt) {
        // A name near the system's limit is cut: the staged name must fit where the target's does.
        path_ = folder_ + "/." + name_.substr(0, 200) + std::string(k_mark) + random_suffix();
        descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (descriptor_ >= 0) break;
        const int error = errno;
        path_.clear();
        if (error == EEXIST && attempt < 8) continue;
        throw system_error(error, target_, "cannot be created");
    }
    const auto give_up = [this](int error, const char* what) -> Error {
        ::unlink(path_.c_str());
        path_.clear();
        ::close(std::exchange(descriptor_, -1));
        return system_error(error, target_, what);
    };
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno != ENOLCK && errno != EOPNOTSUPP) {
        throw give_up(errno, "cannot be locked");
    }
    if (size_ == 0) return;
#if defined(__linux__)
    // The system call itself, not posix_fallocate: glibc's stand-in would write every block.
    if (::fallocate(descriptor_, 0, 0, static_cast<off_t>(size_)) == 0) return;
    if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
        throw give_up(errno, ("needs " + std::to_string(size_) + " bytes, which cannot be reserved").c_str());
    }
#endif
    if (::ftruncate(descriptor_, static_cast<off_t>(size_)) != 0) {
        throw give_up(errno, "cannot be given its size");
    }
}

void StagedFile::write(std::span<const std::byte> bytes, std::uint64_t offset) {
    const std::uint64_t begin = offset;
    const std::uint64_t count = bytes.size();
    while (!bytes.empty()) {
        const std::size_t wanted = std::min<std::size_t>(bytes.size(), std::size_t{1} << 30);
        const ssize_t put = ::pwrite(descriptor_, bytes.data(), wanted, static_cast<off_t>(offset));
        if (put < 0) {
            if (errno == EINTR) continue;
            throw system_error(errno, target_, "cannot be written");
        }
        bytes = bytes.subspan(static_cast<std::size_t>(put));
        offset += static_cast<std::uint64_t>(put);
    }
#if defined(__linux__)
    if (unflushed_.fetch_add(count, std::memory_order_relaxed) + count >= k_flush_bytes) {
        unflushed_.store(0, std::memory_order_relaxed);
        // A hint: whether it worked is told by fsync. It covers what lies behind this write.
        const std::uint64_t from = begin > 2 * k_flush_bytes ? begin - 2 * k_flush_bytes : 0;
        ::sync_file_range(descriptor_, static_cast<off_t>(from),
                          static_cast<off_t>(begin + count - from), SYNC_FILE_RANGE_WRITE);
    }
#else
    static_cast<void>(begin);
    static_cast<void>(count);
#endif
}

void StagedFile::read(std::span<std::byte> out, std::uint64_t offset) const {
    while (!out.empty()) {
        const ssize_t got = ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(offset));
        if (got < 0) {
            if (errno == EINTR) continue;
            throw system_error(errno, target_, "cannot be read back");
        }
        if (got == 0) {
            throw Error(ErrorKind::io, target_, {}, "is shorter than what was written to it");
        }
        out = out.subspan(static_cast<std::size_t>(got));
        offset += static_cast<std::uint64_t>(got);
    }
}

void StagedFile::sync(const std::atomic<bool>& stop) {
#if defined(__linux__)
    // fsync cannot be interrupted: wait for the data in steps first, so that it has little left.
    constexpr unsigned k_wait =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    for (std::uint64_t at = 0; at < size_; at += k_flush_bytes) {
        if (stop.load(std::memory_order_relaxed)) return;
        ::sync_file_range(descriptor_, static_cast<off_t>(at), static_cast<off_t>(k_flush_bytes),
                          k_wait);
    }
#else
    if (stop.load(std::memory_order_relaxed)) return;
#endif
    if (::fsync(descriptor_) != 0) throw system_error(errno, target_, "cannot be synced to the disk");
}

void StagedFile::commit() {
    if (overwrite_) {
        if (::rename(path_.c_str(), target_.c_str()) != 0) {
            throw system_error(errno, target_, "cannot be given its name");
        }
    } else {
        // A hard link refuses a target that appeared meanwhile, where rename would replace it.
        if (::link(path_.c_str(), target_.c_str()) == 0) {
            ::unlink(path_.c_str());
        } else if (errno == EEXIST) {
            throw exists_error(target_);
        } else if (::rename(path_.c_str(), target_.c_str()) != 0) {
            throw system_error(errno, target_, "cannot be given its name");
        }
    }
    committed_ = true;
    const int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return;
    const bool failed = ::fsync(folder) != 0 && errno != EINVAL && errno != EROFS;
    const int error = errno;
    ::close(folder);
    if (failed) throw system_error(error, folder_, "cannot be synced to the disk");
}

}  // namespace phiquant::io
