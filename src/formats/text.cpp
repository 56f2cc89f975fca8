// UTF-8 checks, names made safe to show, and the files that pass for weights but are not.
#include "formats/text.hpp"

#include "base/bytes.hpp"

namespace phiquant::formats {
namespace {

constexpr std::size_t k_longest_shown = 120;

/// Bytes of the well-formed sequence at the start of `text`, or 0.
std::size_t sequence_length(std::string_view text) noexcept {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const auto lead = byte(0);
    if (lead < 0x80) return 1;
    if (lead < 0xC2 || lead > 0xF4) return 0;
    const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    if (text.size() < length) return 0;
    // The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF.
    const unsigned char lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const unsigned char highest = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (byte(1) < lowest || byte(1) > highest) return 0;
    for (std::size_t i = 2; i < length; ++i) {
        if (byte(i) < 0x80 || byte(i) > 0xBF) return 0;
    }
    return length;
}

}  // namespace

std::optional<std::size_t> find_bad_utf8(std::string_view text) noexcept {
    std::size_t at = 0;
    while (at < text.size()) {
        // Headers are ASCII almost everywhere: eight bytes a step.
        while (text.size() - at >= 8 && (load_little_endian<std::uint64_t>(
                                             reinterpret_cast<const std::byte*>(text.data() + at)) &
                                         0x8080808080808080U) == 0) {
            at += 8;
        }
        if (at == text.size()) break;
        const std::size_t length = sequence_length(text.substr(at));
        if (length == 0) return at;
        at += length;
    }
    return std::nullopt;
}

void append_utf8(std::string& to, std::uint32_t code_point) {
    const auto put = [&](std::uint32_t byte) { to.push_back(static_cast<char>(byte)); };
    if (code_point < 0x80) {
        put(code_point);
    } else if (code_point < 0x800) {
        put(0xC0 | (code_point >> 6));
        put(0x80 | (code_point & 0x3F));
    } else if (code_point < 0x10000) {
        put(0xE0 | (code_point >> 12));
        put(0x80 | ((code_point >> 6) & 0x3F));
        put(0x80 | (code_point & 0x3F));
    } else {
        put(0xF0 | (code_point >> 18));
        put(0x80 | ((code_point >> 12) & 0x3F));
        put(0x80 | ((code_point >> 6) & 0x3F));
        put(0x80 | (code_point & 0x3F));
    }
}

std::string shown(std::string_view name) {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string out;
    std::size_t at = 0;
    while (at < name.size()) {
        if (out.size() >= k_longest_shown) return out + "...";
        const auto byte = static_cast<unsigned char>(name[at]);
        const std::size_t length = sequence_length(name.substr(at));
        // C2 80..9F are the C1 controls, which terminals obey as well.
        const bool control =
            byte < 0x20 || byte == 0x7F ||
            (byte == 0xC2 && length == 2 && static_cast<unsigned char>(name[at + 1]) < 0xA0);
        if (length == 0 || control) {
            out += "\\x";
            out += digits[byte >> 4];
            out += digits[byte & 15];
            ++at;
        } else {
            out += name.substr(at, length);
            at += length;
        }
    }
    return out;
}

std::string quoted(std::string_view name) { return "'" + shown(name) + "'"; }

std::optional<Impostor> recognise_impostor(std::span<const std::byte> prefix, Container wanted) {
    std::string_view text = as_text(prefix);
    const std::string again = "Fetch the file again, and check its address and your access rights.";
    if (text.starts_with("version ")) {
        return Impostor{"is a Git-LFS pointer, not the file that it points to",
                        "Run 'git lfs pull' in the model's folder, or fetch the file itself."};
    }
    if (wanted != Container::gguf && text.starts_with("GGUF")) {
        return Impostor{"is a GGUF file, not a safetensors file", "Rename it to end in .gguf."};
    }
    if (text.starts_with("PK\x03\x04") || text.starts_with("\x80\x02") ||
        text.starts_with("\x80\x04")) {
        return Impostor{"is a PyTorch pickle or a ZIP archive, which can run code when loaded",
                        "Fetch the model's .safetensors files instead."};
    }
    if (text.starts_with("\x1f\x8b")) {
        return Impostor{"is compressed with gzip", "Unpack it with gunzip first."};
    }
    if (wanted != Container::safetensors && text.size() > 8 && text[8] == '{' &&
        load_little_endian<std::uint64_t>(prefix.data()) <= 100'000'000) {
        return Impostor{"looks like a safetensors file", "Rename it to end in .safetensors."};
    }
    if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
    const auto first = text.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos) return std::nullopt;
    if (text[first] == '<') {
        return Impostor{"is a web page or XML (it starts with '<'), not a file of weights", again};
    }
    if (text[first] == '{') {
        return Impostor{"is JSON text (it starts with '{'), perhaps a server's error message",
                        again};
    }
    return std::nullopt;
}

}  // namespace phiquant::formats
