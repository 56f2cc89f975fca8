// The extension module phiquant._core: one function an area, and the mapping of errors.
#include "bindings/bindings.hpp"

namespace py = pybind11;

namespace phiquant::bindings {
namespace {

const char* class_of(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::usage:
            return "UsageError";
        case ErrorKind::format:
            return "FormatError";
        case ErrorKind::unsupported:
            return "UnsupportedError";
        case ErrorKind::shape:
            return "ShapeError";
        case ErrorKind::value:
            return "ValueRangeError";
        case ErrorKind::io:
            return "IoError";
        case ErrorKind::changed:
            return "ChangedError";
        case ErrorKind::internal:
        case ErrorKind::cancelled:
            break;
    }
    return "InternalError";
}

py::object decoded(const std::string& text) {
    if (text.empty()) return py::none();
    // Names come from files: what is not UTF-8 is shown, not refused.
    PyObject* object =
        PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace");
    if (object == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(object);
}

void raise(const Error& error) {
    const py::object type = py::module_::import("phiquant.errors").attr(class_of(error.kind()));
    const py::object value = type(decoded(error.cause()), py::arg("file") = decoded(error.file()),
                                  py::arg("tensor") = decoded(error.tensor()),
                                  py::arg("remedy") = decoded(error.remedy()));
    PyErr_SetObject(type.ptr(), value.ptr());
}

}  // namespace
}  // namespace phiquant::bindings

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
    module.doc() = "The C++ core of phiquant. Private: use the package's own names.";
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const phiquant::Error& error) {
            phiquant::bindings::raise(error);
        }
    });
    module.attr("version") = PHIQUANT_VERSION;
    phiquant::bindings::bind_codecs(module);
    phiquant::bindings::bind_formats(module);
    phiquant::bindings::bind_onnx(module);
    phiquant::bindings::bind_tensor(module);
    phiquant::bindings::bind_pipeline(module);
}
