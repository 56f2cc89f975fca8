// The codecs: what numbers each can hold, by whose rule, laid out how. ggml's types are one
// immutable table; affine codecs are made of their names.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/table.hpp"

namespace phiquant::codecs {

enum class Grid : std::uint8_t {
    floating,       ///< no blocks: each value by itself
    scale,          ///< codes times a scale a block
    scale_minimum,  ///< codes times a scale a block, plus a minimum
    levels,         ///< codes name unevenly spaced levels, times a scale a block
    lattice,        ///< codes name points, each the levels of several values, times a scale a block
    affine          ///< codes times a scale a group, from a zero point or a bias; see `Affine`
};

/// Whose fitting and rounding the encoder reproduces.
enum class Rule : std::uint8_t {
    ggml,
    ort,      ///< ONNX Runtime's blockwise quantizer
    qdq,      ///< onnxruntime.quantization, for QuantizeLinear's grid
    nncf,     ///< NNCF's weight compression
    mlx,      ///< mlx.core.quantize on a CPU
    ct,       ///< compressed-tensors
    portable  ///< none: scales that every format holds
};

/// How codes, scales and zero points lie in their planes (see planes.hpp).
enum class Layout : std::uint8_t {
    blocks,      ///< ggml: one plane of blocks; plain floats
    rows,        ///< ONNX Runtime's MatMulNBits
    openvino,    ///< signed codes where symmetric; zero points without padding
    mlx,         ///< biases instead of zero points
    packed,      ///< compressed-tensors' pack-quantized
    bytes,       ///< compressed-tensors' int-quantized: signed codes and zero points
    transposed,  ///< every plane by columns: ONNX DequantizeLinear and MatMul
    gptq,        ///< by columns, in words of a row's codes; zero points also where symmetric
    gptq_v1,     ///< the same, with zero points less one
    awq          ///< by columns, in words of eight rows' codes, even rows first
};

/// What codes stand for, before they are scaled.
enum class Levels : std::uint8_t {
    integers,
    e2m1,  ///< 4-bit floats
    e4m3,  ///< 8-bit floats
    nf4    ///< quantiles of the normal distribution, from -1 to 1
};

/// An affine codec's grid.
struct Affine {
    unsigned bits;
    std::uint32_t group;  ///< values that share a scale along a row; 0: the whole row
    bool symmetric;
    /// Of small floats, whose scales are bytes (E8M0, or E4M3 for groups of 16): the weights' type,
    /// which mlx computes in.
    kernels::AffineScale scale;
    Levels levels = Levels::integers;
    /// Of compressed-tensors' NVFP4: what all scales of the tensor were multiplied by.
    float global = 1.0f;

    /// The group's length in rows of `columns` values.
    [[nodiscard]] constexpr std::uint64_t group_of(std::uint64_t columns) const noexcept {
        return group == 0 ? columns : group;
    }
    [[nodiscard]] constexpr std::uint64_t groups_of(std::uint64_t columns) const noexcept {
        return (columns + group_of(columns) - 1) / group_of(columns);
    }
    /// What kernels need to know of it.
    [[nodiscard]] constexpr kernels::AffineGrid of_rows(std::uint64_t columns) const noexcept {
        return {bits, group_of(columns), symmetric, scale, global};
    }
};

struct Codec {
    std::string_view name;  ///< as users write it: "q4_k", "int4_sym_g32,scales=f16"
    Grid grid;
    Rule rule;
    std::uint32_t block_values;      ///< values a block; 1 for plain floats and affine codecs
    std::uint32_t sub_block_values;  ///< values that share one scale
    std::uint32_t block_bytes;       ///< bytes a block in the only plane; 0 for affine codecs
    std::uint32_t ggml_type;         ///< the id in GGUF files, or k_no_ggml_type
    float largest;  ///< |x| up to here can never overflow the codec; beyond, results are checked
    kernels::Kernel kernels::Table::* kernel;  ///< null for affine codecs
    bool needs_importance = false;  ///< cannot be encoded without an importance of its columns
    Layout layout = Layout::blocks;
    Affine affine{};

    [[nodiscard]] constexpr double bits_per_weight() const noexcept {
        return block_bytes == 0 ? affine.bits : 8.0 * block_bytes / block_values;
    }
    [[nodiscard]] constexpr bool is_affine() const noexcept { return grid == Grid::affine; }
    /// Whether every line of its planes holds something of all rows, so that tiles had better be
    /// large.
    [[nodiscard]] constexpr bool by_columns() const noexcept {
        return layout == Layout::transposed || layout == Layout::awq || is_gptq();
    }
    [[nodiscard]] constexpr bool is_gptq() const noexcept {
        return layout == Layout::gptq || layout == Layout::gptq_v1;
    }
};

inline constexpr std::uint32_t k_no_ggml_type = 0xffffffff;

/// All codecs but the affine ones, in the order in which `phiquant formats` shows them.
std::span<const Codec> all() noexcept;

/// A codec by name (lower case), or null. Affine codecs and transposed floats are made when they
/// are first asked for, and live as long as the process:
/// `int{2,3,4,5,6,8}_{sym,asym}_{g16,g32,g64,g128,g256,channel}[,rule=R][,scales=S][,layout=L]`,
/// `{f32,f16,bf16},layout=transposed`, `bf16,rule=nncf`, `nf4_{g16,g32,g64,g128,g256,channel}`,
/// `{mxfp4,mxfp8},layout=openvino`, `{mxfp4,mxfp8,nvfp4},layout=mlx[,scales=S]`,
/// `{fp8_channel | mxfp4,layout=packed}[,scales=S]`,
/// `nvfp4,layout=packed[,scales=S][,global=XXXXXXXX]`, the bits of a positive float32. Options that
/// are the default are left out of the codec's own name.
const Codec* find(std::string_view name);

/// A codec by ggml type id, or null.
const Codec* find_ggml(std::uint32_t type) noexcept;

/// The affine kernel of a codec in a table; its members are null where it is not built.
kernels::AffineKernel affine_kernel(const kernels::Table& table, const Codec& codec) noexcept;

}  // namespace phiquant::codecs
