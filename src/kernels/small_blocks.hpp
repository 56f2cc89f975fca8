// The blocks of ggml's formats below 4.5 bits and of its 4-bit floats, as they lie in memory
// (ggml-common.h); all little-endian.
#pragma once

#include <cstdint>

namespace phiquant::kernels {

struct BlockQ10 {  // 128 values
    std::uint16_t scale;
    std::uint8_t bits[16];  // set where the value is positive or zero
};

struct BlockQ20 {  // 64 values
    std::uint16_t scale;
    std::uint8_t codes[16];  // 4 values a byte, the first in the lowest bits
};

struct BlockTQ10 {           // 256 values
    std::uint8_t fives[48];  // 5 values of 3 levels a byte, as a fraction of 256
    std::uint8_t fours[4];
    std::uint16_t scale;
};

struct BlockTQ20 {           // 256 values
    std::uint8_t codes[64];  // 4 values a byte, 32 apart
    std::uint16_t scale;
};

struct BlockMXFP4 {            // 32 values
    std::uint8_t exponent;     // E8M0
    std::uint8_t nibbles[16];  // E2M1: value i low, value i + 16 high
};

struct BlockNVFP4 {            // 64 values
    std::uint8_t scales[4];    // E4M3 without sign, one for 16 values
    std::uint8_t nibbles[32];  // in each 16 values: value i low, value i + 8 high
};

struct BlockIQ4NL {  // 32 values
    std::uint16_t scale;
    std::uint8_t nibbles[16];
};

struct BlockIQ4XS {  // 256 values
    std::uint16_t scale;
    std::uint16_t scales_high;   // two bits for each of 8 sub-blocks
    std::uint8_t scales_low[4];  // four bits each
    std::uint8_t nibbles[128];
};

struct BlockIQ2XXS {
    std::uint16_t scale;
    std::uint16_t codes[32];  // each 32 values: 4 indices of 8 bits, 4 signs of 7 bits, 4-bit scale
};

struct BlockIQ2XS {
    std::uint16_t scale;
    std::uint16_t codes[32];  // index of 9 bits, signs of 7 bits
    std::uint8_t scales[8];
};

struct BlockIQ2S {
    std::uint16_t scale;
    std::uint8_t indices[32];
    std::uint8_t signs[32];
    std::uint8_t indices_high[8];  // two bits each
    std::uint8_t scales[8];
};

struct BlockIQ3XXS {
    std::uint16_t scale;
    std::uint8_t indices[64];
    std::uint8_t signs_and_scales[32];  // each 32 values: 4 signs of 7 bits, 4-bit scale
};

struct BlockIQ3S {
    std::uint16_t scale;
    std::uint8_t indices[64];
    std::uint8_t indices_high[8];  // one bit each
    std::uint8_t signs[32];
    std::uint8_t scales[4];
};

struct BlockIQ1S {
    std::uint16_t scale;
    std::uint8_t indices[32];
    std::uint16_t parameters[8];  // each 32 values: 4 times 3 bits of indices, 3-bit scale, shift
};

struct BlockIQ1M {
    std::uint8_t indices[32];
    std::uint8_t indices_high[16];  // nibbles: 3 bits of the index, and the shift
    std::uint16_t scales[4];        // four scales of 3 bits, and a quarter of the float16 scale
};

static_assert(sizeof(BlockQ10) == 18 && sizeof(BlockQ20) == 18 && sizeof(BlockTQ10) == 54);
static_assert(sizeof(BlockTQ20) == 66 && sizeof(BlockMXFP4) == 17 && sizeof(BlockNVFP4) == 36);
static_assert(sizeof(BlockIQ4NL) == 18 && sizeof(BlockIQ4XS) == 136 && sizeof(BlockIQ1M) == 56);
static_assert(sizeof(BlockIQ2XXS) == 66 && sizeof(BlockIQ2XS) == 74 && sizeof(BlockIQ2S) == 82);
static_assert(sizeof(BlockIQ3XXS) == 98 && sizeof(BlockIQ3S) == 110 && sizeof(BlockIQ1S) == 50);

}  // namespace phiquant::kernels
