// The words of GPTQ (ModelCloud/GPTQModel, qlinear) and AWQ (casper-hansen/AutoAWQ, gemm).
#include "codecs/words.hpp"

#include <cstring>

#include "codecs/bit_streams.hpp"

namespace phiquant::codecs {
namespace {

constexpr std::uint64_t k_unit = 32;  // codes that fill whole words, whatever their bits

// Every zero point plus `step`, 1 or -1, which may leave its bits: then it takes its neighbour
// along.
void shift(std::uint8_t* zeros, std::uint64_t rows, std::uint64_t groups, unsigned bits,
           int step) noexcept {
    const int most = (1 << bits) - 1;
    const std::uint64_t in_word = 32 / bits;
    for (std::uint64_t g = 0; g < groups; ++g) {
        int carried = 0;
        for (std::uint64_t row = 0; row < rows; ++row) {
            if (bits == 3 || row % in_word == 0) carried = 0;
            std::uint8_t& zero = zeros[row * groups + g];
            const int moved = zero + step + carried;
            carried = moved < 0 ? -1 : moved > most ? 1 : 0;
            zero = static_cast<std::uint8_t>(moved & most);
        }
    }
}

}  // namespace

void pack_gptq(const std::uint8_t* codes, std::uint64_t rows, std::uint64_t columns, unsigned bits,
               std::byte* out) noexcept {
    std::uint8_t words[8 * 4];
    for (std::uint64_t unit = 0; unit < columns / k_unit; ++unit) {
        for (std::uint64_t row = 0; row < rows; ++row) {
            pack_bits(codes + row * columns + unit * k_unit, k_unit, bits, 0, words);
            for (std::uint64_t i = 0; i < bits; ++i) {
                std::memcpy(out + ((unit * bits + i) * rows + row) * 4, words + 4 * i, 4);
            }
        }
    }
}

void unpack_gptq(const std::byte* words, std::uint64_t rows, std::uint64_t columns, unsigned bits,
                 std::uint8_t* codes) noexcept {
    std::uint8_t unit_words[8 * 4];
    for (std::uint64_t unit = 0; unit < columns / k_unit; ++unit) {
        for (std::uint64_t row = 0; row < rows; ++row) {
            for (std::uint64_t i = 0; i < bits; ++i) {
                std::memcpy(unit_words + 4 * i, words + ((unit * bits + i) * rows + row) * 4, 4);
            }
            unpack_bits(unit_words, k_unit, bits, 0, codes + row * columns + unit * k_unit);
        }
    }
}

void less_one(std::uint8_t* zeros, std::uint64_t rows, std::uint64_t groups,
              unsigned bits) noexcept {
    shift(zeros, rows, groups, bits, -1);
}

void plus_one(std::uint8_t* zeros, std::uint64_t rows, std::uint64_t groups,
              unsigned bits) noexcept {
    shift(zeros, rows, groups, bits, 1);
}

void to_awq_order(std::uint8_t* codes, std::uint64_t count) noexcept {
    for (std::uint64_t i = 0; i + 8 <= count; i += 8) {
        std::uint8_t eight[8];
        std::memcpy(eight, codes + i, 8);
        for (std::uint64_t k = 0; k < 4; ++k) {
            codes[i + k] = eight[2 * k];
            codes[i + 4 + k] = eight[2 * k + 1];
        }
    }
}

void from_awq_order(std::uint8_t* codes, std::uint64_t count) noexcept {
    for (std::uint64_t i = 0; i + 8 <= count; i += 8) {
        std::uint8_t eight[8];
        std::memcpy(eight, codes + i, 8);
        for (std::uint64_t k = 0; k < 4; ++k) {
            codes[i + 2 * k] = eight[k];
            codes[i + 2 * k + 1] = eight[4 + k];
        }
    }
}

}  // namespace phiquant::codecs
