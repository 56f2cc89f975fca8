// What the parts of the extension module share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string_view>

#include "base/error.hpp"
#include "codecs/codec.hpp"

namespace phiquant::bindings {

void bind_codecs(pybind11::module_& module);
void bind_formats(pybind11::module_& module);
void bind_onnx(pybind11::module_& module);
void bind_tensor(pybind11::module_& module);
void bind_pipeline(pybind11::module_& module);

/// A codec by name; throws Error(usage) for an unknown one.
const codecs::Codec& codec_named(std::string_view name);

}  // namespace phiquant::bindings
