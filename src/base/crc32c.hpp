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

}  // namespace phiquant
