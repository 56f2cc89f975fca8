// Quality "best" of the rule nncf: its grid is MatMulNBits', and so is the search of groups.
#pragma once

#include "kernels/affine_nncf.hpp"
#include "kernels/best_affine_rows.hpp"

namespace phiquant::kernels {

/// Scales and zero points searched for the least squared error, each column's times its importance.
template <class Arch>
void best_nncf(const AffineGrid& grid, const AffineRows& rows, const AffineCodes& out) noexcept {
    encode_nncf<Arch>(grid, rows, out);
    if (grid.group == rows.columns) {
        improve_rows<Arch>(grid, rows, out);
    } else {
        improve<Arch>(grid, rows, out);
    }
}

}  // namespace phiquant::kernels
