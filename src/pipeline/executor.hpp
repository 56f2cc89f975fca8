// Carries a plan out: every tile read once, encoded for all its targets, written at its place.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/workers.hpp"
#include "pipeline/plan.hpp"

namespace phiquant::pipeline {

struct Options {
    unsigned threads = 1;
    bool overwrite = false;
};

struct PlaneReport {
    std::uint64_t bytes = 0;
    std::uint32_t crc32c = 0;
};

/// What came of one encoding of one tensor, in the plan's order.
struct OutputReport {
    std::vector<PlaneReport> planes;
    double squared_error = 0;   ///< sum over all values
    double squared_signal = 0;  ///< sum of the source's squares
};

struct Report {
    std::vector<std::vector<OutputReport>> tensors;  ///< [tensor][output]
    double seconds_encoding = 0, seconds_syncing = 0;
};

/// Called by the thread that called execute(), never by workers; may throw to stop the run.
struct Watch {
    /// Source bytes done so far; about ten times a second.
    std::function<void(std::uint64_t done)> progress;
    /// The staged files, written and synced, before they get their names: the format's own reader
    /// looks at them here.
    std::function<void(const std::vector<std::string>& staged)> inspect;
};

/// Run the plan. On any error, and when stopped, every target is as it was before. Throws Error
/// with file and tensor filled in, or what `watch` throws.
Report execute(const Plan& plan, const Options& options, const Watch& watch);

}  // namespace phiquant::pipeline
