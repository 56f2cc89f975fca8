// Element types of dense tensors, with the names that safetensors files give them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace phiquant {

/// Types of whole bytes only; safetensors' F4 and F6 are packed and are none of these.
enum class DType : std::uint8_t {
    f64,
    f32,
    f16,
    bf16,
    i64,
    i32,
    i16,
    i8,
    u64,
    u32,
    u16,
    u8,
    boolean,
    f8_e4m3,  ///< OCP, finite only: largest 448 ("E4M3FN")
    f8_e5m2,  ///< OCP
    f8_e8m0,  ///< OCP, a power of two: the scales of MX formats
};

struct DTypeFacts {
    DType dtype;
    std::string_view name;  ///< as in safetensors: "BF16"
    std::uint32_t bytes;
};

/// All types, in the order of the enum.
[[nodiscard]] std::span<const DTypeFacts> dtypes() noexcept;

/// Bytes an element.
[[nodiscard]] std::uint32_t size_of(DType dtype) noexcept;

/// The safetensors name: "F32".
[[nodiscard]] std::string_view name_of(DType dtype) noexcept;

/// The type of a safetensors name (case matters), or nothing.
[[nodiscard]] std::optional<DType> dtype_named(std::string_view name) noexcept;

}  // namespace phiquant
