// The field numbers of onnx.proto3's messages that are read and written.
#pragma once

#include <cstdint>

namespace phiquant::formats::onnx_field {

enum Model : std::uint32_t {
    model_ir_version = 1,
    model_producer = 2,
    model_producer_version = 3,
    model_graph = 7,
    model_opset = 8,
    model_metadata = 14,
    model_training = 20,
    model_functions = 25,
};
enum Opset : std::uint32_t { opset_domain = 1, opset_version = 2 };
enum Pair : std::uint32_t { pair_key = 1, pair_value = 2 };
enum Graph : std::uint32_t {
    graph_node = 1,
    graph_name = 2,
    graph_initializer = 5,
    graph_input = 11,
    graph_output = 12,
    graph_value_info = 13,
    graph_sparse_initializer = 15,
};
enum Node : std::uint32_t {
    node_input = 1,
    node_output = 2,
    node_name = 3,
    node_op = 4,
    node_attribute = 5,
    node_domain = 7,
    node_overload = 8,
};
enum Attribute : std::uint32_t {
    attribute_name = 1,
    attribute_f = 2,
    attribute_i = 3,
    attribute_s = 4,
    attribute_t = 5,
    attribute_g = 6,
    attribute_floats = 7,
    attribute_ints = 8,
    attribute_strings = 9,
    attribute_type = 20,
    attribute_reference = 21,
};
/// AttributeProto.AttributeType.
enum AttributeType : std::uint32_t {
    type_float = 1,
    type_int,
    type_string,
    type_tensor,
    type_graph,
    type_floats,
    type_ints,
    type_strings,
};
enum ValueInfo : std::uint32_t { value_name = 1, value_type = 2 };
enum Type : std::uint32_t { type_of_tensor = 1, type_denotation = 6 };
enum TensorType : std::uint32_t { tensor_element = 1, tensor_shape = 2 };
enum Shape : std::uint32_t { shape_dim = 1 };
enum Dimension : std::uint32_t { dim_value = 1, dim_name = 2 };
enum Tensor : std::uint32_t {
    tensor_dims = 1,
    tensor_type = 2,
    tensor_segment = 3,
    tensor_floats = 4,
    tensor_int32s = 5,
    tensor_strings = 6,
    tensor_int64s = 7,
    tensor_name = 8,
    tensor_raw = 9,
    tensor_doubles = 10,
    tensor_uint64s = 11,
    tensor_external = 13,
    tensor_location = 14,
};

}  // namespace phiquant::formats::onnx_field
