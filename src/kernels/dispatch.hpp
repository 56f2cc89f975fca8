// Which table of kernels runs: the best one that the processor has, or the one PHIQUANT_ARCH names.
#pragma once

#include <span>
#include <string_view>

#include "kernels/table.hpp"

namespace phiquant::kernels {

/// The table in use, chosen once. Throws Error(usage) when PHIQUANT_ARCH names an instruction set
/// that is not built in, or that this processor lacks.
const Table& active();

/// The tables that this build holds and this processor can run, best first.
std::span<const Table* const> available();

/// A table by name; throws Error(usage) as active() does.
const Table& by_name(std::string_view name);

}  // namespace phiquant::kernels
