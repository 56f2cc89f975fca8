// Staged folders: create, fill, rename once; nothing is left behind.
#include "io/staged_folder.hpp"

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
constexpr std::size_t k_name_bytes = 200;
constexpr int k_attempts = 16;

// linux/fs.h; glibc has the call from 2.28 on.
constexpr unsigned k_no_replace = 1, k_exchange = 2;

int rename_with(const std::string& from, const std::string& to, unsigned flags) {
#if defined(__linux__) && defined(RENAME_EXCHANGE)
    return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags);
#else
    static_cast<void>(from), static_cast<void>(to), static_cast<void>(flags);
    errno = ENOSYS;
    return -1;
#endif
}

bool lacks_flags(int error) { return error == ENOSYS || error == EINVAL || error == EOPNOTSUPP; }

std::vector<std::string> entries_of(const std::string& folder) {
    std::vector<std::string> names;
    DIR* opened = ::opendir(folder.c_str());
    if (opened == nullptr) return names;
    while (const dirent* entry = ::readdir(opened)) {
        const std::string_view name = entry->d_name;
        if (name != "." && name != "..") names.emplace_back(name);
    }
    ::closedir(opened);
    return names;
}

// A folder of plain files, as phiquant writes them; whatever else is in there stays.
void remove_folder(const std::string& folder) noexcept {
    for (const std::string& name : entries_of(folder)) ::unlink((folder + "/" + name).c_str());
    ::rmdir(folder.c_str());
}

template <class Call>
int retried(const Call& call) {
    int result = call();
    while (result < 0 && errno == EINTR) result = call();
    return result;
}

int open_folder(const std::string& path) {
    return retried(
        [&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW); });
}

void sync_folder(const std::string& path, const std::string& target) {
    const int descriptor = open_folder(path);
    if (descriptor < 0) return;
    const bool failed =
        retried([&] { return ::fsync(descriptor); }) != 0 && errno != EINVAL && errno != EROFS;
    const int error = errno;
    ::close(descriptor);
    if (failed) throw system_error(error, target, "its new names cannot be synced to the disk");
}

}  // namespace

StagedFolder::StagedFolder(std::string target, std::vector<std::string> names, bool overwrite)
    : target_(std::move(target)), names_(std::move(names)), overwrite_(overwrite) {
    while (target_.size() > 1 && target_.back() == '/') target_.pop_back();
    const auto slash = target_.rfind('/');
    parent_ = slash == std::string::npos ? "." : slash == 0 ? "/" : target_.substr(0, slash);
    name_ = slash == std::string::npos ? target_ : target_.substr(slash + 1);
    check_target();
    remove_abandoned();
    create();
}

StagedFolder::~StagedFolder() {
    if (state_ == State::published) {
        if (replaced_) {
            // Without an exchange the previous folder stood aside under the staged name.
            if (rename_with(path_, target_, k_exchange) != 0) {
                const std::string ours = path_ + "-";
                if (::rename(target_.c_str(), ours.c_str()) == 0) {
                    ::rename(path_.c_str(), target_.c_str());
                    remove_folder(ours);
                }
            } else {
                remove_folder(path_);
            }
        } else {
            remove_folder(target_);
        }
    }
    if (state_ == State::staged && !path_.empty()) remove_folder(path_);
    if (descriptor_ >= 0) ::close(descriptor_);
}

void StagedFolder::check_target() const {
    struct stat facts{};
    if (::lstat(target_.c_str(), &facts) != 0) {
        if (errno == ENOENT) return;
        throw system_error(errno, target_, "cannot be written");
    }
    if (!S_ISDIR(facts.st_mode)) {
        throw Error(ErrorKind::usage, target_, {}, "is no folder",
                    "This format is a folder of files: choose another name for the output.");
    }
    const std::vector<std::string> found = entries_of(target_);
    if (found.empty()) return;
    if (!overwrite_) {
        throw Error(ErrorKind::usage, target_, {}, "exists already",
                    "Choose another output, or pass --overwrite (overwrite=True).");
    }
    for (const std::string& name : found) {
        if (std::ranges::find(names_, name) != names_.end()) continue;
        throw Error(ErrorKind::usage, target_, {},
                    "holds '" + name + "', which is no file of this conversion",
                    "Choose another output, or remove the folder yourself.");
    }
}

void StagedFolder::remove_abandoned() const {
    const std::string prefix = "." + name_.substr(0, k_name_bytes) + std::string(k_mark);
    for (const std::string& found : entries_of(parent_)) {
        if (!found.starts_with(prefix) || found.size() != prefix.size() + 8) continue;
        const std::string path = parent_ + "/" + found;
        const int descriptor = open_folder(path);
        if (descriptor < 0) continue;
        // A live writer holds the lock; whoever was killed does not.
        if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) remove_folder(path);
        ::close(descriptor);
    }
}

void StagedFolder::create() {
    for (int attempt = 0;; ++attempt) {
        std::random_device random;
        char suffix[9];
        std::snprintf(suffix, sizeof suffix, "%08x", random());
        path_ = parent_ + "/." + name_.substr(0, k_name_bytes) + std::string(k_mark) + suffix;
        if (::mkdir(path_.c_str(), 0777) != 0) {
            const int error = errno;
            path_.clear();
            if (error == EEXIST && attempt < k_attempts) continue;
            throw system_error(error, target_, "cannot be created");
        }
        descriptor_ = open_folder(path_);
        const bool locked = descriptor_ >= 0 && ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0;
        const bool can_lock = errno != ENOLCK && errno != EOPNOTSUPP && errno != ENOSYS;
        // Before it was locked, another run may have taken it for abandoned.
        struct stat facts{};
        const bool there = ::stat(path_.c_str(), &facts) == 0;
        if (there && (locked || !can_lock)) return;
        const int error = errno;
        if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
        ::rmdir(path_.c_str());
        if (attempt >= k_attempts) {
            path_.clear();
            throw system_error(error, target_, "cannot be locked");
        }
    }
}

void StagedFolder::publish() {
    sync_folder(path_, target_);
    if (rename_with(path_, target_, k_no_replace) == 0) {
        state_ = State::published;
        sync_folder(parent_, target_);
        return;
    }
    const int error = errno;
    if (error != EEXIST && !lacks_flags(error)) {
        throw system_error(error, target_, "cannot be given its name");
    }
    struct stat facts{};
    const bool exists = ::lstat(target_.c_str(), &facts) == 0;
    if (!exists) {
        if (!lacks_flags(error) || ::rename(path_.c_str(), target_.c_str()) != 0) {
            throw system_error(errno, target_, "cannot be given its name");
        }
        state_ = State::published;
        sync_folder(parent_, target_);
        return;
    }
    check_target();  // again: it may have appeared, or been filled, meanwhile
    if (::rmdir(target_.c_str()) == 0) {
        if (::rename(path_.c_str(), target_.c_str()) != 0) {
            throw system_error(errno, target_, "cannot be given its name");
        }
    } else if (rename_with(path_, target_, k_exchange) == 0) {
        replaced_ = true;  // the staged name is the previous folder's now
    } else if (lacks_flags(errno)) {
        const std::string aside = path_ + "-";
        if (::rename(target_.c_str(), aside.c_str()) != 0) {
            throw system_error(errno, target_, "cannot be replaced");
        }
        if (::rename(path_.c_str(), target_.c_str()) != 0) {
            const int failed = errno;
            ::rename(aside.c_str(), target_.c_str());
            throw system_error(failed, target_, "cannot be given its name");
        }
        ::rename(aside.c_str(), path_.c_str());
        replaced_ = true;
    } else {
        throw system_error(errno, target_, "cannot be replaced");
    }
    state_ = State::published;
    sync_folder(parent_, target_);
}

void StagedFolder::keep() noexcept {
    state_ = State::kept;
    if (replaced_) remove_folder(path_);
}

}  // namespace phiquant::io
