// Affine codecs: the types that their kernels take, and what the rules share.
#pragma once

#include <cstdint>

namespace phiquant::kernels {

/// The type that a format stores its scales in; a rule rounds to it where its tool does.
enum class AffineScale : std::uint8_t { f32, f16, bf16 };

/// What numbers a group can hold: codes of `bits` bits times a scale, from a zero point or a bias.
struct AffineGrid {
    unsigned bits;        ///< 2 to 8
    std::uint64_t group;  ///< values that share a scale, along a row
    bool symmetric;       ///< the zero point is 2^(bits-1)
    AffineScale scale;
    float global = 1.0f;  ///< of NVFP4: what all scales of the tensor are multiplied by
};

/// Rows to be fitted: row-major, contiguous, finite float32.
struct AffineRows {
    const float* values;
    std::uint64_t rows;
    std::uint64_t columns;              ///< the last group of a row may be short
    const float* importance = nullptr;  ///< one weight a column, or null
};

/// Where a fit leaves its results. Groups a row: ceil(columns / group).
struct AffineCodes {
    std::uint8_t* codes;  ///< [rows, groups * group], 0 to 2^bits - 1, short groups filled up
    float* scales;        ///< [rows, groups], already numbers of the grid's scale type
    float* zeros;  ///< [rows, groups]: the zero point as a code, or (rule mlx) the bias as a value
};

/// Fit scales and zero points, and round. Needs no memory beyond the stack; results depend neither
/// on the instruction set nor on how rows are tiled.
using AffineEncode = void (*)(const AffineGrid& grid, const AffineRows& rows,
                              const AffineCodes& out) noexcept;

struct AffineKernel {
    AffineEncode encode = nullptr;
    AffineEncode best = nullptr;  ///< null where no such search is built
};

/// All rules' kernels for one instruction set; null where a rule is not built.
struct AffineTable {
    AffineKernel ort, qdq, nncf, mlx, ct, portable;
    AffineKernel ct_mxfp4, ct_nvfp4;
    AffineKernel ct_rows, ct_fp8;      ///< of a scale a row, and of 8-bit floats
    AffineKernel mxfp4, mxfp8, nvfp4;  ///< mlx's small floats, of the grid's scale type
    AffineKernel nncf_nf4, nncf_mxfp4, nncf_mxfp8;
};

/// Defined by instantiate_affine.cpp, a translation unit of its own to keep compile times apart.
template <class Arch>
const AffineTable& affine_table() noexcept;

}  // namespace phiquant::kernels
