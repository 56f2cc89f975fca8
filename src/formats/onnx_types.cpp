// The element types of ONNX tensors, and how many bytes a tensor takes.
#include <algorithm>
#include <array>

#include "base/checked.hpp"
#include "formats/onnx.hpp"
#include "formats/text.hpp"

namespace phiquant::formats {
namespace {

constexpr std::array k_types = {
    OnnxType{1, "float32", 32},
    OnnxType{2, "uint8", 8},
    OnnxType{3, "int8", 8},
    OnnxType{4, "uint16", 16},
    OnnxType{5, "int16", 16},
    OnnxType{6, "int32", 32},
    OnnxType{7, "int64", 64},
    OnnxType{9, "bool", 8},
    OnnxType{10, "float16", 16},
    OnnxType{11, "float64", 64},
    OnnxType{12, "uint32", 32},
    OnnxType{13, "uint64", 64},
    OnnxType{16, "bfloat16", 16},
    OnnxType{17, "float8_e4m3fn", 8},
    OnnxType{18, "float8_e4m3fnuz", 8},
    OnnxType{19, "float8_e5m2", 8},
    OnnxType{20, "float8_e5m2fnuz", 8},
    OnnxType{21, "uint4", 4},
    OnnxType{22, "int4", 4},
    OnnxType{23, "float4_e2m1fn", 4},
    OnnxType{24, "float8_e8m0fnu", 8},
    OnnxType{25, "uint2", 2},
    OnnxType{26, "int2", 2},
};

[[noreturn]] void refuse_tensor(const OnnxTensor& tensor, const std::string& cause) {
    throw Error(ErrorKind::format, {}, shown(tensor.name), cause,
                "The file is damaged or incomplete: fetch it again.");
}

}  // namespace

std::span<const OnnxType> onnx_types() noexcept { return k_types; }

const OnnxType* onnx_type(std::int32_t id) noexcept {
    const auto found = std::find_if(k_types.begin(), k_types.end(),
                                    [&](const OnnxType& type) { return type.id == id; });
    return found == k_types.end() ? nullptr : &*found;
}

std::uint64_t onnx_tensor_bytes(const OnnxTensor& tensor) {
    const OnnxType* type = onnx_type(tensor.type);
    if (type == nullptr) {
        refuse_tensor(
            tensor, "has the element type " + std::to_string(tensor.type) + ", which is not read");
    }
    std::optional<std::uint64_t> bits = type->bits;
    for (const auto extent : tensor.dims) {
        if (extent < 0) {
            refuse_tensor(tensor, "has a dimension of " + std::to_string(extent));
        }
        if (bits) bits = try_multiply(*bits, static_cast<std::uint64_t>(extent));
    }
    if (bits) bits = try_add(*bits, 7);
    if (!bits) refuse_tensor(tensor, "has a size that overflows 64 bits");
    return *bits / 8;
}

}  // namespace phiquant::formats
