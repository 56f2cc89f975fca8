// The wire format of Protocol Buffers: fields written, and read within the bytes of their message.
//
// The format: https://protobuf.dev/programming-guides/encoding. Groups (wire types 3 and 4), which
// no current schema has, are refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace phiquant::formats {

/// Appends fields to a message. Numbers are written as protobuf's own writers do, in the shortest
/// form; whether a default value is written is the caller's decision.
class ProtoWriter {
public:
    void varint(std::uint32_t field, std::uint64_t value);
    void int64(std::uint32_t field, std::int64_t value) {
        varint(field, static_cast<std::uint64_t>(value));
    }
    void float32(std::uint32_t field, float value);
    void bytes(std::uint32_t field, std::span<const std::byte> value);
    void text(std::uint32_t field, std::string_view value);
    void message(std::uint32_t field, const ProtoWriter& value) { bytes(field, value.bytes_); }

    [[nodiscard]] std::vector<std::byte>& written() noexcept { return bytes_; }

private:
    void tag(std::uint32_t field, std::uint32_t wire);
    std::vector<std::byte> bytes_;
};

enum class ProtoWire : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

/// One field of a message. The accessors throw Error(format) when the wire type is another one.
struct ProtoField {
    std::uint32_t number = 0;
    ProtoWire wire = ProtoWire::varint;
    std::uint64_t value = 0;           ///< of varint, fixed64 and fixed32
    std::span<const std::byte> bytes;  ///< of bytes
    std::uint64_t offset = 0;          ///< of the field's content, from the file's first byte

    [[nodiscard]] std::uint64_t varint() const;
    [[nodiscard]] std::int64_t int64() const { return static_cast<std::int64_t>(varint()); }
    [[nodiscard]] float float32() const;
    [[nodiscard]] std::span<const std::byte> content() const;
    /// The bytes as text; throws Error(format) where it is not UTF-8 or holds a NUL.
    [[nodiscard]] std::string text() const;
    /// Append repeated integers, packed or not. At most `most` in all, else Error(unsupported).
    void append_to(std::vector<std::int64_t>& values, std::size_t most) const;
    /// The same for repeated float32.
    void append_to(std::vector<float>& values, std::size_t most) const;
    /// The same for repeated float64.
    void append_to(std::vector<double>& values, std::size_t most) const;
};

/// Reads the fields of one message in order; never past its end, and without any allocation.
class ProtoReader {
public:
    /// `offset`: the place of the message's first byte in the file, for errors.
    explicit ProtoReader(std::span<const std::byte> message, std::uint64_t offset = 0) noexcept
        : message_(message), offset_(offset) {}
    explicit ProtoReader(const ProtoField& field) : ProtoReader(field.content(), field.offset) {}

    /// The next field, or nothing at the message's end. Throws Error(format).
    [[nodiscard]] std::optional<ProtoField> next();

private:
    std::uint64_t read_varint(std::string_view what);
    std::span<const std::byte> take(std::uint64_t count, std::string_view what);

    std::span<const std::byte> message_;
    std::uint64_t offset_;
    std::size_t position_ = 0;
};

}  // namespace phiquant::formats
