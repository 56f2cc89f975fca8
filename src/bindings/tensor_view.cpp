// Views of NumPy arrays (by pointer) and of DLPack capsules, old and versioned.
#include "bindings/tensor_view.hpp"

#include <string>
#include <utility>

#include "tensor/dlpack.hpp"

namespace py = pybind11;

namespace phiquant::bindings {
namespace {

[[noreturn]] void refuse(const std::string& cause, const std::string& remedy) {
    throw Error(ErrorKind::shape, cause, remedy);
}

const codecs::Codec& float_codec(const std::string& dtype) {
    const char* name = dtype == "float32"    ? "f32"
                       : dtype == "float16"  ? "f16"
                       : dtype == "bfloat16" ? "bf16"
                                             : nullptr;
    if (name == nullptr) {
        refuse("the tensor's dtype is " + dtype + "; float32, float16 and bfloat16 are read",
               "Convert it first, for example with .astype('float32').");
    }
    return *codecs::find(name);
}

void check_layout(const pipeline::RowView& view) {
    if (view.shape.empty()) refuse("the tensor has no axis", "Give it a shape of at least (n,).");
    for (const std::uint64_t extent : view.shape) {
        if (extent == 0) refuse("the tensor is empty", "Leave empty tensors out.");
    }
    const auto item = static_cast<std::int64_t>(view.codec->block_bytes);
    if (view.shape.back() > 1 && view.strides.back() != item) {
        refuse("the tensor's last axis has a stride of " + std::to_string(view.strides.back()) +
                   " bytes where its items have " + std::to_string(item),
               "Rows must stand contiguously: copy it with numpy.ascontiguousarray(w) or "
               "w.contiguous().");
    }
}

HeldTensor view_array(const py::array& array) {
    const py::dtype dtype = array.dtype();
    const auto name = py::str(dtype.attr("name")).cast<std::string>();
    if (!dtype.attr("isnative").cast<bool>()) {
        refuse("the array's byte order is not this machine's",
               "Convert it first: w.astype(w.dtype.newbyteorder('=')).");
    }
    if (py::hasattr(array, "mask")) {
        refuse("the array is masked, and blocks hold no mask", "Fill it first: w.filled(0).");
    }
    HeldTensor held;
    held.view.codec = &float_codec(name);
    held.view.data = static_cast<const std::byte*>(array.data());
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
        held.view.shape.push_back(static_cast<std::uint64_t>(array.shape(axis)));
        held.view.strides.push_back(array.strides(axis));
    }
    held.owner = std::make_shared<py::object>(array);
    check_layout(held.view);
    return held;
}

std::string dtype_name(dlpack::DataType dtype) {
    if (dtype.lanes == 1) {
        const std::string bits = std::to_string(dtype.bits);
        switch (dtype.code) {
            case dlpack::k_float:
                return "float" + bits;
            case dlpack::k_bfloat:
                return "bfloat" + bits;
            case dlpack::k_int:
                return "int" + bits;
            case dlpack::k_uint:
                return "uint" + bits;
            default:
                break;
        }
    }
    return "DLPack type code " + std::to_string(dtype.code) + " of " + std::to_string(dtype.bits) +
           " bits in " + std::to_string(dtype.lanes) + " lanes";
}

void fill_view(const dlpack::Tensor& tensor, pipeline::RowView& view) {
    if (tensor.device.type != static_cast<std::int32_t>(dlpack::k_cpu)) {
        refuse("the tensor lies on another device (DLPack device type " +
                   std::to_string(tensor.device.type) + ")",
               "Bring it to the CPU first, for example with w.cpu().");
    }
    view.codec = &float_codec(dtype_name(tensor.dtype));
    view.data = static_cast<const std::byte*>(tensor.data) + tensor.byte_offset;
    if (tensor.dimensions < 0 || tensor.dimensions > 64) {
        refuse("the DLPack tensor has " + std::to_string(tensor.dimensions) + " axes", "");
    }
    const auto item = static_cast<std::int64_t>(view.codec->block_bytes);
    std::int64_t packed = item;
    const auto axes = static_cast<std::size_t>(tensor.dimensions);
    view.shape.resize(axes);
    view.strides.resize(axes);
    for (std::size_t axis = axes; axis-- > 0;) {
        const std::int64_t extent = tensor.shape[axis];
        if (extent < 0) refuse("the DLPack tensor has a negative extent", "");
        view.shape[axis] = static_cast<std::uint64_t>(extent);
        view.strides[axis] = tensor.strides != nullptr ? tensor.strides[axis] * item : packed;
        packed *= extent;
    }
}

// Take the capsule's tensor over: from now on its deleter is ours to call.
template <class Managed>
HeldTensor consume(const py::object& capsule, Managed* managed, const char* used) {
    if (PyCapsule_SetName(capsule.ptr(), used) != 0) throw py::error_already_set();
    HeldTensor held;
    held.owner = std::shared_ptr<void>(managed, [](void* pointer) {
        auto* const mine = static_cast<Managed*>(pointer);
        if (mine->deleter == nullptr) return;
        const py::gil_scoped_acquire acquired;  // producers may be Python objects
        mine->deleter(mine);
    });
    fill_view(managed->tensor, held.view);
    check_layout(held.view);
    return held;
}

// Producers refuse with classes of their own choice (PyTorch: a tensor that requires gradients, or
// a sparse one); phiquant's callers get phiquant's.
[[noreturn]] void refuse_export(const py::error_already_set& error) {
    if (!error.matches(PyExc_BufferError) && !error.matches(PyExc_RuntimeError) &&
        !error.matches(PyExc_ValueError)) {
        throw;
    }
    refuse("the tensor's own __dlpack__ refused: " + py::str(error.value()).cast<std::string>(),
           "Pass a dense tensor on the CPU, without gradients: w.detach().cpu().");
}

py::object capsule_of(const py::object& tensor) {
    using namespace py::literals;
    const py::object method = tensor.attr("__dlpack__");
    try {
        return method("max_version"_a = py::make_tuple(dlpack::k_major, 1), "copy"_a = false);
    } catch (const py::error_already_set& error) {
        // Producers from before DLPack 1.0 know neither argument.
        if (!error.matches(PyExc_TypeError)) refuse_export(error);
    }
    try {
        return method();
    } catch (const py::error_already_set& error) {
        refuse_export(error);
    }
}

HeldTensor view_dlpack(const py::object& tensor) {
    const bool is_capsule = PyCapsule_CheckExact(tensor.ptr()) != 0;
    const py::object capsule = is_capsule ? tensor : capsule_of(tensor);
    PyObject* const raw = capsule.ptr();
    if (PyCapsule_IsValid(raw, dlpack::k_capsule_versioned) != 0) {
        auto* const managed = static_cast<dlpack::ManagedTensorVersioned*>(
            PyCapsule_GetPointer(raw, dlpack::k_capsule_versioned));
        if (managed->version.major != dlpack::k_major) {
            refuse("the tensor speaks DLPack " + std::to_string(managed->version.major) +
                       "; phiquant reads version 1",
                   "Pass it as a NumPy array.");
        }
        return consume(capsule, managed, dlpack::k_capsule_versioned_used);
    }
    if (PyCapsule_IsValid(raw, dlpack::k_capsule) != 0) {
        auto* const managed =
            static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(raw, dlpack::k_capsule));
        return consume(capsule, managed, dlpack::k_capsule_used);
    }
    refuse("the DLPack capsule was used already, or is none", "Call __dlpack__() once more.");
}

}  // namespace

HeldTensor view_tensor(const py::object& tensor) {
    if (py::isinstance<py::array>(tensor))
        return view_array(py::reinterpret_borrow<py::array>(tensor));
    if (PyCapsule_CheckExact(tensor.ptr()) != 0 || py::hasattr(tensor, "__dlpack__")) {
        return view_dlpack(tensor);
    }
    const auto type = py::str(py::type::of(tensor).attr("__name__")).cast<std::string>();
    refuse("expected a NumPy array or a tensor with __dlpack__, got " + type,
           "numpy.asarray(w, dtype='float32') makes one.");
}

}  // namespace phiquant::bindings
