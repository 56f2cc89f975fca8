// How scales and biases are stored: what sizes of planes and their packing both need to know.
#pragma once

#include <cstdint>

#include "codecs/codec.hpp"

namespace phiquant::codecs {

/// How a scale or bias is stored.
enum class Stored : std::uint8_t { f32, f16, bf16, e8m0, e4m3 };

inline Stored stored(const Affine& affine) noexcept {
    const bool small_floats = affine.levels == Levels::e2m1 || affine.levels == Levels::e4m3;
    if (small_floats && affine.group != 0) {
        return affine.group == 16 ? Stored::e4m3 : Stored::e8m0;
    }
    switch (affine.scale) {
        case kernels::AffineScale::f16:
            return Stored::f16;
        case kernels::AffineScale::bf16:
            return Stored::bf16;
        case kernels::AffineScale::f32:
            break;
    }
    return Stored::f32;
}

/// Bits of one.
inline unsigned scale_bits(const Affine& affine) noexcept {
    switch (stored(affine)) {
        case Stored::f32:
            return 32;
        case Stored::f16:
        case Stored::bf16:
            return 16;
        default:
            return 8;
    }
}

}  // namespace phiquant::codecs
