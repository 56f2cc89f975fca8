// Preloaded into a test's process: fails, shortens or interrupts the k-th system call on staged
// files.
//
// Counted are the calls through which phiquant makes an output: on files whose name holds
// ".phiquant-", and fsync on anything. The test's driver arms one fault a run through ctypes, a
// command's test through the variable FAILING_CALLS: "CALLS COUNT MODE VALUE".
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace {

enum Mode { k_errno = 1, k_short, k_zero, k_kill_before, k_kill_after, k_signal, k_resize };

constexpr int k_descriptors = 4096;
std::atomic<bool> staged[k_descriptors];

std::mutex guard;
char counted[256] = "", unsupported[256] = "", victim[4096] = "", hit[32] = "";
long remaining = 0;  // 0: not armed
int mode = 0;
long value = 0;

bool is_staged(const char* path) { return std::strstr(path, ".phiquant-") != nullptr; }
bool is_staged(int descriptor) {
    return descriptor >= 0 && descriptor < k_descriptors && staged[descriptor];
}

bool lists(const char* list, const char* call) {
    const std::size_t length = std::strlen(call);
    for (const char* at = list; (at = std::strstr(at, call)) != nullptr; at += length) {
        if ((at == list || at[-1] == ',') && (at[length] == ',' || at[length] == '\0')) return true;
    }
    return false;
}

void resize_victim() {
    const int descriptor = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, victim, O_WRONLY, 0));
    if (descriptor < 0) return;
    (void)!::syscall(SYS_ftruncate, descriptor, value);
    ::syscall(SYS_close, descriptor);
}

// The armed fault if this call is the one, else 0. What needs no help of the call is done here.
int fault_of(const char* call) {
    const std::lock_guard lock(guard);
    if (remaining == 0 || !lists(counted, call) || --remaining > 0) return 0;
    std::strncpy(hit, call, sizeof hit - 1);
    if (mode == k_kill_before) ::kill(::getpid(), SIGKILL);
    if (mode == k_signal) ::kill(::getpid(), static_cast<int>(value));
    if (mode == k_resize) resize_victim();
    return mode;
}

template <class Function>
Function* next(const char* name) {
    return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

// Calls that succeed with 0, or fail whole.
template <class Call>
int whole(const char* name, const Call& call) {
    if (lists(unsupported, name)) {
        errno = std::strcmp(name, "link") == 0 ? EPERM : EOPNOTSUPP;
        return -1;
    }
    const int fault = fault_of(name);
    if (fault == k_errno) {
        errno = static_cast<int>(value);
        return -1;
    }
    const int result = call();
    if (fault == k_kill_after) ::kill(::getpid(), SIGKILL);
    return result;
}

ssize_t write_at(int descriptor, const void* bytes, size_t count, off_t offset) {
    static auto* const real = next<ssize_t(int, const void*, size_t, off_t)>("pwrite64");
    if (!is_staged(descriptor)) return real(descriptor, bytes, count, offset);
    const int fault = fault_of("pwrite");
    if (fault == k_errno) {
        errno = static_cast<int>(value);
        return -1;
    }
    if (fault == k_zero) return 0;
    if (fault == k_short && count > 1) count /= 2;
    const ssize_t result = real(descriptor, bytes, count, offset);
    if (fault == k_kill_after) ::kill(::getpid(), SIGKILL);
    return result;
}

int open_at(const char* path, int flags, mode_t permissions) {
    static auto* const real = next<int(const char*, int, ...)>("open64");
    if (!is_staged(path) || (flags & O_CREAT) == 0) return real(path, flags, permissions);
    const int fault = fault_of("open");
    if (fault == k_errno) {
        errno = static_cast<int>(value);
        return -1;
    }
    const int descriptor = real(path, flags, permissions);
    if (descriptor >= 0 && descriptor < k_descriptors) staged[descriptor] = true;
    if (fault == k_kill_after) ::kill(::getpid(), SIGKILL);
    return descriptor;
}

mode_t permissions_of(int flags, va_list arguments) {
    return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

extern "C" {

// Fail the `count`-th of the calls listed (with commas), as `how` and `what` say; 0 disarms.
void failing_calls_arm(const char* calls, long count, int how, long what, const char* file) {
    const std::lock_guard lock(guard);
    std::strncpy(counted, calls, sizeof counted - 1);
    std::strncpy(victim, file, sizeof victim - 1);
    hit[0] = '\0';
    remaining = count;
    mode = how;
    value = what;
}

__attribute__((constructor)) void failing_calls_from_environment() {
    const char* told = std::getenv("FAILING_CALLS");
    char calls[256];
    long count = 0, what = 0;
    int how = 0;
    if (told != nullptr && std::sscanf(told, "%255s %ld %d %ld", calls, &count, &how, &what) == 4) {
        failing_calls_arm(calls, count, how, what, "");
    }
}

// Calls that this file system never supports.
void failing_calls_without(const char* calls) {
    std::strncpy(unsupported, calls, sizeof unsupported - 1);
}

// Name of the call that met the fault, or nothing.
const char* failing_calls_hit() { return hit; }

int open(const char* path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    const mode_t permissions = permissions_of(flags, arguments);
    va_end(arguments);
    return open_at(path, flags, permissions);
}

int open64(const char* path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    const mode_t permissions = permissions_of(flags, arguments);
    va_end(arguments);
    return open_at(path, flags, permissions);
}

int close(int descriptor) {
    static auto* const real = next<int(int)>("close");
    if (!is_staged(descriptor)) return real(descriptor);
    staged[descriptor] = false;
    const int fault = fault_of("close");
    const int result = real(descriptor);
    if (fault == k_kill_after) ::kill(::getpid(), SIGKILL);
    if (fault != k_errno) return result;
    errno = static_cast<int>(value);
    return -1;
}

ssize_t pwrite(int descriptor, const void* bytes, size_t count, off_t offset) {
    return write_at(descriptor, bytes, count, offset);
}

ssize_t pwrite64(int descriptor, const void* bytes, size_t count, off64_t offset) {
    return write_at(descriptor, bytes, count, offset);
}

int fallocate(int descriptor, int how, off_t offset, off_t length) {
    static auto* const real = next<int(int, int, off_t, off_t)>("fallocate64");
    if (!is_staged(descriptor)) return real(descriptor, how, offset, length);
    return whole("fallocate", [&] { return real(descriptor, how, offset, length); });
}

int fallocate64(int descriptor, int how, off64_t offset, off64_t length) {
    return fallocate(descriptor, how, offset, length);
}

int ftruncate(int descriptor, off_t length) noexcept {
    static auto* const real = next<int(int, off_t)>("ftruncate64");
    if (!is_staged(descriptor)) return real(descriptor, length);
    return whole("ftruncate", [&] { return real(descriptor, length); });
}

int ftruncate64(int descriptor, off64_t length) noexcept { return ftruncate(descriptor, length); }

int fsync(int descriptor) {
    static auto* const real = next<int(int)>("fsync");
    return whole("fsync", [&] { return real(descriptor); });
}

int sync_file_range(int descriptor, off64_t offset, off64_t count, unsigned flags) {
    static auto* const real = next<int(int, off64_t, off64_t, unsigned)>("sync_file_range");
    // With SYNC_FILE_RANGE_WRITE alone it is a hint, and its errors come again with fsync.
    const bool waits = (flags & SYNC_FILE_RANGE_WAIT_AFTER) != 0;
    return whole(waits ? "sync_wait" : "sync_start",
                 [&] { return real(descriptor, offset, count, flags); });
}

int link(const char* from, const char* to) noexcept {
    static auto* const real = next<int(const char*, const char*)>("link");
    if (!is_staged(from)) return real(from, to);
    return whole("link", [&] { return real(from, to); });
}

int linkat(int from_folder, const char* from, int to_folder, const char* to, int flags) noexcept {
    static auto* const real = next<int(int, const char*, int, const char*, int)>("linkat");
    if (!is_staged(to)) return real(from_folder, from, to_folder, to, flags);
    return whole("link", [&] { return real(from_folder, from, to_folder, to, flags); });
}

int rename(const char* from, const char* to) noexcept {
    static auto* const real = next<int(const char*, const char*)>("rename");
    if (!is_staged(from)) return real(from, to);
    return whole("rename", [&] { return real(from, to); });
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to,
              unsigned flags) noexcept {
    static auto* const real = next<int(int, const char*, int, const char*, unsigned)>("renameat2");
    if (!is_staged(from)) return real(from_folder, from, to_folder, to, flags);
    return whole("renameat2", [&] { return real(from_folder, from, to_folder, to, flags); });
}

int mkdir(const char* path, mode_t permissions) noexcept {
    static auto* const real = next<int(const char*, mode_t)>("mkdir");
    if (!is_staged(path)) return real(path, permissions);
    return whole("mkdir", [&] { return real(path, permissions); });
}

}  // extern "C"
