// ONNX models: the part of the format that language models need, written, and read without trust.
//
// The format: onnx/onnx.proto3 of https://github.com/onnx/onnx. Left out, and refused where a file
// has them: sparse and string tensors, sequences, maps and optionals, functions, training, and
// attributes that are lists of tensors or graphs. Documentation strings are dropped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace phiquant::formats {

/// One element type: TensorProto.DataType's number, NumPy's name, and how many bits it takes.
struct OnnxType {
    std::int32_t id;
    std::string_view name;
    std::uint32_t bits;
};

/// Every element type that is read or written; no strings, no complex numbers.
[[nodiscard]] std::span<const OnnxType> onnx_types() noexcept;
/// Nothing for other types.
[[nodiscard]] const OnnxType* onnx_type(std::int32_t id) noexcept;

enum class OnnxStorage : std::uint8_t {
    values,    ///< in the tensor's own `values`
    in_file,   ///< in the model's file, at `offset` (only what was read)
    external,  ///< in the file `location` beside the model's
};

struct OnnxTensor {
    std::string name;
    std::int32_t type = 0;
    std::vector<std::int64_t> dims;
    OnnxStorage storage = OnnxStorage::values;
    std::vector<std::byte> values;  ///< little-endian, types below 8 bits packed low bits first
    std::string location;
    std::uint64_t offset = 0, length = 0;
};

struct OnnxGraph;

using OnnxAttributeValue =
    std::variant<std::int64_t, float, std::string, OnnxTensor, std::shared_ptr<OnnxGraph>,
                 std::vector<std::int64_t>, std::vector<float>, std::vector<std::string>>;

struct OnnxAttribute {
    std::string name;
    OnnxAttributeValue value;  ///< strings are bytes
};

struct OnnxNode {
    std::string op, domain, name;
    std::vector<std::string> inputs, outputs;
    std::vector<OnnxAttribute> attributes;
};

/// An extent: a number, or the name of one that is only known at run time (empty: unnamed).
using OnnxDimension = std::variant<std::int64_t, std::string>;

struct OnnxValueInfo {
    std::string name;
    std::int32_t type = 0;  ///< 0: not said
    std::optional<std::vector<OnnxDimension>> dims;
};

struct OnnxGraph {
    std::string name;
    std::vector<OnnxNode> nodes;
    std::vector<OnnxTensor> initializers;
    std::vector<OnnxValueInfo> inputs, outputs, values;
};

using OnnxPairs = std::vector<std::pair<std::string, std::string>>;

struct OnnxModel {
    std::int64_t ir_version = 0;
    std::string producer, producer_version;
    std::vector<std::pair<std::string, std::int64_t>> opsets;  ///< domain, version
    OnnxPairs metadata;
    OnnxGraph graph;
};

/// The bytes of a tensor's values. Throws Error(format) for negative dims, sizes past 64 bits and
/// types that onnx_types() lacks.
[[nodiscard]] std::uint64_t onnx_tensor_bytes(const OnnxTensor& tensor);

/// Read a model from its whole file. Places (`in_file`, `external`) are held against dims and type;
/// whether external files exist is the caller's to look at. Memory stays within a small multiple of
/// the file. Throws Error(format) for damaged files, Error(unsupported) for what the top of this
/// page leaves out and for graphs past the limits.
[[nodiscard]] OnnxModel parse_onnx(std::span<const std::byte> file);

/// The file's bytes. Throws Error(usage) for tensors whose values do not fit their dims and type,
/// for tensors `in_file`, and for models of 2 GiB or more, which protobuf cannot hold.
[[nodiscard]] std::vector<std::byte> write_onnx(const OnnxModel& model);

}  // namespace phiquant::formats
