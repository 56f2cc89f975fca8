// The table of ggml's types and the floats; a new one is one row here and one header in kernels/.
#include "codecs/codec.hpp"

#include <array>
#include <limits>

#include "codecs/made.hpp"

namespace phiquant::codecs {
namespace {

using kernels::Table;

constexpr float k_half_max = 65504.0f;
constexpr float k_float_max = std::numeric_limits<float>::max();

// `largest`: with one scale a block, the scale is at most the largest value over the largest code.
// Where a minimum is stored too, it must fit float16 itself. A fit with importance can make either
// half as large again, hence the halves in q4_0 to q5_1. The least-squares fits of q4_k and
// q5_k can reach past the values' range, but not by the 63 times that their 6-bit parameters give
// room for: a fit is only taken if its error is below that of the plain grid.
constexpr std::array k_codecs{
    Codec{"f32", Grid::floating, Rule::ggml, 1, 1, 4, 0, k_float_max, &Table::f32},
    Codec{"f16", Grid::floating, Rule::ggml, 1, 1, 2, 1, k_half_max, &Table::f16},
    Codec{"bf16", Grid::floating, Rule::ggml, 1, 1, 2, 30, 0x1.fep127f, &Table::bf16},
    Codec{"q8_0", Grid::scale, Rule::ggml, 32, 32, 34, 8, 127 * k_half_max, &Table::q8_0},
    Codec{"q4_0", Grid::scale, Rule::ggml, 32, 32, 18, 2, 4 * k_half_max, &Table::q4_0},
    Codec{"q4_1", Grid::scale_minimum, Rule::ggml, 32, 32, 20, 3, k_half_max / 2, &Table::q4_1},
    Codec{"q5_0", Grid::scale, Rule::ggml, 32, 32, 22, 6, 8 * k_half_max, &Table::q5_0},
    Codec{"q5_1", Grid::scale_minimum, Rule::ggml, 32, 32, 24, 7, k_half_max / 2, &Table::q5_1},
    Codec{"q2_k", Grid::scale_minimum, Rule::ggml, 256, 16, 84, 10, k_half_max, &Table::q2_k},
    Codec{"q3_k", Grid::scale, Rule::ggml, 256, 16, 110, 11, 4 * k_half_max, &Table::q3_k},
    Codec{"q4_k", Grid::scale_minimum, Rule::ggml, 256, 32, 144, 12, k_half_max, &Table::q4_k},
    Codec{"q5_k", Grid::scale_minimum, Rule::ggml, 256, 32, 176, 13, k_half_max, &Table::q5_k},
    Codec{"q6_k", Grid::scale, Rule::ggml, 256, 16, 210, 14, 127 * k_half_max, &Table::q6_k},
    Codec{"q1_0", Grid::scale, Rule::ggml, 128, 128, 18, 41, k_half_max, &Table::q1_0},
    Codec{"q2_0", Grid::scale, Rule::ggml, 64, 64, 18, 42, k_half_max, &Table::q2_0},
    Codec{"tq1_0", Grid::scale, Rule::ggml, 256, 256, 54, 34, k_half_max, &Table::tq1_0},
    Codec{"tq2_0", Grid::scale, Rule::ggml, 256, 256, 66, 35, k_half_max, &Table::tq2_0},
    Codec{"mxfp4", Grid::levels, Rule::ggml, 32, 32, 17, 39, 0x1p126f, &Table::mxfp4},
    // Its scales end at 448: larger values come out as 2688, the format's largest.
    Codec{"nvfp4", Grid::levels, Rule::ggml, 64, 16, 36, 40, k_float_max, &Table::nvfp4},
    Codec{"iq4_nl", Grid::levels, Rule::ggml, 32, 32, 18, 20, k_half_max, &Table::iq4_nl},
    Codec{"iq4_xs", Grid::levels, Rule::ggml, 256, 32, 136, 23, k_half_max, &Table::iq4_xs},
    Codec{"iq2_xxs", Grid::lattice, Rule::ggml, 256, 32, 66, 16, k_half_max, &Table::iq2_xxs, true},
    Codec{"iq2_xs", Grid::lattice, Rule::ggml, 256, 16, 74, 17, k_half_max, &Table::iq2_xs, true},
    Codec{"iq2_s", Grid::lattice, Rule::ggml, 256, 16, 82, 22, k_half_max, &Table::iq2_s},
    Codec{"iq3_xxs", Grid::lattice, Rule::ggml, 256, 32, 98, 18, k_half_max, &Table::iq3_xxs},
    Codec{"iq3_s", Grid::lattice, Rule::ggml, 256, 32, 110, 21, k_half_max, &Table::iq3_s},
    Codec{"iq1_s", Grid::lattice, Rule::ggml, 256, 32, 50, 19, k_half_max, &Table::iq1_s, true},
    Codec{"iq1_m", Grid::lattice, Rule::ggml, 256, 16, 56, 29, k_half_max, &Table::iq1_m},
};

}  // namespace

std::span<const Codec> all() noexcept { return k_codecs; }

const Codec* find(std::string_view name) {
    for (const Codec& codec : k_codecs) {
        if (codec.name == name) return &codec;
    }
    return find_made(name);
}

const Codec* find_ggml(std::uint32_t type) noexcept {
    for (const Codec& codec : k_codecs) {
        if (codec.ggml_type == type) return &codec;
    }
    return nullptr;
}

}  // namespace phiquant::codecs
