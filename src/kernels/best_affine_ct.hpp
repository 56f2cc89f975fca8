// Quality "best" of the rule ct: its grid is MatMulNBits', and so is the search.
#pragma once

#include "kernels/affine_ct.hpp"
#include "kernels/best_affine_ort.hpp"

namespace phiquant::kernels {

/// Scales and zero points searched for the least squared error, each column's times its importance.
/// Of groups only: whole rows are not searched.
template <class Arch>
void best_ct(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    encode_ct<Arch>(grid, rows, out);
    improve<Arch>(grid, rows, out);
}

}  // namespace phiquant::kernels
