// An ONNX model as bytes.
#include <limits>

#include "base/error.hpp"
#include "formats/onnx.hpp"
#include "formats/onnx_fields.hpp"
#include "formats/protobuf.hpp"
#include "formats/text.hpp"

namespace phiquant::formats {
namespace {

using namespace onnx_field;

void write_pair(ProtoWriter& to, std::uint32_t field, const std::string& key,
                const std::string& value) {
    ProtoWriter pair;
    pair.text(pair_key, key);
    pair.text(pair_value, value);
    to.message(field, pair);
}

ProtoWriter written(const OnnxTensor& tensor) {
    const auto refuse = [&](const std::string& cause) {
        throw Error(ErrorKind::usage, {}, shown(tensor.name), cause);
    };
    ProtoWriter out;
    for (const auto extent : tensor.dims) out.int64(tensor_dims, extent);
    out.int64(tensor_type, tensor.type);
    if (!tensor.name.empty()) out.text(tensor_name, tensor.name);
    std::uint64_t bytes = 0;
    try {
        bytes = onnx_tensor_bytes(tensor);
    } catch (const Error& error) {
        refuse(error.cause());
    }
    const bool is_external = tensor.storage == OnnxStorage::external;
    const std::uint64_t held = is_external ? tensor.length : tensor.values.size();
    if (tensor.storage == OnnxStorage::in_file || held != bytes) {
        refuse("holds " + std::to_string(held) + " bytes, but its shape and type take " +
               std::to_string(bytes));
    }
    if (is_external) {
        write_pair(out, tensor_external, "location", tensor.location);
        write_pair(out, tensor_external, "offset", std::to_string(tensor.offset));
        write_pair(out, tensor_external, "length", std::to_string(tensor.length));
        out.varint(tensor_location, 1);
    } else {
        out.bytes(tensor_raw, tensor.values);
    }
    return out;
}

ProtoWriter written(const OnnxGraph& graph);

template <class... Cases>
struct Overloaded : Cases... {
    using Cases::operator()...;
};
template <class... Cases>
Overloaded(Cases...) -> Overloaded<Cases...>;  // clang 14 does not deduce it from the aggregate

ProtoWriter written(const OnnxAttribute& attribute) {
    ProtoWriter out;
    out.text(attribute_name, attribute.name);
    const AttributeType type = std::visit(Overloaded{[&](std::int64_t value) {
                                                         out.int64(attribute_i, value);
                                                         return type_int;
                                                     },
                                                     [&](float value) {
                                                         out.float32(attribute_f, value);
                                                         return type_float;
                                                     },
                                                     [&](const std::string& value) {
                                                         out.text(attribute_s, value);
                                                         return type_string;
                                                     },
                                                     [&](const OnnxTensor& value) {
                                                         out.message(attribute_t, written(value));
                                                         return type_tensor;
                                                     },
                                                     [&](const std::shared_ptr<OnnxGraph>& value) {
                                                         out.message(attribute_g, written(*value));
                                                         return type_graph;
                                                     },
                                                     [&](const std::vector<std::int64_t>& values) {
                                                         for (const auto value : values)
                                                             out.int64(attribute_ints, value);
                                                         return type_ints;
                                                     },
                                                     [&](const std::vector<float>& values) {
                                                         for (const auto value : values)
                                                             out.float32(attribute_floats, value);
                                                         return type_floats;
                                                     },
                                                     [&](const std::vector<std::string>& values) {
                                                         for (const auto& value : values)
                                                             out.text(attribute_strings, value);
                                                         return type_strings;
                                                     }},
                                          attribute.value);
    out.varint(attribute_type, type);
    return out;
}

ProtoWriter written(const OnnxNode& node) {
    ProtoWriter out;
    // An empty name stands for an optional input that is left out, and must be written.
    for (const auto& input : node.inputs) out.text(node_input, input);
    for (const auto& output : node.outputs) out.text(node_output, output);
    if (!node.name.empty()) out.text(node_name, node.name);
    out.text(node_op, node.op);
    for (const auto& attribute : node.attributes) out.message(node_attribute, written(attribute));
    if (!node.domain.empty()) out.text(node_domain, node.domain);
    return out;
}

ProtoWriter written(const OnnxValueInfo& info) {
    ProtoWriter out, type, tensor, shape;
    out.text(value_name, info.name);
    if (info.type != 0) {
        tensor.int64(tensor_element, info.type);
        if (info.dims) {
            for (const auto& extent : *info.dims) {
                ProtoWriter dim;
                if (const auto* number = std::get_if<std::int64_t>(&extent)) {
                    dim.int64(dim_value, *number);
                } else if (!std::get<std::string>(extent).empty()) {
                    dim.text(dim_name, std::get<std::string>(extent));
                }
                shape.message(shape_dim, dim);
            }
            tensor.message(tensor_shape, shape);
        }
        type.message(type_of_tensor, tensor);
        out.message(value_type, type);
    }
    return out;
}

ProtoWriter written(const OnnxGraph& graph) {
    ProtoWriter out;
    for (const auto& node : graph.nodes) out.message(graph_node, written(node));
    out.text(graph_name, graph.name);
    for (const auto& tensor : graph.initializers) out.message(graph_initializer, written(tensor));
    for (const auto& info : graph.inputs) out.message(graph_input, written(info));
    for (const auto& info : graph.outputs) out.message(graph_output, written(info));
    for (const auto& info : graph.values) out.message(graph_value_info, written(info));
    return out;
}

}  // namespace

std::vector<std::byte> write_onnx(const OnnxModel& model) {
    ProtoWriter out;
    out.int64(model_ir_version, model.ir_version);
    if (!model.producer.empty()) out.text(model_producer, model.producer);
    if (!model.producer_version.empty()) out.text(model_producer_version, model.producer_version);
    out.message(model_graph, written(model.graph));
    for (const auto& [domain, version] : model.opsets) {
        ProtoWriter opset;
        if (!domain.empty()) opset.text(opset_domain, domain);
        opset.int64(opset_version, version);
        out.message(model_opset, opset);
    }
    for (const auto& [key, value] : model.metadata) write_pair(out, model_metadata, key, value);
    if (out.written().size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
        throw Error(ErrorKind::usage, "the model takes 2 GiB or more, which ONNX cannot hold",
                    "Put its tensors into an external file.");
    }
    return std::move(out.written());
}

}  // namespace phiquant::formats
