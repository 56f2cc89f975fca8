// A strict JSON reader that a caller drives token by token. It never descends by itself, so that
// hostile nesting cannot exhaust the stack: what the caller does not expect is an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace phiquant::formats {

/// Walks over JSON text (RFC 8259). All failures are Error(format) that name the byte.
class JsonCursor {
public:
    /// `text` must outlive the cursor. Throws when it is not UTF-8.
    explicit JsonCursor(std::string_view text);

    [[nodiscard]] std::size_t position() const noexcept { return at_; }

    /// Skip white space, then take `mark` if it comes next.
    bool try_take(char mark) noexcept;

    /// Skip white space and take `mark`, or throw: "expected `what`, found ...".
    void expect(char mark, std::string_view what);

    /// A string with its escapes resolved; lone surrogates are errors.
    std::string read_string(std::string_view what);

    /// An integer from 0 to 2^64-1; a sign, fraction or exponent is an error.
    std::uint64_t read_unsigned(std::string_view what);

    /// Throws unless only white space is left.
    void expect_end();

    [[noreturn]] void fail(const std::string& complaint) const;

private:
    void skip_space() noexcept;
    [[nodiscard]] std::string found() const;
    std::uint32_t read_hex4();
    void read_escape(std::string& out);

    std::string_view text_;
    std::size_t at_ = 0;
};

/// `text` as a JSON string with its quotes; what needs no escape stays as it is.
[[nodiscard]] std::string json_quoted(std::string_view text);

}  // namespace phiquant::formats
