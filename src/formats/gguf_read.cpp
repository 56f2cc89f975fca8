// The GGUF header, parsed and checked.
#include <algorithm>

#include "base/bytes.hpp"
#include "base/checked.hpp"
#include "formats/gguf.hpp"
#include "formats/limits.hpp"
#include "formats/text.hpp"

namespace phiquant::formats {
namespace {

constexpr const char* k_fetch_again = "The file is damaged or incomplete: fetch it again.";
constexpr std::size_t k_longest_name = 65535;  // the specification's limit for keys

// The least bytes that an item takes, to hold counts against the bytes that are left.
constexpr std::uint64_t k_least_entry = 8 + 1 + 4 + 1;
constexpr std::uint64_t k_least_tensor = 8 + 4 + 8 + 4 + 8;

[[noreturn]] void refuse(std::string cause, std::string remedy = k_fetch_again) {
    throw Error(ErrorKind::format, std::move(cause), std::move(remedy));
}

[[noreturn]] void refuse_kind(std::string cause, std::string remedy = {}) {
    throw Error(ErrorKind::unsupported, std::move(cause), std::move(remedy));
}

class Parser {
public:
    Parser(std::span<const std::byte> start, std::uint64_t file_size)
        : start_(start), file_size_(file_size), reader_(start, file_size) {}

    GgufHeader parse() {
        read_version();
        const std::uint64_t tensors = read_count("tensors", k_least_tensor, k_most_tensors);
        const std::uint64_t entries =
            read_count("metadata keys", k_least_entry, k_most_metadata_keys);
        for (std::uint64_t i = 0; i < entries; ++i) read_entry();
        if (const auto twice = find_duplicate(
                header_.metadata, [](const auto& e) -> const std::string& { return e.key; })) {
            refuse("has the duplicate metadata key " + quoted(*twice));
        }
        read_alignment();
        for (std::uint64_t i = 0; i < tensors; ++i) read_tensor();
        if (const auto twice = find_duplicate(
                header_.tensors, [](const auto& t) -> const std::string& { return t.name; })) {
            throw Error(ErrorKind::format, {}, shown(*twice),
                        "tensor " + quoted(*twice) + " is in the header twice (a duplicate name)",
                        k_fetch_again);
        }
        place();
        return std::move(header_);
    }

private:
    void read_version() {
        if (file_size_ == 0) refuse("is empty (0 bytes)");
        const auto head = start_.first(std::min<std::uint64_t>(start_.size(), file_size_));
        if (head.size() < 4 && head.size() < file_size_) throw NeedMoreBytes{4};
        if (!as_text(head).starts_with("GGUF")) {
            if (const auto other = recognise_impostor(head, Container::gguf)) {
                refuse(other->cause, other->remedy);
            }
            refuse("is no GGUF file: it starts with " +
                   quoted(as_text(head.first(std::min<std::size_t>(head.size(), 4)))) +
                   ", not 'GGUF'");
        }
        reader_.take(4, "the magic");
        header_.version = number<std::uint32_t>("the version");
        if (header_.version != 0 && (header_.version & 0xFFFF) == 0) {
            refuse_kind("is a big-endian GGUF file, made for another kind of machine",
                        "Fetch or make the little-endian file.");
        }
        if (header_.version == 0) refuse("has GGUF version 0, which never existed");
        if (header_.version == 1) {
            refuse_kind("has GGUF version 1, which nothing reads any more",
                        "Make the file again from the original model.");
        }
        if (header_.version > 3) {
            refuse_kind("has GGUF version " + std::to_string(header_.version) +
                            ", newer than 3, the newest that phiquant knows",
                        "Update phiquant.");
        }
    }

    std::uint64_t read_count(const std::string& what, std::uint64_t least_bytes,
                             std::uint64_t most) {
        const auto count = number<std::uint64_t>("the number of " + what);
        if (count > reader_.remaining() / least_bytes) {
            refuse("claims " + std::to_string(count) + " " + what + ", more than its " +
                   std::to_string(reader_.remaining()) + " remaining bytes can hold");
        }
        if (count > most) {
            refuse_kind("has " + std::to_string(count) + " " + what + ", more than the limit of " +
                        std::to_string(most));
        }
        return count;
    }

    /// Every byte is taken here, so that no loop over a count can pass the header's limit.
    std::span<const std::byte> take(std::uint64_t count, std::string_view what) {
        if (count <= reader_.remaining() && reader_.position() + count > k_gguf_longest_header) {
            refuse_kind("has a header of more than " + std::to_string(k_gguf_longest_header) +
                        " bytes: " + std::string(what) + " at byte " +
                        std::to_string(reader_.position()) + " takes " + std::to_string(count));
        }
        return reader_.take(count, what);
    }

    template <class T>
    T number(std::string_view what) {
        return load_little_endian<T>(take(sizeof(T), what).data());
    }

    std::string read_string(std::string_view what) {
        const auto length = number<std::uint64_t>(what);
        return std::string(as_text(take(length, what)));
    }

    std::string read_name(const std::string& what) {
        std::string name = read_string(what);
        if (name.size() > k_longest_name) {
            refuse(what + " has " + std::to_string(name.size()) + " bytes, more than 65535");
        }
        if (find_bad_utf8(name)) refuse(what + " " + quoted(name) + " is not UTF-8");
        if (name.find('\0') != std::string::npos) {
            refuse(what + " " + quoted(name) + " holds a NUL");
        }
        return name;
    }

    static GgufType check_type(std::uint32_t id, const std::string& key) {
        if (id > static_cast<std::uint32_t>(GgufType::float64)) {
            refuse("metadata key " + quoted(key) + " has the unknown value type " +
                   std::to_string(id));
        }
        return static_cast<GgufType>(id);
    }

    template <class T>
    T read_value(const std::string& what) {
        if constexpr (std::is_same_v<T, std::string>) {
            return read_string(what);
        } else if constexpr (std::is_same_v<T, bool>) {
            return check_bool(number<std::uint8_t>(what), what);
        } else {
            return number<T>(what);
        }
    }

    static bool check_bool(std::uint8_t byte, const std::string& what) {
        if (byte > 1) refuse(what + " is a bool of value " + std::to_string(byte));
        return byte == 1;
    }

    template <class T>
    std::vector<T> read_array(std::uint64_t count, const std::string& what) {
        constexpr std::uint64_t least_bytes = std::is_same_v<T, std::string> ? 8 : sizeof(T);
        if (count > reader_.remaining() / least_bytes) {
            refuse(what + " is an array of " + std::to_string(count) + " items, more than the " +
                   std::to_string(reader_.remaining()) + " remaining bytes can hold");
        }
        std::vector<T> items;
        if constexpr (std::is_same_v<T, std::string>) {
            // Grows as it is read: the count alone must not make the allocation.
            for (std::uint64_t i = 0; i < count; ++i) items.push_back(read_string(what));
        } else {
            const auto bytes = take(count * least_bytes, what);
            items.reserve(static_cast<std::size_t>(count));
            for (std::size_t i = 0; i < bytes.size(); i += sizeof(T)) {
                if constexpr (std::is_same_v<T, bool>) {
                    items.push_back(check_bool(std::to_integer<std::uint8_t>(bytes[i]), what));
                } else {
                    items.push_back(load_little_endian<T>(bytes.data() + i));
                }
            }
        }
        return items;
    }

    void read_entry() {
        GgufEntry entry;
        entry.key = read_name("a metadata key");
        if (entry.key.empty()) refuse("has an empty metadata key");
        const std::string what = "the value of metadata key " + quoted(entry.key);
        const auto type = check_type(number<std::uint32_t>(what), entry.key);
        if (type == GgufType::array) {
            const auto item = check_type(number<std::uint32_t>(what), entry.key);
            if (item == GgufType::array) {
                refuse_kind("metadata key " + quoted(entry.key) + " is an array of arrays");
            }
            const auto count = number<std::uint64_t>(what);
            entry.value = with_gguf_type(item, [&]<class T>(std::type_identity<T>) {
                return GgufArray(read_array<T>(count, what));
            });
        } else {
            entry.value = with_gguf_type(type, [&]<class T>(std::type_identity<T>) {
                return GgufValue(std::in_place_type<T>, read_value<T>(what));
            });
        }
        header_.metadata.push_back(std::move(entry));
    }

    void read_alignment() {
        for (const auto& entry : header_.metadata) {
            if (entry.key != "general.alignment") continue;
            const auto* alignment = std::get_if<std::uint32_t>(&entry.value);
            if (alignment == nullptr) refuse("has a general.alignment that is not a uint32");
            if (!is_gguf_alignment(*alignment)) {
                refuse("has a general.alignment of " + std::to_string(*alignment) +
                       ", not a power of two from 8 to 1048576");
            }
            header_.alignment = *alignment;
        }
    }

    void read_tensor() {
        GgufTensor tensor;
        tensor.name = read_name("a tensor's name");
        const std::string what = "the entry of tensor " + quoted(tensor.name);
        const auto dimensions = number<std::uint32_t>(what);
        if (dimensions < 1 || dimensions > 4) {
            throw Error(ErrorKind::format, {}, shown(tensor.name),
                        "tensor " + quoted(tensor.name) + " has " + std::to_string(dimensions) +
                            " dimensions, not 1 to 4",
                        k_fetch_again);
        }
        for (std::uint32_t i = 0; i < dimensions; ++i) {
            tensor.dims.push_back(number<std::uint64_t>(what));
        }
        tensor.type = number<std::uint32_t>(what);
        tensor.bytes = gguf_tensor_bytes(tensor, ErrorKind::format);
        tensor.offset = number<std::uint64_t>(what);
        header_.tensors.push_back(std::move(tensor));
    }

    [[noreturn]] static void refuse_tensor(const GgufTensor& tensor, const std::string& cause,
                                           std::string remedy = k_fetch_again) {
        throw Error(ErrorKind::format, {}, shown(tensor.name),
                    "tensor " + quoted(tensor.name) + " " + cause, std::move(remedy));
    }

    void place() {
        const auto data = try_align(reader_.position(), header_.alignment);
        if (header_.tensors.empty()) {
            // A vocabulary alone need not be padded: there is no data section to start.
            header_.data_offset = std::min(*data, file_size_);
            return;
        }
        if (*data > file_size_) {
            refuse("has its data at byte " + std::to_string(*data) + ", past the file's end (" +
                       std::to_string(file_size_) + ")",
                   "The download is incomplete: fetch the file again.");
        }
        header_.data_offset = *data;
        for (auto& tensor : header_.tensors) {
            if (tensor.offset % header_.alignment != 0) {
                refuse_tensor(tensor, "starts at byte " + std::to_string(tensor.offset) +
                                          " of the data, not a multiple of the alignment (" +
                                          std::to_string(header_.alignment) + ")");
            }
            const auto begin = try_add(tensor.offset, *data);
            const auto end = begin ? try_add(*begin, tensor.bytes) : std::nullopt;
            if (!end) refuse_tensor(tensor, "has an end that overflows 64 bits");
            if (*end > file_size_) {
                refuse_tensor(tensor,
                              "ends at byte " + std::to_string(*end) + ", past the file's end (" +
                                  std::to_string(file_size_) + ")",
                              "The download is incomplete: fetch the file again.");
            }
            tensor.offset = *begin;
        }
        std::vector<const GgufTensor*> order;
        for (const auto& tensor : header_.tensors) order.push_back(&tensor);
        std::sort(order.begin(), order.end(),
                  [](const auto* a, const auto* b) { return a->offset < b->offset; });
        for (std::size_t i = 1; i < order.size(); ++i) {
            const auto& before = *order[i - 1];
            if (order[i]->offset < before.offset + before.bytes) {
                refuse_tensor(*order[i], "overlaps tensor " + quoted(before.name) +
                                             ": it begins at byte " +
                                             std::to_string(order[i]->offset) + ", before byte " +
                                             std::to_string(before.offset + before.bytes));
            }
        }
    }

    std::span<const std::byte> start_;
    std::uint64_t file_size_;
    ByteReader reader_;
    GgufHeader header_;
};

}  // namespace

std::optional<GgufHeader> try_parse_gguf(std::span<const std::byte> start,
                                         std::uint64_t file_size) {
    try {
        return Parser(start, file_size).parse();
    } catch (const NeedMoreBytes&) {
        return std::nullopt;
    }
}

GgufHeader parse_gguf(std::span<const std::byte> start, std::uint64_t file_size) {
    try {
        return Parser(start, file_size).parse();
    } catch (const NeedMoreBytes& need) {
        refuse("has a header of more than the " + std::to_string(start.size()) +
                   " bytes that were read: byte " + std::to_string(need.bytes) + " is needed",
               "The file ends early: fetch it again.");
    }
}

}  // namespace phiquant::formats
