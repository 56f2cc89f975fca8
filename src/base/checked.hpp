// Arithmetic on sizes that come from files: an overflow is an error, never a wrapped number.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>

#include "base/error.hpp"

namespace phiquant {

/// a + b, or nothing when it does not fit in 64 bits.
[[nodiscard]] constexpr std::optional<std::uint64_t> try_add(std::uint64_t a,
                                                             std::uint64_t b) noexcept {
    if (a > std::numeric_limits<std::uint64_t>::max() - b) return std::nullopt;
    return a + b;
}

/// a * b, or nothing when it does not fit in 64 bits.
[[nodiscard]] constexpr std::optional<std::uint64_t> try_multiply(std::uint64_t a,
                                                                  std::uint64_t b) noexcept {
    if (b != 0 && a > std::numeric_limits<std::uint64_t>::max() / b) return std::nullopt;
    return a * b;
}

/// The product of all extents, or nothing when it does not fit in 64 bits.
[[nodiscard]] constexpr std::optional<std::uint64_t> try_product(
    std::span<const std::uint64_t> extents) noexcept {
    std::optional<std::uint64_t> total = 1;
    for (const std::uint64_t extent : extents) {
        total = try_multiply(*total, extent);
        if (!total) return std::nullopt;
    }
    return total;
}

/// `value` rounded up to a multiple of `alignment` (a power of two), or nothing on overflow.
[[nodiscard]] constexpr std::optional<std::uint64_t> try_align(std::uint64_t value,
                                                               std::uint64_t alignment) noexcept {
    const auto raised = try_add(value, alignment - 1);
    if (!raised) return std::nullopt;
    return *raised & ~(alignment - 1);
}

[[nodiscard]] inline std::uint64_t checked_add(std::uint64_t a, std::uint64_t b) {
    if (const auto sum = try_add(a, b)) return *sum;
    throw Error(ErrorKind::format, "a sum of sizes overflows 64 bits");
}

[[nodiscard]] inline std::uint64_t checked_multiply(std::uint64_t a, std::uint64_t b) {
    if (const auto product = try_multiply(a, b)) return *product;
    throw Error(ErrorKind::format, "a product of sizes overflows 64 bits");
}

}  // namespace phiquant
