// Little-endian numbers in bytes, read within bounds that come from the file's real size.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/error.hpp"

namespace phiquant {

/// The number whose little-endian bytes start at `from`; any alignment.
template <class T>
[[nodiscard]] T load_little_endian(const std::byte* from) noexcept {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    std::array<std::byte, sizeof(T)> bytes;
    std::memcpy(bytes.data(), from, sizeof(T));
    if constexpr (std::endian::native == std::endian::big) std::reverse(bytes.begin(), bytes.end());
    return std::bit_cast<T>(bytes);
}

/// Append the little-endian bytes of `value`.
template <class T>
void append_little_endian(std::vector<std::byte>& to, T value) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    auto bytes = std::bit_cast<std::array<std::byte, sizeof(T)>>(value);
    if constexpr (std::endian::native == std::endian::big) std::reverse(bytes.begin(), bytes.end());
    to.insert(to.end(), bytes.begin(), bytes.end());
}

inline void append_bytes(std::vector<std::byte>& to, std::string_view text) {
    const auto bytes = std::as_bytes(std::span(text));
    to.insert(to.end(), bytes.begin(), bytes.end());
}

[[nodiscard]] inline std::string_view as_text(std::span<const std::byte> bytes) noexcept {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Not an error of the file: its start, as given, ends before what is being read does.
struct NeedMoreBytes {
    std::uint64_t bytes;  ///< how many bytes of the file's start are needed at least
};

/// Reads the start of a file in order. Knows two ends: the file's, past which nothing may be asked
/// for, and that of the bytes at hand, past which more of the file has to be given.
class ByteReader {
public:
    ByteReader(std::span<const std::byte> at_hand, std::uint64_t file_size) noexcept
        : bytes_(at_hand.first(std::min<std::uint64_t>(at_hand.size(), file_size))),
          file_size_(file_size) {}

    [[nodiscard]] std::uint64_t position() const noexcept { return position_; }
    /// Bytes from here to the end of the file (not of the bytes at hand).
    [[nodiscard]] std::uint64_t remaining() const noexcept { return file_size_ - position_; }

    /// The next `count` bytes. Throws Error(format) naming `what` when the file ends before,
    /// NeedMoreBytes when only the bytes at hand do.
    std::span<const std::byte> take(std::uint64_t count, std::string_view what) {
        if (count > remaining()) {
            throw Error(ErrorKind::format,
                        std::string(what) + " at byte " + std::to_string(position_) + " needs " +
                            std::to_string(count) + " bytes, past the file's end (" +
                            std::to_string(file_size_) + ")",
                        "The file is damaged or its download is incomplete: fetch it again.");
        }
        if (count > bytes_.size() - position_) throw NeedMoreBytes{position_ + count};
        const auto taken =
            bytes_.subspan(static_cast<std::size_t>(position_), static_cast<std::size_t>(count));
        position_ += count;
        return taken;
    }

private:
    std::span<const std::byte> bytes_;
    std::uint64_t file_size_;
    std::uint64_t position_ = 0;
};

}  // namespace phiquant
