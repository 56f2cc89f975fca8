// The strict JSON reader, and JSON strings written.
#include "formats/json_cursor.hpp"

#include "base/checked.hpp"
#include "base/error.hpp"
#include "formats/text.hpp"

namespace phiquant::formats {

JsonCursor::JsonCursor(std::string_view text) : text_(text) {
    if (const auto bad = find_bad_utf8(text)) {
        throw Error(ErrorKind::format,
                    "the header is not UTF-8 text (byte " + std::to_string(*bad) + " of it)",
                    "The file is damaged: fetch it again.");
    }
}

void JsonCursor::fail(const std::string& complaint) const {
    throw Error(ErrorKind::format,
                "the header is wrong at its byte " + std::to_string(at_) + ": " + complaint,
                "The file is damaged or was not made by a safetensors writer: fetch it again.");
}

std::string JsonCursor::found() const {
    if (at_ >= text_.size()) return "the header's end";
    if (text_[at_] == '[' || text_[at_] == '{') {
        return std::string("a nested '") + text_[at_] + "'";
    }
    return quoted(text_.substr(at_, 1));
}

void JsonCursor::skip_space() noexcept {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
        ++at_;
    }
}

bool JsonCursor::try_take(char mark) noexcept {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != mark) return false;
    ++at_;
    return true;
}

void JsonCursor::expect(char mark, std::string_view what) {
    if (!try_take(mark)) fail("expected " + std::string(what) + ", found " + found());
}

void JsonCursor::expect_end() {
    skip_space();
    if (at_ != text_.size()) fail("text follows the closing brace: " + found());
}

std::uint32_t JsonCursor::read_hex4() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
        const char digit = at_ < text_.size() ? text_[at_] : '\0';
        value <<= 4;
        if (digit >= '0' && digit <= '9') {
            value |= static_cast<std::uint32_t>(digit - '0');
        } else if (digit >= 'a' && digit <= 'f') {
            value |= static_cast<std::uint32_t>(digit - 'a' + 10);
        } else if (digit >= 'A' && digit <= 'F') {
            value |= static_cast<std::uint32_t>(digit - 'A' + 10);
        } else {
            fail("\\u needs four hexadecimal digits");
        }
    }
    return value;
}

void JsonCursor::read_escape(std::string& out) {
    const char kind = at_ < text_.size() ? text_[at_] : '\0';
    ++at_;
    switch (kind) {
        case '"':
        case '\\':
        case '/':
            out.push_back(kind);
            return;
        case 'b':
            out.push_back('\b');
            return;
        case 'f':
            out.push_back('\f');
            return;
        case 'n':
            out.push_back('\n');
            return;
        case 'r':
            out.push_back('\r');
            return;
        case 't':
            out.push_back('\t');
            return;
        case 'u':
            break;
        default:
            --at_;
            fail("an unknown escape in a string");
    }
    std::uint32_t code = read_hex4();
    if (code >= 0xDC00 && code < 0xE000) fail("a low surrogate without its high one");
    if (code >= 0xD800 && code < 0xDC00) {
        if (text_.substr(at_, 2) != "\\u") fail("a high surrogate without its low one");
        at_ += 2;
        const std::uint32_t low = read_hex4();
        if (low < 0xDC00 || low >= 0xE000) fail("a high surrogate without its low one");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(out, code);
}

std::string JsonCursor::read_string(std::string_view what) {
    expect('"', what);
    std::string out;
    for (;;) {
        const std::size_t start = at_;
        while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
               static_cast<unsigned char>(text_[at_]) >= 0x20) {
            ++at_;
        }
        out += text_.substr(start, at_ - start);
        if (at_ >= text_.size()) fail("a string does not end");
        const char mark = text_[at_];
        if (mark != '"' && mark != '\\') fail("a control character in a string");
        ++at_;
        if (mark == '"') return out;
        read_escape(out);
    }
}

std::uint64_t JsonCursor::read_unsigned(std::string_view what) {
    skip_space();
    const auto is_digit = [&] {
        return at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9';
    };
    const std::string name(what);
    if (at_ < text_.size() && text_[at_] == '-') fail(name + " is negative");
    if (!is_digit()) fail("expected " + name + ", a whole number, found " + found());
    const std::size_t start = at_;
    std::optional<std::uint64_t> value = 0;
    for (; is_digit(); ++at_) {
        value = try_multiply(*value, 10);
        if (value) value = try_add(*value, static_cast<std::uint64_t>(text_[at_] - '0'));
        if (!value) fail(name + " does not fit in 64 bits");
    }
    if (at_ - start > 1 && text_[start] == '0') fail(name + " starts with a zero");
    if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) {
        fail(name + " is not a whole number");
    }
    return *value;
}

std::string json_quoted(std::string_view text) {
    constexpr std::string_view digits = "0123456789abcdef";
    std::string out = "\"";
    for (const char letter : text) {
        const auto byte = static_cast<unsigned char>(letter);
        switch (letter) {
            case '"':
                out += "\\\"";
                break;
            case '\\':
                out += "\\\\";
                break;
            case '\b':
                out += "\\b";
                break;
            case '\f':
                out += "\\f";
                break;
            case '\n':
                out += "\\n";
                break;
            case '\r':
                out += "\\r";
                break;
            case '\t':
                out += "\\t";
                break;
            default:
                if (byte < 0x20) {
                    out += "\\u00";
                    out += digits[byte >> 4];
                    out += digits[byte & 15];
                } else {
                    out += letter;
                }
        }
    }
    out += '"';
    return out;
}

}  // namespace phiquant::formats
