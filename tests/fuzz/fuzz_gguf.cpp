// Fuzz target: any bytes as a GGUF file. What is read lies in the file, and survives writing.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "base/error.hpp"
#include "formats/gguf.hpp"

namespace {

using namespace phiquant;
using namespace phiquant::formats;

void require(bool holds) {
    if (!holds) std::abort();
}

void check_places(const GgufHeader& header, std::uint64_t file_size) {
    require(header.data_offset <= file_size);
    auto tensors = header.tensors;
    std::sort(tensors.begin(), tensors.end(),
              [](const auto& a, const auto& b) { return a.offset < b.offset; });
    std::uint64_t next = header.data_offset;
    for (const auto& tensor : tensors) {
        require(tensor.bytes > 0 && tensor.offset >= next);
        require(tensor.offset <= file_size && tensor.bytes <= file_size - tensor.offset);
        next = tensor.offset + tensor.bytes;
    }
}

void check_round_trip(const GgufHeader& header) {
    GgufLayout layout;
    try {
        layout =
            write_gguf_header(header.metadata, header.tensors, header.alignment, header.version);
    } catch (const Error& error) {
        // Names that llama.cpp would not load are read but not written.
        require(error.kind() == ErrorKind::usage &&
                error.cause().find("tensor name") != std::string::npos);
        return;
    }
    const auto again = parse_gguf(layout.header, layout.file_size);
    require(again.data_offset == layout.header.size() && again.version == header.version);
    require(again.alignment == header.alignment);
    require(again.metadata.size() == header.metadata.size());
    require(again.tensors.size() == header.tensors.size());
    for (std::size_t i = 0; i < again.tensors.size(); ++i) {
        const auto& was = header.tensors[i];
        const auto& is = again.tensors[i];
        require(is.name == was.name && is.dims == was.dims && is.type == was.type);
        require(is.bytes == was.bytes && is.offset == layout.tensors[i].offset);
    }
    // Bytes and not values: a NaN is unequal to itself.
    require(
        write_gguf_header(again.metadata, again.tensors, again.alignment, again.version).header ==
        layout.header);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto bytes = std::as_bytes(std::span(data, size));
    // The file is longer than what is at hand: exactly as long, and as long as a model.
    for (const std::uint64_t file_size : {std::uint64_t{size}, std::uint64_t{1} << 42}) {
        try {
            const auto header = try_parse_gguf(bytes, file_size);
            require(header.has_value() || file_size != size);
            if (!header) continue;
            check_places(*header, file_size);
            check_round_trip(*header);
        } catch (const Error& error) {
            require(error.kind() == ErrorKind::format || error.kind() == ErrorKind::unsupported);
        }
    }
    return 0;
}
