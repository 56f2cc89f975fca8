// CRC-32C (Castagnoli, RFC 3720), which pieces computed in any order can be joined into.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace phiquant {

/// CRC-32C of `bytes`, continuing from `crc` (0 to begin).
[[nodiscard]] std::uint32_t crc32c(std::span<const std::byte> bytes,
                                   std::uint32_t crc = 0) noexcept;

/// CRC-32C of A followed by B, from crc(A), crc(B) and the length of B: shifting a CRC by n zero
/// bytes is a multiplication by x^(8n) in GF(2)[x] modulo the polynomial (as zlib's crc32_combine).
[[nodiscard]] std::uint32_t crc32c_join(std::uint32_t first, std::uint32_t second,
                                        std::uint64_t second_length) noexcept;

/// Sums of CRCs for pieces that stand apart: as polynomials they add up. The raw CRC of a piece is
/// that of the piece with zeros around it, without CRC-32C's inversions.
class Crc32cShift {
public:
    /// Shifts by `length` bytes, always the same.
    explicit Crc32cShift(std::uint64_t length) noexcept;
    [[nodiscard]] std::uint32_t operator()(std::uint32_t raw) const noexcept {
        return table_[0][raw & 255] ^ table_[1][raw >> 8 & 255] ^ table_[2][raw >> 16 & 255] ^
               table_[3][raw >> 24];
    }

private:
    std::uint32_t table_[4][256];
};

/// The raw CRC of `bytes`.
[[nodiscard]] std::uint32_t crc32c_raw(std::span<const std::byte> bytes) noexcept;

/// The raw CRC of a piece when `length` zero bytes follow it.
[[nodiscard]] std::uint32_t crc32c_raw_shift(std::uint32_t raw, std::uint64_t length) noexcept;

/// The CRC-32C of `length` bytes whose raw CRC is `raw`.
[[nodiscard]] std::uint32_t crc32c_of_raw(std::uint32_t raw, std::uint64_t length) noexcept;

}  // namespace phiquant
