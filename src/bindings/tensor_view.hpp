// Other people's tensors, read in place: NumPy, ml_dtypes, and whatever speaks DLPack.
#pragma once

#include <memory>

#include "bindings/bindings.hpp"
#include "pipeline/memory.hpp"

namespace phiquant::bindings {

/// A view into a tensor's own memory, and what keeps that memory alive.
struct HeldTensor {
    pipeline::RowView view;
    std::shared_ptr<void> owner;
};

/// View a float32, float16 or bfloat16 tensor of at least one axis. Nothing is ever copied: what
/// cannot be read in place (another dtype or byte order, a last axis with steps, another device)
/// is Error(shape) that says what to do.
HeldTensor view_tensor(const pybind11::object& tensor);

}  // namespace phiquant::bindings
