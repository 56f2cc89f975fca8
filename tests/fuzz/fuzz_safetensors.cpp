// Fuzz target: any bytes as a safetensors file. What is read tiles the file, and survives writing.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "base/error.hpp"
#include "formats/safetensors.hpp"

namespace {

using namespace phiquant;
using namespace phiquant::formats;

void require(bool holds) {
    if (!holds) std::abort();
}

void check_round_trip(const SafetensorsHeader& header) {
    SafetensorsLayout layout;
    try {
        layout = write_safetensors_header(header.entries, header.metadata);
    } catch (const Error& error) {
        // The one thing that is read but not written: tensors that start unaligned for their dtype.
        require(error.cause().find("would start at byte") != std::string::npos);
        return;
    }
    require(layout.header.size() % 8 == 0);
    const auto file = std::span<const std::byte>(layout.header);
    const auto length = safetensors_header_length(file, layout.file_size);
    require(length + 8 == layout.header.size());
    const auto again = parse_safetensors_header(file.subspan(8), layout.file_size);
    require(again.metadata == header.metadata);
    require(again.entries.size() == header.entries.size());
    for (std::size_t i = 0; i < again.entries.size(); ++i) {
        const auto& was = header.entries[i];
        const auto& is = again.entries[i];
        require(is.name == was.name && is.dtype == was.dtype && is.shape == was.shape);
        require(is.end - is.begin == was.end - was.begin);
    }
    require(write_safetensors_header(again.entries, again.metadata).header == layout.header);
}

/// Read bytes as a file would be read.
void read_as_file(std::span<const std::byte> file) {
    const auto prefix = file.first(std::min<std::size_t>(file.size(), 64));
    const auto length = safetensors_header_length(prefix, file.size());
    require(length <= file.size() - 8);
    const auto header =
        parse_safetensors_header(file.subspan(8, static_cast<std::size_t>(length)), file.size());
    std::uint64_t next = 8 + length;
    for (const auto& entry : header.entries) {
        require(entry.begin == next && entry.end >= entry.begin);
        next = entry.end;
    }
    require(next == file.size());
    check_round_trip(header);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto bytes = std::as_bytes(std::span(data, size));
    try {
        read_as_file(bytes);
    } catch (const Error& error) {
        require(error.kind() == ErrorKind::format || error.kind() == ErrorKind::unsupported);
    }
    // Most mutations break the length: take the bytes as bare JSON too, with the first two as the
    // size of the data that follows.
    if (size < 2) return 0;
    const auto json = bytes.subspan(2);
    try {
        const std::uint64_t data_bytes = data[0] | (std::uint64_t{data[1]} << 8);
        check_round_trip(parse_safetensors_header(json, 8 + json.size() + data_bytes));
    } catch (const Error& error) {
        require(error.kind() == ErrorKind::format || error.kind() == ErrorKind::unsupported);
    }
    return 0;
}
