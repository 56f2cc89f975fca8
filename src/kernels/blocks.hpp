// The blocks of ggml's formats as they lie in memory (ggml-common.h); all little-endian.
#pragma once

#include <cstddef>
#include <cstdint>

namespace phiquant::kernels {

inline constexpr std::size_t k_block = 32;         // values in a block of q4_0 to q8_0
inline constexpr std::size_t k_super_block = 256;  // values in a super-block of a K-quant

struct BlockQ80 {
    std::uint16_t scale;  // float16
    std::int8_t codes[32];
};

struct BlockQ40 {
    std::uint16_t scale;
    std::uint8_t nibbles[16];  // value i low, value i + 16 high
};

struct BlockQ41 {
    std::uint16_t scale;
    std::uint16_t minimum;
    std::uint8_t nibbles[16];
};

struct BlockQ50 {
    std::uint16_t scale;
    std::uint8_t fifth_bits[4];  // bit i belongs to value i
    std::uint8_t nibbles[16];
};

struct BlockQ51 {
    std::uint16_t scale;
    std::uint16_t minimum;
    std::uint8_t fifth_bits[4];
    std::uint8_t nibbles[16];
};

struct BlockQ2K {
    std::uint8_t parameters[16];  // a sub-block's scale low, its minimum high
    std::uint8_t pairs[64];       // in each 128 values: those of i, i + 32, i + 64, i + 96
    std::uint16_t scale;          // of the sub-blocks' scales
    std::uint16_t minimum;        // of the sub-blocks' minima
};

struct BlockQ3K {
    std::uint8_t high_bits[32];  // byte i, bit j belongs to value i of the 32 values j
    std::uint8_t pairs[64];      // low bits, as in q2_k
    std::uint8_t scales[12];     // 16 of 6 bits
    std::uint16_t scale;
};

struct BlockQ4K {
    std::uint16_t scale;          // of the sub-blocks' scales
    std::uint16_t minimum;        // of the sub-blocks' minima
    std::uint8_t parameters[12];  // 8 scales and 8 minima of 6 bits
    std::uint8_t nibbles[128];    // in each 64 values: value i low, value i + 32 high
};

struct BlockQ5K {
    std::uint16_t scale;
    std::uint16_t minimum;
    std::uint8_t parameters[12];
    std::uint8_t fifth_bits[32];  // byte i, bit j belongs to value i of sub-block j
    std::uint8_t nibbles[128];
};

struct BlockQ6K {
    std::uint8_t nibbles[128];
    std::uint8_t high_bits[64];  // two bits a value
    std::int8_t scales[16];
    std::uint16_t scale;
};

static_assert(sizeof(BlockQ80) == 34 && sizeof(BlockQ40) == 18 && sizeof(BlockQ50) == 22);
static_assert(sizeof(BlockQ51) == 24 && sizeof(BlockQ4K) == 144 && sizeof(BlockQ5K) == 176);
static_assert(sizeof(BlockQ6K) == 210 && sizeof(BlockQ41) == 20);
static_assert(sizeof(BlockQ2K) == 84 && sizeof(BlockQ3K) == 110);

}  // namespace phiquant::kernels
