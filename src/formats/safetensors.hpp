// The safetensors container: its header read and checked without trust, and written.
//
// A file is 8 bytes of header length (little-endian), that many bytes of JSON, and the tensors'
// data. The format: https://github.com/huggingface/safetensors#format. What the format leaves open
// is decided here: scalars (shape []) and tensors with a dimension of 0 are legal, the latter own
// no bytes; up to 32 dimensions; unknown keys in an entry are refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tensor/dtype.hpp"

namespace phiquant::formats {

/// Longest header, as in the reference implementation: 100 MB.
inline constexpr std::uint64_t k_safetensors_longest_header = 100'000'000;
/// Bytes before the header: its length.
inline constexpr std::uint64_t k_safetensors_header_start = 8;

struct SafetensorsEntry {
    std::string name;
    DType dtype = DType::f32;
    std::vector<std::uint64_t> shape;  ///< outermost dimension first, rows last
    std::uint64_t begin = 0, end = 0;  ///< the data's place, in bytes from the file's start
};

using SafetensorsMetadata = std::vector<std::pair<std::string, std::string>>;

struct SafetensorsHeader {
    std::vector<SafetensorsEntry> entries;  ///< in the order of their data
    SafetensorsMetadata metadata;           ///< `__metadata__`, in the file's order
};

/// Bytes of JSON header that follow the file's first 8 bytes.
///
/// `prefix` holds the start of the file: 8 bytes at least, unless the file is shorter; more tell
/// better what a wrong file is. Throws Error(format) when no header can be there: an empty or
/// shorter file, a length past the file's end or 100 MB, a Git-LFS pointer, a web page.
[[nodiscard]] std::uint64_t safetensors_header_length(std::span<const std::byte> prefix,
                                                      std::uint64_t file_size);

/// Read the JSON header (the bytes after the first 8) of a file of `file_size` bytes.
///
/// Checks all that can be checked without the data: strict UTF-8 and JSON, no duplicate key, every
/// number a whole one, every dtype known, shape times dtype equal to the byte range, and ranges
/// that tile the data section exactly: no overlap, no hole, no byte left over (else a file could be
/// two things at once). Throws Error(format), or Error(unsupported) for dtypes and sizes not
/// handled.
[[nodiscard]] SafetensorsHeader parse_safetensors_header(std::span<const std::byte> header_json,
                                                         std::uint64_t file_size);

struct SafetensorsLayout {
    std::vector<std::byte> header;          ///< length, JSON and padding: the file's first bytes
    std::vector<SafetensorsEntry> entries;  ///< as given, with begin and end filled in
    std::uint64_t file_size = 0;
};

/// Lay out a file whose data stand in the order of `entries` (begin and end are ignored).
///
/// The header is padded with spaces to a multiple of 8 bytes; the same input gives the same bytes.
/// Throws Error(usage) for what the reader would refuse, and for an order that leaves a tensor
/// unaligned for its dtype, which loaders that map the file cannot use.
[[nodiscard]] SafetensorsLayout write_safetensors_header(std::vector<SafetensorsEntry> entries,
                                                         const SafetensorsMetadata& metadata);

}  // namespace phiquant::formats
