// CRC-32C by the processor's instruction where there is one, by slicing tables elsewhere.
#include "base/crc32c.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace phiquant {
namespace {

constexpr std::uint32_t k_polynomial = 0x82f63b78;  // reflected 0x1EDC6F41

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables make_tables() {
    Tables tables{};
    for (std::uint32_t n = 0; n < 256; ++n) {
        std::uint32_t c = n;
        for (int bit = 0; bit < 8; ++bit) c = (c & 1) != 0 ? (c >> 1) ^ k_polynomial : c >> 1;
        tables[0][n] = c;
    }
    for (std::uint32_t n = 0; n < 256; ++n) {
        for (std::size_t t = 1; t < 8; ++t) {
            const std::uint32_t c = tables[t - 1][n];
            tables[t][n] = (c >> 8) ^ tables[0][c & 255];
        }
    }
    return tables;
}

constexpr Tables k_tables = make_tables();

std::uint32_t update_plain(std::uint32_t crc, const std::byte* p, std::size_t n) noexcept {
    for (; n >= 8; n -= 8, p += 8) {
        std::array<std::uint8_t, 8> b{};
        std::memcpy(b.data(), p, 8);
        crc = k_tables[7][(crc & 255) ^ b[0]] ^ k_tables[6][((crc >> 8) & 255) ^ b[1]] ^
              k_tables[5][((crc >> 16) & 255) ^ b[2]] ^ k_tables[4][(crc >> 24) ^ b[3]] ^
              k_tables[3][b[4]] ^ k_tables[2][b[5]] ^ k_tables[1][b[6]] ^ k_tables[0][b[7]];
    }
    for (; n > 0; --n, ++p) {
        crc = (crc >> 8) ^ k_tables[0][(crc ^ static_cast<std::uint8_t>(*p)) & 255];
    }
    return crc;
}

// (a * b) mod P, both reflected.
std::uint32_t multiply(std::uint32_t a, std::uint32_t b) noexcept {
    std::uint32_t product = 0;
    for (std::uint32_t mask = std::uint32_t{1} << 31; mask != 0; mask >>= 1) {
        if ((a & mask) != 0) product ^= b;
        b = (b & 1) != 0 ? (b >> 1) ^ k_polynomial : b >> 1;
    }
    return product;
}

// x^(8 n) mod P, by repeated squaring.
std::uint32_t power_of_x8(std::uint64_t n) noexcept {
    std::uint32_t result = std::uint32_t{1} << 31;  // x^0
    std::uint32_t base = std::uint32_t{1} << 23;    // x^8
    for (; n != 0; n >>= 1) {
        if ((n & 1) != 0) result = multiply(result, base);
        base = multiply(base, base);
    }
    return result;
}

#if defined(__x86_64__)
// Three streams at once: the instruction has a latency of three cycles and a throughput of one.
constexpr std::size_t k_stream = 4096;

__attribute__((target("sse4.2"))) std::uint32_t update_sse42(std::uint32_t crc, const std::byte* p,
                                                             std::size_t n) noexcept {
    static const std::uint32_t shift = power_of_x8(k_stream);
    const auto load = [](const std::byte* at) {
        std::uint64_t word;
        std::memcpy(&word, at, 8);
        return word;
    };
    for (; n >= 3 * k_stream; n -= 3 * k_stream, p += 3 * k_stream) {
        std::uint64_t a = crc, b = 0, c = 0;
        for (std::size_t i = 0; i < k_stream; i += 8) {
            a = _mm_crc32_u64(a, load(p + i));
            b = _mm_crc32_u64(b, load(p + i + k_stream));
            c = _mm_crc32_u64(c, load(p + i + 2 * k_stream));
        }
        crc = multiply(shift, static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b);
        crc = multiply(shift, crc) ^ static_cast<std::uint32_t>(c);
    }
    std::uint64_t wide = crc;
    for (; n >= 8; n -= 8, p += 8) wide = _mm_crc32_u64(wide, load(p));
    crc = static_cast<std::uint32_t>(wide);
    for (; n > 0; --n, ++p) crc = _mm_crc32_u8(crc, static_cast<std::uint8_t>(*p));
    return crc;
}
#endif

std::uint32_t update(std::uint32_t crc, const std::byte* p, std::size_t n) noexcept {
#if defined(__x86_64__)
    static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
    if (has_instruction) return update_sse42(crc, p, n);
#elif defined(__ARM_FEATURE_CRC32)
    for (; n >= 8; n -= 8, p += 8) {
        std::uint64_t word;
        std::memcpy(&word, p, 8);
        crc = __crc32cd(crc, word);
    }
#endif
    return update_plain(crc, p, n);
}

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t crc) noexcept {
    return ~update(~crc, bytes.data(), bytes.size());
}

std::uint32_t crc32c_join(std::uint32_t first, std::uint32_t second,
                          std::uint64_t second_length) noexcept {
    return multiply(power_of_x8(second_length), first) ^ second;
}

Crc32cShift::Crc32cShift(std::uint64_t length) noexcept {
    const std::uint32_t power = power_of_x8(length);
    for (unsigned byte = 0; byte < 4; ++byte) {
        for (std::uint32_t value = 0; value < 256; ++value) {
            table_[byte][value] = multiply(power, value << 8 * byte);
        }
    }
}

std::uint32_t crc32c_raw(std::span<const std::byte> bytes) noexcept {
    return update(0, bytes.data(), bytes.size());
}

std::uint32_t crc32c_raw_shift(std::uint32_t raw, std::uint64_t length) noexcept {
    return multiply(power_of_x8(length), raw);
}

std::uint32_t crc32c_of_raw(std::uint32_t raw, std::uint64_t length) noexcept {
    return raw ^ ~crc32c_raw_shift(~std::uint32_t{0}, length);
}

}  // namespace phiquant
