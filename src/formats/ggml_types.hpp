// The tensor types of GGUF files: ids, names and block sizes of every type that ggml has.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace phiquant::formats {

/// A ggml type as a container sees it: how many bytes hold how many values. Which of them phiquant
/// can encode or decode is the table of codecs' matter.
struct GgmlType {
    std::uint32_t id;
    std::string_view name;  ///< ggml's own, in lower case: "q4_k"
    std::uint32_t block_values, block_bytes;
};

/// All types, by id; removed ids are absent. Source: ggml.h, enum ggml_type, and the block structs
/// of ggml-common.h (ggml 0.25).
[[nodiscard]] std::span<const GgmlType> ggml_types() noexcept;

/// A type by its id, or null when there is none (any more).
[[nodiscard]] const GgmlType* find_ggml_type(std::uint32_t id) noexcept;

/// The name of a type that was once in ggml and has been removed, or an empty view.
[[nodiscard]] std::string_view removed_ggml_type(std::uint32_t id) noexcept;

}  // namespace phiquant::formats
