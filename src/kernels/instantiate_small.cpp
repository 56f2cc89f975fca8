// The kernels of the formats in small_blocks.hpp for one instruction set, as instantiate.cpp.
#define XSIMD_DEFAULT_ARCH xsimd::unavailable

#include "kernels/fp4.hpp"
#include "kernels/iq1.hpp"
#include "kernels/iq23.hpp"
#include "kernels/iq23_decode.hpp"
#include "kernels/iq4.hpp"
#include "kernels/low_bits.hpp"
#include "kernels/small_kernels.hpp"

namespace phiquant::kernels {

using Arch = xsimd::PHIQUANT_KERNEL_ARCH;

template <class Arch, class Block>
void encode_small(const Rows& rows, std::byte* const* planes) noexcept {
    encode_rows<Arch>(rows, reinterpret_cast<Block*>(planes[0]));
}

template <class Arch, class Block>
void decode_small(const std::byte* const* planes, std::uint64_t values, float* out) noexcept {
    decode_values<Arch>(reinterpret_cast<const Block*>(planes[0]), values, out);
}

#define PHIQUANT_INSTANTIATE(Block)                                                   \
    template void encode_small<Arch, Block>(const Rows&, std::byte* const*) noexcept; \
    template void decode_small<Arch, Block>(const std::byte* const*, std::uint64_t, float*) noexcept

PHIQUANT_INSTANTIATE(BlockQ10);
PHIQUANT_INSTANTIATE(BlockQ20);
PHIQUANT_INSTANTIATE(BlockTQ10);
PHIQUANT_INSTANTIATE(BlockTQ20);
PHIQUANT_INSTANTIATE(BlockMXFP4);
PHIQUANT_INSTANTIATE(BlockNVFP4);
PHIQUANT_INSTANTIATE(BlockIQ4NL);
PHIQUANT_INSTANTIATE(BlockIQ4XS);
PHIQUANT_INSTANTIATE(BlockIQ2XXS);
PHIQUANT_INSTANTIATE(BlockIQ2XS);
PHIQUANT_INSTANTIATE(BlockIQ2S);
PHIQUANT_INSTANTIATE(BlockIQ3XXS);
PHIQUANT_INSTANTIATE(BlockIQ3S);
PHIQUANT_INSTANTIATE(BlockIQ1S);
PHIQUANT_INSTANTIATE(BlockIQ1M);

}  // namespace phiquant::kernels
