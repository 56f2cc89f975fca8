// The 32-bit words of GPTQ and AWQ: codes of a row, or of eight rows in an order of their own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace phiquant::codecs {

/// Words of `rows` rows' codes, written by columns: 32 codes of a row are `bits` words, a stream of
/// bits, and word i of every row stands on line i. `columns` is a multiple of 32.
void pack_gptq(const std::uint8_t* codes, std::uint64_t rows, std::uint64_t columns, unsigned bits,
               std::byte* out) noexcept;

/// The inverse of pack_gptq.
void unpack_gptq(const std::byte* words, std::uint64_t rows, std::uint64_t columns, unsigned bits,
                 std::uint8_t* codes) noexcept;

/// What GPTQ's first version stores of zero points [rows][groups], in place: one less. A zero
/// borrows from the next row in the same word, as its tools subtract from whole words; of 3 bits,
/// which straddle words, each for itself.
void less_one(std::uint8_t* zeros, std::uint64_t rows, std::uint64_t groups,
              unsigned bits) noexcept;

/// The inverse of less_one, with the carry that loaders have.
void plus_one(std::uint8_t* zeros, std::uint64_t rows, std::uint64_t groups,
              unsigned bits) noexcept;

/// Codes of `count` rows (whole eights, else the rest stays) in AWQ's order, in place: 0, 2, 4, 6,
/// 1, 3, 5, 7.
void to_awq_order(std::uint8_t* codes, std::uint64_t count) noexcept;

/// The inverse of to_awq_order.
void from_awq_order(std::uint8_t* codes, std::uint64_t count) noexcept;

}  // namespace phiquant::codecs
