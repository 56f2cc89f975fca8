// The formats of instantiate_small.cpp, a translation unit of its own to keep compile times apart.
#pragma once

#include "kernels/small_blocks.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

template <class Arch, class Block>
void encode_small(const Rows& rows, std::byte* const* planes) noexcept;

template <class Arch, class Block>
void decode_small(const std::byte* const* planes, std::uint64_t values, float* out) noexcept;

/// The kernels of the format that has this block.
template <class Arch, class Block>
inline constexpr Kernel small_kernel{&encode_small<Arch, Block>, &decode_small<Arch, Block>};

}  // namespace phiquant::kernels
