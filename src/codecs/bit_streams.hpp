// Codes as little-endian streams of bits, low bits first, and back.
#pragma once

#include <cstdint>
#include <cstring>

namespace phiquant::codecs {

/// Calls run<bits>(), so that loops over bits have no length to look at.
template <class Run>
void with_bits(unsigned bits, const Run& run) noexcept {
    switch (bits) {
        case 2:
            return run.template operator()<2>();
        case 3:
            return run.template operator()<3>();
        case 5:
            return run.template operator()<5>();
        case 6:
            return run.template operator()<6>();
        default:
            return;  // what is left over is packed code by code
    }
}

/// Eight codes fill as many bytes as they have bits. `flip` is what each is changed by.
inline void pack_bits(const std::uint8_t* codes, std::uint64_t count, unsigned bits,
                      std::uint8_t flip, std::uint8_t* out) noexcept {
    const auto code = [&](std::uint64_t i) { return static_cast<std::uint8_t>(codes[i] ^ flip); };
    std::uint64_t i = 0;
    if (bits == 8) {
        for (; i < count; ++i) out[i] = code(i);
    } else if (bits == 4) {
        for (; i + 2 <= count; i += 2) {
            *out++ = static_cast<std::uint8_t>(code(i) | code(i + 1) << 4);
        }
    } else {
        with_bits(bits, [&]<unsigned known>() noexcept {
            for (; i + 8 <= count; i += 8, out += known) {
                std::uint64_t from, word = 0;
                std::memcpy(&from, codes + i, sizeof(from));
                from ^= 0x0101010101010101u * flip;
                for (unsigned k = 0; k < 8; ++k) word |= (from >> 8 * k & 255u) << k * known;
                std::memcpy(out, &word, known);
            }
        });
    }
    std::uint64_t word = 0;
    unsigned filled = 0;
    for (; i < count; ++i) {
        word |= static_cast<std::uint64_t>(code(i)) << filled;
        for (filled += bits; filled >= 8; filled -= 8, word >>= 8) {
            *out++ = static_cast<std::uint8_t>(word);
        }
    }
    if (filled > 0) *out = static_cast<std::uint8_t>(word);
}

/// The inverse of pack_bits.
inline void unpack_bits(const std::uint8_t* bytes, std::uint64_t count, unsigned bits,
                        std::uint8_t flip, std::uint8_t* codes) noexcept {
    const auto mask = static_cast<std::uint8_t>((1u << bits) - 1);
    if (bits == 8) {
        for (std::uint64_t i = 0; i < count; ++i) {
            codes[i] = static_cast<std::uint8_t>(bytes[i] ^ flip);
        }
        return;
    }
    // Eight codes at a time, as eight bytes of one word.
    constexpr std::uint64_t each = 0x0101010101010101u;
    const std::uint64_t flips = each * flip;
    std::uint64_t i = 0;
    if (bits == 4) {
        for (; i + 8 <= count; i += 8) {
            std::uint32_t packed;
            std::memcpy(&packed, bytes + i / 2, sizeof(packed));
            std::uint64_t word = packed;
            word = (word | word << 16) & 0x0000ffff0000ffffu;
            word = (word | word << 8) & 0x00ff00ff00ff00ffu;
            word = ((word | word << 4) & (each * 15)) ^ flips;
            std::memcpy(codes + i, &word, sizeof(word));
        }
    } else {
        with_bits(bits, [&]<unsigned known>() noexcept {
            for (; i + 8 <= count; i += 8) {
                std::uint64_t packed = 0, word = 0;
                // Byte by byte: a load of what several narrower stores have made would wait.
                for (unsigned k = 0; k < known; ++k) {
                    packed |= static_cast<std::uint64_t>(bytes[i / 8 * known + k]) << 8 * k;
                }
                for (unsigned k = 0; k < 8; ++k) word |= (packed >> k * known & mask) << 8 * k;
                word ^= flips;
                std::memcpy(codes + i, &word, sizeof(word));
            }
        });
    }
    for (; i < count; ++i) {
        const std::uint64_t at = i * bits;
        unsigned word = bytes[at / 8];
        if (at % 8 + bits > 8) word |= static_cast<unsigned>(bytes[at / 8 + 1]) << 8;
        codes[i] = static_cast<std::uint8_t>((word >> at % 8 & mask) ^ flip);
    }
}

}  // namespace phiquant::codecs
