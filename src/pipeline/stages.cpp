// Decode, check, encode and measure one tile.
#include "pipeline/stages.hpp"

#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/error.hpp"

namespace phiquant::pipeline {
namespace {

std::string index_of(const Tile& at, std::uint64_t index) {
    return "[" + std::to_string(at.row + index / at.columns) + ", " +
           std::to_string(at.column + index % at.columns) + "]";
}

std::string text_of(float value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "infinity" : "-infinity";
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
    return text;
}

// The value to blame where one beyond the codec's bound did not survive, else `count`. A scale that
// overflows shows as an infinity or a NaN anywhere in the block; a fit whose sums overflow may
// also have fallen back to zeros, which ggml writes without a word.
std::uint64_t find_lost(const codecs::Codec& codec, const float* values, const float* decoded,
                        std::uint64_t first, std::uint64_t count) {
    const std::uint64_t block = codec.block_values;
    for (std::uint64_t begin = first / block * block; begin < count; begin += block) {
        std::uint64_t largest = begin;
        bool finite = true;
        for (std::uint64_t i = begin; i < begin + block; ++i) {
            if (std::fabs(values[i]) > std::fabs(values[largest])) largest = i;
            finite = finite && std::isfinite(decoded[i]);
        }
        // Every codec keeps a block's largest value far better than this.
        const float value = values[largest];
        const bool kept = std::fabs(value) <= codec.largest ||
                          std::fabs(decoded[largest] - value) <= std::fabs(value) / 2;
        if (!finite || !kept) return largest;
    }
    return count;
}

}  // namespace

Scratch::Scratch()
    : source_(new std::byte[4 * k_tile_values]),
      codes_(new std::byte[4 * k_tile_values]),
      values_(new float[k_tile_values]),
      decoded_(new float[k_tile_values]) {}

void decode(const kernels::Table& table, const codecs::Codec& codec, const std::byte* blocks,
            std::uint64_t values, float* out) noexcept {
    (table.*codec.kernel).decode(&blocks, values, out);
}

void check_finite(const kernels::Table& table, const float* values, const Tile& at) {
    const std::uint64_t bad = table.find_exceeding(values, at.values(), FLT_MAX);
    if (bad == at.values()) return;
    throw Error(ErrorKind::value, "holds " + text_of(values[bad]) + " at " + index_of(at, bad),
                "The weights are damaged (a training run that diverged, or a bad download): fetch "
                "or train them again.");
}

void encode(const kernels::Table& table, const codecs::Codec& codec, const float* values,
            const Tile& at, const Encoding& how, std::byte* blocks, Scratch& scratch) {
    if (codec.needs_importance && how.importance == nullptr) {
        throw Error(ErrorKind::usage,
                    std::string(codec.name) + " cannot be encoded without an importance",
                    "Choose another codec, or give it one: a weight for each column.");
    }
    const std::uint64_t count = at.values();
    // One scan in the usual case: whoever is below the codec's bound is finite, too.
    const std::uint64_t large = table.find_exceeding(values, count, codec.largest);
    if (large != count) check_finite(table, values, at);
    const kernels::Kernel& kernel = table.*codec.kernel;
    const kernels::Encode fit = how.best ? kernel.best : kernel.encode;
    if (fit == nullptr) {
        throw Error(ErrorKind::unsupported, std::string(codec.name) + " has no best quality");
    }
    fit({values, at.rows, at.columns, how.importance}, &blocks);
    if (large == count) return;
    decode(table, codec, blocks, count, scratch.decoded());
    const std::uint64_t bad = find_lost(codec, values, scratch.decoded(), large, count);
    if (bad == count) return;
    throw Error(ErrorKind::value,
                "holds " + text_of(values[bad]) + " at " + index_of(at, bad) + ", which " +
                    std::string(codec.name) + " cannot hold",
                "Choose a codec with a larger range for this tensor: bf16 or f32.");
}

ErrorSums error_sums(const kernels::Table& table, const float* values, const float* decoded,
                     std::uint64_t count) noexcept {
    ErrorSums sums;
    table.squared_sums(values, decoded, count, &sums.error, &sums.signal);
    return sums;
}

}  // namespace phiquant::pipeline
