// The GGUF header, laid out and written.
#include <cstdint>

#include "base/bytes.hpp"
#include "base/checked.hpp"
#include "formats/gguf.hpp"
#include "formats/limits.hpp"
#include "formats/text.hpp"

namespace phiquant::formats {
namespace {

[[noreturn]] void misuse(std::string cause, std::string remedy = {}) {
    throw Error(ErrorKind::usage, std::move(cause), std::move(remedy));
}

void append_string(std::vector<std::byte>& to, std::string_view text) {
    append_little_endian<std::uint64_t>(to, text.size());
    append_bytes(to, text);
}

void append_id(std::vector<std::byte>& to, GgufType type) {
    append_little_endian(to, static_cast<std::uint32_t>(type));
}

template <class T>
void append_item(std::vector<std::byte>& to, const T& item) {
    if constexpr (std::is_same_v<T, std::string>) {
        append_string(to, item);
    } else if constexpr (std::is_same_v<T, bool>) {
        append_little_endian<std::uint8_t>(to, item ? 1 : 0);
    } else {
        append_little_endian(to, item);
    }
}

struct AppendValue {
    std::vector<std::byte>& to;

    template <class T>
    void operator()(const T& value) const {
        append_id(to, gguf_type_of<T>());
        append_item(to, value);
    }
    void operator()(const GgufArray& array) const {
        append_id(to, GgufType::array);
        std::visit(
            [&]<class T>(const std::vector<T>& items) {
                append_id(to, gguf_type_of<T>());
                append_little_endian<std::uint64_t>(to, items.size());
                for (const T& item : items) append_item<T>(to, item);
            },
            array);
    }
};

void check_metadata(const std::vector<GgufEntry>& metadata, std::uint64_t alignment) {
    if (!is_gguf_alignment(alignment)) {
        misuse("the GGUF alignment " + std::to_string(alignment) +
               " is not a power of two from 8 to 1048576");
    }
    if (metadata.size() > k_most_metadata_keys) misuse("too many metadata keys for GGUF");
    std::uint64_t said = k_gguf_default_alignment;
    for (const auto& entry : metadata) {
        if (entry.key.empty() || entry.key.size() > 65535 || find_bad_utf8(entry.key) ||
            entry.key.find('\0') != std::string::npos) {
            misuse("the metadata key " + quoted(entry.key) +
                   " is not UTF-8 text of 1 to 65535 bytes");
        }
        if (entry.key == "general.alignment") {
            const auto* value = std::get_if<std::uint32_t>(&entry.value);
            if (value == nullptr) misuse("the metadata key 'general.alignment' must be a uint32");
            said = *value;
        }
    }
    if (said != alignment) {
        misuse("the alignment is " + std::to_string(alignment) + ", but the metadata say " +
                   std::to_string(said),
               "Give the metadata key 'general.alignment' the same value (it is 32 without it).");
    }
    if (const auto twice =
            find_duplicate(metadata, [](const auto& e) -> const std::string& { return e.key; })) {
        misuse("the metadata key " + quoted(*twice) + " is given twice");
    }
}

void check_tensors(const std::vector<GgufTensor>& tensors) {
    if (tensors.size() > k_most_tensors) misuse("too many tensors for one GGUF file");
    for (const auto& tensor : tensors) {
        if (tensor.name.empty() || find_bad_utf8(tensor.name) ||
            tensor.name.find('\0') != std::string::npos) {
            misuse("the tensor name " + quoted(tensor.name) +
                   " is empty, holds a NUL or is not UTF-8");
        }
        if (tensor.name.size() >= k_gguf_tensor_name_limit) {
            misuse("the tensor name " + quoted(tensor.name) + " has " +
                       std::to_string(tensor.name.size()) +
                       " bytes, but llama.cpp takes 63 at most",
                   "Give the tensor a shorter name.");
        }
    }
    if (const auto twice =
            find_duplicate(tensors, [](const auto& t) -> const std::string& { return t.name; })) {
        misuse("tensor " + quoted(*twice) + " is given twice");
    }
}

/// value rounded up. Both of a sum's terms below 2^63 cannot wrap, and files are no longer than
/// that.
std::uint64_t aligned(std::uint64_t value, std::uint64_t alignment) {
    const auto raised = try_align(value, alignment);
    if (!raised || *raised > INT64_MAX) misuse("the sizes of the tensors overflow 63 bits");
    return *raised;
}

}  // namespace

GgufLayout write_gguf_header(const std::vector<GgufEntry>& metadata,
                             std::vector<GgufTensor> tensors, std::uint64_t alignment,
                             std::uint32_t version) {
    if (version != 2 && version != 3) {
        misuse("GGUF version " + std::to_string(version) + " cannot be written, only 2 and 3");
    }
    check_metadata(metadata, alignment);
    check_tensors(tensors);

    GgufLayout layout;
    auto& header = layout.header;
    append_bytes(header, "GGUF");
    append_little_endian<std::uint32_t>(header, version);
    append_little_endian<std::uint64_t>(header, tensors.size());
    append_little_endian<std::uint64_t>(header, metadata.size());
    for (const auto& entry : metadata) {
        append_string(header, entry.key);
        std::visit(AppendValue{header}, entry.value);
    }
    std::uint64_t offset = 0;
    for (auto& tensor : tensors) {
        tensor.bytes = gguf_tensor_bytes(tensor, ErrorKind::usage);
        tensor.offset = offset;
        append_string(header, tensor.name);
        append_little_endian(header, static_cast<std::uint32_t>(tensor.dims.size()));
        for (const auto extent : tensor.dims) append_little_endian<std::uint64_t>(header, extent);
        append_little_endian<std::uint32_t>(header, tensor.type);
        append_little_endian<std::uint64_t>(header, offset);
        offset = aligned(offset + tensor.bytes, alignment);
    }
    header.resize(static_cast<std::size_t>(aligned(header.size(), alignment)));
    if (header.size() > k_gguf_longest_header) misuse("the GGUF header exceeds 128 MiB");
    for (auto& tensor : tensors) tensor.offset += header.size();
    layout.file_size = aligned(offset + header.size(), alignment);
    layout.tensors = std::move(tensors);
    return layout;
}

}  // namespace phiquant::formats
