// Codecs that are made of their names: affine ones, and transposed floats.
#pragma once

#include <string_view>

#include "codecs/codec.hpp"

namespace phiquant::codecs {

/// The codec of such a name, or null.
const Codec* find_made(std::string_view name);

}  // namespace phiquant::codecs
