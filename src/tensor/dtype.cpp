// The table of element types.
#include "tensor/dtype.hpp"

#include <array>
#include <cstddef>

namespace phiquant {
namespace {

constexpr std::array k_dtypes{
    DTypeFacts{DType::f64, "F64", 8},         DTypeFacts{DType::f32, "F32", 4},
    DTypeFacts{DType::f16, "F16", 2},         DTypeFacts{DType::bf16, "BF16", 2},
    DTypeFacts{DType::i64, "I64", 8},         DTypeFacts{DType::i32, "I32", 4},
    DTypeFacts{DType::i16, "I16", 2},         DTypeFacts{DType::i8, "I8", 1},
    DTypeFacts{DType::u64, "U64", 8},         DTypeFacts{DType::u32, "U32", 4},
    DTypeFacts{DType::u16, "U16", 2},         DTypeFacts{DType::u8, "U8", 1},
    DTypeFacts{DType::boolean, "BOOL", 1},    DTypeFacts{DType::f8_e4m3, "F8_E4M3", 1},
    DTypeFacts{DType::f8_e5m2, "F8_E5M2", 1}, DTypeFacts{DType::f8_e8m0, "F8_E8M0", 1},
};

constexpr bool in_order_of_the_enum() {
    for (std::size_t i = 0; i < k_dtypes.size(); ++i) {
        if (static_cast<std::size_t>(k_dtypes[i].dtype) != i) return false;
    }
    return true;
}
static_assert(in_order_of_the_enum());

}  // namespace

std::span<const DTypeFacts> dtypes() noexcept { return k_dtypes; }

std::uint32_t size_of(DType dtype) noexcept {
    return k_dtypes[static_cast<std::size_t>(dtype)].bytes;
}

std::string_view name_of(DType dtype) noexcept {
    return k_dtypes[static_cast<std::size_t>(dtype)].name;
}

std::optional<DType> dtype_named(std::string_view name) noexcept {
    for (const auto& facts : k_dtypes) {
        if (facts.name == name) return facts.dtype;
    }
    return std::nullopt;
}

}  // namespace phiquant
