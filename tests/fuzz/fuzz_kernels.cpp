// Fuzz target: any numbers and any bytes through every codec, on every instruction set that this
// processor has. Encodings are the baseline's bytes or its refusal; decoded values its values.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "codecs/planes.hpp"
#include "kernels/dispatch.hpp"
#include "pipeline/stages.hpp"

namespace {

using namespace phiquant;
using namespace phiquant::pipeline;
using codecs::Codec;

/// Every type of blocks, and every affine grid and layout that some rule is built for.
std::vector<const Codec*> find_codecs() {
    std::vector<const Codec*> found;
    for (const Codec& codec : codecs::all()) found.push_back(&codec);
    const auto add = [&](const std::string& name) {
        const Codec* codec = codecs::find(name);
        if (codec != nullptr && affine_kernel(kernels::active(), *codec).encode != nullptr) {
            if (std::find(found.begin(), found.end(), codec) == found.end()) found.push_back(codec);
        }
    };
    for (const std::string scales : {"f32", "f16", "bf16"}) {
        for (const std::string rule : {"ort", "qdq", "nncf", "mlx", "ct", "portable"}) {
            for (const std::string layout : {"rows", "openvino", "mlx", "packed", "bytes",
                                             "transposed", "gptq", "gptq_v1", "awq"}) {
                const std::string options =
                    ",rule=" + rule + ",scales=" + scales + ",layout=" + layout;
                for (const std::string bits : {"2", "3", "4", "5", "6", "8"}) {
                    for (const std::string kind : {"_sym_", "_asym_"}) {
                        for (const std::string group : {"g16", "g32", "g128", "channel"}) {
                            add("int" + bits + kind + group + options);
                        }
                    }
                }
            }
        }
        for (const std::string mode : {"mxfp4", "mxfp8", "nvfp4"}) {
            add(mode + ",layout=mlx,scales=" + scales);
        }
        for (const std::string mode :
             {"fp8_channel", "mxfp4,layout=packed", "nvfp4,layout=packed"}) {
            add(mode + ",scales=" + scales);
        }
        // 2688 over a largest value of 0.05.
        add("nvfp4,layout=packed,scales=" + scales + ",global=47520800");
    }
    for (const std::string name :
         {"nf4_g32", "nf4_g64", "nf4_channel", "mxfp4,layout=openvino", "mxfp8,layout=openvino"}) {
        add(name);
    }
    return found;
}

/// The input's bytes, again and again.
class Bytes {
public:
    explicit Bytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
    std::uint8_t next() { return bytes_.empty() ? std::uint8_t{0} : bytes_[at_++ % bytes_.size()]; }
    float number() {
        std::uint32_t bits = 0;
        for (int i = 0; i < 4; ++i) bits = bits << 8 | next();
        // Infinities and NaNs are refused before kernels see them.
        if ((bits & 0x7f800000u) == 0x7f800000u) bits ^= 0x00800000u;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }

private:
    std::span<const std::uint8_t> bytes_;
    std::size_t at_ = 0;
};

[[noreturn]] void differ(const Codec& codec, const kernels::Table& table, const char* what) {
    std::cerr << codec.name << ": " << table.name << ' ' << what << " unlike the baseline\n";
    std::abort();
}

struct Matrix {
    std::uint64_t rows, columns;
};

/// Bytes of all planes, or the refusal's words.
std::string encoded(const kernels::Table& table, const Codec& codec, const float* values,
                    const Matrix& matrix, const Encoding& how, std::vector<float>& decoded) {
    const Tile tile{0, matrix.rows, 0, matrix.columns};
    const std::uint64_t count = matrix.rows * matrix.columns;
    Scratch scratch;
    try {
        if (!codec.is_affine()) {
            std::string blocks(bytes_of(codec, count), '\0');
            encode(table, codec, values, tile, how, reinterpret_cast<std::byte*>(blocks.data()),
                   scratch);
            decode(table, codec, reinterpret_cast<const std::byte*>(blocks.data()), count,
                   decoded.data());
            return blocks;
        }
        const codecs::Planes planes = planes_of(codec, matrix.rows, matrix.columns);
        const PlanePieces pieces = encode_planes(table, codec, planes, values, tile, how, scratch);
        std::string all;
        for (std::size_t i = 0; i < planes.size(); ++i) {
            all.append(reinterpret_cast<const char*>(pieces[i].data()), pieces[i].size());
        }
        decode_planes(table, codec, planes, pieces, matrix.rows, matrix.columns, scratch,
                      decoded.data());
        return all;
    } catch (const Error& error) {
        return "refused: " + error.cause();
    }
}

void check_encoding(const Codec& codec, const Matrix& matrix, bool best, bool weighted,
                    Bytes& bytes) {
    // Kernels read whole registers, but never past the values: ASan sees to that.
    std::vector<float> values(matrix.rows * matrix.columns), weights(matrix.columns);
    for (float& weight : weights) weight = std::min(std::fabs(bytes.number()), 0x1p60f);
    for (float& value : values) value = bytes.number();
    const Encoding how{weighted ? weights.data() : nullptr, best};
    std::optional<std::string> baseline;
    const auto tables = kernels::available();
    for (std::size_t i = tables.size(); i-- > 0;) {
        std::vector<float> decoded(values.size());
        const std::string made = encoded(*tables[i], codec, values.data(), matrix, how, decoded);
        if (!baseline) baseline = made;
        if (made != *baseline) differ(codec, *tables[i], "encodes");
        if (made.starts_with("refused: ")) continue;
        if (!std::all_of(decoded.begin(), decoded.end(),
                         [](float x) { return std::isfinite(x); })) {
            differ(codec, *tables[i], "kept what is not finite,");
        }
    }
}

void check_decoding(const Codec& codec, const Matrix& matrix, Bytes& bytes) {
    const std::uint64_t count = matrix.rows * matrix.columns;
    std::vector<std::byte> data;
    const auto fill = [&](std::uint64_t size) {
        data.resize(size);
        for (std::byte& byte : data) byte = std::byte{bytes.next()};
    };
    if (codec.is_affine()) {
        std::vector<std::vector<std::byte>> held;
        PlanePieces pieces;
        try {
            const codecs::Planes planes = planes_of(codec, matrix.rows, matrix.columns);
            for (std::size_t i = 0; i < planes.size(); ++i) {
                fill(planes[i].bytes());
                held.push_back(data);
            }
            for (std::size_t i = 0; i < planes.size(); ++i) pieces[i] = held[i];
            Scratch scratch;
            std::vector<float> out(count);
            decode_planes(kernels::active(), codec, planes, pieces, matrix.rows, matrix.columns,
                          scratch, out.data());
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::shape && error.kind() != ErrorKind::unsupported) throw;
        }
        return;
    }
    fill(bytes_of(codec, count));
    std::vector<float> baseline;
    const auto tables = kernels::available();
    for (std::size_t i = tables.size(); i-- > 0;) {
        std::vector<float> out(count);
        decode(*tables[i], codec, data.data(), count, out.data());
        if (baseline.empty()) baseline = out;
        for (std::size_t k = 0; k < count; ++k) {
            // Which operand's payload a NaN keeps is left to the instruction.
            const bool same = std::memcmp(&out[k], &baseline[k], sizeof(float)) == 0;
            if (!same && !(std::isnan(out[k]) && std::isnan(baseline[k]))) {
                differ(codec, *tables[i], "decodes");
            }
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::vector<const Codec*> codecs = find_codecs();
    if (size < 8) return 0;
    const Codec& codec = *codecs[(data[0] | std::size_t{data[1]} << 8) % codecs.size()];
    const bool decodes = (data[2] & 1) != 0, best = (data[2] & 2) != 0;
    const bool weighted = (data[2] & 4) != 0 || codec.needs_importance;
    Matrix matrix{1 + data[3] % 3u * 8u, 0};
    std::uint64_t unit = codec.block_values;
    if (codec.is_affine()) unit = codec.affine.group == 0 ? 32 : codec.affine.group;
    matrix.columns = unit * (1 + data[4] % 3u);
    // Only this layout fills up what is left of a group.
    if (codec.layout == codecs::Layout::rows) matrix.columns += data[5] % unit;
    const bool has_best = codec.is_affine()
                              ? affine_kernel(kernels::active(), codec).best != nullptr
                              : (kernels::active().*codec.kernel).best != nullptr;
    Bytes bytes({data + 6, size - 6});
    if (decodes) {
        check_decoding(codec, matrix, bytes);
    } else if (!best || has_best) {
        check_encoding(codec, matrix, best, weighted, bytes);
    }
    return 0;
}
