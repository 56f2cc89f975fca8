// Quality "best" of the rule nncf: its grid is MatMulNBits', and so is the search.
#pragma once

#include "kernels/affine_nncf.hpp"
#include "kernels/best_affine_ort.hpp"

namespace phiquant::kernels {

/// Scales and zero points searched for the least squared error, each column's times its importance.
/// Whole rows that share a scale are left as the rule has them.
template <class Arch>
void best_nncf(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    encode_nncf<Arch>(grid, rows, out);
    improve<Arch>(grid, rows, out);
}

}  // namespace phiquant::kernels
