// Protocol Buffers' wire format, both ways.
#include "formats/protobuf.hpp"

#include <bit>
#include <limits>

#include "base/bytes.hpp"
#include "base/error.hpp"
#include "formats/text.hpp"

namespace phiquant::formats {
namespace {

constexpr std::size_t k_longest_varint = 10;

[[noreturn]] void refuse(std::string cause) {
    throw Error(ErrorKind::format, std::move(cause),
                "The file is damaged or incomplete: fetch it again.");
}

std::string at(std::uint64_t offset) { return " at byte " + std::to_string(offset); }

void append_varint(std::vector<std::byte>& to, std::uint64_t value) {
    while (value >= 0x80) {
        to.push_back(static_cast<std::byte>((value & 0x7F) | 0x80));
        value >>= 7;
    }
    to.push_back(static_cast<std::byte>(value));
}

/// Reads a varint from `bytes` at `position`, which it moves on; nothing when it does not end.
std::optional<std::uint64_t> take_varint(std::span<const std::byte> bytes, std::size_t& position) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < k_longest_varint && position < bytes.size(); ++i) {
        const auto byte = std::to_integer<std::uint64_t>(bytes[position++]);
        // The tenth byte holds one bit; protobuf drops what else it says, and so would a rewrite.
        if (i == k_longest_varint - 1 && byte > 1) return std::nullopt;
        value |= (byte & 0x7F) << (7 * i);
        if (byte < 0x80) return value;
    }
    return std::nullopt;
}

void check_room(std::size_t have, std::uint64_t more, std::size_t most, std::uint64_t offset) {
    if (have > most || more > most - have) {
        throw Error(ErrorKind::unsupported,
                    "has more than " + std::to_string(most) + " numbers in one field" + at(offset));
    }
}

template <class T>
void append_fixed(const ProtoField& field, ProtoWire one, std::vector<T>& values,
                  std::size_t most) {
    if (field.wire == one) {
        check_room(values.size(), 1, most, field.offset);
        if constexpr (sizeof(T) == 4) {
            values.push_back(std::bit_cast<T>(static_cast<std::uint32_t>(field.value)));
        } else {
            values.push_back(std::bit_cast<T>(field.value));
        }
        return;
    }
    const auto bytes = field.content();
    if (bytes.size() % sizeof(T) != 0) {
        refuse("has packed numbers of " + std::to_string(bytes.size()) + " bytes" +
               at(field.offset));
    }
    check_room(values.size(), bytes.size() / sizeof(T), most, field.offset);
    for (std::size_t i = 0; i < bytes.size(); i += sizeof(T)) {
        values.push_back(load_little_endian<T>(bytes.data() + i));
    }
}

}  // namespace

void ProtoWriter::tag(std::uint32_t field, std::uint32_t wire) {
    append_varint(bytes_, (std::uint64_t{field} << 3) | wire);
}

void ProtoWriter::varint(std::uint32_t field, std::uint64_t value) {
    tag(field, 0);
    append_varint(bytes_, value);
}

void ProtoWriter::float32(std::uint32_t field, float value) {
    tag(field, 5);
    append_little_endian(bytes_, value);
}

void ProtoWriter::bytes(std::uint32_t field, std::span<const std::byte> value) {
    tag(field, 2);
    append_varint(bytes_, value.size());
    bytes_.insert(bytes_.end(), value.begin(), value.end());
}

void ProtoWriter::text(std::uint32_t field, std::string_view value) {
    bytes(field, std::as_bytes(std::span(value)));
}

std::uint64_t ProtoField::varint() const {
    if (wire != ProtoWire::varint) {
        refuse("field " + std::to_string(number) + at(offset) + " is no integer");
    }
    return value;
}

float ProtoField::float32() const {
    if (wire != ProtoWire::fixed32) {
        refuse("field " + std::to_string(number) + at(offset) + " is no float");
    }
    return std::bit_cast<float>(static_cast<std::uint32_t>(value));
}

std::span<const std::byte> ProtoField::content() const {
    if (wire != ProtoWire::bytes) {
        refuse("field " + std::to_string(number) + at(offset) + " holds no bytes");
    }
    return bytes;
}

std::string ProtoField::text() const {
    const auto held = as_text(content());
    if (find_bad_utf8(held) || held.find('\0') != std::string_view::npos) {
        refuse("the text " + quoted(held) + at(offset) + " is not UTF-8, or holds a NUL");
    }
    return std::string(held);
}

void ProtoField::append_to(std::vector<std::int64_t>& values, std::size_t most) const {
    if (wire == ProtoWire::varint) {
        check_room(values.size(), 1, most, offset);
        values.push_back(static_cast<std::int64_t>(value));
        return;
    }
    const auto packed = content();
    for (std::size_t position = 0; position < packed.size();) {
        const auto number_read = take_varint(packed, position);
        if (!number_read) refuse("has a broken packed integer" + at(offset + position));
        check_room(values.size(), 1, most, offset);
        values.push_back(static_cast<std::int64_t>(*number_read));
    }
}

void ProtoField::append_to(std::vector<float>& values, std::size_t most) const {
    append_fixed(*this, ProtoWire::fixed32, values, most);
}

void ProtoField::append_to(std::vector<double>& values, std::size_t most) const {
    append_fixed(*this, ProtoWire::fixed64, values, most);
}

std::uint64_t ProtoReader::read_varint(std::string_view what) {
    const std::size_t start = position_;
    const auto value = take_varint(message_, position_);
    if (!value) refuse("has a broken " + std::string(what) + at(offset_ + start));
    return *value;
}

std::span<const std::byte> ProtoReader::take(std::uint64_t count, std::string_view what) {
    const std::uint64_t left = message_.size() - position_;
    if (count > left) {
        refuse(std::string(what) + at(offset_ + position_) + " takes " + std::to_string(count) +
               " bytes, and " + std::to_string(left) + " are left");
    }
    const auto taken = message_.subspan(position_, static_cast<std::size_t>(count));
    position_ += static_cast<std::size_t>(count);
    return taken;
}

std::optional<ProtoField> ProtoReader::next() {
    if (position_ == message_.size()) return std::nullopt;
    const std::uint64_t start = offset_ + position_;
    const std::uint64_t tag = read_varint("field number");
    ProtoField field;
    if (tag >> 3 == 0 || tag >> 3 > (std::uint32_t{1} << 29) - 1) {
        refuse("has the impossible field number " + std::to_string(tag >> 3) + at(start));
    }
    field.number = static_cast<std::uint32_t>(tag >> 3);
    field.offset = offset_ + position_;
    switch (tag & 7) {
        case 0:
            field.value = read_varint("integer");
            break;
        case 1:
            field.wire = ProtoWire::fixed64;
            field.value = load_little_endian<std::uint64_t>(take(8, "a number").data());
            break;
        case 2: {
            field.wire = ProtoWire::bytes;
            const std::uint64_t length = read_varint("length");
            field.offset = offset_ + position_;
            field.bytes = take(length, "field " + std::to_string(field.number));
            break;
        }
        case 5:
            field.wire = ProtoWire::fixed32;
            field.value = load_little_endian<std::uint32_t>(take(4, "a number").data());
            break;
        default:
            refuse("has the wire type " + std::to_string(tag & 7) + at(start));
    }
    return field;
}

}  // namespace phiquant::formats
