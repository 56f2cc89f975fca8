// What GGUF's reader and writer share: names of types, alignments, the size of a tensor.
#include <algorithm>
#include <array>

#include "base/checked.hpp"
#include "formats/ggml_types.hpp"
#include "formats/gguf.hpp"
#include "formats/text.hpp"

namespace phiquant::formats {
namespace {

constexpr std::array<std::string_view, 13> k_type_names{
    "uint8", "int8",   "uint16", "int16",  "uint32", "int32",  "float32",
    "bool",  "string", "array",  "uint64", "int64",  "float64"};

[[noreturn]] void refuse(const GgufTensor& tensor, ErrorKind kind, const std::string& cause,
                         std::string remedy = {}) {
    if (remedy.empty() && kind == ErrorKind::format) {
        remedy = "The file is damaged: fetch it again.";
    }
    throw Error(kind, {}, shown(tensor.name), "tensor " + quoted(tensor.name) + " " + cause,
                std::move(remedy));
}

}  // namespace

std::string_view name_of(GgufType type) noexcept {
    return k_type_names[static_cast<std::size_t>(type)];
}

std::optional<GgufType> gguf_type_named(std::string_view name) noexcept {
    const auto found = std::find(k_type_names.begin(), k_type_names.end(), name);
    if (found == k_type_names.end()) return std::nullopt;
    return static_cast<GgufType>(found - k_type_names.begin());
}

bool is_gguf_alignment(std::uint64_t alignment) noexcept {
    return alignment >= 8 && alignment <= (std::uint64_t{1} << 20) &&
           (alignment & (alignment - 1)) == 0;
}

std::uint64_t gguf_tensor_bytes(const GgufTensor& tensor, ErrorKind kind) {
    if (tensor.dims.empty() || tensor.dims.size() > 4) {
        refuse(tensor, kind,
               "has " + std::to_string(tensor.dims.size()) + " dimensions, not 1 to 4");
    }
    const GgmlType* type = find_ggml_type(tensor.type);
    if (type == nullptr) {
        const auto removed = removed_ggml_type(tensor.type);
        if (removed.empty()) {
            refuse(tensor, kind, "has the unknown type " + std::to_string(tensor.type),
                   "The file is damaged, or newer than this phiquant.");
        }
        refuse(tensor, kind == ErrorKind::format ? ErrorKind::unsupported : kind,
               "has the type " + std::string(removed) + ", which ggml has removed",
               "Make the file again from the original model.");
    }
    for (const auto extent : tensor.dims) {
        if (extent == 0) refuse(tensor, kind, "has a dimension of 0");
    }
    if (tensor.dims[0] % type->block_values != 0) {
        refuse(tensor, kind,
               "has rows of " + std::to_string(tensor.dims[0]) +
                   " values, not a multiple of the block size of " + std::string(type->name) +
                   " (" + std::to_string(type->block_values) + ")");
    }
    // The number of values too must fit, into ggml's signed 64 bits.
    const auto values = try_product(tensor.dims);
    const auto bytes =
        values ? try_multiply(*values / type->block_values, type->block_bytes) : std::nullopt;
    if (!bytes || *values > static_cast<std::uint64_t>(INT64_MAX) ||
        *bytes > static_cast<std::uint64_t>(INT64_MAX)) {
        refuse(tensor, kind, "has a shape whose size overflows 63 bits");
    }
    return *bytes;
}

}  // namespace phiquant::formats
