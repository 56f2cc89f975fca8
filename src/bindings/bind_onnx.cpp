// Python sees ONNX models as nested dicts, tuples and lists; phiquant.onnx has classes for them.
#include "base/error.hpp"
#include "bindings/bindings.hpp"
#include "formats/onnx.hpp"
#include "formats/text.hpp"

namespace py = pybind11;

namespace phiquant::bindings {
namespace {

using namespace phiquant::formats;

py::bytes as_bytes_object(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// --- C++ to Python ---

py::dict to_python(const OnnxGraph& graph);

py::tuple to_python(const OnnxTensor& tensor) {
    py::object values = py::none();
    if (tensor.storage == OnnxStorage::values) values = as_bytes_object(tensor.values);
    py::object location = py::none();
    if (tensor.storage == OnnxStorage::external) location = py::str(tensor.location);
    return py::make_tuple(tensor.name, tensor.type, py::tuple(py::cast(tensor.dims)), values,
                          location, tensor.offset, tensor.length);
}

py::tuple to_python(const OnnxAttribute& attribute) {
    py::object value;
    const char* kind = std::visit(
        [&]<class T>(const T& held) {
            if constexpr (std::is_same_v<T, OnnxTensor>) {
                value = to_python(held);
                return "tensor";
            } else if constexpr (std::is_same_v<T, std::shared_ptr<OnnxGraph>>) {
                value = to_python(*held);
                return "graph";
            } else if constexpr (std::is_same_v<T, std::string>) {
                value = py::bytes(held);
                return "string";
            } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
                py::list items;
                for (const auto& item : held) items.append(py::bytes(item));
                value = std::move(items);
                return "strings";
            } else {
                value = py::cast(held);
                if constexpr (std::is_same_v<T, std::int64_t>) return "int";
                if constexpr (std::is_same_v<T, float>) return "float";
                if constexpr (std::is_same_v<T, std::vector<std::int64_t>>) return "ints";
                return "floats";
            }
        },
        attribute.value);
    return py::make_tuple(attribute.name, kind, value);
}

py::tuple to_python(const OnnxNode& node) {
    py::list attributes;
    for (const auto& attribute : node.attributes) attributes.append(to_python(attribute));
    return py::make_tuple(node.op, node.domain, node.name, py::cast(node.inputs),
                          py::cast(node.outputs), attributes);
}

py::tuple to_python(const OnnxValueInfo& info) {
    py::object dims = py::none();
    if (info.dims) dims = py::tuple(py::cast(*info.dims));
    return py::make_tuple(info.name, info.type, dims);
}

template <class T>
py::list to_list(const std::vector<T>& items) {
    py::list out;
    for (const auto& item : items) out.append(to_python(item));
    return out;
}

py::dict to_python(const OnnxGraph& graph) {
    py::dict out;
    out["name"] = graph.name;
    out["nodes"] = to_list(graph.nodes);
    out["initializers"] = to_list(graph.initializers);
    out["inputs"] = to_list(graph.inputs);
    out["outputs"] = to_list(graph.outputs);
    out["values"] = to_list(graph.values);
    return out;
}

// --- Python to C++ (phiquant.onnx has checked the kinds) ---

OnnxGraph graph_from(const py::dict& graph);

OnnxTensor tensor_from(const py::tuple& held) {
    OnnxTensor tensor;
    tensor.name = held[0].cast<std::string>();
    tensor.type = held[1].cast<std::int32_t>();
    tensor.dims = held[2].cast<std::vector<std::int64_t>>();
    if (!held[4].is_none()) {
        tensor.storage = OnnxStorage::external;
        tensor.location = held[4].cast<std::string>();
        tensor.offset = held[5].cast<std::uint64_t>();
        tensor.length = held[6].cast<std::uint64_t>();
    } else {
        const auto text = held[3].cast<std::string_view>();
        const auto bytes = std::as_bytes(std::span(text));
        tensor.values.assign(bytes.begin(), bytes.end());
    }
    return tensor;
}

OnnxAttribute attribute_from(const py::tuple& held) {
    OnnxAttribute attribute;
    attribute.name = held[0].cast<std::string>();
    const auto kind = held[1].cast<std::string>();
    const py::object value = held[2];
    if (kind == "int") {
        attribute.value = value.cast<std::int64_t>();
    } else if (kind == "float") {
        attribute.value = value.cast<float>();
    } else if (kind == "string") {
        attribute.value = value.cast<std::string>();
    } else if (kind == "tensor") {
        attribute.value = tensor_from(value);
    } else if (kind == "graph") {
        attribute.value = std::make_shared<OnnxGraph>(graph_from(value));
    } else if (kind == "ints") {
        attribute.value = value.cast<std::vector<std::int64_t>>();
    } else if (kind == "floats") {
        attribute.value = value.cast<std::vector<float>>();
    } else if (kind == "strings") {
        attribute.value = value.cast<std::vector<std::string>>();
    } else {
        throw Error(ErrorKind::usage, "an attribute cannot be of the kind " + quoted(kind));
    }
    return attribute;
}

OnnxValueInfo value_from(const py::tuple& held) {
    OnnxValueInfo info;
    info.name = held[0].cast<std::string>();
    info.type = held[1].cast<std::int32_t>();
    if (!held[2].is_none()) info.dims = held[2].cast<std::vector<OnnxDimension>>();
    return info;
}

OnnxGraph graph_from(const py::dict& held) {
    OnnxGraph graph;
    graph.name = held["name"].cast<std::string>();
    for (const auto& item : held["nodes"]) {
        const auto tuple = item.cast<py::tuple>();
        OnnxNode node;
        node.op = tuple[0].cast<std::string>();
        node.domain = tuple[1].cast<std::string>();
        node.name = tuple[2].cast<std::string>();
        node.inputs = tuple[3].cast<std::vector<std::string>>();
        node.outputs = tuple[4].cast<std::vector<std::string>>();
        for (const auto& attribute : tuple[5]) {
            node.attributes.push_back(attribute_from(attribute.cast<py::tuple>()));
        }
        graph.nodes.push_back(std::move(node));
    }
    for (const auto& item : held["initializers"]) {
        graph.initializers.push_back(tensor_from(item.cast<py::tuple>()));
    }
    for (const auto& item : held["inputs"])
        graph.inputs.push_back(value_from(item.cast<py::tuple>()));
    for (const auto& item : held["outputs"]) {
        graph.outputs.push_back(value_from(item.cast<py::tuple>()));
    }
    for (const auto& item : held["values"])
        graph.values.push_back(value_from(item.cast<py::tuple>()));
    return graph;
}

// --- the bound functions ---

py::dict parse(const py::array_t<std::uint8_t, py::array::c_style>& file) {
    const auto bytes = std::as_bytes(std::span(file.data(), static_cast<std::size_t>(file.size())));
    const OnnxModel model = [&] {
        const py::gil_scoped_release released;
        return parse_onnx(bytes);
    }();
    py::dict out;
    out["ir_version"] = model.ir_version;
    out["producer"] = model.producer;
    out["producer_version"] = model.producer_version;
    out["opsets"] = py::cast(model.opsets);
    out["metadata"] = py::cast(model.metadata);
    out["graph"] = to_python(model.graph);
    return out;
}

py::bytes write(const py::dict& held) {
    OnnxModel model;
    model.ir_version = held["ir_version"].cast<std::int64_t>();
    model.producer = held["producer"].cast<std::string>();
    model.producer_version = held["producer_version"].cast<std::string>();
    model.opsets = held["opsets"].cast<decltype(model.opsets)>();
    model.metadata = held["metadata"].cast<OnnxPairs>();
    model.graph = graph_from(held["graph"]);
    return as_bytes_object(write_onnx(model));
}

}  // namespace

void bind_onnx(py::module_& m) {
    m.def(
        "onnx_types",
        [] {
            py::list out;
            for (const auto& type : onnx_types()) {
                out.append(py::make_tuple(type.id, type.name, type.bits));
            }
            return out;
        },
        "Every element type of ONNX that is read and written: [(id, name, bits)].");
    m.def(
        "parse_onnx", &parse, py::arg("file"),
        "Check and read an ONNX model from its whole (mapped) file.\n\n"
        "Returns a dict: ir_version, producer, producer_version, opsets [(domain, version)],\n"
        "metadata [(key, value)], graph. A graph is a dict: name, nodes [(op, domain, name,\n"
        "inputs, outputs, [(attribute, kind, value)])], initializers, inputs, outputs, values\n"
        "[(name, type id, dims or None)]. A tensor is (name, type id, dims, values or None,\n"
        "external file or None, offset, length): with neither values nor file its bytes stand in\n"
        "this very file at the offset. Raises FormatError or UnsupportedError.");
    m.def("write_onnx", &write, py::arg("model"),
          "The bytes of an ONNX model, given as parse_onnx returns it. Raises UsageError.");
}

}  // namespace phiquant::bindings
