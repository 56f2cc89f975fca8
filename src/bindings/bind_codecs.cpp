// The codec table and the kernels' tables, as Python sees them.
#include <optional>

#include "bindings/bindings.hpp"
#include "codecs/planes.hpp"
#include "kernels/dispatch.hpp"
#include "pipeline/stages.hpp"

namespace py = pybind11;

namespace phiquant::bindings {
namespace {

const kernels::Table& table_named(const std::optional<std::string>& arch) {
    return arch ? kernels::by_name(*arch) : kernels::active();
}

const char* name_of(codecs::Grid grid) {
    switch (grid) {
        case codecs::Grid::floating:
            return "float";
        case codecs::Grid::scale:
            return "scale";
        case codecs::Grid::scale_minimum:
            return "scale and minimum";
        case codecs::Grid::levels:
            return "levels";
        case codecs::Grid::lattice:
            return "lattice";
        case codecs::Grid::affine:
            return "affine";
    }
    return "";
}

// `out`, if it is a C-contiguous array of this shape, or a new array.
template <class T>
py::array_t<T> output_array(const py::object& out, std::uint64_t rows, std::uint64_t columns) {
    const std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(rows),
                                         static_cast<py::ssize_t>(columns)};
    if (out.is_none()) return py::array_t<T>(shape);
    if (!py::isinstance<py::array_t<T, py::array::c_style>>(out)) {
        throw Error(ErrorKind::shape, "out has another dtype or is not contiguous");
    }
    auto array = py::reinterpret_borrow<py::array_t<T>>(out);
    if (array.ndim() != 2 || array.shape(0) != shape[0] || array.shape(1) != shape[1]) {
        throw Error(ErrorKind::shape, "out has another shape");
    }
    return array;
}

const codecs::Codec& blocks_codec_named(const std::string& name) {
    const codecs::Codec& codec = codec_named(name);
    if (codec.layout == codecs::Layout::blocks) return codec;
    throw Error(ErrorKind::usage, name + " is no codec of blocks");
}

using Weights = py::array_t<float, py::array::c_style>;

py::array_t<std::uint8_t> encode_blocks(const std::string& name,
                                        const py::array_t<float, py::array::c_style>& values,
                                        const std::optional<std::string>& arch,
                                        const py::object& out,
                                        const std::optional<Weights>& importance, bool best) {
    const codecs::Codec& codec = blocks_codec_named(name);
    if (values.ndim() != 2 || values.shape(1) % codec.block_values != 0) {
        throw Error(ErrorKind::shape, "expected two axes, the last a multiple of " +
                                          std::to_string(codec.block_values));
    }
    const auto rows = static_cast<std::uint64_t>(values.shape(0));
    const auto columns = static_cast<std::uint64_t>(values.shape(1));
    if (importance && (importance->ndim() != 1 || importance->shape(0) != values.shape(1))) {
        throw Error(ErrorKind::shape, "importance must be one weight for each column");
    }
    if (codec.needs_importance && !importance) {
        throw Error(ErrorKind::usage, name + " cannot be encoded without an importance");
    }
    const float* weights = importance ? importance->data() : nullptr;
    auto blocks = output_array<std::uint8_t>(out, rows, pipeline::bytes_of(codec, columns));
    const kernels::Kernel& kernel = table_named(arch).*codec.kernel;
    const kernels::Encode encode = best ? kernel.best : kernel.encode;
    if (encode == nullptr) throw Error(ErrorKind::unsupported, name + " has no best quality");
    auto* plane = reinterpret_cast<std::byte*>(blocks.mutable_data());
    const float* data = values.data();
    {
        const py::gil_scoped_release released;
        encode({data, rows, columns, weights}, &plane);
    }
    return blocks;
}

py::array_t<float> decode_blocks(const std::string& name,
                                 const py::array_t<std::uint8_t, py::array::c_style>& blocks,
                                 std::uint64_t columns, const std::optional<std::string>& arch,
                                 const py::object& out) {
    const codecs::Codec& codec = blocks_codec_named(name);
    const std::uint64_t row_bytes = pipeline::bytes_of(codec, columns);
    const auto size = static_cast<std::uint64_t>(blocks.size());
    if (columns == 0 || columns % codec.block_values != 0 || size % row_bytes != 0) {
        throw Error(ErrorKind::shape, "the blocks do not make whole rows");
    }
    const std::uint64_t rows = size / row_bytes;
    auto values = output_array<float>(out, rows, columns);
    const kernels::Table& table = table_named(arch);
    const auto* plane = reinterpret_cast<const std::byte*>(blocks.data());
    float* data = values.mutable_data();
    {
        const py::gil_scoped_release released;
        pipeline::decode(table, codec, plane, rows * columns, data);
    }
    return values;
}

}  // namespace

const codecs::Codec& codec_named(std::string_view name) {
    if (const codecs::Codec* codec = codecs::find(name)) return *codec;
    throw Error(ErrorKind::usage, "there is no codec '" + std::string(name) + "'",
                "`phiquant formats` lists the codecs.");
}

namespace {

const char* name_of(codecs::Rule rule) {
    switch (rule) {
        case codecs::Rule::ggml:
            return "ggml";
        case codecs::Rule::ort:
            return "ort";
        case codecs::Rule::qdq:
            return "qdq";
        case codecs::Rule::nncf:
            return "nncf";
        case codecs::Rule::mlx:
            return "mlx";
        case codecs::Rule::ct:
            return "ct";
        case codecs::Rule::portable:
            return "portable";
    }
    return "";
}

const char* name_of(codecs::Content content) {
    switch (content) {
        case codecs::Content::blocks:
            return "blocks";
        case codecs::Content::codes:
            return "codes";
        case codecs::Content::scales:
            return "scales";
        case codecs::Content::zero_points:
            return "zero_points";
        case codecs::Content::biases:
            return "biases";
    }
    return "";
}

py::dict facts_of(const codecs::Codec& codec) {
    const kernels::Table& table = kernels::active();
    py::dict row;
    row["name"] = codec.name;
    row["grid"] = name_of(codec.grid);
    row["block_values"] = codec.block_values;
    row["sub_block_values"] = codec.sub_block_values;
    row["block_bytes"] = codec.block_bytes;
    row["ggml_type"] =
        codec.ggml_type == codecs::k_no_ggml_type ? -1 : static_cast<int>(codec.ggml_type);
    row["needs_importance"] = codec.needs_importance;
    row["has_best"] = codec.is_affine() ? affine_kernel(table, codec).best != nullptr
                                        : (table.*codec.kernel).best != nullptr;
    row["bits_per_weight"] = codec.bits_per_weight();
    row["rule"] = name_of(codec.rule);
    return row;
}

// Facts of an affine codec, or of a float that is written by columns.
py::object made_codec(const std::string& name) {
    const codecs::Codec* codec = codecs::find(name);
    if (codec == nullptr || codec->layout == codecs::Layout::blocks) return py::none();
    static constexpr const char* k_scales[] = {"float32", "float16", "bfloat16"};
    py::dict row = facts_of(*codec);
    row["transposed"] = codec->by_columns();
    if (codec->is_affine()) {
        row["bits"] = codec->affine.bits;
        row["group"] = codec->affine.group;
        row["symmetric"] = codec->affine.symmetric;
        row["scale"] = k_scales[static_cast<std::size_t>(codec->affine.scale)];
        row["is_built"] = affine_kernel(kernels::active(), *codec).encode != nullptr;
    }
    return row;
}

// (content, bits of an element, elements of a row, bytes) of each plane.
py::list planes(const std::string& name, std::uint64_t rows, std::uint64_t columns) {
    if (rows == 0 || columns == 0) throw Error(ErrorKind::shape, "the matrix is empty");
    py::list found;
    for (const codecs::Plane& plane : codecs::planes_of(codec_named(name), rows, columns)) {
        found.append(
            py::make_tuple(name_of(plane.content), plane.bits, plane.row_elements, plane.bytes()));
    }
    return found;
}

}  // namespace

void bind_codecs(py::module_& module) {
    module.def("codecs", [] {
        py::list rows;
        for (const codecs::Codec& codec : codecs::all()) rows.append(facts_of(codec));
        return rows;
    });
    module.def("made_codec", &made_codec, py::arg("name"));
    module.def("planes", &planes, py::arg("codec"), py::arg("rows"), py::arg("columns"));
    module.def("active_arch", [] { return std::string(kernels::active().name); });
    module.def("available_archs", [] {
        std::vector<std::string> names;
        for (const kernels::Table* table : kernels::available()) names.emplace_back(table->name);
        return names;
    });

    // One thread, no checks of the values: what tests and benchmarks hold against the peers.
    module.def("encode_blocks", &encode_blocks, py::arg("codec"), py::arg("values").noconvert(),
               py::arg("arch") = py::none(), py::arg("out") = py::none(),
               py::arg("importance") = py::none(), py::arg("best") = false);
    module.def("decode_blocks", &decode_blocks, py::arg("codec"), py::arg("blocks").noconvert(),
               py::arg("columns"), py::arg("arch") = py::none(), py::arg("out") = py::none());
}

}  // namespace phiquant::bindings
