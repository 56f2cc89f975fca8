// Python sees the containers' headers as plain tuples, strings and NumPy arrays.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>

#include "base/error.hpp"
#include "bindings/bindings.hpp"
#include "formats/ggml_types.hpp"
#include "formats/gguf.hpp"
#include "formats/safetensors.hpp"
#include "formats/text.hpp"

namespace py = pybind11;

namespace phiquant::bindings {
namespace {

using namespace phiquant::formats;

/// The bytes of any contiguous buffer (bytes, mmap, memoryview, array), kept alive meanwhile.
class Buffer {
public:
    explicit Buffer(const py::object& source) {
        if (PyObject_GetBuffer(source.ptr(), &view_, PyBUF_SIMPLE) != 0) {
            throw py::error_already_set();
        }
    }
    ~Buffer() { PyBuffer_Release(&view_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    [[nodiscard]] std::span<const std::byte> bytes() const {
        return {static_cast<const std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
    }

private:
    Py_buffer view_{};
};

py::bytes as_bytes_object(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

template <class T>
py::tuple as_tuple(const std::vector<T>& items) {
    py::tuple out(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) out[i] = py::cast(items[i]);
    return out;
}

// --- GGUF values, C++ to Python ---

/// str where the bytes are UTF-8, else bytes: a vocabulary may hold tokens that are neither.
py::object text_or_bytes(const std::string& text) {
    if (find_bad_utf8(text)) return py::bytes(text);
    return py::str(text);
}

template <class T>
py::object to_python(const T& value) {
    return py::cast(value);
}
template <>
py::object to_python(const std::string& value) {
    return text_or_bytes(value);
}
template <>
py::object to_python(const GgufArray& array) {
    return std::visit(
        []<class T>(const std::vector<T>& items) -> py::object {
            if constexpr (std::is_same_v<T, std::string>) {
                py::list out(items.size());
                for (std::size_t i = 0; i < items.size(); ++i) out[i] = text_or_bytes(items[i]);
                return out;
            } else {
                py::array_t<T> out(static_cast<py::ssize_t>(items.size()));
                std::copy(items.begin(), items.end(), out.mutable_data());
                return out;
            }
        },
        array);
}

std::string type_name(const GgufValue& value) {
    if (const auto* array = std::get_if<GgufArray>(&value)) {
        return std::visit(
            []<class T>(const std::vector<T>&) {
                return "array:" + std::string(name_of(gguf_type_of<T>()));
            },
            *array);
    }
    return std::visit([]<class T>(const T&) { return std::string(name_of(gguf_type_of<T>())); },
                      value);
}

// --- Python to C++ ---

/// A str's UTF-8 bytes; nothing for other objects and for lone surrogates.
std::optional<std::string> utf8_of(py::handle text) {
    if (!PyUnicode_Check(text.ptr())) return std::nullopt;
    Py_ssize_t size = 0;
    const char* bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (bytes == nullptr) {
        PyErr_Clear();
        return std::nullopt;
    }
    return std::string(bytes, static_cast<std::size_t>(size));
}

[[noreturn]] void misuse(const std::string& key, GgufType type, py::handle value,
                         const std::string& why) {
    throw Error(ErrorKind::usage, "metadata key " + quoted(key) + ": " +
                                      shown(std::string(py::repr(value))) + " " + why + " " +
                                      std::string(name_of(type)));
}

/// A Python value as T, or Error(usage) when it is of another kind or out of T's range.
template <class T>
T from_python(py::handle value, const std::string& key) {
    constexpr GgufType type = gguf_type_of<T>();
    // NumPy's scalars answer item() with the Python number that they hold.
    py::object held = py::reinterpret_borrow<py::object>(value);
    if (!PyLong_Check(value.ptr()) && !PyFloat_CheckExact(value.ptr()) &&
        !PyUnicode_Check(value.ptr()) && !PyBytes_Check(value.ptr()) &&
        py::hasattr(value, "dtype") && py::hasattr(value, "item")) {
        held = value.attr("item")();
    }
    PyObject* raw = held.ptr();
    if constexpr (std::is_same_v<T, std::string>) {
        if (PyBytes_Check(raw)) return held.cast<std::string>();
        if (!PyUnicode_Check(raw)) misuse(key, type, value, "is no");
        if (auto text = utf8_of(held)) return *std::move(text);
        misuse(key, type, value, "has lone surrogates and is no");
    } else if constexpr (std::is_same_v<T, bool>) {
        if (!PyBool_Check(raw)) misuse(key, type, value, "is no");
        return raw == Py_True;
    } else if constexpr (std::is_floating_point_v<T>) {
        if (PyBool_Check(raw) || (!PyFloat_Check(raw) && !PyLong_Check(raw))) {
            misuse(key, type, value, "is no");
        }
        const double number = PyFloat_AsDouble(raw);
        if (number == -1.0 && PyErr_Occurred() != nullptr) {
            PyErr_Clear();
            misuse(key, type, value, "is out of the range of");
        }
        const T narrowed = static_cast<T>(number);
        if (std::isfinite(number) && !std::isfinite(narrowed)) {
            misuse(key, type, value, "is out of the range of");
        }
        return narrowed;
    } else {
        if (PyBool_Check(raw) || !PyLong_Check(raw)) misuse(key, type, value, "is no");
        bool fits = true;
        T number{};
        if constexpr (std::is_signed_v<T>) {
            int overflow = 0;
            const long long wide = PyLong_AsLongLongAndOverflow(raw, &overflow);
            fits = overflow == 0 && wide >= std::numeric_limits<T>::min() &&
                   wide <= std::numeric_limits<T>::max();
            number = static_cast<T>(wide);
        } else {
            const unsigned long long wide = PyLong_AsUnsignedLongLong(raw);
            if (PyErr_Occurred() != nullptr) {
                PyErr_Clear();
                fits = false;
            } else {
                fits = wide <= std::numeric_limits<T>::max();
                number = static_cast<T>(wide);
            }
        }
        if (!fits) misuse(key, type, value, "is out of the range of");
        return number;
    }
}

template <class T>
GgufArray array_from_python(py::handle value, const std::string& key) {
    std::vector<T> items;
    if constexpr (!std::is_same_v<T, std::string> && !std::is_same_v<T, bool>) {
        // The right NumPy array is copied whole: vocabularies have 200 000 scores.
        if (py::isinstance<py::array_t<T, py::array::c_style>>(value)) {
            const auto array = py::reinterpret_borrow<py::array_t<T, py::array::c_style>>(value);
            if (array.ndim() == 1) return std::vector<T>(array.data(), array.data() + array.size());
        }
    }
    // A string is a sequence of strings too, but never meant as one.
    if (PyUnicode_Check(value.ptr()) || PyBytes_Check(value.ptr()) ||
        PySequence_Check(value.ptr()) == 0) {
        misuse(key, gguf_type_of<T>(), value, "is no sequence of");
    }
    for (const py::handle item : py::iter(value)) items.push_back(from_python<T>(item, key));
    return items;
}

GgufValue value_from_python(const std::string& key, const std::string& name, py::handle value) {
    constexpr std::string_view prefix = "array:";
    const bool is_array = name.starts_with(prefix);
    const auto type = gguf_type_named(is_array ? name.substr(prefix.size()) : name);
    if (!type || *type == GgufType::array) {
        throw Error(ErrorKind::usage,
                    "metadata key " + quoted(key) + " has the unknown type " + quoted(name),
                    "Use uint8 ... uint64, int8 ... int64, float32, float64, bool, string, or one "
                    "of them after 'array:'.");
    }
    return with_gguf_type(*type, [&]<class T>(std::type_identity<T>) -> GgufValue {
        if (is_array) return array_from_python<T>(value, key);
        return GgufValue(std::in_place_type<T>, from_python<T>(value, key));
    });
}

// --- the bound functions ---

std::uint64_t header_length(const py::object& prefix, std::uint64_t file_size) {
    return safetensors_header_length(Buffer(prefix).bytes(), file_size);
}

py::tuple parse_safetensors(const py::object& header_json, std::uint64_t file_size) {
    const Buffer buffer(header_json);
    const SafetensorsHeader header = [&] {
        const py::gil_scoped_release released;
        return parse_safetensors_header(buffer.bytes(), file_size);
    }();
    py::list entries(header.entries.size());
    for (std::size_t i = 0; i < header.entries.size(); ++i) {
        const auto& entry = header.entries[i];
        entries[i] = py::make_tuple(entry.name, name_of(entry.dtype), as_tuple(entry.shape),
                                    entry.begin, entry.end);
    }
    py::dict metadata;
    for (const auto& [key, value] : header.metadata) metadata[py::str(key)] = py::str(value);
    return py::make_tuple(entries, metadata);
}

py::bytes write_safetensors(
    const std::vector<std::tuple<std::string, std::string, std::vector<std::uint64_t>>>& tensors,
    const py::dict& metadata) {
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, dtype, shape] : tensors) {
        const auto known = dtype_named(dtype);
        if (!known) {
            throw Error(ErrorKind::usage,
                        "tensor " + quoted(name) + " has the unknown dtype " + quoted(dtype));
        }
        entries.push_back({name, *known, shape, 0, 0});
    }
    SafetensorsMetadata pairs;
    for (const auto& [key, value] : metadata) {
        auto key_text = utf8_of(key), value_text = utf8_of(value);
        if (!key_text || !value_text) {
            throw Error(ErrorKind::usage, "safetensors metadata are pairs of UTF-8 strings, not " +
                                              shown(std::string(py::repr(key))) + ": " +
                                              shown(std::string(py::repr(value))));
        }
        pairs.emplace_back(*std::move(key_text), *std::move(value_text));
    }
    return as_bytes_object(write_safetensors_header(std::move(entries), pairs).header);
}

py::object parse_gguf_start(const py::object& start, std::uint64_t file_size) {
    const Buffer buffer(start);
    const auto header = [&] {
        const py::gil_scoped_release released;
        return try_parse_gguf(buffer.bytes(), file_size);
    }();
    if (!header) return py::none();
    py::list metadata(header->metadata.size());
    for (std::size_t i = 0; i < header->metadata.size(); ++i) {
        const auto& [key, value] = header->metadata[i];
        metadata[i] =
            py::make_tuple(key, type_name(value),
                           std::visit([](const auto& held) { return to_python(held); }, value));
    }
    py::list tensors(header->tensors.size());
    for (std::size_t i = 0; i < header->tensors.size(); ++i) {
        const auto& tensor = header->tensors[i];
        tensors[i] = py::make_tuple(tensor.name, as_tuple(tensor.dims), tensor.type, tensor.offset,
                                    tensor.bytes);
    }
    py::dict out;
    out["version"] = header->version;
    out["alignment"] = header->alignment;
    out["data_offset"] = header->data_offset;
    out["metadata"] = metadata;
    out["tensors"] = tensors;
    return out;
}

py::tuple write_gguf(
    const std::vector<std::tuple<std::string, std::string, py::object>>& metadata,
    const std::vector<std::tuple<std::string, std::vector<std::uint64_t>, std::uint32_t>>& tensors,
    std::uint64_t alignment) {
    std::vector<GgufEntry> entries;
    for (const auto& [key, type, value] : metadata) {
        entries.push_back({key, value_from_python(key, type, value)});
    }
    std::vector<GgufTensor> placed;
    for (const auto& [name, dims, type] : tensors) placed.push_back({name, dims, type, 0, 0});
    const GgufLayout layout = [&] {
        const py::gil_scoped_release released;
        return write_gguf_header(entries, std::move(placed), alignment);
    }();
    py::list offsets(layout.tensors.size());
    for (std::size_t i = 0; i < layout.tensors.size(); ++i) offsets[i] = layout.tensors[i].offset;
    return py::make_tuple(as_bytes_object(layout.header), offsets, layout.file_size);
}

}  // namespace

void bind_formats(py::module_& m) {
    m.def("safetensors_header_length", &header_length, py::arg("prefix"), py::arg("file_size"),
          "Bytes of JSON after a safetensors file's first 8, which ``prefix`` must hold.\n\n"
          "Raises FormatError when the file cannot be one: too short, a Git-LFS pointer, a web "
          "page.");
    m.def(
        "parse_safetensors", &parse_safetensors, py::arg("header"), py::arg("file_size"),
        "Check and read a safetensors header (the JSON after the first 8 bytes).\n\n"
        "Returns ([(name, dtype, shape, begin, end)], metadata): dtypes as in the file ('BF16'),\n"
        "begin and end in bytes from the file's start, tensors in the order of their data.\n"
        "Raises FormatError or UnsupportedError.");
    m.def("write_safetensors_header", &write_safetensors, py::arg("tensors"), py::arg("metadata"),
          "The first bytes (length, JSON, padding) of a safetensors file whose data stand in the\n"
          "order of ``tensors``, a list of (name, dtype, shape). Raises UsageError.");
    m.def(
        "parse_gguf", &parse_gguf_start, py::arg("start"), py::arg("file_size"),
        "Check and read a GGUF header from the file's start (or the whole, mapped file).\n\n"
        "Returns None when the header goes on past ``start``: call again with more. Else a dict:\n"
        "version, alignment, data_offset, metadata [(key, type, value)], tensors [(name, dims,\n"
        "ggml type id, offset, bytes)]; dims have the row's length first, offsets count from the\n"
        "file's start. Types are 'uint32', 'string', 'array:int32', ... Strings are str where "
        "they\n"
        "are UTF-8, else bytes; arrays of numbers are NumPy arrays, arrays of strings lists.\n"
        "Raises FormatError or UnsupportedError.");
    m.def("write_gguf_header", &write_gguf, py::arg("metadata"), py::arg("tensors"),
          py::arg("alignment") = k_gguf_default_alignment,
          "The first bytes of a GGUF file: (header, offset of each tensor, size of the file).\n\n"
          "``metadata`` is [(key, type, value)] as ``parse_gguf`` returns it, ``tensors`` is\n"
          "[(name, dims, ggml type id)]. The header ends where the data section starts; each\n"
          "tensor's data, the last one's too, are padded with zeros to the alignment.\n"
          "Raises UsageError, also for values out of their type's range.");
    m.def(
        "ggml_types",
        [] {
            py::list out;
            for (const auto& type : ggml_types()) {
                out.append(py::make_tuple(type.id, type.name, type.block_values, type.block_bytes));
            }
            return out;
        },
        "Every tensor type of GGUF: [(id, name, values a block, bytes a block)].");
    m.def(
        "safetensors_dtypes",
        [] {
            py::list out;
            for (const auto& facts : dtypes()) out.append(py::make_tuple(facts.name, facts.bytes));
            return out;
        },
        "Every dtype of safetensors that is read: [(name, bytes an element)].");
}

}  // namespace phiquant::bindings
