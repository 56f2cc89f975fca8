// The encoders of quality "best" for one instruction set, as instantiate.cpp.
#define XSIMD_DEFAULT_ARCH xsimd::unavailable

#include "kernels/best_formats.hpp"
#include "kernels/best_kernels.hpp"

namespace phiquant::kernels::best {

using Arch = xsimd::PHIQUANT_KERNEL_ARCH;

template void encode<Arch, Q40>(const Rows&, std::byte* const*) noexcept;
template void encode<Arch, Q2K>(const Rows&, std::byte* const*) noexcept;
template void encode<Arch, Q3K>(const Rows&, std::byte* const*) noexcept;
template void encode<Arch, Q4K>(const Rows&, std::byte* const*) noexcept;
template void encode<Arch, Q5K>(const Rows&, std::byte* const*) noexcept;
template void encode<Arch, Q6K>(const Rows&, std::byte* const*) noexcept;
template void encode<Arch, Iq4Nl>(const Rows&, std::byte* const*) noexcept;
template void encode<Arch, Iq4Xs>(const Rows&, std::byte* const*) noexcept;

}  // namespace phiquant::kernels::best
