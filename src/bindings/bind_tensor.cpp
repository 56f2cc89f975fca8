// Quantizing and decoding tensors in memory.
#include <optional>

#include "bindings/tensor_view.hpp"
#include "bindings/watch.hpp"
#include "kernels/dispatch.hpp"
#include "pipeline/memory.hpp"
#include "pipeline/stages.hpp"

namespace py = pybind11;

namespace phiquant::bindings {
namespace {

const float* weights_of(const std::optional<py::array_t<float>>& importance,
                        std::uint64_t columns) {
    if (!importance) return nullptr;
    if (importance->ndim() != 1 || (importance->flags() & py::array::c_style) == 0 ||
        static_cast<std::uint64_t>(importance->shape(0)) != columns ||
        columns > pipeline::k_tile_values) {
        throw Error(ErrorKind::shape, "importance must be one weight for each of the " +
                                          std::to_string(columns) + " columns");
    }
    return importance->data();
}

py::array_t<std::uint8_t> quantize(const py::object& tensor, const std::string& codec,
                                   unsigned threads, const py::object& progress,
                                   const std::optional<py::array_t<float>>& importance, bool best) {
    const codecs::Codec& to = codec_named(codec);
    if (to.layout != codecs::Layout::blocks) {
        throw Error(ErrorKind::usage, codec + " is no codec of blocks");
    }
    const HeldTensor held = view_tensor(tensor);
    const pipeline::RowView& view = held.view;
    if (view.columns() % to.block_values != 0) {
        throw Error(ErrorKind::shape,
                    "rows have " + std::to_string(view.columns()) + " columns, and " + codec +
                        " takes multiples of " + std::to_string(to.block_values),
                    "Choose a codec with a smaller block: q8_0 takes multiples of 32, f16 any.");
    }
    const float* weights = weights_of(importance, view.columns());
    std::vector<py::ssize_t> shape(view.shape.begin(), view.shape.end());
    shape.back() = static_cast<py::ssize_t>(pipeline::bytes_of(to, view.columns()));
    py::array_t<std::uint8_t> blocks(shape);
    auto* const out = reinterpret_cast<std::byte*>(blocks.mutable_data());
    const auto observe = watch_progress(progress);
    {
        const py::gil_scoped_release released;
        pipeline::encode_rows(view, to, {weights, best}, out, threads, observe);
    }
    return blocks;
}

py::array_t<float> dequantize(const py::array& blocks, const std::string& codec,
                              const std::vector<std::uint64_t>& shape, unsigned threads,
                              const py::object& progress) {
    const codecs::Codec& from = codec_named(codec);
    if (from.layout != codecs::Layout::blocks) {
        throw Error(ErrorKind::usage, codec + " is no codec of blocks");
    }
    if (shape.empty() || shape.back() == 0 || shape.back() % from.block_values != 0) {
        throw Error(ErrorKind::shape, "the last axis is no multiple of " +
                                          std::to_string(from.block_values) + ", " + codec +
                                          "'s block");
    }
    std::uint64_t rows = 1;
    for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) rows *= shape[axis];
    const std::uint64_t columns = shape.back();
    if ((blocks.flags() & py::array::c_style) == 0 ||
        static_cast<std::uint64_t>(blocks.nbytes()) != pipeline::bytes_of(from, rows * columns)) {
        throw Error(ErrorKind::shape, "the blocks' bytes do not match the shape");
    }
    py::array_t<float> values(std::vector<py::ssize_t>(shape.begin(), shape.end()));
    const auto* const data = static_cast<const std::byte*>(blocks.data());
    float* const out = values.mutable_data();
    const auto observe = watch_progress(progress);
    {
        const py::gil_scoped_release released;
        pipeline::decode_rows(from, data, rows, columns, out, threads, observe);
    }
    return values;
}

// The planes of an affine codec or of a transposed float, each as plain bytes.
py::list quantize_planes(const py::object& tensor, const std::string& codec, unsigned threads,
                         const py::object& progress,
                         const std::optional<py::array_t<float>>& importance, bool best) {
    const codecs::Codec& to = codec_named(codec);
    const HeldTensor held = view_tensor(tensor);
    const pipeline::RowView& view = held.view;
    if (view.rows() == 0 || view.columns() == 0 || view.columns() > pipeline::k_tile_values) {
        throw Error(ErrorKind::shape, "rows have " + std::to_string(view.columns()) +
                                          " columns, and " + codec + " takes 1 to " +
                                          std::to_string(pipeline::k_tile_values));
    }
    const float* weights = weights_of(importance, view.columns());
    py::list planes;
    std::vector<std::byte*> places;
    for (const codecs::Plane& plane : codecs::planes_of(to, view.rows(), view.columns())) {
        py::array_t<std::uint8_t> bytes(static_cast<py::ssize_t>(plane.bytes()));
        places.push_back(reinterpret_cast<std::byte*>(bytes.mutable_data()));
        planes.append(std::move(bytes));
    }
    const auto observe = watch_progress(progress);
    {
        const py::gil_scoped_release released;
        pipeline::encode_planes(view, to, {weights, best}, places, threads, observe);
    }
    return planes;
}

// The planes' bytes, once they are known to be as long as the codec says.
std::vector<const std::byte*> places_of(const std::vector<py::array>& planes,
                                        const codecs::Codec& codec, std::uint64_t rows,
                                        std::uint64_t columns) {
    if (rows == 0 || columns == 0 || columns > pipeline::k_tile_values) {
        throw Error(ErrorKind::shape, "the matrix is empty, or its rows are too long");
    }
    const codecs::Planes described = codecs::planes_of(codec, rows, columns);
    if (planes.size() != described.size()) {
        throw Error(ErrorKind::shape, std::string(codec.name) + " has " +
                                          std::to_string(described.size()) + " planes");
    }
    std::vector<const std::byte*> places;
    for (std::size_t i = 0; i < planes.size(); ++i) {
        if ((planes[i].flags() & py::array::c_style) == 0 ||
            static_cast<std::uint64_t>(planes[i].nbytes()) != described[i].bytes()) {
            throw Error(ErrorKind::shape, "a plane's bytes do not match the shape");
        }
        places.push_back(static_cast<const std::byte*>(planes[i].data()));
    }
    return places;
}

py::array_t<float> dequantize_planes(const std::vector<py::array>& planes, const std::string& codec,
                                     std::uint64_t rows, std::uint64_t columns, unsigned threads,
                                     const py::object& progress) {
    const codecs::Codec& from = codec_named(codec);
    const auto places = places_of(planes, from, rows, columns);
    py::array_t<float> values({static_cast<py::ssize_t>(rows), static_cast<py::ssize_t>(columns)});
    float* const out = values.mutable_data();
    const auto observe = watch_progress(progress);
    {
        const py::gil_scoped_release released;
        pipeline::decode_planes(from, places, rows, columns, out, threads, observe);
    }
    return values;
}

// (codes, scales, zero points or biases), an element each.
py::tuple unpack_planes(const std::vector<py::array>& planes, const std::string& codec,
                        std::uint64_t rows, std::uint64_t columns) {
    const codecs::Codec& from = codec_named(codec);
    if (!from.is_affine()) throw Error(ErrorKind::usage, codec + " has no codes");
    const auto places = places_of(planes, from, rows, columns);
    const auto height = static_cast<py::ssize_t>(rows);
    const auto groups = static_cast<py::ssize_t>(from.affine.groups_of(columns));
    const auto group = static_cast<py::ssize_t>(from.affine.group_of(columns));
    py::array_t<std::uint8_t> codes({height, groups * group});
    py::array_t<float> scales({height, groups}), zeros({height, groups});
    pipeline::unpack_planes(from, places, rows, columns,
                            {codes.mutable_data(), scales.mutable_data(), zeros.mutable_data()});
    return py::make_tuple(std::move(codes), std::move(scales), std::move(zeros));
}

// What a rule's kernel makes of rows: (codes, scales, zero points or biases). One thread, no checks
// of the values: what tests hold against the formats' tools.
py::tuple encode_affine(const std::string& codec,
                        const py::array_t<float, py::array::c_style>& values,
                        const std::optional<std::string>& arch,
                        const std::optional<py::array_t<float>>& importance, bool best) {
    const codecs::Codec& to = codec_named(codec);
    if (!to.is_affine() || values.ndim() != 2 || values.size() == 0) {
        throw Error(ErrorKind::shape, "expected an affine codec and a matrix");
    }
    const kernels::AffineKernel kernel =
        affine_kernel(arch ? kernels::by_name(*arch) : kernels::active(), to);
    const kernels::AffineEncode fit = best ? kernel.best : kernel.encode;
    if (fit == nullptr) throw Error(ErrorKind::unsupported, codec + " has no such encoder");
    const auto columns = static_cast<std::uint64_t>(values.shape(1));
    const auto groups = static_cast<py::ssize_t>(to.affine.groups_of(columns));
    const auto group = static_cast<py::ssize_t>(to.affine.group_of(columns));
    py::array_t<std::uint8_t> codes({values.shape(0), groups * group});
    py::array_t<float> scales({values.shape(0), groups}), zeros({values.shape(0), groups});
    fit(to.affine.of_rows(columns),
        {values.data(), static_cast<std::uint64_t>(values.shape(0)), columns,
         weights_of(importance, columns)},
        {codes.mutable_data(), scales.mutable_data(), zeros.mutable_data()});
    return py::make_tuple(std::move(codes), std::move(scales), std::move(zeros));
}

py::dict tensor_facts(const py::object& tensor) {
    const HeldTensor held = view_tensor(tensor);
    py::dict facts;
    facts["pointer"] = reinterpret_cast<std::uintptr_t>(held.view.data);
    facts["codec"] = held.view.codec->name;
    facts["shape"] = py::tuple(py::cast(held.view.shape));
    facts["strides"] = py::tuple(py::cast(held.view.strides));
    return facts;
}

}  // namespace

void bind_tensor(py::module_& module) {
    module.def("quantize", &quantize, py::arg("tensor"), py::arg("codec"), py::arg("threads"),
               py::arg("progress") = py::none(), py::arg("importance") = py::none(),
               py::arg("best") = false);
    module.def("dequantize", &dequantize, py::arg("blocks"), py::arg("codec"), py::arg("shape"),
               py::arg("threads"), py::arg("progress") = py::none());
    module.def("quantize_planes", &quantize_planes, py::arg("tensor"), py::arg("codec"),
               py::arg("threads"), py::arg("progress") = py::none(),
               py::arg("importance") = py::none(), py::arg("best") = false);
    module.def("dequantize_planes", &dequantize_planes, py::arg("planes"), py::arg("codec"),
               py::arg("rows"), py::arg("columns"), py::arg("threads"),
               py::arg("progress") = py::none());
    module.def("unpack_planes", &unpack_planes, py::arg("planes"), py::arg("codec"),
               py::arg("rows"), py::arg("columns"));
    module.def("encode_affine", &encode_affine, py::arg("codec"), py::arg("values").noconvert(),
               py::arg("arch") = py::none(), py::arg("importance") = py::none(),
               py::arg("best") = false);
    module.def("tensor_facts", &tensor_facts, py::arg("tensor"));
}

}  // namespace phiquant::bindings
