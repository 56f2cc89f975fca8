// The baseline's table with a few kernels, in place of kernels/dispatch.cpp: what tests of the
// executor need, compiled in seconds.
#define XSIMD_DEFAULT_ARCH xsimd::unavailable

#include "kernels/affine_ort.hpp"
#include "kernels/blocks32.hpp"
#include "kernels/dispatch.hpp"
#include "kernels/floats.hpp"
#include "kernels/measure.hpp"

namespace phiquant::kernels {
namespace {

#if defined(__x86_64__)
using Arch = xsimd::sse2;
#else
using Arch = xsimd::neon64;
#endif

constexpr AffineTable k_affine{.ort = {&encode_ort<Arch>}};

constexpr Table k_table{
    .name = "small",
    .find_exceeding = &find_exceeding<Arch>,
    .squared_sums = &squared_sums<Arch>,
    .f32 = {&encode_f32<Arch>, &decode_f32<Arch>},
    .f16 = {&encode_16_bits<Arch, HalfCodec>, &decode_16_bits<Arch, HalfCodec>},
    .bf16 = {&encode_16_bits<Arch, BfloatCodec>, &decode_16_bits<Arch, BfloatCodec>},
    .q8_0 = {&encode_blocks<Arch, StagesQ80<Arch>>, &decode_blocks<Arch, BlockQ80>},
    .affine = &k_affine,
};

constexpr const Table* k_tables[] = {&k_table};

}  // namespace

const Table& active() { return k_table; }

std::span<const Table* const> available() { return k_tables; }

const Table& by_name(std::string_view) { return k_table; }

}  // namespace phiquant::kernels
