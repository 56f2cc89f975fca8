// All kernels for one instruction set: compiled once for each, with PHIQUANT_KERNEL_ARCH its name.

// Nothing may fall back to what the compiler's flags happen to allow: every batch names its Arch.
#define XSIMD_DEFAULT_ARCH xsimd::unavailable

#include "kernels/best_kernels.hpp"
#include "kernels/blocks32_importance.hpp"
#include "kernels/floats.hpp"
#include "kernels/k_scale.hpp"
#include "kernels/k_scale_3_bits.hpp"
#include "kernels/k_scale_minimum_encode.hpp"
#include "kernels/make_table.hpp"
#include "kernels/measure.hpp"
#include "kernels/small_kernels.hpp"

namespace phiquant::kernels {

using Arch = xsimd::PHIQUANT_KERNEL_ARCH;
static_assert(Arch::supported(), "the flags of this target do not enable its instruction set");
static_assert(F32<Arch>::size <= 16 && sizeof(F32<Arch>) <= k_alignment);

#define PHIQUANT_QUOTE(name) #name
#define PHIQUANT_NAME(name) PHIQUANT_QUOTE(name)

/// A format of small_kernels.hpp that quality "best" knows, too.
template <class Arch, class Block, class Best>
inline constexpr Kernel best_kernel{&encode_small<Arch, Block>, &decode_small<Arch, Block>,
                                    &best::encode<Arch, Best>};

template <>
const Table& table<Arch>() noexcept {
    static const Table kernels{
        .name = PHIQUANT_NAME(PHIQUANT_KERNEL_ARCH),
        .find_exceeding = &find_exceeding<Arch>,
        .squared_sums = &squared_sums<Arch>,
        .f32 = {&encode_f32<Arch>, &decode_f32<Arch>},
        .f16 = {&encode_16_bits<Arch, HalfCodec>, &decode_16_bits<Arch, HalfCodec>},
        .bf16 = {&encode_16_bits<Arch, BfloatCodec>, &decode_16_bits<Arch, BfloatCodec>},
        .bf16_nncf = {&encode_16_bits<Arch, NncfBfloatCodec>, &decode_16_bits<Arch, BfloatCodec>},
        .q8_0 = {&encode_blocks<Arch, StagesQ80<Arch>>, &decode_blocks<Arch, BlockQ80>},
        .q4_0 = {&encode_blocks<Arch, StagesSigned<Arch, BlockQ40, 8>,
                                WeightedScale<Arch, BlockQ40, 8>>,
                 &decode_blocks<Arch, BlockQ40>, &best::encode<Arch, best::Q40>},
        .q4_1 = {&encode_blocks<Arch, StagesMinimum<Arch, BlockQ41, 15>,
                                WeightedMinimum<Arch, BlockQ41, 15>>,
                 &decode_blocks<Arch, BlockQ41>},
        .q5_0 = {&encode_blocks<Arch, StagesSigned<Arch, BlockQ50, 16>,
                                WeightedScale<Arch, BlockQ50, 16>>,
                 &decode_blocks<Arch, BlockQ50>},
        .q5_1 = {&encode_blocks<Arch, StagesMinimum<Arch, BlockQ51, 31>,
                                WeightedMinimum<Arch, BlockQ51, 31>>,
                 &decode_blocks<Arch, BlockQ51>},
        .q2_k = {&encode_scale_minimum<Arch, FormatQ2K>, &decode_scale_minimum<Arch, FormatQ2K>,
                 &best::encode<Arch, best::Q2K>},
        .q3_k = {&encode_q3_k<Arch>, &decode_q3_k<Arch>, &best::encode<Arch, best::Q3K>},
        .q4_k = {&encode_scale_minimum<Arch, FormatQ4K>, &decode_scale_minimum<Arch, FormatQ4K>,
                 &best::encode<Arch, best::Q4K>},
        .q5_k = {&encode_scale_minimum<Arch, FormatQ5K>, &decode_scale_minimum<Arch, FormatQ5K>,
                 &best::encode<Arch, best::Q5K>},
        .q6_k = {&encode_q6_k<Arch>, &decode_q6_k<Arch>, &best::encode<Arch, best::Q6K>},
        .q1_0 = small_kernel<Arch, BlockQ10>,
        .q2_0 = small_kernel<Arch, BlockQ20>,
        .tq1_0 = small_kernel<Arch, BlockTQ10>,
        .tq2_0 = small_kernel<Arch, BlockTQ20>,
        .mxfp4 = small_kernel<Arch, BlockMXFP4>,
        .nvfp4 = small_kernel<Arch, BlockNVFP4>,
        .iq4_nl = best_kernel<Arch, BlockIQ4NL, best::Iq4Nl>,
        .iq4_xs = best_kernel<Arch, BlockIQ4XS, best::Iq4Xs>,
        .iq2_xxs = small_kernel<Arch, BlockIQ2XXS>,
        .iq2_xs = small_kernel<Arch, BlockIQ2XS>,
        .iq2_s = small_kernel<Arch, BlockIQ2S>,
        .iq3_xxs = small_kernel<Arch, BlockIQ3XXS>,
        .iq3_s = small_kernel<Arch, BlockIQ3S>,
        .iq1_s = small_kernel<Arch, BlockIQ1S>,
        .iq1_m = small_kernel<Arch, BlockIQ1M>,
        .affine = &affine_table<Arch>(),
    };
    return kernels;
}

}  // namespace phiquant::kernels
