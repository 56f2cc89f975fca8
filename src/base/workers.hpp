// A team of threads for one job, watched by the thread that asked for it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.hpp"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace phiquant {

/// Default rounding, subnormals kept: another library in the process may have set flush-to-zero
/// (one linked with -Ofast does), and bits are promises.
class FloatingPointGuard {
public:
#if defined(__SSE2__)
    FloatingPointGuard() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~FloatingPointGuard() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#else
    FloatingPointGuard() noexcept = default;
#endif
public:
    FloatingPointGuard(const FloatingPointGuard&) = delete;
    FloatingPointGuard& operator=(const FloatingPointGuard&) = delete;
};

/// Shared between a job's workers and whoever watches it.
struct Progress {
    std::atomic<std::uint64_t> done{0};  ///< units of the caller's choice
    std::atomic<bool> stop{false};       ///< workers look at it between tiles
};

/// Run `work(worker)` on `count` threads and wait. While they run, `watch()` is called on the
/// calling thread about ten times a second (and once before the end); what it throws stops the
/// workers and is thrown on. The first error of a worker stops the others and is thrown.
inline void run_workers(unsigned count, Progress& progress,
                        const std::function<void(unsigned)>& work,
                        const std::function<void()>& watch) {
    std::mutex mutex;
    std::condition_variable finished;
    unsigned running = count;
    std::exception_ptr failure;
    const auto fail = [&](std::exception_ptr error) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::move(error);
        progress.stop.store(true, std::memory_order_relaxed);
    };
    std::vector<std::thread> threads;
    threads.reserve(count);
    const auto body = [&](unsigned worker) {
        try {
            const FloatingPointGuard guard;
            work(worker);
        } catch (...) {
            fail(std::current_exception());
        }
        const std::lock_guard lock(mutex);
        --running;
        finished.notify_one();
    };
    for (unsigned worker = 0; worker < count; ++worker) {
        try {
            threads.emplace_back(body, worker);
        } catch (const std::system_error&) {
            // Fewer threads than asked for still finish the job; none at all is an error.
            const std::lock_guard lock(mutex);
            running -= count - worker;
            if (worker == 0) {
                throw Error(ErrorKind::internal, "no worker thread could be started");
            }
            break;
        }
    }
    {
        std::unique_lock lock(mutex);
        while (running > 0) {
            finished.wait_for(lock, std::chrono::milliseconds(100));
            lock.unlock();
            try {
                if (!progress.stop.load(std::memory_order_relaxed)) watch();
            } catch (...) {
                fail(std::current_exception());
            }
            lock.lock();
        }
    }
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace phiquant
