// The encoders of quality "best", in a translation unit of their own to keep compile times apart.
#pragma once

#include "kernels/table.hpp"

namespace phiquant::kernels::best {

/// The best encoder of the format described by `Format` (best_formats.hpp).
template <class Arch, class Format>
void encode(const Rows& rows, std::byte* const* planes) noexcept;

struct Q40;
struct Q2K;
struct Q3K;
struct Q4K;
struct Q5K;
struct Q6K;
struct Iq4Nl;
struct Iq4Xs;

}  // namespace phiquant::kernels::best
