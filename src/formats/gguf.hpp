// The GGUF container (versions 2 and 3, little-endian): its header read without trust, and written.
//
// The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What it leaves open is
// decided here: arrays of arrays are refused, as in llama.cpp; so are tensors without dimensions or
// with a dimension of 0; holes between tensors and bytes after the last one are let pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.hpp"

namespace phiquant::formats {

/// Types of metadata values, with the ids that files hold.
enum class GgufType : std::uint32_t {
    uint8,
    int8,
    uint16,
    int16,
    uint32,
    int32,
    float32,
    boolean,
    string,
    array,
    uint64,
    int64,
    float64,
};

/// Strings are bytes: tokens of real vocabularies are not always UTF-8.
using GgufArray =
    std::variant<std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>,
                 std::vector<std::int16_t>, std::vector<std::uint32_t>, std::vector<std::int32_t>,
                 std::vector<float>, std::vector<bool>, std::vector<std::string>,
                 std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<double>>;

using GgufValue = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t,
                               std::uint32_t, std::int32_t, float, bool, std::string, std::uint64_t,
                               std::int64_t, double, GgufArray>;

struct GgufEntry {
    std::string key;
    GgufValue value;
};

struct GgufTensor {
    std::string name;
    std::vector<std::uint64_t> dims;  ///< 1 to 4, in GGUF's order: the row's length first
    std::uint32_t type = 0;           ///< id in ggml_types()
    std::uint64_t offset = 0;         ///< first byte, from the file's start
    std::uint64_t bytes = 0;
};

struct GgufHeader {
    std::uint32_t version = 3;
    std::uint64_t alignment = 32;
    std::uint64_t data_offset = 0;  ///< where the data section starts in the file
    std::vector<GgufEntry> metadata;
    std::vector<GgufTensor> tensors;
};

inline constexpr std::uint64_t k_gguf_default_alignment = 32;
/// Longest header, of which a vocabulary of a million tokens takes a quarter.
inline constexpr std::uint64_t k_gguf_longest_header = std::uint64_t{128} << 20;
/// llama.cpp refuses tensor names of this many bytes or more (GGML_MAX_NAME).
inline constexpr std::size_t k_gguf_tensor_name_limit = 64;

/// "uint32", "string", ...: gguf-py's names in lower case.
[[nodiscard]] std::string_view name_of(GgufType type) noexcept;
[[nodiscard]] std::optional<GgufType> gguf_type_named(std::string_view name) noexcept;

/// Read the header of a file of `file_size` bytes from its start.
///
/// `start` may be the whole (mapped) file or a part of it. Nothing is returned when the header goes
/// on past a `start` that is shorter than the file: call again with more. Memory stays within a
/// small multiple of `start`: every count is held against the bytes that are left before anything
/// is allocated. Throws Error(format) for damaged files, Error(unsupported) for version 1, versions
/// above 3, big-endian files, removed tensor types and headers past the limits.
[[nodiscard]] std::optional<GgufHeader> try_parse_gguf(std::span<const std::byte> start,
                                                       std::uint64_t file_size);

/// The same for a `start` that must hold the whole header: Error(format) when it does not.
[[nodiscard]] GgufHeader parse_gguf(std::span<const std::byte> start, std::uint64_t file_size);

struct GgufLayout {
    std::vector<std::byte> header;    ///< the file's first bytes, padded up to the data section
    std::vector<GgufTensor> tensors;  ///< as given, with offset and bytes filled in
    std::uint64_t file_size = 0;      ///< the last tensor is padded too, as llama.cpp does
};

/// Lay out a file as gguf-py and llama-quantize do: metadata and tensors in the given order, every
/// tensor's data padded with zeros to a multiple of `alignment` (offset and bytes are ignored).
///
/// `alignment` must be what the metadata say in `general.alignment` (a uint32), or 32 without that
/// key. Throws Error(usage) for what the reader or llama.cpp would refuse.
[[nodiscard]] GgufLayout write_gguf_header(const std::vector<GgufEntry>& metadata,
                                           std::vector<GgufTensor> tensors,
                                           std::uint64_t alignment = k_gguf_default_alignment,
                                           std::uint32_t version = 3);

/// The bytes of a tensor's data. Throws Error(`kind`) when type and dims make no sense together.
[[nodiscard]] std::uint64_t gguf_tensor_bytes(const GgufTensor& tensor, ErrorKind kind);

/// Whether this can be a file's alignment: a power of two from 8 to 1 MiB.
[[nodiscard]] bool is_gguf_alignment(std::uint64_t alignment) noexcept;

/// Call `visit(std::type_identity<T>{})` with the C++ type of a metadata type that is no array.
template <class Visit>
decltype(auto) with_gguf_type(GgufType type, Visit&& visit) {
    switch (type) {
        case GgufType::uint8:
            return visit(std::type_identity<std::uint8_t>{});
        case GgufType::int8:
            return visit(std::type_identity<std::int8_t>{});
        case GgufType::uint16:
            return visit(std::type_identity<std::uint16_t>{});
        case GgufType::int16:
            return visit(std::type_identity<std::int16_t>{});
        case GgufType::uint32:
            return visit(std::type_identity<std::uint32_t>{});
        case GgufType::int32:
            return visit(std::type_identity<std::int32_t>{});
        case GgufType::float32:
            return visit(std::type_identity<float>{});
        case GgufType::boolean:
            return visit(std::type_identity<bool>{});
        case GgufType::string:
            return visit(std::type_identity<std::string>{});
        case GgufType::uint64:
            return visit(std::type_identity<std::uint64_t>{});
        case GgufType::int64:
            return visit(std::type_identity<std::int64_t>{});
        case GgufType::float64:
            return visit(std::type_identity<double>{});
        case GgufType::array:
            break;
    }
    throw Error(ErrorKind::internal, "an array has no single C++ type");
}

/// The metadata type that holds a C++ type.
template <class T>
[[nodiscard]] constexpr GgufType gguf_type_of() noexcept {
    if constexpr (std::is_same_v<T, std::uint8_t>) return GgufType::uint8;
    if constexpr (std::is_same_v<T, std::int8_t>) return GgufType::int8;
    if constexpr (std::is_same_v<T, std::uint16_t>) return GgufType::uint16;
    if constexpr (std::is_same_v<T, std::int16_t>) return GgufType::int16;
    if constexpr (std::is_same_v<T, std::uint32_t>) return GgufType::uint32;
    if constexpr (std::is_same_v<T, std::int32_t>) return GgufType::int32;
    if constexpr (std::is_same_v<T, float>) return GgufType::float32;
    if constexpr (std::is_same_v<T, bool>) return GgufType::boolean;
    if constexpr (std::is_same_v<T, std::string>) return GgufType::string;
    if constexpr (std::is_same_v<T, std::uint64_t>) return GgufType::uint64;
    if constexpr (std::is_same_v<T, std::int64_t>) return GgufType::int64;
    if constexpr (std::is_same_v<T, double>) return GgufType::float64;
    return GgufType::array;
}

}  // namespace phiquant::formats
