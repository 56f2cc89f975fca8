// An ONNX model, parsed and checked.
#include <algorithm>
#include <charconv>
#include <limits>

#include "base/bytes.hpp"
#include "base/checked.hpp"
#include "formats/limits.hpp"
#include "formats/onnx.hpp"
#include "formats/onnx_fields.hpp"
#include "formats/protobuf.hpp"
#include "formats/text.hpp"

namespace phiquant::formats {
namespace {

using namespace onnx_field;

constexpr const char* k_fetch_again = "The file is damaged or incomplete: fetch it again.";
// A message of two bytes becomes a struct of hundreds. Real models have some 10 000 of them.
constexpr std::size_t k_most_messages = std::size_t{1} << 19;
constexpr std::size_t k_most_numbers = std::size_t{1} << 26;
// If within Loop within If is deep already; each level takes stack.
constexpr int k_deepest_graph = 16;

[[noreturn]] void refuse(std::string cause) {
    throw Error(ErrorKind::format, std::move(cause), k_fetch_again);
}

[[noreturn]] void refuse_kind(std::string cause) {
    throw Error(ErrorKind::unsupported, std::move(cause));
}

[[noreturn]] void refuse_tensor(const OnnxTensor& tensor, const std::string& cause) {
    throw Error(ErrorKind::format, {}, shown(tensor.name), cause, k_fetch_again);
}

/// A decimal number of external_data, which holds numbers as text.
std::uint64_t decimal(const OnnxTensor& tensor, const std::string& key, const std::string& text) {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size()) {
        refuse_tensor(tensor, "has the external " + key + " " + quoted(text) + ", no number");
    }
    return value;
}

class Parser {
public:
    explicit Parser(std::span<const std::byte> file) : file_(file) {}

    OnnxModel parse() {
        if (file_.empty()) refuse("is empty (0 bytes)");
        OnnxModel model;
        bool has_graph = false;
        ProtoReader reader(file_);
        while (const auto field = reader.next()) {
            count();
            switch (field->number) {
                case model_ir_version:
                    model.ir_version = field->int64();
                    break;
                case model_producer:
                    model.producer = field->text();
                    break;
                case model_producer_version:
                    model.producer_version = field->text();
                    break;
                case model_graph:
                    if (has_graph) refuse("holds two graphs");
                    has_graph = true;
                    model.graph = read_graph(*field, 0);
                    break;
                case model_opset:
                    model.opsets.push_back(read_opset(*field));
                    break;
                case model_metadata:
                    model.metadata.push_back(read_pair(*field));
                    break;
                case model_training:
                    refuse_kind("holds training graphs, which are not read");
                case model_functions:
                    refuse_kind("holds functions, which are not read");
                default:
                    break;
            }
        }
        if (!has_graph || model.ir_version <= 0) {
            refuse("is no ONNX model: it has no graph or no IR version");
        }
        return model;
    }

private:
    void count() {
        if (++messages_ > k_most_messages) {
            refuse_kind("has a graph of more than " + std::to_string(k_most_messages) + " parts");
        }
    }

    /// Text that counts as a part: a field of two bytes makes a string of 32.
    std::string read_text(const ProtoField& field) {
        count();
        return field.text();
    }

    std::pair<std::string, std::int64_t> read_opset(const ProtoField& message) {
        std::pair<std::string, std::int64_t> opset{"", 0};
        ProtoReader reader(message);
        while (const auto field = reader.next()) {
            if (field->number == opset_domain) opset.first = read_text(*field);
            if (field->number == opset_version) opset.second = field->int64();
        }
        return opset;
    }

    std::pair<std::string, std::string> read_pair(const ProtoField& message) {
        std::pair<std::string, std::string> pair;
        ProtoReader reader(message);
        while (const auto field = reader.next()) {
            if (field->number == pair_key) pair.first = read_text(*field);
            if (field->number == pair_value) pair.second = read_text(*field);
        }
        return pair;
    }

    OnnxGraph read_graph(const ProtoField& message, int depth) {
        if (depth > k_deepest_graph) refuse_kind("has graphs nested too deeply");
        OnnxGraph graph;
        ProtoReader reader(message);
        while (const auto field = reader.next()) {
            count();
            switch (field->number) {
                case graph_node:
                    graph.nodes.push_back(read_node(*field, depth));
                    break;
                case graph_name:
                    graph.name = field->text();
                    break;
                case graph_initializer:
                    graph.initializers.push_back(read_tensor(*field));
                    if (graph.initializers.back().name.empty()) {
                        refuse("has an initializer without a name");
                    }
                    break;
                case graph_input:
                    graph.inputs.push_back(read_value_info(*field));
                    break;
                case graph_output:
                    graph.outputs.push_back(read_value_info(*field));
                    break;
                case graph_value_info:
                    graph.values.push_back(read_value_info(*field));
                    break;
                case graph_sparse_initializer:
                    refuse_kind("holds sparse initializers, which are not read");
                default:
                    break;
            }
        }
        if (const auto twice = find_duplicate(
                graph.initializers, [](const auto& t) -> const std::string& { return t.name; })) {
            throw Error(ErrorKind::format, {}, shown(*twice),
                        "tensor " + quoted(*twice) + " is in the graph twice (a duplicate name)",
                        k_fetch_again);
        }
        return graph;
    }

    OnnxNode read_node(const ProtoField& message, int depth) {
        OnnxNode node;
        ProtoReader reader(message);
        while (const auto field = reader.next()) {
            switch (field->number) {
                case node_input:
                    node.inputs.push_back(read_text(*field));
                    break;
                case node_output:
                    node.outputs.push_back(read_text(*field));
                    break;
                case node_name:
                    node.name = field->text();
                    break;
                case node_op:
                    node.op = field->text();
                    break;
                case node_domain:
                    node.domain = field->text();
                    break;
                case node_overload:
                    if (!field->content().empty()) refuse_kind("calls overloaded functions");
                    break;
                case node_attribute:
                    count();
                    node.attributes.push_back(read_attribute(*field, depth));
                    break;
                default:
                    break;
            }
        }
        return node;
    }

    OnnxAttribute read_attribute(const ProtoField& message, int depth) {
        OnnxAttribute attribute;
        std::uint64_t type = 0;
        std::int64_t integer = 0;
        float real = 0;
        std::string text;
        std::optional<OnnxTensor> tensor;
        std::shared_ptr<OnnxGraph> graph;
        std::vector<std::int64_t> integers;
        std::vector<float> reals;
        std::vector<std::string> texts;
        ProtoReader reader(message);
        while (const auto field = reader.next()) {
            switch (field->number) {
                case attribute_name:
                    attribute.name = field->text();
                    break;
                case attribute_f:
                    real = field->float32();
                    break;
                case attribute_i:
                    integer = field->int64();
                    break;
                case attribute_s:
                    text = as_text(field->content());
                    break;
                case attribute_t:
                    tensor = read_tensor(*field);
                    break;
                case attribute_g:
                    graph = std::make_shared<OnnxGraph>(read_graph(*field, depth + 1));
                    break;
                case attribute_floats:
                    field->append_to(reals, k_most_numbers);
                    break;
                case attribute_ints:
                    field->append_to(integers, k_most_numbers);
                    break;
                case attribute_strings:
                    count();
                    texts.emplace_back(as_text(field->content()));
                    break;
                case attribute_type:
                    type = field->varint();
                    break;
                case attribute_reference:
                    refuse_kind("has attributes that refer to a function's");
                default:
                    break;
            }
        }
        switch (type) {
            case type_float:
                attribute.value = real;
                break;
            case type_int:
                attribute.value = integer;
                break;
            case type_string:
                attribute.value = std::move(text);
                break;
            case type_tensor:
                if (!tensor) refuse("has the attribute " + quoted(attribute.name) + " empty");
                attribute.value = *std::move(tensor);
                break;
            case type_graph:
                if (!graph) refuse("has the attribute " + quoted(attribute.name) + " empty");
                attribute.value = std::move(graph);
                break;
            case type_floats:
                attribute.value = std::move(reals);
                break;
            case type_ints:
                attribute.value = std::move(integers);
                break;
            case type_strings:
                attribute.value = std::move(texts);
                break;
            default:
                refuse_kind("has the attribute " + quoted(attribute.name) + " of the type " +
                            std::to_string(type) + ", which is not read");
        }
        return attribute;
    }

    OnnxValueInfo read_value_info(const ProtoField& message) {
        OnnxValueInfo info;
        ProtoReader reader(message);
        while (const auto field = reader.next()) {
            if (field->number == value_name) info.name = field->text();
            if (field->number != value_type) continue;
            ProtoReader type(*field);
            while (const auto kind = type.next()) {
                if (kind->number == type_of_tensor) {
                    read_tensor_type(*kind, info);
                } else if (kind->number != type_denotation) {
                    refuse_kind("the value " + quoted(info.name) + " is no tensor");
                }
            }
        }
        return info;
    }

    void read_tensor_type(const ProtoField& message, OnnxValueInfo& info) {
        ProtoReader reader(message);
        while (const auto field = reader.next()) {
            if (field->number == tensor_element) info.type = narrow(field->varint());
            if (field->number != tensor_shape) continue;
            info.dims.emplace();
            ProtoReader shape(*field);
            while (const auto entry = shape.next()) {
                if (entry->number != shape_dim) continue;
                count();
                OnnxDimension extent = std::string();
                ProtoReader dim(*entry);
                while (const auto said = dim.next()) {
                    if (said->number == dim_value) extent = said->int64();
                    if (said->number == dim_name) extent = said->text();
                }
                info.dims->push_back(std::move(extent));
            }
        }
    }

    static std::int32_t narrow(std::uint64_t number) {
        if (number > 0x7FFFFFFF) refuse("has the element type " + std::to_string(number));
        return static_cast<std::int32_t>(number);
    }

    OnnxTensor read_tensor(const ProtoField& message) {
        OnnxTensor tensor;
        std::vector<std::pair<std::string, std::string>> external;
        std::vector<std::int64_t> integers;
        std::vector<float> reals;
        std::vector<double> doubles;
        std::optional<ProtoField> raw;
        std::uint64_t location = 0;
        std::uint32_t typed = 0;
        ProtoReader reader(message);
        while (const auto field = reader.next()) {
            switch (field->number) {
                case tensor_dims:
                    field->append_to(tensor.dims, k_most_dimensions);
                    break;
                case tensor_type:
                    tensor.type = narrow(field->varint());
                    break;
                case tensor_name:
                    tensor.name = field->text();
                    break;
                case tensor_raw:
                    raw = *field;
                    static_cast<void>(field->content());
                    break;
                case tensor_floats:
                    typed = field->number;
                    field->append_to(reals, k_most_numbers);
                    break;
                case tensor_doubles:
                    typed = field->number;
                    field->append_to(doubles, k_most_numbers);
                    break;
                case tensor_int32s:
                case tensor_int64s:
                case tensor_uint64s:
                    typed = field->number;
                    field->append_to(integers, k_most_numbers);
                    break;
                case tensor_external:
                    count();
                    external.push_back(read_pair(*field));
                    break;
                case tensor_location:
                    location = field->varint();
                    break;
                case tensor_segment:
                    refuse_kind("holds a tensor in segments");
                case tensor_strings:
                    refuse_kind("holds a tensor of strings");
                default:
                    break;
            }
        }
        const std::uint64_t bytes = onnx_tensor_bytes(tensor);
        if (location == 1) {
            place_external(tensor, external, bytes);
        } else if (location != 0) {
            refuse_tensor(tensor, "has the data location " + std::to_string(location));
        } else if (raw) {
            tensor.storage = OnnxStorage::in_file;
            tensor.offset = raw->offset;
            tensor.length = raw->bytes.size();
        } else {
            tensor.values = gathered(tensor, typed, integers, reals, doubles);
            tensor.length = tensor.values.size();
        }
        if (tensor.length != bytes) {
            refuse_tensor(tensor, "holds " + std::to_string(tensor.length) +
                                      " bytes, but its shape and type take " +
                                      std::to_string(bytes));
        }
        return tensor;
    }

    static void place_external(OnnxTensor& tensor, const OnnxPairs& external, std::uint64_t bytes) {
        tensor.storage = OnnxStorage::external;
        tensor.length = bytes;
        for (const auto& [key, value] : external) {
            if (key == "location") tensor.location = value;
            if (key == "offset") tensor.offset = decimal(tensor, key, value);
            if (key == "length") tensor.length = decimal(tensor, key, value);
        }
        if (tensor.location.empty()) refuse_tensor(tensor, "names no file for its external data");
        if (!try_add(tensor.offset, tensor.length)) {
            refuse_tensor(tensor, "has an end that overflows 64 bits");
        }
    }

    /// Values of the typed fields as the bytes that raw_data would hold.
    static std::vector<std::byte> gathered(const OnnxTensor& tensor, std::uint32_t typed,
                                           const std::vector<std::int64_t>& integers,
                                           const std::vector<float>& reals,
                                           const std::vector<double>& doubles) {
        const OnnxType& type = *onnx_type(tensor.type);
        std::vector<std::byte> bytes;
        const auto expect = [&](bool holds) {
            if (!holds) {
                refuse_tensor(tensor,
                              "holds values in the wrong field for " + std::string(type.name));
            }
        };
        if (typed == tensor_floats) {
            expect(type.name == "float32");
            for (const float value : reals) append_little_endian(bytes, value);
        } else if (typed == tensor_doubles) {
            expect(type.name == "float64");
            for (const double value : doubles) append_little_endian(bytes, value);
        } else if (typed == tensor_int64s) {
            expect(type.name == "int64");
            for (const auto value : integers) append_little_endian(bytes, value);
        } else if (typed == tensor_uint64s) {
            expect(type.name == "uint64" || type.name == "uint32");
            append_narrow(bytes, integers, type.bits);
        } else if (typed == tensor_int32s) {
            // Also 16-bit floats, as their bits; what is below 8 bits is one byte of packed values.
            expect(type.bits <= 32 && type.name != "float32" && type.name != "uint32");
            append_narrow(bytes, integers, std::max<std::uint32_t>(type.bits, 8));
        }
        return bytes;
    }

    static void append_narrow(std::vector<std::byte>& bytes,
                              const std::vector<std::int64_t>& integers, std::uint32_t bits) {
        for (const auto value : integers) {
            for (std::uint32_t bit = 0; bit < bits; bit += 8) {
                bytes.push_back(static_cast<std::byte>(static_cast<std::uint64_t>(value) >> bit));
            }
        }
    }

    std::span<const std::byte> file_;
    std::size_t messages_ = 0;
};

}  // namespace

OnnxModel parse_onnx(std::span<const std::byte> file) { return Parser(file).parse(); }

}  // namespace phiquant::formats
