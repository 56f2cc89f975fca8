// The declaration that ties one table to one instruction set; instantiate.cpp defines one of them.
#pragma once

#include "kernels/table.hpp"

namespace phiquant::kernels {

/// The table for an xsimd architecture.
template <class Arch>
const Table& table() noexcept;

}  // namespace phiquant::kernels
