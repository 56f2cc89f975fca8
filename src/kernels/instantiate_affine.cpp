// The affine codecs' kernels for one instruction set, as instantiate.cpp has those of ggml's types.
#define XSIMD_DEFAULT_ARCH xsimd::unavailable

#include "kernels/affine.hpp"
#include "kernels/affine_ct.hpp"
#include "kernels/affine_mlx.hpp"
#include "kernels/affine_nncf.hpp"
#include "kernels/affine_ort.hpp"
#include "kernels/affine_portable.hpp"
#include "kernels/affine_qdq.hpp"
#include "kernels/best_affine_ct.hpp"
#include "kernels/best_affine_mlx.hpp"
#include "kernels/best_affine_nncf.hpp"
#include "kernels/best_affine_ort.hpp"
#include "kernels/mlx_floats.hpp"
#include "kernels/nncf_floats.hpp"

namespace phiquant::kernels {

using Arch = xsimd::PHIQUANT_KERNEL_ARCH;

template <>
const AffineTable& affine_table<Arch>() noexcept {
    static constexpr AffineTable kernels{
        .ort = {&encode_ort<Arch>, &best_ort<Arch>},
        .qdq = {&encode_qdq<Arch>},
        .nncf = {&encode_nncf<Arch>, &best_nncf<Arch>},
        .mlx = {&encode_mlx<Arch>, &best_mlx<Arch>},
        .ct = {&encode_ct<Arch>, &best_ct<Arch>},
        .portable = {&encode_portable<Arch>},
        .ct_mxfp4 = {&encode_ct_mxfp4<Arch>},
        .ct_nvfp4 = {&encode_ct_nvfp4<Arch>},
        .ct_rows = {&encode_ct<Arch>},
        .ct_fp8 = {&encode_ct_fp8<Arch>},
        .mxfp4 = {&encode_mlx_float<Arch, Mxfp4>},
        .mxfp8 = {&encode_mlx_float<Arch, Mxfp8>},
        .nvfp4 = {&encode_mlx_float<Arch, Nvfp4>},
        .nncf_nf4 = {&encode_nncf_nf4<Arch>},
        .nncf_mxfp4 = {&encode_nncf_mx<Arch, 4>},
        .nncf_mxfp8 = {&encode_nncf_mx<Arch, 8>},
    };
    return kernels;
}

}  // namespace phiquant::kernels
