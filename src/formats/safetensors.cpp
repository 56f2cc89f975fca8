// The safetensors header, parsed and checked.
#include "formats/safetensors.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/bytes.hpp"
#include "base/checked.hpp"
#include "base/error.hpp"
#include "formats/json_cursor.hpp"
#include "formats/limits.hpp"
#include "formats/text.hpp"

namespace phiquant::formats {
namespace {

constexpr const char* k_fetch_again = "The file is damaged or incomplete: fetch it again.";
constexpr const char* k_incomplete = "The download is incomplete: fetch the shard again.";

[[noreturn]] void refuse(std::string cause, std::string remedy = k_fetch_again) {
    throw Error(ErrorKind::format, std::move(cause), std::move(remedy));
}

[[noreturn]] void refuse_tensor(const SafetensorsEntry& entry, const std::string& cause,
                                std::string remedy = k_fetch_again,
                                ErrorKind kind = ErrorKind::format) {
    throw Error(kind, {}, shown(entry.name), "tensor " + quoted(entry.name) + " " + cause,
                std::move(remedy));
}

[[noreturn]] void refuse_dtype(const SafetensorsEntry& entry, const std::string& dtype) {
    std::string known;
    for (const auto& facts : dtypes()) {
        known += known.empty() ? "" : ", ";
        known += facts.name;
    }
    refuse_tensor(entry, "has the dtype " + quoted(dtype) + ", which phiquant does not read",
                  "Convert the tensor to one of " + known + ".", ErrorKind::unsupported);
}

std::vector<std::uint64_t> read_shape(JsonCursor& json, const SafetensorsEntry& entry) {
    std::vector<std::uint64_t> shape;
    json.expect('[', "the shape's '['");
    if (json.try_take(']')) return shape;
    do {
        if (shape.size() == k_most_dimensions) {
            refuse_tensor(entry,
                          "has more than " + std::to_string(k_most_dimensions) + " dimensions",
                          "Reshape it before it is saved.", ErrorKind::unsupported);
        }
        shape.push_back(json.read_unsigned("a dimension"));
    } while (json.try_take(','));
    json.expect(']', "the shape's ']'");
    return shape;
}

/// One entry's object; begin and end are still relative to the data.
void read_entry(JsonCursor& json, SafetensorsEntry& entry) {
    std::optional<std::string> dtype;
    bool has_shape = false, has_offsets = false;
    json.expect('{', "a tensor's entry, '{'");
    do {
        const std::string key = json.read_string("a key of a tensor's entry");
        json.expect(':', "':'");
        const bool known = key == "dtype" || key == "shape" || key == "data_offsets";
        if (!known) refuse_tensor(entry, "has the unknown key " + quoted(key));
        if ((key == "dtype" && dtype) || (key == "shape" && has_shape) ||
            (key == "data_offsets" && has_offsets)) {
            refuse_tensor(entry, "has the duplicate key " + quoted(key));
        }
        if (key == "dtype") {
            dtype = json.read_string("a dtype's name");
        } else if (key == "shape") {
            entry.shape = read_shape(json, entry);
            has_shape = true;
        } else {
            json.expect('[', "the '[' of data_offsets");
            entry.begin = json.read_unsigned("a data offset");
            json.expect(',', "two data offsets");
            entry.end = json.read_unsigned("a data offset");
            json.expect(']', "the ']' of data_offsets");
            has_offsets = true;
        }
    } while (json.try_take(','));
    json.expect('}', "the entry's '}'");
    for (const auto& [there, key] : {std::pair{dtype.has_value(), "dtype"},
                                     {has_shape, "shape"},
                                     {has_offsets, "data_offsets"}}) {
        if (!there) refuse_tensor(entry, std::string("lacks the key '") + key + "'");
    }
    const auto known_dtype = dtype_named(*dtype);
    if (!known_dtype) refuse_dtype(entry, *dtype);
    entry.dtype = *known_dtype;
}

SafetensorsMetadata read_metadata(JsonCursor& json) {
    SafetensorsMetadata metadata;
    json.expect('{', "the '{' of __metadata__");
    if (json.try_take('}')) return metadata;
    do {
        if (metadata.size() == k_most_metadata_keys) {
            throw Error(ErrorKind::unsupported, "has more than " +
                                                    std::to_string(k_most_metadata_keys) +
                                                    " keys in its __metadata__");
        }
        std::string key = json.read_string("a key of __metadata__");
        json.expect(':', "':'");
        metadata.emplace_back(std::move(key),
                              json.read_string("a string as value in __metadata__"));
    } while (json.try_take(','));
    json.expect('}', "the '}' of __metadata__");
    return metadata;
}

/// The bytes that dtype and shape ask for.
std::uint64_t wanted_bytes(const SafetensorsEntry& entry, ErrorKind kind) {
    // A zero dimension must not hide an overflow of the others: NumPy refuses such shapes too.
    std::optional<std::uint64_t> bytes = size_of(entry.dtype);
    bool empty = false;
    for (const auto extent : entry.shape) {
        empty = empty || extent == 0;
        bytes = try_multiply(*bytes, extent == 0 ? 1 : extent);
        if (!bytes) {
            refuse_tensor(entry, "has a shape whose size in bytes overflows 64 bits", k_fetch_again,
                          kind);
        }
    }
    return empty ? 0 : *bytes;
}

std::string past_end(std::uint64_t data_start, std::uint64_t end, std::uint64_t file_size) {
    const auto absolute = try_add(data_start, end);
    return "ends at byte " + std::to_string(absolute.value_or(end)) +
           (absolute ? "" : " of the data") + ", past the file's end (" +
           std::to_string(file_size) + ")";
}

/// Make offsets absolute, sort by place and check that the tensors tile [data_start, file_size).
void place(std::vector<SafetensorsEntry>& entries, std::uint64_t data_start,
           std::uint64_t file_size) {
    const std::uint64_t data_bytes = file_size - data_start;
    for (auto& entry : entries) {
        if (entry.end < entry.begin) {
            refuse_tensor(entry, "ends at byte " + std::to_string(entry.end) +
                                     " of the data, before it begins (" +
                                     std::to_string(entry.begin) + ")");
        }
        const std::uint64_t wanted = wanted_bytes(entry, ErrorKind::format);
        if (entry.end - entry.begin != wanted) {
            refuse_tensor(entry, "has a dtype and shape of " + std::to_string(wanted) +
                                     " bytes, but a range of " +
                                     std::to_string(entry.end - entry.begin));
        }
        if (entry.end > data_bytes) {
            refuse_tensor(entry, past_end(data_start, entry.end, file_size), k_incomplete);
        }
        entry.begin += data_start;
        entry.end += data_start;
    }
    std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
        return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    std::uint64_t next = data_start;
    const SafetensorsEntry* previous = nullptr;
    for (const auto& entry : entries) {
        if (entry.begin < next) {
            refuse_tensor(entry, "overlaps tensor " + quoted(previous->name) +
                                     ": it begins at byte " + std::to_string(entry.begin) +
                                     ", before byte " + std::to_string(next));
        }
        if (entry.begin > next) {
            refuse_tensor(entry, "leaves a hole before it: bytes " + std::to_string(next) + " to " +
                                     std::to_string(entry.begin) + " belong to no tensor");
        }
        next = entry.end;
        previous = &entry;
    }
    if (next != file_size) {
        const std::uint64_t extra = file_size - next;
        refuse(std::to_string(extra) + (extra == 1 ? " byte follows" : " bytes follow") +
                   " the last tensor's end (byte " + std::to_string(next) + " of " +
                   std::to_string(file_size) + ")",
               "Something was appended to the file: fetch it again.");
    }
}

void refuse_duplicates(const SafetensorsHeader& header) {
    if (const auto twice = find_duplicate(
            header.entries, [](const auto& e) -> const std::string& { return e.name; })) {
        throw Error(ErrorKind::format, {}, shown(*twice),
                    "tensor " + quoted(*twice) + " is in the header twice (a duplicate key)",
                    k_fetch_again);
    }
    if (const auto twice = find_duplicate(
            header.metadata, [](const auto& e) -> const std::string& { return e.first; })) {
        refuse("__metadata__ has the duplicate key " + quoted(*twice));
    }
}

}  // namespace

std::uint64_t safetensors_header_length(std::span<const std::byte> prefix,
                                        std::uint64_t file_size) {
    if (file_size == 0) refuse("is empty (0 bytes)", k_incomplete);
    const auto refuse_better = [&](std::string cause, std::string remedy = k_fetch_again) {
        if (const auto other = recognise_impostor(prefix, Container::safetensors)) {
            refuse(other->cause, other->remedy);
        }
        refuse(std::move(cause), std::move(remedy));
    };
    if (file_size < k_safetensors_header_start) {
        refuse_better(
            "has " + std::to_string(file_size) +
            " bytes, too few for a safetensors file, which starts with 8 bytes of length");
    }
    if (prefix.size() < k_safetensors_header_start) {
        throw Error(ErrorKind::internal, "the first 8 bytes of a safetensors file are needed");
    }
    const auto length = load_little_endian<std::uint64_t>(prefix.data());
    const std::uint64_t room = file_size - k_safetensors_header_start;
    if (length > k_safetensors_longest_header) {
        refuse_better("says that its header has " + std::to_string(length) +
                      " bytes, more than the limit of 100000000: it is no safetensors file, or "
                      "damaged");
    }
    if (length > room) {
        refuse_better("says that its header has " + std::to_string(length) + " bytes, but only " +
                          std::to_string(room) + " follow",
                      k_incomplete);
    }
    if (length < 2) {
        refuse_better("says that its header has " + std::to_string(length) +
                      " bytes, too few for JSON");
    }
    return length;
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> header_json,
                                           std::uint64_t file_size) {
    const auto data_start = try_add(header_json.size(), k_safetensors_header_start);
    if (header_json.size() > k_safetensors_longest_header || !data_start ||
        *data_start > file_size) {
        refuse("has a header of " + std::to_string(header_json.size()) +
               " bytes, which does not fit into the file (" + std::to_string(file_size) + ")");
    }
    SafetensorsHeader header;
    JsonCursor json(as_text(header_json));
    // The format wants the brace first, so that a header cannot pass for some other text.
    if (header_json.empty() || header_json.front() != std::byte{'{'}) {
        json.fail("a safetensors header starts with '{'");
    }
    json.expect('{', "'{'");
    bool has_metadata = false;
    if (!json.try_take('}')) {
        do {
            SafetensorsEntry entry;
            entry.name = json.read_string("a tensor's name");
            json.expect(':', "':'");
            if (entry.name == "__metadata__") {
                if (has_metadata) refuse("has the duplicate key '__metadata__' in its header");
                header.metadata = read_metadata(json);
                has_metadata = true;
                continue;
            }
            if (entry.name.find('\0') != std::string::npos) {
                refuse_tensor(entry, "has a NUL in its name");
            }
            if (header.entries.size() == k_most_tensors) {
                throw Error(ErrorKind::unsupported,
                            "has more than " + std::to_string(k_most_tensors) + " tensors");
            }
            read_entry(json, entry);
            header.entries.push_back(std::move(entry));
        } while (json.try_take(','));
        json.expect('}', "',' or the header's '}'");
    }
    json.expect_end();
    refuse_duplicates(header);
    place(header.entries, *data_start, file_size);
    return header;
}

SafetensorsLayout write_safetensors_header(std::vector<SafetensorsEntry> entries,
                                           const SafetensorsMetadata& metadata) {
    const auto misuse = [](const std::string& cause, std::string remedy = {}) {
        throw Error(ErrorKind::usage, cause, std::move(remedy));
    };
    if (entries.size() > k_most_tensors || metadata.size() > k_most_metadata_keys) {
        misuse("too many tensors or metadata keys for one safetensors file");
    }
    if (const auto twice =
            find_duplicate(entries, [](const auto& e) -> const std::string& { return e.name; })) {
        misuse("tensor " + quoted(*twice) + " is given twice");
    }
    if (const auto twice =
            find_duplicate(metadata, [](const auto& e) -> const std::string& { return e.first; })) {
        misuse("the metadata key " + quoted(*twice) + " is given twice");
    }
    std::string json = "{";
    if (!metadata.empty()) {
        json += "\"__metadata__\":{";
        for (const auto& [key, value] : metadata) {
            if (find_bad_utf8(key) || find_bad_utf8(value)) {
                misuse("the metadata of key " + quoted(key) + " is not UTF-8");
            }
            if (json.back() != '{') json += ',';
            json += json_quoted(key) + ":" + json_quoted(value);
        }
        json += '}';
    }
    std::uint64_t next = 0;
    for (auto& entry : entries) {
        if (entry.name == "__metadata__" || entry.name.find('\0') != std::string::npos ||
            find_bad_utf8(entry.name)) {
            misuse("tensor " + quoted(entry.name) + " has a name that safetensors cannot hold");
        }
        if (entry.shape.size() > k_most_dimensions) {
            misuse("tensor " + quoted(entry.name) + " has more than " +
                   std::to_string(k_most_dimensions) + " dimensions");
        }
        const std::uint64_t bytes = wanted_bytes(entry, ErrorKind::usage);
        if (bytes != 0 && next % size_of(entry.dtype) != 0) {
            refuse_tensor(entry,
                          "would start at byte " + std::to_string(next) +
                              " of the data, no multiple of its element size (" +
                              std::to_string(size_of(entry.dtype)) + ")",
                          "Put tensors of wider dtypes first.", ErrorKind::usage);
        }
        entry.begin = next;
        const auto end = try_add(next, bytes);
        if (!end || *end > INT64_MAX) misuse("the sizes of the tensors overflow 63 bits");
        entry.end = next = *end;
        if (json.size() > 1) json += ',';
        json += json_quoted(entry.name) + ":{\"dtype\":\"" + std::string(name_of(entry.dtype)) +
                "\",\"shape\":[";
        for (std::size_t i = 0; i < entry.shape.size(); ++i) {
            json += (i == 0 ? "" : ",") + std::to_string(entry.shape[i]);
        }
        json += "],\"data_offsets\":[" + std::to_string(entry.begin) + "," +
                std::to_string(entry.end) + "]}";
    }
    json += '}';
    json.resize((json.size() + 7) / 8 * 8, ' ');
    if (json.size() > k_safetensors_longest_header) misuse("the safetensors header exceeds 100 MB");

    SafetensorsLayout layout;
    append_little_endian<std::uint64_t>(layout.header, json.size());
    append_bytes(layout.header, json);
    for (auto& entry : entries) {
        entry.begin = checked_add(entry.begin, layout.header.size());
        entry.end = checked_add(entry.end, layout.header.size());
    }
    layout.file_size = checked_add(next, layout.header.size());
    layout.entries = std::move(entries);
    return layout;
}

}  // namespace phiquant::formats
