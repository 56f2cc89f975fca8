// Progress and Ctrl-C while the GIL is released.
#pragma once

#include <cstdint>
#include <functional>

#include "bindings/bindings.hpp"

namespace phiquant::bindings {

/// A function for the C++ side that takes the GIL, lets Python's signal handlers run (a Ctrl-C is
/// thrown as its exception) and calls `callback(done)` unless it is None. Only to be called on the
/// thread that came from Python.
inline std::function<void(std::uint64_t)> watch_progress(const pybind11::object& callback) {
    // A borrowed pointer: the function may be destroyed without the GIL, and the caller holds it.
    PyObject* const borrowed = callback.is_none() ? nullptr : callback.ptr();
    return [borrowed](std::uint64_t done) {
        const pybind11::gil_scoped_acquire acquired;
        if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
        if (borrowed != nullptr) {
            const pybind11::handle function(borrowed);
            function(done);
        }
    };
}

}  // namespace phiquant::bindings
