// The table of plain function pointers that each instruction set fills in.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/affine.hpp"

namespace phiquant::kernels {

/// Rows to be encoded: row-major, contiguous, finite float32.
struct Rows {
    const float* values;
    std::uint64_t rows;
    std::uint64_t columns;              ///< a multiple of the codec's block size
    const float* importance = nullptr;  ///< one weight a column, or null: the codec's plain rule
};

/// Encode rows into a codec's planes (for ggml types: one plane of blocks). Needs no memory of its
/// own beyond the stack; results do not depend on the instruction set or on how rows are tiled.
using Encode = void (*)(const Rows& rows, std::byte* const* planes) noexcept;

/// Decode `values` float32 values (a multiple of the block size) from a codec's planes.
using Decode = void (*)(const std::byte* const* planes, std::uint64_t values, float* out) noexcept;

struct Kernel {
    Encode encode;
    Decode decode;
    /// Scales searched for the least squared error instead of by the format's own rule; null where
    /// no such search is built. Weights are the importance itself, or 1.
    Encode best = nullptr;
};

struct Table {
    const char* name;  ///< "sse2", "sse4_1", "avx2", "avx512bw", "neon64"

    /// Index of the first value for which !(|x| <= limit), NaN included; `n` when there is none.
    std::uint64_t (*find_exceeding)(const float* x, std::uint64_t n, float limit) noexcept;

    /// Sum of (values - decoded)^2 and of values^2; the same on every instruction set.
    void (*squared_sums)(const float* values, const float* decoded, std::uint64_t n, double* error,
                         double* signal) noexcept;

    Kernel f32, f16, bf16;
    Kernel bf16_nncf;  ///< the same type, rounded in OpenVINO's own way
    Kernel q8_0, q4_0, q4_1, q5_0, q5_1;
    Kernel q2_k, q3_k, q4_k, q5_k, q6_k;
    Kernel q1_0, q2_0, tq1_0, tq2_0;
    Kernel mxfp4, nvfp4;
    Kernel iq4_nl, iq4_xs;
    Kernel iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s;
    Kernel iq1_s, iq1_m;

    const AffineTable* affine;
};

}  // namespace phiquant::kernels
