// Quantizing and decoding tensors in memory.
#include <optional>

#include "bindings/tensor_view.hpp"
#include "bindings/watch.hpp"
#include "pipeline/memory.hpp"
#include "pipeline/stages.hpp"

namespace py = pybind11;

namespace phiquant::bindings {
namespace {

py::array_t<std::uint8_t> quantize(const py::object& tensor, const std::string& codec,
                                   unsigned threads, const py::object& progress,
                                   const std::optional<py::array_t<float>>& importance, bool best) {
    const codecs::Codec& to = codec_named(codec);
    const HeldTensor held = view_tensor(tensor);
    const pipeline::RowView& view = held.view;
    if (view.columns() % to.block_values != 0) {
        throw Error(ErrorKind::shape,
                    "rows have " + std::to_string(view.columns()) + " columns, and " + codec +
                        " takes multiples of " + std::to_string(to.block_values),
                    "Choose a codec with a smaller block: q8_0 takes multiples of 32, f16 any.");
    }
    const float* weights = nullptr;
    if (importance) {
        if (importance->ndim() != 1 || (importance->flags() & py::array::c_style) == 0 ||
            static_cast<std::uint64_t>(importance->shape(0)) != view.columns() ||
            view.columns() > pipeline::k_tile_values) {
            throw Error(ErrorKind::shape, "importance must be one weight for each of the " +
                                              std::to_string(view.columns()) + " columns");
        }
        weights = importance->data();
    }
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
    module.def("tensor_facts", &tensor_facts, py::arg("tensor"));
}

}  // namespace phiquant::bindings
