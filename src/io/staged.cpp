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
#include "io/staged_folder.hpp"
#include "io/system_error.hpp"

namespace phiquant::io {
namespace {

constexpr std::string_view k_mark = ".phiquant-";

// Dirty pages pile up until the kernel's limit and then stall the writers all at once; pushing
// them out in steps of this size keeps the disk busy while the next tiles are encoded.
constexpr std::uint64_t k_flush_bytes = std::uint64_t{32} << 20;

// Of the target's name, in the staged file's.
constexpr std::size_t k_name_bytes = 200;

constexpr int k_attempts = 16;

std::string random_suffix() {
    std::random_device random;
    char text[9];
    std::snprintf(text, sizeof text, "%08x", random());
    return text;
}

template <class Call>
auto retried(const Call& call) {
    auto result = call();
    while (result < 0 && errno == EINTR) result = call();
    return result;
}

bool lock(int descriptor) {
    return retried([&] { return ::flock(descriptor, LOCK_EX | LOCK_NB); }) == 0;
}

bool cannot_link(int error) {
    return error == EPERM || error == EOPNOTSUPP || error == ENOTSUP || error == ENOSYS ||
           error == EMLINK;
}

Error exists_error(const std::string& target) {
    return {ErrorKind::usage,
            target,
            {},
            "exists already",
            "Choose another output, or pass --overwrite (overwrite=True)."};
}

}  // namespace

StagedFile::StagedFile(const StagedFolder& folder, const std::string& name, std::uint64_t size)
    : target_(folder.target() + "/" + name),
      path_(folder.path() + "/" + name),
      size_(size),
      overwrite_(false),
      in_folder_(true) {
    descriptor_ = retried([&] {
        return ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    });
    if (descriptor_ < 0) throw system_error(errno, target_, "cannot be created");
    reserve();
}

StagedFile::StagedFile(std::string target, std::uint64_t size, bool overwrite)
    : target_(std::move(target)), size_(size), overwrite_(overwrite) {
    const auto slash = target_.rfind('/');
    folder_ = slash == std::string::npos ? "." : slash == 0 ? "/" : target_.substr(0, slash);
    name_ = slash == std::string::npos ? target_ : target_.substr(slash + 1);
    struct stat facts{};
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
    if (state_ == State::published) take_back();
    // A folder removes its own files; by now its staged name may be that of what it replaces.
    if (state_ == State::staged && !in_folder_) {
        if (!path_.empty()) ::unlink(path_.c_str());
        if (!previous_.empty()) ::unlink(previous_.c_str());
    }
    if (previous_descriptor_ >= 0) ::close(previous_descriptor_);
    // fsync has said how the writes went: close has nothing to add.
    if (descriptor_ >= 0) ::close(descriptor_);
}

std::string StagedFile::staged_name() const {
    // A name near the system's limit is cut: the staged name must fit where the target's does.
    return folder_ + "/." + name_.substr(0, k_name_bytes) + std::string(k_mark) + random_suffix();
}

void StagedFile::remove_abandoned() const {
    DIR* folder = ::opendir(folder_.c_str());
    if (folder == nullptr) return;  // create() reports it
    const std::string prefix = "." + name_.substr(0, k_name_bytes) + std::string(k_mark);
    while (const dirent* entry = ::readdir(folder)) {
        const std::string_view found = entry->d_name;
        if (!found.starts_with(prefix) || found.size() != prefix.size() + 8) continue;
        const std::string path = folder_ + "/" + std::string(found);
        // To lock a file over NFS it must be open for writing; a previous result may forbid that.
        constexpr int k_flags = O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
        int descriptor = ::open(path.c_str(), O_RDWR | k_flags);
        if (descriptor < 0 && errno == EACCES)
            descriptor = ::open(path.c_str(), O_RDONLY | k_flags);
        if (descriptor < 0) {
            // A target that was a link, set aside by a run that was killed.
            if (errno == ELOOP) ::unlink(path.c_str());
            continue;
        }
        // A live writer holds the lock; whoever was killed does not.
        if (lock(descriptor)) ::unlink(path.c_str());
        ::close(descriptor);
    }
    ::closedir(folder);
}

void StagedFile::create() {
    for (int attempt = 0;; ++attempt) {
        path_ = staged_name();
        descriptor_ = retried([&] {
            return ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        });
        if (descriptor_ < 0) {
            const int error = errno;
            path_.clear();
            if (error == EEXIST && attempt < k_attempts) continue;
            throw system_error(error, target_, "cannot be created");
        }
        const bool locked = lock(descriptor_);
        const int error = locked ? 0 : errno;
        // Before it was locked, another run may have taken it for abandoned.
        struct stat facts{};
        const bool removed = ::fstat(descriptor_, &facts) == 0 && facts.st_nlink == 0;
        const bool can_lock = error != ENOLCK && error != EOPNOTSUPP && error != ENOSYS;
        if (!removed && (locked || !can_lock)) break;
        if (attempt >= k_attempts || (!removed && error != EWOULDBLOCK)) {
            throw give_up(error == 0 ? EWOULDBLOCK : error, "cannot be locked");
        }
        ::unlink(path_.c_str());
        ::close(std::exchange(descriptor_, -1));
    }
    reserve();
}

Error StagedFile::give_up(int error, const std::string& what) {
    ::unlink(path_.c_str());
    path_.clear();
    ::close(std::exchange(descriptor_, -1));
    return system_error(error, target_, what.c_str());
}

void StagedFile::reserve() {
    if (size_ == 0) return;
#if defined(__linux__)
    // The system call itself, not posix_fallocate: glibc's stand-in would write every block.
    if (::fallocate(descriptor_, 0, 0, static_cast<off_t>(size_)) == 0) return;
    // A timer that interrupts it again and again must not keep it from ending: hence no retry.
    if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
        throw give_up(errno, "needs " + std::to_string(size_) + " bytes, which cannot be reserved");
    }
#endif
    if (retried([&] { return ::ftruncate(descriptor_, static_cast<off_t>(size_)); }) != 0) {
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
        if (put == 0) throw system_error(EIO, target_, "cannot be written");
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

void StagedFile::sync(const std::atomic<bool>& stop) {
#if defined(__linux__)
    // fsync cannot be interrupted: wait for the data in steps first, so that it has little left.
    constexpr unsigned k_wait =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    for (std::uint64_t at = 0; at < size_; at += k_flush_bytes) {
        if (stop.load(std::memory_order_relaxed)) return;
        if (::sync_file_range(descriptor_, static_cast<off_t>(at),
                              static_cast<off_t>(k_flush_bytes), k_wait) == 0) {
            continue;
        }
        // The kernel tells a failed write-back once per open file: told here, fsync would be
        // silent.
        if (errno == EINVAL || errno == ENOSYS || errno == ESPIPE || errno == EOPNOTSUPP) break;
        if (errno != EINTR) throw system_error(errno, target_, "cannot be written to the disk");
    }
#else
    if (stop.load(std::memory_order_relaxed)) return;
#endif
    if (retried([&] { return ::fsync(descriptor_); }) != 0) {
        throw system_error(errno, target_, "cannot be synced to the disk");
    }
}

void StagedFile::publish() {
    if (in_folder_) return;
    if (overwrite_) {
        set_previous_aside();
        if (::rename(path_.c_str(), target_.c_str()) != 0) {
            throw system_error(errno, target_, "cannot be given its name");
        }
    } else {
        rename_to_absent_target();
    }
    state_ = State::published;
    const int folder = ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return;
    const bool failed =
        retried([&] { return ::fsync(folder); }) != 0 && errno != EINVAL && errno != EROFS;
    const int error = errno;
    ::close(folder);
    if (failed) throw system_error(error, target_, "its new name cannot be synced to the disk");
}

void StagedFile::rename_to_absent_target() {
    // A hard link refuses a target that appeared meanwhile, where rename would replace it.
    if (::link(path_.c_str(), target_.c_str()) == 0) {
        ::unlink(path_.c_str());
        return;
    }
    if (errno == EEXIST) throw exists_error(target_);
    if (cannot_link(errno)) {
        struct stat facts{};
        if (::lstat(target_.c_str(), &facts) == 0) throw exists_error(target_);
        if (::rename(path_.c_str(), target_.c_str()) == 0) return;
    }
    throw system_error(errno, target_, "cannot be given its name");
}

void StagedFile::set_previous_aside() {
    // Locked, so that another run does not take the second name for a killed run's file.
    previous_descriptor_ =
        ::open(target_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (previous_descriptor_ >= 0) lock(previous_descriptor_);
    for (int attempt = 0;; ++attempt) {
        std::string name = staged_name();
        // linkat, not link: where the target is a symbolic link, that is what will be replaced.
        if (::linkat(AT_FDCWD, target_.c_str(), AT_FDCWD, name.c_str(), 0) == 0) {
            previous_ = std::move(name);
            return;
        }
        replaced_for_good_ = errno != ENOENT;
        if (errno == ENOENT || cannot_link(errno)) return;
        if (errno == EEXIST && attempt < k_attempts) continue;
        throw system_error(errno, target_, "cannot be replaced");
    }
}

void StagedFile::take_back() noexcept {
    struct stat ours{}, there{};
    const bool stands = ::fstat(descriptor_, &ours) == 0 && ::lstat(target_.c_str(), &there) == 0 &&
                        ours.st_dev == there.st_dev && ours.st_ino == there.st_ino;
    if (!previous_.empty()) {
        if (!stands || ::rename(previous_.c_str(), target_.c_str()) != 0) {
            ::unlink(previous_.c_str());
        }
    } else if (stands && !replaced_for_good_) {
        ::unlink(target_.c_str());
    }
}

void StagedFile::keep() noexcept {
    state_ = State::kept;
    if (in_folder_) return;
    if (!previous_.empty()) ::unlink(previous_.c_str());
}

}  // namespace phiquant::io
