// Text that comes out of files: is it UTF-8, how is it shown in an error, and what is this file?
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace phiquant::formats {

/// The byte offset of the first byte that is not well-formed UTF-8 (RFC 3629: no overlong forms, no
/// surrogates, nothing above U+10FFFF), or nothing when all is well.
[[nodiscard]] std::optional<std::size_t> find_bad_utf8(std::string_view text) noexcept;

/// Append the UTF-8 bytes of a code point that is no surrogate.
void append_utf8(std::string& to, std::uint32_t code_point);

/// `name` fit for one line of a terminal: control characters and bad UTF-8 escaped, long names cut.
[[nodiscard]] std::string shown(std::string_view name);

/// shown(name) in single quotes.
[[nodiscard]] std::string quoted(std::string_view name);

enum class Container : std::uint8_t { safetensors, gguf };

/// What a file that is not in the wanted format is instead, and what to do about it.
struct Impostor {
    std::string cause, remedy;
};

/// Recognise what people name .safetensors or .gguf by mistake from the file's first bytes (8 are
/// enough, 9 tell safetensors): Git-LFS pointers, web pages, JSON, archives, the other container.
/// For files that were found not to be `wanted`; nothing when unknown.
[[nodiscard]] std::optional<Impostor> recognise_impostor(std::span<const std::byte> prefix,
                                                         Container wanted);

}  // namespace phiquant::formats
